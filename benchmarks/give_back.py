"""What empty_cache() leaves when a program has fallen to a tenth of its peak: only a span that is wholly idle can go.

    python benchmarks/give_back.py run.npz other.npz

Each recording is replayed on a modelled device up to its peak. Then blocks are freed until a tenth of the bytes is
left, in two orders: the youngest first, as when a server drops its caches and keeps its weights, and at random, the
worst that could happen. The table has reserved / resident memory after empty_cache(), where 1 means that all idle
memory went, and what is reserved as a part of the peak, for each growth.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

from poolalloc import _core
from poolalloc.analysis.trace import Op, Trace, read

GROWTHS = ("tight", "balanced", "fast")
LEFT = 10  # one of so many bytes stays


def up_to_the_peak(trace: Trace, engine: _core.Engine) -> dict[int, tuple[int, int]]:
    """Replay device 0 up to the most requested bytes; return live block -> (address, bytes), oldest first."""
    events = trace.events[trace.events["device"] == 0]
    requested, peak, stop = 0, 0, 0
    for number, (op, size) in enumerate(zip(events["op"].tolist(), events["requested"].tolist(), strict=True)):
        requested += size if op == Op.ALLOC else -size if op == Op.FREE else 0
        if requested > peak:
            peak, stop = requested, number + 1
    live: dict[int, tuple[int, int]] = {}
    for op, block, size, stream in events[["op", "id", "requested", "stream"]][:stop].tolist():
        if op == Op.ALLOC:
            live[block] = (engine.allocate(size, 0, stream), size)
        elif op == Op.FREE and block in live:
            engine.free(live.pop(block)[0])
    return live


def fall(engine: _core.Engine, live: dict[int, tuple[int, int]], order: Callable[[list[int]], None]) -> None:
    """Free blocks in this order, the last of the list first, until a tenth of the bytes is left."""
    blocks = list(live)
    order(blocks)
    left = sum(size for _, size in live.values())
    least = left // LEFT
    while blocks and left > least:
        address, size = live[blocks.pop()]
        engine.free(address)
        left -= size


def row(trace: Trace, growth: str, order: Callable[[list[int]], None]) -> tuple[float, float]:
    """Reserved / resident after empty_cache, and reserved / what was reserved at the peak."""
    engine = _core.Engine(f"growth:{growth}", {"memory_bytes": 80 << 30})
    live = up_to_the_peak(trace, engine)
    before = engine.stats()["reserved"]["current"]
    fall(engine, live, order)
    engine.advance(1 << 20)
    engine.empty_cache()
    stats = engine.stats()
    return stats["reserved"]["current"] / stats["resident"]["current"], stats["reserved"]["current"] / before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="+", type=Path)
    arguments = parser.parse_args()
    orders: dict[str, Callable[[list[int]], None]] = {
        "youngest first": lambda blocks: None,
        "at random": lambda blocks: random.Random(1).shuffle(blocks),
    }
    print("| program | freed | " + " | ".join(f"`{growth}`" for growth in GROWTHS) + " |")
    print("| --- | --- |" + " --- |" * len(GROWTHS))
    for path in arguments.recordings:
        trace = read(path)
        for name, order in orders.items():
            cells = [row(trace, growth, order) for growth in GROWTHS]
            figures = " | ".join(f"{idle:.3f} ({part:.1%})" for idle, part in cells)
            print(f"| `{path.stem}` | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
