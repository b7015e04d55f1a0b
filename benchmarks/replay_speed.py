"""How fast replays are: millions of events in a second of one core, for made-up traces and for the files given.

    python benchmarks/replay_speed.py run.npz other.npz

The best of five replays each, and the mappings made in one. Prints a table for docs/replay.md.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from poolalloc._internal.trace.format import EVENT
from poolalloc.analysis.replay import Replayer
from poolalloc.analysis.trace import Op, Trace, TraceError, read

EVENTS = 400_000
KIB = 1 << 10
MIB = 1 << 20
ROUNDS = 5


def made_up(size: Callable[[random.Random], int], live: int, streams: int) -> Trace:
    """A program that holds `live` blocks and then, event by event, gives one back and asks for another."""
    chance = random.Random(1)
    rows, held = [], []
    for ident in range(1, (EVENTS + live) // 2 + 1):
        if len(held) == live:
            at = chance.randrange(live)
            old, bytes_, stream = held[at]
            held[at] = held[-1]
            held.pop()
            rows.append((Op.FREE, old, bytes_, stream))
        held.append((ident, size(chance), ident % streams))
        rows.append((Op.ALLOC, *held[-1]))
    events = np.zeros(len(rows), EVENT)
    for name, column in zip(("op", "id", "requested", "stream"), zip(*rows, strict=True), strict=True):
        events[name] = column
    events["time_ns"] = np.arange(len(rows)) * 1000
    return Trace(events, streams=tuple(range(streams)))


def spread(low: int, high: int) -> Callable[[random.Random], int]:
    """Sizes as likely in each doubling from `low` to `high`."""
    return lambda chance: int(low * (high / low) ** chance.random())


def line(name: str, trace: Trace) -> str:
    """One line of the table."""
    replayer = Replayer(trace)
    found = [replayer.run() for _ in range(ROUNDS)]
    rate = max(result.events_per_second for result in found) / 1e6
    return f"| {name} | {len(trace):,} | {rate:.2g} | {found[0].driver_calls.get('map', 0):,} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", type=Path, metavar="TRACE.npz")
    paths = parser.parse_args().traces
    try:
        given = [(f"`{path.stem}`", read(path)) for path in paths]
    except TraceError as error:
        parser.error(str(error))
    print("| trace | events | millions a second | mappings made |\n| --- | ---: | ---: | ---: |")
    for streams in (1, 2):
        word = "one stream" if streams == 1 else "two streams"
        print(line(f"blocks of 4 KiB, 256 live, {word}", made_up(lambda chance: 4 * KIB, 256, streams)))
        print(line(f"blocks of 512 B to 256 KiB, 1,000 live, {word}", made_up(spread(512, 256 * KIB), 1000, streams)))
    print(line("blocks of 512 B to 64 MiB, 4,096 live", made_up(spread(512, 64 * MIB), 4096, 1)))
    for name, trace in given:
        print(line(name, trace))


if __name__ == "__main__":
    main()
