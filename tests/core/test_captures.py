"""What a captured graph saw: pools, and the calls that a capture forbids (docs/design/memory-flow.md)."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from engines import PAGE, calls, engine_of, fill, handles, sound

from poolalloc import _core, errors

FORBIDDEN_IN_A_CAPTURE = ("query_event", "synchronize_event", "synchronize_device", "unmap")


def test_a_thread_that_captures_unmaps_nothing_and_asks_no_event() -> None:
    engine = engine_of(32, event_lag=5)
    pending = engine.allocate(3 * PAGE)
    idle = [engine.allocate(PAGE) for _ in range(4)]
    engine.record_stream(pending, 9)
    for block in idle:
        engine.free(block)
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.begin_capture(7)
    before = calls(engine, *FORBIDDEN_IN_A_CAPTURE)
    engine.free(pending)
    engine.advance(100)
    live = []
    for step in range(40):  # captured, and beside it, until the device is full and beyond
        for stream in (7, 0):
            try:
                live.append(engine.allocate((1 + step % 3) * PAGE, stream=stream))
            except errors.OutOfMemoryError:
                engine.empty_cache()
            if step % 3 == 2 and live:
                engine.record_stream(live[0], 11)
                engine.free(live.pop(0))
    assert calls(engine, *FORBIDDEN_IN_A_CAPTURE) == before
    assert engine.stats()["out_of_memory"] > 0
    sound(engine)
    engine.end_capture(7)
    engine.end_allocate_to_pool(0, (1, 0))
    engine.empty_cache()
    engine.advance(5)
    engine.trim()
    assert engine.stats()["pending"]["current"] == 0
    sound(engine)


def test_memory_that_a_graph_saw_stays_in_its_pool_until_the_pool_is_released() -> None:
    engine = engine_of(16)
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.begin_capture(7)
    seen = set()
    kept = engine.allocate(2 * PAGE, stream=7)
    for pages in (1, 3, 2):
        block = engine.allocate(pages * PAGE, stream=7)
        seen |= set(handles(engine, block))
        engine.free(block)
    engine.end_capture(7)
    engine.end_allocate_to_pool(0, (1, 0))
    engine.free(kept)
    engine.empty_cache()
    others = fill(engine, PAGE, streams=(0, 7, 14))
    assert not seen & {handle for block in others for handle in handles(engine, block)}
    engine.release_pool(0, (1, 0))
    others.append(engine.allocate(PAGE))
    assert engine.used_bytes() <= 16 * PAGE
    sound(engine)


def test_a_block_that_a_capture_uses_waits_for_its_end() -> None:
    engine = engine_of(32, event_lag=5)
    block = engine.allocate(PAGE)
    engine.record_stream(block, 9)
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.begin_capture(9)
    engine.free(block)
    engine.advance(100)
    assert engine.allocate(PAGE) != block
    engine.end_capture(9)
    engine.end_allocate_to_pool(0, (1, 0))
    engine.trim()  # its event is recorded now
    assert engine.stats()["pending"]["current"] == PAGE
    engine.advance(5)
    engine.empty_cache()
    assert engine.stats()["pending"]["current"] == 0
    sound(engine)


def test_routing_is_not_capturing() -> None:
    """Requests of a pool that is merely filled get idle memory of other streams, and its frees come back."""
    engine = engine_of(16, event_lag=5)
    engine.free(engine.allocate(12 * PAGE, stream=3))
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    blocks = [engine.allocate(3 * PAGE, stream=7) for _ in range(3)]
    assert engine.stats()["after_waiting"] > 0
    engine.record_stream(blocks[0], 9)
    engine.free(blocks.pop(0))
    engine.advance(5)
    before = calls(engine, "create", "map")
    blocks.append(engine.allocate(3 * PAGE, stream=7))
    assert calls(engine, "create", "map") == before
    engine.trim(0, 0, True)
    assert engine.used_bytes() == 9 * PAGE
    engine.end_allocate_to_pool(0, (1, 0))
    sound(engine)


def test_a_suspected_capture_is_none_once_a_request_shows_it() -> None:
    """Older versions of torch do not announce their captures."""
    engine = engine_of(16)
    idle = engine.allocate(8 * PAGE)
    engine.free(idle)
    engine.begin_allocate_to_pool(0, (1, 0), [7], suspect=True)
    assert engine.trim(0, 0, True) == 0, "there may be a capture"
    engine.begin_capture(7, announced=False)
    engine.allocate(PAGE, stream=7)
    assert engine.trim(0, 0, True) == 0, "there is one"
    engine.end_capture(7, announced=False)
    engine.allocate(PAGE, stream=7)
    assert engine.trim(0, 0, True) == 8 * PAGE
    engine.end_allocate_to_pool(0, (1, 0))
    sound(engine)


def test_a_capture_that_nobody_announces_is_left_alone() -> None:
    """By Warp or cuda-python, on a stream of the program: no event goes into it, and its device is not waited for."""
    engine = engine_of(64)
    kept = [engine.allocate(2 * PAGE, stream=7)]
    idle = engine.allocate(20 * PAGE, stream=3)
    engine.begin_capture(7, announced=False)
    for step in range(12):
        kept.append(engine.allocate((1 + step % 3) * 300_000, stream=7))
        block = engine.allocate(PAGE, stream=3)
        engine.record_stream(block, 7)
        engine.free(block)
    engine.free(idle)
    engine.empty_cache()
    assert fill(engine, PAGE, streams=(5,)), "others get memory all the time"
    assert engine.violations() == 0, engine.first_violation()
    assert engine.stats()["pending"]["current"] > 0
    engine.end_capture(7, announced=False)
    engine.empty_cache()
    assert engine.stats()["pending"]["current"] == 0
    sound(engine)


def test_a_capture_on_another_device_is_one() -> None:
    """A graph over two devices: only the first routes, and the capture is announced there."""
    engine = engine_of(32, devices=2)
    engine.free(engine.allocate(10 * PAGE, device=1, stream=4))
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.begin_capture(7)
    engine.begin_capture(8, device=1, announced=False)
    engine.allocate(PAGE, stream=7)
    for pages in (3, 5, 5):
        block = engine.allocate(pages * PAGE, device=1, stream=8)
        engine.record_stream(block, 4)
        engine.free(block)
    engine.empty_cache()
    assert engine.violations() == 0, engine.first_violation()
    engine.end_capture(8, device=1, announced=False)
    engine.end_capture(7)
    engine.end_allocate_to_pool(0, (1, 0))
    sound(engine)


def test_threads_that_do_not_capture_get_idle_memory_of_others() -> None:
    engine = engine_of(16, event_lag=5)
    engine.free(engine.allocate(12 * PAGE, stream=3))
    pending = engine.allocate(2 * PAGE, stream=5)
    engine.record_stream(pending, 6)
    engine.free(pending)
    engine.begin_capture(7)
    with ThreadPoolExecutor(1) as other:
        blocks = [other.submit(engine.allocate, 5 * PAGE, stream=5).result() for _ in range(2)]
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(12 * PAGE, stream=7)
    assert calls(engine, "unmap", "synchronize_device") == 0
    assert engine.stats()["pending"]["current"] == 0
    engine.end_capture(7)
    assert len(blocks) == 2
    sound(engine)


def test_of_two_pools_the_latest_serves_a_stream_that_both_want() -> None:
    engine = engine_of()
    for pool in ((1, 0), (2, 0), (1, 0)):
        engine.begin_allocate_to_pool(0, pool, [7])
        engine.allocate(PAGE, stream=7)
        if pool == (1, 0):
            engine.end_allocate_to_pool(0, pool)
    pages = {heap["pool"]: heap["live"]["current"] // PAGE for heap in engine.stats()["heaps"]}
    assert pages == {(1, 0): 2, (2, 0): 1}


def test_a_pool_without_blocks_gives_back_its_addresses_too() -> None:
    """Addresses are finite: thousands of pools come and go in a long-running service."""
    engine = _core.Engine("", {"memory_bytes": 1 << 40})  # heaps of 9 TiB, of 128 TiB of addresses
    for index in range(100):
        engine.begin_allocate_to_pool(0, (index, 1), [0])
        engine.free(engine.allocate(PAGE))
        engine.end_allocate_to_pool(0, (index, 1))
        engine.release_pool(0, (index, 1))
    assert engine.stats()["heaps"] == []
    assert engine.used_bytes() == PAGE, "the one page served them all"
    sound(engine)
