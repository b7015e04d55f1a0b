"""Memory that goes back to the device: limits that change, trim, and what both leave alone."""

from collections.abc import Iterable

import pytest
from engines import MIB, PAGE, calls, capture_into, engine_of, sound

from poolalloc import _core, errors


def idle(engine: _core.Engine, pages: int, stream: int = 0) -> None:
    engine.free(engine.allocate(pages * PAGE, stream=stream))


def idle_on(engine: _core.Engine, pages: int, streams: Iterable[int]) -> None:
    """So many on each: what one stream left before another one asked, that would take."""
    for block in [engine.allocate(pages * PAGE, stream=stream) for stream in streams]:
        engine.free(block)


# --- trim ------------------------------------------------------------------------------------------------------------


def test_everything_idle_goes_and_the_device_sees_it() -> None:
    engine = engine_of(64)
    kept = engine.allocate(3 * PAGE)
    idle_on(engine, 10, range(4))
    assert engine.used_bytes() == 43 * PAGE
    assert engine.trim() == 40 * PAGE
    assert engine.used_bytes() == 3 * PAGE == engine.stats()["reserved"]["current"]
    assert engine.trim() == 0
    engine.free(kept)
    sound(engine)


@pytest.mark.parametrize(("target", "left"), [(50 * PAGE, 43), (43 * PAGE, 43), (20 * PAGE + 1, 20), (20 * PAGE, 20)])
def test_no_more_goes_than_the_target_takes(target: int, left: int) -> None:
    engine = engine_of(64)
    engine.allocate(3 * PAGE)
    idle_on(engine, 10, range(4))
    assert engine.trim(target) == (43 - left) * PAGE
    assert engine.used_bytes() == left * PAGE
    sound(engine)


def test_the_longest_idle_pages_go_first() -> None:
    engine = engine_of(64)
    old, new = engine.allocate(10 * PAGE), engine.allocate(10 * PAGE)
    engine.free(old)
    engine.free(new)
    engine.trim(10 * PAGE)
    before = calls(engine, "map")
    engine.allocate(10 * PAGE)
    assert calls(engine, "map") in (before, before + 10)
    assert engine.physical(new) is not None
    assert engine.physical(old) is None or calls(engine, "map") == before + 10
    sound(engine)


def test_what_the_device_may_still_use_stays_unless_it_is_waited_for() -> None:
    engine = engine_of(64, event_lag=10)
    idle(engine, 10, stream=1)
    time = engine.now()
    assert engine.trim() == 0
    assert engine.now() == time, "nobody waited"
    engine.advance(10)
    assert engine.trim() == 10 * PAGE
    idle(engine, 10, stream=1)
    time = engine.now()
    assert engine.trim(0, 0, True) == 10 * PAGE
    assert engine.now() == time + 10
    sound(engine)


def test_pending_frees_that_have_completed_go_too() -> None:
    engine = engine_of(64, event_lag=10)
    block = engine.allocate(10 * PAGE)
    engine.record_stream(block, 5)
    engine.free(block)
    assert engine.trim() == 0
    engine.advance(10)
    engine.trim()
    engine.advance(10)  # the free has come to its own stream meanwhile, which was asked then
    engine.trim()
    assert engine.used_bytes() == 0
    sound(engine)


@pytest.mark.parametrize("gone", [False, True])
def test_pending_frees_are_waited_for_too(gone: bool) -> None:
    engine = engine_of(64, event_lag=10)
    block = engine.allocate(10 * PAGE)
    engine.record_stream(block, 5)
    if gone:  # the driver knows the other stream no more
        for nth in range(1, 9):
            engine.fail("record_event", nth, "failed")
    engine.free(block)
    time = engine.now()
    assert engine.trim() == 0
    assert engine.now() == time, "nobody waited"
    assert engine.trim(0, 0, True) == 10 * PAGE
    assert engine.used_bytes() == 0
    sound(engine)


def test_pools_of_graphs_and_live_blocks_keep_what_they_have() -> None:
    engine = engine_of(64)
    live = engine.allocate(5 * PAGE)
    with capture_into(engine, (1, 0), 7):
        idle(engine, 6, stream=7)
    assert engine.trim(0, 0, True) == 0
    assert engine.used_bytes() == 11 * PAGE
    engine.release_pool(0, (1, 0))
    engine.trim(0, 0, True)
    assert engine.used_bytes() == 5 * PAGE
    engine.free(live)
    sound(engine)


def test_during_a_capture_nothing_is_unmapped() -> None:
    engine = engine_of(64)
    idle(engine, 10)
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.begin_capture(7)
    assert engine.trim(0, 0, True) == 0
    engine.set_memory_limit(2 * PAGE)
    sound(engine)
    engine.end_capture(7)
    engine.end_allocate_to_pool(0, (1, 0))
    assert engine.trim() == 10 * PAGE


def test_devices_are_trimmed_apart() -> None:
    engine = engine_of(64, devices=2)
    for device in (0, 1):
        engine.free(engine.allocate(10 * PAGE, device=device))
    assert engine.trim(0, 1) == 10 * PAGE
    assert [engine.used_bytes(device) for device in (0, 1)] == [10 * PAGE, 0]
    with pytest.raises(errors.UsageError, match="no device 7"):
        engine.trim(0, 7)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_the_smaller_of_limit_and_fraction_counts_and_both_can_change() -> None:
    engine = engine_of(64, conf="memory_limit:64 MiB")
    assert engine.memory_limit() == 64 * MIB
    assert engine.stats()["limit_bytes"] == 0  # not used yet
    idle(engine, 1)
    assert engine.stats()["limit_bytes"] == 64 * MIB
    engine.set_memory_fraction(0.25)
    assert engine.stats()["limit_bytes"] == 16 * PAGE
    engine.set_memory_fraction(1)
    engine.set_memory_limit(0)
    assert engine.memory_limit() == 0
    assert engine.stats()["limit_bytes"] == 64 * PAGE
    engine.set_memory_limit(5 * PAGE + 1)
    assert engine.allocate(5 * PAGE)
    with pytest.raises(errors.OutOfMemoryError, match="memory_limit"):
        engine.allocate(PAGE)
    engine.set_memory_limit(6 * PAGE)
    assert engine.allocate(PAGE)
    sound(engine)


def test_a_limit_below_what_is_live_stops_growth_until_enough_was_freed() -> None:
    engine = engine_of(64)
    blocks = [engine.allocate(PAGE) for _ in range(10)]
    idle(engine, 5)
    engine.set_memory_limit(8 * PAGE)
    assert engine.used_bytes() == 10 * PAGE, "the idle pages went"
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(PAGE)
    for _ in range(4):
        engine.free(blocks.pop())
    assert engine.allocate(4 * PAGE), "of what is held"
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(PAGE)
    for _ in range(4):
        engine.free(blocks.pop())
    engine.trim()
    assert engine.allocate(2 * PAGE)
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(PAGE)
    sound(engine)


@pytest.mark.parametrize("size", [1, PAGE - 1])
def test_a_limit_below_one_page_is_refused(size: int) -> None:
    engine = engine_of()
    with pytest.raises(errors.UsageError, match="one page"):
        engine.set_memory_limit(size)
