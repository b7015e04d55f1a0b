"""Memory in whole allocations of the driver, where virtual memory management is missing or not wanted."""

import random

import pytest
from engines import GIB, KIB, MIB, PAGE, calls, engine_of, fill, sound

from poolalloc import _core, errors

FORCED = "segments:true"
MAPPING = ("reserve", "create", "map", "allow_access", "unmap", "destroy")


def segments_of(pages: int = 64, conf: str = "", **model: int) -> _core.Engine:
    return engine_of(pages, f"{FORCED},{conf}" if conf else FORCED, **model)


@pytest.mark.parametrize("engine", [engine_of(virtual_memory=False), segments_of()], ids=["missing", "forced"])
def test_without_virtual_memory_management_memory_comes_in_segments(engine: _core.Engine) -> None:
    blocks = [engine.allocate(size) for size in (1000, 300 * KIB, 3 * MIB, 30 * MIB)]
    assert calls(engine, *MAPPING) == 0
    assert calls(engine, "allocate_segment") == 4
    assert engine.used_bytes() == engine.stats()["reserved"]["current"] == (2 + 2 + 20 + 30) * MIB
    for block in blocks:
        engine.free(block)
    assert engine.empty_cache() == (2 + 2 + 20 + 30) * MIB
    assert engine.used_bytes() == 0
    assert calls(engine, "free_segment") == 4
    sound(engine)


def test_a_segment_is_cut_and_put_together_again() -> None:
    engine = segments_of()
    large = engine.allocate(20 * MIB)
    engine.free(large)
    parts = [engine.allocate(5 * MIB) for _ in range(4)]
    assert sorted(parts) == [large + i * 5 * MIB for i in range(4)]
    for part in (parts[2], parts[0], parts[3], parts[1]):
        engine.free(part)
    assert engine.allocate(20 * MIB) == large
    assert calls(engine, "allocate_segment") == 1
    sound(engine)


def test_no_block_spans_two_segments() -> None:
    engine = segments_of(64)
    segments = [engine.allocate(20 * MIB) for _ in range(3)]  # neighbours in memory, as the model places them
    for segment in segments:
        engine.free(segment)
    block = engine.allocate(21 * MIB)
    assert calls(engine, "allocate_segment") == 4
    assert all(block + 21 * MIB <= segment or segment + 20 * MIB <= block for segment in segments)
    sound(engine)


def test_a_segment_with_a_block_stays_and_an_idle_one_goes() -> None:
    engine = segments_of()
    blocks = [engine.allocate(20 * MIB) for _ in range(3)]
    kept = blocks[1]
    for block in blocks:
        engine.free(block)
    pin = engine.allocate(300 * KIB)
    pinned = next(block for block in blocks if block <= pin < block + 20 * MIB)
    assert engine.empty_cache() == 40 * MIB
    assert engine.stats()["reserved"]["current"] == 20 * MIB == engine.used_bytes()
    assert engine.stats()["resident"]["current"] == PAGE
    assert engine.base_allocation(pin) is not None
    for block in blocks:
        assert engine.owns(block) == (block == pinned)
    engine.free(pin)
    assert engine.empty_cache() == 20 * MIB
    assert not engine.owns(kept)
    sound(engine)


def test_a_request_that_fits_only_without_idle_segments_gets_their_memory() -> None:
    engine = segments_of(32, event_lag=10)
    for stream in (0, 1):
        engine.free(engine.allocate(20 * MIB, stream=stream))
    engine.advance(5)
    assert engine.allocate(50 * MIB, stream=0)
    stats = engine.stats()
    assert stats["retries"] == 1
    assert stats["out_of_memory"] == 0
    assert engine.used_bytes() <= 32 * PAGE
    sound(engine)


def test_a_smaller_segment_does_where_there_is_no_room_for_a_usual_one() -> None:
    engine = segments_of(4)
    block = engine.allocate(3 * MIB)
    assert engine.used_bytes() == 2 * PAGE
    assert engine.stats()["retries"] == 0
    engine.free(block)
    sound(engine)


def test_the_limit_holds() -> None:
    engine = segments_of(64, "memory_limit:30 MiB")
    fill(engine, MIB)
    assert engine.peak_used_bytes() == 30 * MIB
    sound(engine)


@pytest.mark.parametrize("granularity", [512, 64 * KIB, MIB])
def test_allocations_that_do_not_start_at_a_page_are_used_from_the_next_one_on(granularity: int) -> None:
    engine = segments_of(200, granularity=granularity)
    blocks = [engine.allocate(size) for size in (1000, 300 * KIB, 3 * MIB, 30 * MIB) for _ in range(3)]
    for block in blocks:
        assert engine.physical(block) is not None
    sound(engine)
    assert engine.used_bytes() == engine.stats()["reserved"]["current"]
    for block in blocks:
        engine.free(block)
    engine.empty_cache()
    assert engine.used_bytes() == 0
    sound(engine)


def test_a_repeating_program_makes_no_driver_call() -> None:
    engine = segments_of(512)
    sizes = [4 * KIB, 700 * KIB, 3 * MIB, 9 * MIB, 33 * MIB]

    def step() -> None:
        blocks = [engine.allocate(size) for size in sizes for _ in range(4)]
        for block in blocks:
            engine.free(block)

    step()
    before = calls(engine)
    for _ in range(20):
        step()
    assert calls(engine) == before
    sound(engine)


def test_a_program_of_random_sizes_keeps_every_rule() -> None:
    engine = _core.Engine(FORCED, {"memory_bytes": GIB, "event_lag": 3})
    draw = random.Random(5)
    live: dict[int, int] = {}
    refused = 0
    for step in range(6000):
        if live and (len(live) > 200 or draw.random() < 0.5):
            block = draw.choice(list(live))
            if draw.random() < 0.1:
                engine.record_stream(block, 9)
            engine.free(block)
            del live[block]
        else:
            size = draw.choice([1000, 70 * KIB, 300 * KIB, 3 * MIB, 11 * MIB, 80 * MIB])
            try:
                block = engine.allocate(size, stream=draw.randrange(3))
            except errors.OutOfMemoryError:
                refused += 1
                continue
            spans = sorted(live.items())
            assert all(block + size <= start or start + bytes_ <= block for start, bytes_ in spans)
            assert engine.physical(block) is not None
            assert engine.physical(block + size - 1) is not None
            live[block] = size
        if step % 100 == 0:
            engine.advance(1)
            sound(engine)
            assert engine.used_bytes() == engine.stats()["reserved"]["current"]
        if step % 1500 == 1499:
            engine.empty_cache()
            sound(engine)
    assert refused, "the device was full at times"
    for block in live:
        engine.free(block)
    engine.advance(10)
    engine.empty_cache()
    assert engine.used_bytes() == 0
    sound(engine)
