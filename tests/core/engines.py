"""Engines over a small modelled device, and looks at what lies under their blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from poolalloc import _core, errors

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = _core.PAGE_BYTES


def engine_of(pages: int = 64, conf: str = "", **model: int) -> _core.Engine:
    """A device of so many pages; `model`: devices, event_lag.

    Pages and handles are counted in these tests, so a span is one page unless they say otherwise.
    """
    if "growth" not in conf:
        conf = f"growth:tight,{conf}" if conf else "growth:tight"
    return _core.Engine(conf, {"memory_bytes": pages * PAGE, **model})


@contextmanager
def capture_into(engine: _core.Engine, pool: tuple[int, int], stream: int) -> Iterator[None]:
    """A graph is captured from the stream, and allocates from the pool."""
    engine.begin_allocate_to_pool(0, pool, [stream])
    engine.begin_capture(stream)
    yield
    engine.end_capture(stream)
    engine.end_allocate_to_pool(0, pool)


def calls(engine: _core.Engine, *kinds: str) -> int:
    """Driver calls so far, of these kinds or of all."""
    made = engine.stats()["driver_calls"]
    return sum(count for kind, count in made.items() if not kinds or kind in kinds)


def handles(engine: _core.Engine, address: int, device: int = 0) -> list[int]:
    """The physical page under each page of a block."""
    found = engine.base_allocation(address)
    assert found is not None
    base, size = found
    under = [engine.physical(max(page, base), device) for page in range(base // PAGE * PAGE, base + size, PAGE)]
    return [piece[0] for piece in under if piece is not None]


def fill(engine: _core.Engine, size: int, streams: tuple[int, ...] = (0,)) -> list[int]:
    """Blocks of one size, stream after stream, until there is no memory left."""
    blocks: list[int] = []
    while True:
        try:
            blocks.append(engine.allocate(size, stream=streams[len(blocks) % len(streams)]))
        except errors.OutOfMemoryError:
            return blocks


def sound(engine: _core.Engine) -> None:
    """Every equation holds, and the driver's contract was kept."""
    engine.validate()
    assert engine.violations() == 0, engine.first_violation()
