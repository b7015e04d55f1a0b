"""What a call costs: every budget of the design that concerns time, poolalloc against torch's own allocator in one run.

    python benchmarks/hot_path.py                        # on a simulated GPU
    python benchmarks/hot_path.py --real                 # on the GPU of this machine
    python benchmarks/hot_path.py --json hot_path.json   # every round of every case, too

Both allocators are called through the C++ interface that torch itself calls (hot_path.cpp). Each runs in processes of
its own, in turns, so that what else the machine does falls on both. Time is that of the thread on a processor; the
figure of a case is the median of its rounds. The ratios are the result: nanoseconds belong to one machine and one
moment. Statistics are on throughout, since they cannot be switched off.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOPS = Path(__file__).with_suffix(".cpp")
KIB = 1 << 10
MIB = 1 << 20
SIZES = 4093  # a prime: no place sees the same size in every pass
OWN, BUILT_IN = "poolalloc", "built-in"
MANY_DEVICES = 8

ALL, DEVICES, EXACT = KINDS = ("all", "many-devices", "exact-bins")
"""Processes, by what they run."""

Figures = dict[str, dict[str, float]]
"""Case -> allocator -> the median of its rounds."""
Rounds = dict[str, dict[str, list[float]]]
"""Case -> allocator -> the figure of each round."""


@dataclass(frozen=True)
class Line:
    """One line of the result: a figure made of the cases, and the budget it must keep."""

    what: str
    figure: Callable[[Figures], float]
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    def met(self, value: float | None) -> bool | None:
        """Whether the budget is kept; None where there is none, or no figure."""
        if value is None or (self.at_most is None and self.at_least is None):
            return None
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)

    def value(self, figures: Figures) -> float | None:
        """The figure; None where a process that would have measured it failed."""
        try:
            return self.figure(figures)
        except KeyError:
            return None

    def budget(self) -> str:
        """The budget in a few characters."""
        if self.at_most is not None:
            return f"<= {self.at_most:.4g}"
        return "" if self.at_least is None else f">= {self.at_least:.4g}"


def _ratio(case: str) -> Callable[[Figures], float]:
    return lambda figures: figures[case][OWN] / figures[case][BUILT_IN]


def _own(case: str) -> Callable[[Figures], float]:
    return lambda figures: figures[case][OWN]


ONE_SIZE = "allocate + free of 1 KiB"
ONE_LARGE = "allocate + free of 8 MiB"
ONE_OF_MANY = f"allocate + free of 1 KiB, {MANY_DEVICES} devices visible"
SMALL = "512 B - 1 MiB, 4,096 live"
MIXED = "512 B - 64 MiB, 4,096 live"
REPEATED = "37 sizes of 1 - 64 MiB, 512 live"
EXACT_SIZES = f"{REPEATED}, exact bins"
ONE_THREAD = "1 KiB, one thread on a stream of its own"
TWO_THREADS = "1 KiB, two threads on two streams"
FEW, MANY = "512 B - 4 KiB, 1,000 live", "512 B - 4 KiB, 1,000,000 live"
EMPTY, EMPTY_LARGE = "torch.empty of 1 KiB", "torch.empty of 8 MiB"
READING = "reading the statistics"
METADATA, METADATA_SHARE = "metadata a live block, 102,325 live", "metadata, 512 B - 64 MiB"
DRIVER_CALLS = f"driver calls a pair, {MIXED}"


def _threads_gain(figures: Figures) -> float:
    return 2 * figures[ONE_THREAD][OWN] / figures[TWO_THREADS][OWN]


def _growth(order: str) -> Callable[[Figures], float]:
    return lambda figures: figures[MANY + order][OWN] / figures[FEW + order][OWN]


OLDEST, ANY = ", oldest first", ", in mixed order"

LINES = [
    Line(ONE_SIZE, _ratio(ONE_SIZE), "x built-in", at_most=1 / 8),
    Line(ONE_SIZE, _own(ONE_SIZE), "ns", at_most=30),
    Line(ONE_LARGE, _ratio(ONE_LARGE), "x built-in", at_most=1 / 8),
    Line(ONE_OF_MANY, _ratio(ONE_OF_MANY), "x built-in", at_most=1 / 8),
    Line(SMALL, _ratio(SMALL), "x built-in", at_most=1 / 6),
    Line(MIXED, _ratio(MIXED), "x built-in", at_most=1 / 6),
    Line(MIXED, _own(MIXED), "ns", at_most=60),
    Line(DRIVER_CALLS, _own(DRIVER_CALLS), "calls"),
    Line(REPEATED, _ratio(REPEATED), "x built-in"),
    Line(EXACT_SIZES, lambda figures: figures[EXACT_SIZES][OWN] / figures[REPEATED][BUILT_IN], "x built-in"),
    Line("two threads on two streams", _threads_gain, "x one thread's rate", at_least=1.9),
    Line("1,000 -> 1,000,000 live" + OLDEST, _growth(OLDEST), "x the cost", at_most=1.5),
    Line("1,000 -> 1,000,000 live" + ANY, _growth(ANY), "x the cost"),
    Line(EMPTY, _ratio(EMPTY), "x built-in", at_most=0.75),
    Line(EMPTY_LARGE, _ratio(EMPTY_LARGE), "x built-in", at_most=0.75),
    Line(READING, _own(READING), "ns", at_most=5000),
    Line(METADATA, _own(METADATA), "bytes", at_most=64),
    Line(METADATA_SHARE, _own(METADATA_SHARE), "of reserved", at_most=0.001),
]


def mixed_sizes(low: int, high: int, count: int = SIZES) -> list[int]:
    """Sizes spread evenly over the powers of two between `low` and `high` bytes; the same in every process."""
    chance = random.Random(1)
    return [int(low * (high / low) ** chance.random()) for _ in range(count)]


FEW_SIZES = mixed_sizes(MIB, 64 * MIB, 37)


def compile_loops(folder: Path) -> Path:
    """Compile the C++ loops against the installed torch, as the bridge is."""
    import torch

    from poolalloc._internal import bridge

    result = folder / "loops.so"
    command = [word for word in bridge.plan(torch).command if word != "-DNDEBUG"]
    subprocess.run([*command, "-o", str(result)], input=LOOPS.read_text(), text=True, check=True)
    return result


class Loops:
    """The C++ loops, in a process that runs one of the allocators."""

    def __init__(self, library: str, pairs: int) -> None:
        self._library = ctypes.CDLL(library)
        for function in ("same_size", "same_size_on_threads", "mixed", "statistics"):
            getattr(self._library, function).restype = ctypes.c_double
        self._pairs = pairs

    def _call(self, function: str, *arguments: int) -> float:
        return float(getattr(self._library, function)(*map(ctypes.c_int64, arguments)))

    def same(self, size: int) -> float:
        """Nanoseconds a pair; a first run warms up."""
        return [self._call("same_size", size, self._pairs) for _ in range(2)][1]

    def threads(self, count: int) -> float:
        """Nanoseconds a pair, the mean of the threads."""
        return self._call("same_size_on_threads", count, KIB, self._pairs)

    def mixed(self, low: int, high: int, live: int, oldest_first: bool = False) -> float:
        """Nanoseconds a pair with `live` blocks alive."""
        sizes = (ctypes.c_int64 * SIZES)(*mixed_sizes(low, high))
        numbers = map(ctypes.c_int64, (SIZES, live, self._pairs, oldest_first))
        return float(self._library.mixed(sizes, *numbers))

    def repeated(self) -> float:
        """Nanoseconds a pair of few sizes, of which 512 blocks live."""
        sizes = (ctypes.c_int64 * len(FEW_SIZES))(*FEW_SIZES)
        numbers = map(ctypes.c_int64, (len(FEW_SIZES), 512, self._pairs, False))
        return float(self._library.mixed(sizes, *numbers))

    def statistics(self) -> float:
        """Nanoseconds for one reading while 4,096 blocks live."""
        return self._call("statistics", 4096, 1000)


def empty(size: int, count: int) -> float:
    """Nanoseconds for one torch.empty, and for freeing it."""
    import torch

    for _ in range(count // 10):
        torch.empty(size, dtype=torch.uint8, device="cuda")
    started = time.thread_time_ns()
    for _ in range(count):
        torch.empty(size, dtype=torch.uint8, device="cuda")
    return (time.thread_time_ns() - started) / count


def metadata(sizes: list[int]) -> tuple[float, float]:
    """What poolalloc keeps on the host while blocks of these sizes live: bytes a block, and as a share of reserved."""
    import torch

    import poolalloc

    held = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]
    now = poolalloc.memory_stats(0)
    del held
    return now["metadata_bytes"] / now["live_blocks"], now["metadata_bytes"] / now["reserved"]["current"]


def driver_calls() -> int:
    """Calls of the driver that poolalloc has made so far."""
    import poolalloc

    return int(sum(poolalloc.memory_stats(0)["driver_calls"].values()))


def child(allocator: str, library: str, pairs: int, kind: str) -> dict[str, float]:
    """One process: the figure of every case of its kind."""
    import torch

    if allocator == OWN:
        import poolalloc

        exact = [poolalloc.ExactBin(size, 8, keep=8) for size in FEW_SIZES] if kind == EXACT else []
        assert poolalloc.install(poolalloc.Config(exact_bins=exact), bridge=True).backend == "bridge"
    else:
        assert torch.cuda.get_allocator_backend() == "native"
    torch.cuda.init()
    loops = Loops(library, pairs)
    if kind == DEVICES:
        return {ONE_OF_MANY: loops.same(KIB)}
    if kind == EXACT:
        return {EXACT_SIZES: loops.repeated()}
    result = {}
    if allocator == OWN:  # first: tables keep the size that they once had
        result[METADATA] = metadata(25 * mixed_sizes(512, 4 * KIB))[0]
    result |= {ONE_SIZE: loops.same(KIB), ONE_LARGE: loops.same(8 * MIB)}
    result[EMPTY], result[EMPTY_LARGE] = (empty(size, max(1, pairs // 10)) for size in (KIB, 8 * MIB))
    result[SMALL] = loops.mixed(512, MIB, 4096)
    loops.mixed(512, 64 * MIB, 4096)
    calls = driver_calls() if allocator == OWN else 0
    result[MIXED] = loops.mixed(512, 64 * MIB, 4096)
    if allocator == OWN:
        result[DRIVER_CALLS] = (driver_calls() - calls) / (pairs + 3 * 4096)
        result[METADATA_SHARE] = metadata(mixed_sizes(512, 64 * MIB))[1]
    result[REPEATED] = loops.repeated()
    for order, oldest_first in ((OLDEST, True), (ANY, False)):
        for case, live in ((FEW, 1000), (MANY, 1_000_000)):
            result[case + order] = loops.mixed(512, 4 * KIB, live, oldest_first)
    result[READING] = loops.statistics()
    result[ONE_THREAD], result[TWO_THREADS] = loops.threads(1), loops.threads(2)
    return result


def measure(rounds: int, pairs: int, real: bool) -> Iterator[Rounds]:
    """After each round, what was measured so far."""
    from poolalloc.sim import sim_environment

    results: Rounds = {}
    with tempfile.TemporaryDirectory() as folder:
        loops = compile_loops(Path(folder))
        for turn in range(rounds):
            for allocator in (BUILT_IN, OWN)[:: 1 if turn % 2 == 0 else -1]:
                for kind in KINDS:
                    if (kind == DEVICES and real) or (kind == EXACT and allocator == BUILT_IN):
                        continue
                    devices = MANY_DEVICES if kind == DEVICES else 1
                    environment = dict(os.environ) if real else sim_environment(quiet=True, devices=devices)
                    command = [sys.executable, __file__, "--child", allocator, str(loops), "--pairs", str(pairs)]
                    command += ["--kind", kind]
                    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
                    if done.returncode != 0:  # what the others measure is not lost
                        print(f"{allocator}, {kind}: ended with exit code {done.returncode}", file=sys.stderr)
                        continue
                    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
                    for case, figure in figures.items():
                        results.setdefault(case, {}).setdefault(allocator, []).append(figure)
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
            yield results


def medians(results: Rounds, real: bool) -> tuple[Figures, list[tuple[Line, float | None]]]:
    """The medians, and every line with its figure."""
    figures = {
        case: {name: statistics.median(rounds) for name, rounds in by_name.items()} for case, by_name in results.items()
    }
    wanted = [line for line in LINES if not (real and line.what == ONE_OF_MANY)]
    return figures, [(line, line.value(figures)) for line in wanted]


def write(path: Path, results: Rounds, pairs: int, real: bool) -> None:
    """Write budgets, figures and every round."""
    import torch

    _, lines = medians(results, real)
    record = {
        "schema": 1,
        "torch": torch.__version__,
        "simulated": not real,
        "device": torch.cuda.get_device_name(0) if real else None,
        "pairs": pairs,
        "budgets": [
            {"what": line.what, "value": value, "unit": line.unit, "budget": line.budget(), "met": line.met(value)}
            for line, value in lines
        ],
        "rounds": results,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


def main() -> int:
    """Measure, print, and write the JSON file if one is wanted. The exit code is 1 if a figure is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=200_000, help="allocate + free pairs a case")
    parser.add_argument("--real", action="store_true", help="the GPU of this machine, not a simulated one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all there, after every round")
    parser.add_argument("--child", nargs=2, metavar=("ALLOCATOR", "LOOPS"), help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=KINDS, default=ALL, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(*arguments.child, arguments.pairs, arguments.kind)))
        return 0
    results: Rounds = {}
    for results in measure(arguments.rounds, arguments.pairs, arguments.real):
        if arguments.json:
            write(arguments.json, results, arguments.pairs, arguments.real)
    figures, lines = medians(results, arguments.real)
    print(f"{'medians, nanoseconds a pair':52} {BUILT_IN:>10} {OWN:>10} {'ratio':>7}")
    for case, own in figures.items():
        if {OWN, BUILT_IN} <= own.keys():
            print(f"{case:52} {own[BUILT_IN]:10.1f} {own[OWN]:10.1f} {own[OWN] / own[BUILT_IN]:7.3f}")
    print(f"\n{'budgets':52} {'figure':>10} {'budget':>10}")
    for line, value in lines:
        verdict = {None: "", True: "met", False: "NOT MET"}[line.met(value)]
        shown = "unknown" if value is None else f"{value:.4g}"
        print(f"{line.what:52} {shown:>10} {line.budget():>10} {line.unit:20} {verdict}")
    return 1 if any(value is None for _, value in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
