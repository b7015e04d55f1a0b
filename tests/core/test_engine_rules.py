"""The rules that must never break, one readable test each (docs/design/memory-flow.md)."""

from itertools import pairwise

import pytest
from engines import KIB, MIB, PAGE, calls, engine_of, fill, handles, sound

from poolalloc import _core, errors

SIZES = [1, 512, 5000, 256 * KIB, 256 * KIB + 1, MIB, PAGE, 11 * MIB]  # from bins, and from the arena


# --- requests --------------------------------------------------------------------------------------------------------


def test_nothing_asked_is_nothing_given() -> None:
    engine = engine_of()
    assert engine.allocate(0) == 0
    engine.free(0)
    engine.record_stream(0, 5)
    assert engine.devices() == []
    assert engine.stats()["driver_calls"] == {}


@pytest.mark.parametrize("size", SIZES)
def test_a_block_is_aligned_and_as_large_as_asked(size: int) -> None:
    engine = engine_of()
    blocks = [engine.allocate(size) for _ in range(4)]
    for block in blocks:
        base, block_bytes = engine.base_allocation(block)
        assert base == block
        assert block % _core.GRANULARITY == block_bytes % _core.GRANULARITY == 0
        assert block_bytes >= size
    ends = sorted((block, block + engine.base_allocation(block)[1]) for block in blocks)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))


@pytest.mark.parametrize("size", SIZES)
def test_only_the_start_of_a_live_block_can_be_freed(size: int) -> None:
    engine = engine_of()
    block = engine.allocate(size)
    for wrong in (block + 1, block + 512, block - 512, block + 40 * MIB, 12345, 1 << 63):
        for call in (engine.free, lambda address: engine.record_stream(address, 3)):
            with pytest.raises(errors.UsageError, match=hex(wrong)):
                call(wrong)
    engine.free(block)
    with pytest.raises(errors.UsageError):
        engine.free(block)
    with pytest.raises(errors.UsageError):
        engine.record_stream(block, 3)
    assert engine.stats()["frees"] == 1
    sound(engine)


@pytest.mark.parametrize("size", SIZES)
def test_every_address_inside_a_block_finds_it(size: int) -> None:
    engine = engine_of()
    engine.allocate(size)
    block = engine.allocate(size)
    engine.allocate(size)
    found = engine.base_allocation(block)
    for inside in {0, 1, size // 2, size - 1, found[1] - 1}:
        assert engine.base_allocation(block + inside) == found
    engine.free(block)
    assert engine.base_allocation(block + size // 2) is None


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_freed_block_is_reused_at_once_on_its_own_stream(size: int) -> None:
    engine = engine_of(event_lag=1000)
    block = engine.allocate(size, stream=7)
    engine.free(block)
    assert engine.allocate(size, stream=7) == block
    assert engine.now() == 1, "nothing waited"


@pytest.mark.parametrize("size", SIZES)
def test_a_freed_block_is_not_another_streams_while_its_work_runs(size: int) -> None:
    engine = engine_of(event_lag=1000)
    block = engine.allocate(size, stream=7)
    under = set(handles(engine, block))
    engine.free(block)
    other = engine.allocate(size, stream=8)
    assert other != block
    assert not under & set(handles(engine, other))


@pytest.mark.parametrize("size", SIZES)
def test_a_block_another_stream_uses_waits_for_that_stream(size: int) -> None:
    engine = engine_of(event_lag=10)
    engine.set_stream_lag(9, 30)
    block = engine.allocate(size, stream=7)
    engine.record_stream(block, 8)
    engine.record_stream(block, 9)
    engine.free(block)
    seen = []
    for _ in range(29):
        seen.append(engine.allocate(size, stream=7))
        engine.free(seen[-1])
        engine.advance(1)
    assert block not in seen
    engine.advance(1)
    assert engine.empty_cache() > 0  # notices that the events have completed
    assert engine.stats()["pending"]["current"] == 0
    assert engine.base_allocation(block) is None
    sound(engine)


def test_a_use_counts_from_the_free_not_from_the_record() -> None:
    engine = engine_of(event_lag=10)
    block = engine.allocate(MIB)
    engine.record_stream(block, 8)
    engine.advance(100)
    engine.free(block)
    engine.trim()
    assert engine.stats()["pending"]["current"] == MIB
    engine.advance(10)
    engine.trim()
    assert engine.stats()["pending"]["current"] == 0


def test_pages_taken_from_another_stream_have_no_work_left() -> None:
    engine = engine_of(16, event_lag=10)
    first = engine.allocate(12 * PAGE, stream=7)
    taken = set(handles(engine, first))
    engine.advance(50)
    engine.free(first)
    freed_at = engine.now()
    second = engine.allocate(12 * PAGE, stream=8)
    assert taken & set(handles(engine, second)), "there were not enough others"
    assert engine.now() >= freed_at + 10
    sound(engine)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_no_two_live_blocks_share_physical_memory() -> None:
    engine = engine_of(40, conf="bin_limit:0")
    live: list[int] = []
    for step in range(300):
        if len(live) > 6:
            engine.free(live.pop((step * 7) % len(live)))
        live.append(engine.allocate((1 + step * 5 % 9) * PAGE // 2))
        pieces = []
        for block in live:
            base, size = engine.base_allocation(block)
            for page in range(base // PAGE * PAGE, base + size, PAGE):
                first = max(page, base)
                handle, offset = engine.physical(first)
                pieces.append((handle, offset, offset + min(page + PAGE, base + size) - first))
        pieces.sort()
        for (handle, _, end), (next_handle, start, _) in pairwise(pieces):
            assert handle != next_handle or end <= start
    assert engine.stats()["pages_aliased"] > 0, "the pattern shares pages over time"
    sound(engine)


def test_the_memory_under_a_live_block_never_changes() -> None:
    engine = engine_of(48)
    kept = [engine.allocate(size) for size in (1000, 3 * MIB, 9 * MIB)]
    under = [handles(engine, block) for block in kept]
    for round_ in range(60):
        blocks = [engine.allocate((1 + (round_ + i) % 11) * MIB) for i in range(6)]
        for block in blocks:
            engine.free(block)
        if round_ % 10 == 9:
            engine.empty_cache()
        assert [handles(engine, block) for block in kept] == under
    sound(engine)


@pytest.mark.parametrize("streams", [1, 3])
def test_a_repeating_program_settles_into_no_driver_call_at_all(streams: int) -> None:
    engine = engine_of(512)

    def step() -> None:
        for stream in range(streams):
            weights = [engine.allocate(size * KIB, stream=stream) for size in (4, 700, 3000, 3000)]
            for layer in range(8):
                kept = engine.allocate((1 + layer) * 900 * KIB, stream=stream)
                for size in (2100, 64, 5300):
                    engine.free(engine.allocate(size * KIB, stream=stream))
                weights.append(kept)
            for block in weights:
                engine.free(block)

    for _ in range(4):
        step()
    # Streams that lend each other memory ask how far they are, which is all that is left.
    asking = () if streams == 1 else ("record_event", "query_event", "stream_capturing")
    made = engine.stats()["driver_calls"]
    for _ in range(50):
        step()
    for kind, count in engine.stats()["driver_calls"].items():
        assert count == made[kind] or kind in asking
    sound(engine)


def test_a_free_makes_no_driver_call() -> None:
    engine = engine_of()
    blocks = [engine.allocate(size) for size in SIZES]
    before = calls(engine)
    for block in blocks:
        engine.free(block)
    assert calls(engine) == before
    assert engine.stats()["live_blocks"] == 0


def test_a_growing_cache_holds_no_more_than_its_live_pages() -> None:
    """Each step needs a block a little larger than the last, which is freed after: holes that nothing fits."""
    engine = engine_of(4096)
    caches = [engine.allocate(PAGE) for _ in range(4)]
    most_live = 0
    for step in range(1, 120):
        for i, old in enumerate(caches):
            caches[i] = engine.allocate(PAGE + step * 300 * KIB)
            most_live = max(most_live, engine.stats()["resident"]["current"])
            engine.free(old)
    assert engine.peak_used_bytes() == most_live == engine.stats()["resident"]["peak"]
    assert most_live <= 1.1 * engine.stats()["requested"]["peak"]
    assert engine.stats()["retries"] == 0
    sound(engine)


def test_a_shifting_pattern_holds_no_more_than_its_live_pages() -> None:
    """Sizes that come back in another order, with small blocks left in between."""
    engine = engine_of(4096)
    pins: list[int] = []
    for step in range(150):
        sizes = [(3 + (step * 13 + i * 7) % 29) * MIB for i in range(8)]
        blocks = []
        for size in sizes:
            blocks.append(engine.allocate(size))
            if step % 10 == 0:
                pins.append(engine.allocate(300 * KIB))
        for block in blocks:
            engine.free(block)
        if len(pins) > 60:
            for pin in pins[::2]:
                engine.free(pin)
            pins = pins[1::2]
    stats = engine.stats()
    assert engine.peak_used_bytes() == stats["reserved"]["peak"] == stats["resident"]["peak"]
    assert stats["retries"] == 0
    sound(engine)


def test_small_and_large_blocks_share_one_supply_of_pages() -> None:
    engine = engine_of(16)
    small = [engine.allocate(64 * KIB) for _ in range(16 * 32)]
    for block in small:
        engine.free(block)
    large = engine.allocate(16 * PAGE)  # nothing is lost to the slabs of before
    engine.free(large)
    assert [engine.allocate(64 * KIB) for _ in range(16 * 32)]
    assert engine.stats()["out_of_memory"] == 0
    sound(engine)


def test_sleeping_slabs_do_not_use_up_a_small_device() -> None:
    engine = engine_of(2, conf="bin_limit:1 MiB")
    for round_ in range(2):
        for index in range(_core.bin_of(MIB) + 1):
            size = _core.bin_bytes(index)
            blocks = [engine.allocate(size) for _ in range(2)]
            for block in blocks:
                engine.free(block)
            assert engine.stats()["resident"]["current"] == 0, (round_, size)
    sound(engine)


def test_empty_cache_leaves_only_what_live_blocks_need() -> None:
    engine = engine_of(64, event_lag=5)
    kept = engine.allocate(PAGE, stream=1)
    for stream in (0, 1, 2):
        for size in SIZES:
            engine.free(engine.allocate(size, stream=stream))
    before = engine.used_bytes()
    assert engine.empty_cache() == before - PAGE
    assert engine.used_bytes() == PAGE == engine.stats()["reserved"]["current"]
    assert engine.empty_cache() == 0
    engine.free(kept)
    assert engine.empty_cache() == PAGE
    assert engine.used_bytes() == 0
    sound(engine)


@pytest.mark.parametrize(
    ("conf", "fraction", "limit"),
    [("memory_limit:20 MiB", 1.0, 20 * MIB), ("", 0.25, 32 * MIB), ("memory_limit:20 MiB", 0.1, round(128 * MIB / 10))],
)
def test_no_more_is_held_than_the_limit(conf: str, fraction: float, limit: int) -> None:
    engine = engine_of(64, conf=conf)
    engine.set_memory_fraction(fraction)
    assert engine.stats()["limit_bytes"] == limit
    fill(engine, MIB)
    assert engine.peak_used_bytes() == limit // PAGE * PAGE
    sound(engine)


def test_a_fraction_below_what_is_held_takes_only_what_is_idle() -> None:
    engine = engine_of(64)
    blocks = [engine.allocate(4 * PAGE) for _ in range(8)]
    engine.free(blocks.pop())
    engine.set_memory_fraction(0.1)
    assert engine.used_bytes() == 28 * PAGE
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(4 * PAGE)
    engine.free(blocks.pop())
    blocks.append(engine.allocate(4 * PAGE))  # from idle pages: nothing more is held
    while blocks:
        engine.free(blocks.pop())
    engine.empty_cache()
    blocks = [engine.allocate(PAGE) for _ in range(6)]
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(PAGE)
    sound(engine)


# --- devices and drivers ---------------------------------------------------------------------------------------------


def test_devices_share_nothing() -> None:
    engine = engine_of(16, devices=2)
    full = [engine.allocate(PAGE, device=0) for _ in range(16)]
    with pytest.raises(errors.OutOfMemoryError, match="device 0"):
        engine.allocate(PAGE, device=0)
    others = [engine.allocate(PAGE, device=1) for _ in range(16)]
    assert not set(full) & set(others)
    assert engine.devices() == [0, 1]
    assert [engine.stats(device)["live"]["current"] for device in (0, 1)] == [16 * PAGE] * 2
    assert [engine.stats(device)["out_of_memory"] for device in (0, 1)] == [1, 0]
    engine.set_memory_fraction(0.5, 1)
    assert [engine.memory_fraction(device) for device in (0, 1)] == [1.0, 0.5]
    for block in full:
        engine.free(block)
    engine.free(others.pop())
    assert engine.stats(0)["live"]["current"] == 0
    assert engine.stats(1)["live"]["current"] == 15 * PAGE
    sound(engine)


@pytest.mark.parametrize("call", ["reserve", "create", "map", "allow_access"])
@pytest.mark.parametrize("size", [1000, 9 * PAGE])
def test_a_refused_call_leaves_nothing_changed(call: str, size: int) -> None:
    for nth in range(1, 12):
        engine = engine_of(64)
        if call != "reserve":  # only a stream's first request reserves
            engine.allocate(PAGE // 2)
            engine.free(engine.allocate(3 * PAGE))
        before = engine.stats()
        used = engine.used_bytes()
        engine.fail(call, nth)
        refusal = None
        try:
            engine.allocate(size)
        except errors.DriverError as error:
            refusal = str(error)
        assert refusal is None or call in refusal
        # Fewer than nth calls were made; or, for addresses, fewer would do.
        assert refusal is not None or call == "reserve" or engine.failures_waiting() == 1
        if engine.failures_waiting() == 0 and call != "reserve":
            after = engine.stats()
            for name in ("requested", "live", "pending", "resident"):
                assert after[name] == before[name]
            assert after["live_blocks"] == before["live_blocks"]
            assert after["reserved"]["current"] == engine.used_bytes() >= used
        sound(engine)
        if engine.failures_waiting():
            assert nth > 1 or size == 1000, "a large block needs every kind of call"
            return
        assert engine.allocate(size)
        sound(engine)
    assert call == "reserve", "every call of the kind was refused in turn"


def test_addresses_that_run_out_are_an_error_and_not_the_end() -> None:
    engine = _core.Engine("", {"memory_bytes": 1 << 40})
    for nth in range(1, 5):
        engine.fail("reserve", nth, "failed")
    engine.allocate(PAGE, stream=1)  # makes do with fewer addresses
    assert engine.failures_waiting() == 0
    for nth in range(1, 50):
        engine.fail("reserve", nth, "failed")
    with pytest.raises(errors.DriverError, match="cannot reserve"):
        engine.allocate(PAGE, stream=2)
    engine.allocate(PAGE, stream=1)
    sound(engine)


def test_hundreds_of_streams_and_pools_have_addresses() -> None:
    engine = _core.Engine("", {"memory_bytes": 288 << 30})
    live = [engine.allocate(size, stream=stream) for stream in range(200) for size in (1000, 3 * PAGE)]
    for number in range(1, 200):
        engine.begin_allocate_to_pool(0, (number, 0))
        live += [engine.allocate(size) for size in (1000, 3 * PAGE)]
        engine.end_allocate_to_pool(0, (number, 0))
    live.append(engine.allocate(200 << 30, stream=1))
    sound(engine)
    for block in live:
        engine.free(block)
    for number in range(1, 200):
        engine.release_pool(0, (number, 0))
    engine.empty_cache()
    assert engine.used_bytes() == 0
    sound(engine)
