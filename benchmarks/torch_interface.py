"""What allocate + free costs through torch's own interface: poolalloc against the built-in allocator, as ratios.

    python benchmarks/torch_interface.py            # on a simulated GPU
    python benchmarks/torch_interface.py --real     # on the GPU of this machine

Each allocator runs in processes of its own, in turns, so that what else the machine does falls on both. Time is that of
the thread on a processor, and the figure of a case is the median of its rounds. The ratio is the result: nanoseconds
belong to one machine and one moment.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LOOPS = Path(__file__).with_suffix(".cpp")
MIB = 1 << 20
SIZES = 4096


def mixed_sizes(low: int, high: int) -> list[int]:
    """Sizes spread evenly over the powers of two between `low` and `high` bytes; the same in every process."""
    chance = random.Random(1)
    return [int(low * (high / low) ** chance.random()) for _ in range(SIZES)]


def compile_loops(folder: Path) -> Path:
    """Compile the C++ loops against the installed torch, as the bridge is."""
    import torch

    from poolalloc import _bridge

    result = folder / "loops.so"
    command = [word for word in _bridge.plan(torch).command if word != "-DNDEBUG"]
    subprocess.run([*command, "-o", str(result)], input=LOOPS.read_text(), text=True, check=True)
    return result


def child(allocator: str, loops: str, pairs: int) -> dict[str, float]:
    """One process: nanoseconds a pair, by case."""
    import torch

    if allocator == "poolalloc":
        import poolalloc

        assert poolalloc.install(bridge=True).backend == "bridge"
    else:
        assert torch.cuda.get_allocator_backend() == "native"
    torch.cuda.init()
    library = ctypes.CDLL(loops)
    library.same_size.restype = library.mixed.restype = ctypes.c_double

    def mixed(low: int, high: int, live: int) -> float:
        sizes = (ctypes.c_int64 * SIZES)(*mixed_sizes(low, high))
        run = [library.mixed(sizes, ctypes.c_int64(SIZES), ctypes.c_int64(live), ctypes.c_int64(pairs)) for _ in (0, 1)]
        return float(run[1])  # the first warms up

    def same(size: int) -> float:
        return [float(library.same_size(ctypes.c_int64(size), ctypes.c_int64(pairs))) for _ in (0, 1)][1]

    def empty(size: int) -> float:
        count = max(1, pairs // 10)
        for _ in range(count // 10):
            torch.empty(size, dtype=torch.uint8, device="cuda")
        started = time.thread_time_ns()
        for _ in range(count):
            torch.empty(size, dtype=torch.uint8, device="cuda")
        return (time.thread_time_ns() - started) / count

    return {
        "allocate, one size of 1 KiB": same(1024),
        "allocate, one size of 8 MiB": same(8 * MIB),
        "raw_alloc, 512 B - 1 MiB, 256 live": mixed(512, MIB, 256),
        "raw_alloc, 512 B - 1 MiB, 4,096 live": mixed(512, MIB, 4096),
        "raw_alloc, 512 B - 64 MiB, 1,024 live": mixed(512, 64 * MIB, 1024),
        "torch.empty, 1 KiB": empty(1024),
        "torch.empty, 8 MiB": empty(8 * MIB),
    }


def measure(rounds: int, pairs: int, real: bool) -> dict[str, dict[str, list[float]]]:
    """case -> allocator -> nanoseconds of each round."""
    from poolalloc.sim import sim_environment

    environment = dict(os.environ) if real else sim_environment(quiet=True)
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        loops = compile_loops(Path(folder))
        for turn in range(rounds):
            for allocator in ("built-in", "poolalloc")[:: 1 if turn % 2 == 0 else -1]:
                command = [sys.executable, __file__, "--child", allocator, str(loops), "--pairs", str(pairs)]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
                for case, nanoseconds in figures.items():
                    results.setdefault(case, {}).setdefault(allocator, []).append(nanoseconds)
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=200_000, help="allocate + free pairs a case")
    parser.add_argument("--real", action="store_true", help="the GPU of this machine, not a simulated one")
    parser.add_argument("--json", action="store_true", help="print every round as JSON")
    parser.add_argument("--child", nargs=2, metavar=("ALLOCATOR", "LOOPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(*arguments.child, arguments.pairs)))
        return
    results = measure(arguments.rounds, arguments.pairs, arguments.real)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{'nanoseconds a pair, medians':40} {'built-in':>10} {'poolalloc':>10} {'ratio':>7}")
    for case, rounds in results.items():
        builtin, own = (statistics.median(rounds[name]) for name in ("built-in", "poolalloc"))
        print(f"{case:40} {builtin:10.1f} {own:10.1f} {own / builtin:7.3f}")


if __name__ == "__main__":
    main()
