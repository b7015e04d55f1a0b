"""What a captured graph saw: pools, and the calls that a capture forbids (docs/design/memory-flow.md)."""

from engines import PAGE, calls, engine_of, fill, handles, sound

from poolalloc import _core, errors

FORBIDDEN_IN_A_CAPTURE = ("query_event", "synchronize_event", "synchronize_device", "unmap")


def test_during_a_capture_nothing_is_unmapped_and_no_event_is_asked() -> None:
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


def test_a_block_freed_in_a_capture_waits_for_the_captures_end() -> None:
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
