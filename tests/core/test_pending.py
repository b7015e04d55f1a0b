"""Frees that wait for other streams: whose streams, how many questions, and who asks when their own stream is quiet."""

from __future__ import annotations

import time
from collections.abc import Callable

from engines import MIB, PAGE, calls, engine_of, sound

from poolalloc import _core

SIDE, QUIET, OTHER = 9, 3, 5


def pending(engine: _core.Engine, size: int, stream: int = 0, by: int = SIDE, device: int | None = None) -> int:
    """A block that was freed while another stream used it."""
    block = engine.allocate(size, stream=stream)
    engine.record_stream(block, by, device)
    engine.free(block)
    return block


def soon(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_use_by_a_stream_of_another_device_is_awaited_there() -> None:
    engine = engine_of(16, devices=2)
    engine.set_stream_lag(SIDE, 50, 1)
    block = pending(engine, 12 * PAGE, device=1)
    engine.advance(49)
    assert engine.base_allocation(block) == (block, 12 * PAGE)
    assert engine.stats()["pending"]["current"] == 12 * PAGE
    engine.advance(1)
    again = engine.allocate(12 * PAGE)
    assert engine.base_allocation(again) == (again, 12 * PAGE)
    assert engine.stats()["pending"]["current"] == 0
    sound(engine)


def test_the_same_handle_on_two_devices_is_two_streams() -> None:
    """The default stream of another device is not the block's own, though both are called 0."""
    engine = engine_of(16, devices=2)
    engine.set_stream_lag(0, 50, 1)
    pending(engine, 5 * PAGE, by=0, device=0)
    assert engine.stats()["pending"]["current"] == 0
    pending(engine, 5 * PAGE, by=0, device=1)
    assert engine.stats()["pending"]["current"] == 5 * PAGE
    engine.empty_cache()  # waits for device 1
    assert engine.used_bytes() == 0
    assert engine.now(1) >= 50
    sound(engine)


def test_small_frees_behind_a_stream_that_keeps_up_do_not_pile_up() -> None:
    engine = engine_of(64)
    before = calls(engine)
    for _ in range(20_000):
        pending(engine, 128)
    assert calls(engine, "create_event") <= 2
    assert calls(engine) - before <= 20_000 // 10
    assert engine.used_bytes() <= 2 * PAGE
    sound(engine)


def test_a_slow_stream_is_asked_once_a_request() -> None:
    engine = engine_of(600, event_lag=10**6)
    for _ in range(200):
        pending(engine, PAGE)
    before = calls(engine, "query_event")
    for _ in range(50):
        engine.allocate(3 * MIB)
    assert calls(engine, "query_event") - before <= 4 * 50, "some are for the marks of its own stream"
    sound(engine)


def test_what_has_completed_is_found_however_much_it_is() -> None:
    engine = engine_of(1024, event_lag=10)
    for _ in range(500):
        pending(engine, PAGE)
    engine.advance(10)
    engine.allocate(400 * PAGE)
    assert engine.used_bytes() == 500 * PAGE, "the request was served by what was pending"
    sound(engine)


# --- streams that have fallen quiet ---------------------------------------------------------------------------------


def test_figures_see_what_a_quiet_stream_does_not() -> None:
    engine = engine_of(64, event_lag=10)
    pending(engine, 5 * PAGE, QUIET)
    assert engine.stats()["pending"]["current"] == 5 * PAGE
    engine.advance(10)
    assert engine.stats()["pending"]["current"] == 0
    sound(engine)


def test_a_trim_gives_back_what_a_quiet_stream_has() -> None:
    engine = engine_of(64)
    pending(engine, 5 * PAGE, QUIET)
    assert engine.trim() == 5 * PAGE
    sound(engine)


def test_another_stream_gets_it_before_new_memory() -> None:
    engine = engine_of(64)
    engine.allocate(PAGE, stream=OTHER)
    pending(engine, 10 * PAGE, QUIET)
    created = calls(engine, "create")
    engine.allocate(8 * PAGE, stream=OTHER)
    assert calls(engine, "create") == created
    assert engine.stats()["pages_stolen"] == 8
    sound(engine)


def test_the_background_thread_gives_it_back() -> None:
    for conf in ("trim_after:0.01", "trim_high:2MiB,trim_low:0"):
        engine = engine_of(64, conf=conf)
        pending(engine, 20 * PAGE, QUIET)
        soon(lambda engine=engine: engine.used_bytes() <= PAGE)
        sound(engine)
