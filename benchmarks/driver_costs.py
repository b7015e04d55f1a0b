"""Measures what driver calls take on a GPU of this machine, and writes the price list for modelled times.

    python benchmarks/driver_costs.py                  # benchmarks/results/driver-costs/measured-DEVICE.json
    python benchmarks/driver_costs.py -o costs.json    # poolalloc replay run.npz --costs costs.json
    python benchmarks/driver_costs.py --busy           # while kernels run without a pause; writes nothing

Needs poolalloc and a driver; only --busy uses torch. A call that takes as long as the kernels under way, in the lines
of --busy, waits for the device. It works on a simulated GPU too
(`poolalloc sim -- python benchmarks/driver_costs.py`), and the list says that it tells nothing about a device.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from poolalloc.analysis import costs
from poolalloc.errors import PoolallocError

FOLDER = Path(__file__).parent / "results" / "driver-costs"


@contextlib.contextmanager
def busy(device: int) -> Iterator[None]:
    """Keep the device at work, with kernels of some milliseconds, two of them waiting at any time."""
    import torch

    with torch.cuda.device(device):
        size = 8192
        left, right, out = (torch.ones(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(3))

        def batch() -> torch.cuda.Event:
            for _ in range(4):
                torch.mm(left, right, out=out)
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

        batch().synchronize()
        begin, end = batch(), batch()
        end.synchronize()
        print(f"kernels under way take {begin.elapsed_time(end) * 1000:.0f} us in a row of 4")
        stop, started = threading.Event(), threading.Event()

        def keep_busy() -> None:
            torch.cuda.set_device(device)
            under_way = [batch(), batch()]
            started.set()
            while not stop.is_set():
                under_way.append(batch())
                under_way.pop(0).synchronize()

        thread = threading.Thread(target=keep_busy)
        thread.start()
        try:
            started.wait()
            yield
        finally:
            stop.set()
            thread.join()
            torch.cuda.synchronize()


def main() -> int:
    """Measure, print and write; the exit code is 2 where there is nothing to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="the file to write")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=40, help="of some 300 calls each")
    parser.add_argument("--busy", action="store_true", help="while kernels run; prints only")
    asked = parser.parse_args()
    try:
        with busy(asked.device) if asked.busy else contextlib.nullcontext():
            measured = costs.measure(asked.device, asked.rounds)
    except (PoolallocError, RuntimeError) as error:
        print(f"driver_costs: {error}", file=sys.stderr)
        return 2
    prices = measured.prices
    print(f"{prices.device}: {prices.label}; {'while kernels ran' if asked.busy else prices.about}")
    print(f"  {'call, microseconds':<58} {'10th':>10} {'median':>10} {'90th':>10}")
    for kind, cases in measured.cases.items():
        for what, percentiles in cases.items():
            print(f"  {f'{kind}, {what}':<58} " + " ".join(f"{each:10.2f}" for each in percentiles))
    if asked.busy:
        return 0
    output = asked.output or FOLDER / f"{prices.name}.json"
    output.write_text(prices.to_file(), encoding="utf-8")
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
