"""What sleep and wake ask of the driver, for a program whose memory all lies in one region.

    python benchmarks/sleep_cost.py run.npz other.npz

Each recording is replayed on a modelled device up to its peak, inside a region. Then the region sleeps and wakes, and
nothing is copied: copies take what the bus takes. Beside it stand two other ways of giving the same live tensors back
at the same moment: a cudaMalloc and cudaFree for each tensor, which changes addresses, and a handle of its own for each
tensor, unmapped and mapped again at the same address. Times are modelled by the default price list, for a GiB that
sleeps and wakes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from give_back import up_to_the_peak

from poolalloc import _core
from poolalloc._internal import price_lists
from poolalloc._internal.driver_work import DriverWork, less
from poolalloc.analysis.trace import read

PAGE = _core.PAGE_BYTES
GIB = 1 << 30


def of_tensors(sizes: list[int], make: tuple[str, ...]) -> dict[str, int]:
    """The work of these calls for each tensor, in handles of whole pages."""
    pages = sum(-(-size // PAGE) for size in sizes)
    work: dict[str, int] = {}
    for call in make:
        work |= {call: len(sizes), f"{call}_pages": pages}
    return work


def row(path: Path, growth: str) -> list[str]:
    """The cells of one recording."""
    engine = _core.Engine(f"growth:{growth}", {"memory_bytes": 80 << 30})
    engine.enter_region("all")
    live = up_to_the_peak(read(path), engine)
    engine.leave_region()
    engine.advance(1 << 20)
    sizes = [size for _, size in live.values()]
    awake = engine.stats()
    engine.sleep(["all"], "nothing")
    asleep = engine.stats()
    engine.wake(["all"])
    woken = engine.stats()
    gib = asleep["asleep"] / GIB
    prices = price_lists.find()

    def time(work: dict[str, int]) -> str:
        total = DriverWork(work).price(prices).total
        low, high = (f"{1e3 * seconds / gib:.2f}" for seconds in (total.low, total.high))
        return f"{low} ms" if low == high else f"{low} - {high} ms"

    down = less(asleep["driver_work"], awake["driver_work"])
    up = less(woken["driver_work"], asleep["driver_work"])
    return [
        f"{gib:.2f} GiB in {len(sizes):,} tensors",
        f"{sum(count for kind, count in (down | up).items() if not kind.endswith('_pages')) / gib:.1f}",
        time(down),
        time(up),
        time(of_tensors(sizes, ("allocate_segment", "free_segment"))),
        time(of_tensors(sizes, ("create", "map", "allow_access", "unmap", "destroy"))),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--growth", default="balanced")
    arguments = parser.parse_args()
    heads = (
        "program",
        "asleep",
        "handles handled a GiB",
        "sleep",
        "wake",
        "cudaMalloc + cudaFree each",
        "a handle each",
    )
    print("| " + " | ".join(heads) + " |")
    print("| --- |" + " --- |" * (len(heads) - 1))
    for path in arguments.recordings:
        print(f"| `{path.stem}` | " + " | ".join(row(path, arguments.growth)) + " |", flush=True)


if __name__ == "__main__":
    main()
