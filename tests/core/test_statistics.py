"""Statistics: every figure against what was done, per bin, stream, pool and device."""

import re

import pytest
from engines import KIB, MIB, PAGE, engine_of

from poolalloc import _core, errors
from poolalloc.memory import summary_of

QUANTITIES = ("requested", "live", "pending", "resident", "idle", "reserved")
PEAK_ERROR = 64 * KIB  # of a device-wide peak, for each heap once there are several


def current(stats: dict, *names: str) -> tuple[int, ...]:
    return tuple(stats[name]["current"] for name in names)


def heap_of(engine: _core.Engine, stream: int, pool: tuple[int, int] = (0, 0)) -> dict:
    (heap,) = [heap for heap in engine.stats()["heaps"] if (heap["stream"], heap["pool"]) == (stream, pool)]
    return heap


def test_one_block_through_its_life() -> None:
    engine = engine_of(event_lag=5)
    block = engine.allocate(5 * MIB + 1)
    size = 5 * MIB + 512
    stats = engine.stats()
    assert current(stats, *QUANTITIES) == (5 * MIB + 1, size, 0, 3 * PAGE, 0, 3 * PAGE)
    engine.record_stream(block, 9)
    engine.free(block)
    stats = engine.stats()
    assert current(stats, *QUANTITIES) == (0, 0, size, 3 * PAGE, 0, 3 * PAGE)
    assert (stats["live_blocks"], stats["allocations"], stats["frees"]) == (1, 1, 1)
    engine.advance(5)
    engine.allocate(1)  # another page's worth: the heap looks at its pending frees before it grows
    engine.empty_cache()
    stats = engine.stats()
    assert current(stats, *QUANTITIES) == (1, 512, 0, PAGE, 0, PAGE)
    assert stats["pending_completed"] == 1


def test_peaks_are_the_most_there_ever_was_until_they_are_reset() -> None:
    engine = engine_of()
    large = engine.allocate(20 * PAGE)
    engine.free(large)
    small = engine.allocate(PAGE)
    engine.empty_cache()
    stats = engine.stats()
    assert [stats[name]["peak"] for name in ("requested", "live", "resident", "reserved")] == [20 * PAGE] * 4
    engine.reset_peak_stats()
    stats = engine.stats()
    assert [stats[name]["peak"] for name in ("requested", "live", "resident", "reserved")] == [PAGE] * 4
    engine.allocate(PAGE)
    engine.free(small)
    assert engine.stats()["live"]["peak"] == 2 * PAGE


def test_peaks_of_a_device_that_is_not_there_cannot_be_reset() -> None:
    engine = engine_of(devices=2)
    engine.reset_peak_stats(1)  # it was never used
    with pytest.raises(errors.PoolallocError, match="no device 7"):
        engine.reset_peak_stats(7)


def test_totals_only_grow() -> None:
    engine = engine_of()
    for _ in range(10):
        engine.free(engine.allocate(3 * PAGE))
    stats = engine.stats()
    assert stats["requested"]["total"] == stats["live"]["total"] == 30 * PAGE
    assert stats["requested"]["current"] == 0
    assert stats["reserved"]["total"] == 3 * PAGE
    engine.reset_peak_stats()
    assert engine.stats()["requested"]["total"] == 30 * PAGE


def test_a_peak_survives_the_second_stream() -> None:
    engine = engine_of()
    engine.free(engine.allocate(20 * PAGE, stream=1))
    engine.allocate(PAGE, stream=2)
    stats = engine.stats()
    for name in ("requested", "live", "resident"):
        assert abs(stats[name]["peak"] - 20 * PAGE) <= 2 * PEAK_ERROR, name


def test_the_peak_of_a_device_is_not_the_sum_of_its_streams_peaks() -> None:
    engine = engine_of()
    engine.allocate(1, stream=1)
    for stream in (1, 2, 3):
        engine.free(engine.allocate(10 * PAGE, stream=stream))
    assert abs(engine.stats()["requested"]["peak"] - 10 * PAGE) <= 3 * PEAK_ERROR
    blocks = [engine.allocate(8 * PAGE, stream=stream) for stream in (1, 2, 3)]
    for block in blocks:
        engine.free(block)
    assert abs(engine.stats()["requested"]["peak"] - 24 * PAGE) <= 3 * PEAK_ERROR


def test_streams_and_pools_are_told_apart() -> None:
    engine = engine_of()
    engine.allocate(3 * PAGE, stream=1)
    engine.allocate(2 * PAGE, stream=2)
    engine.begin_allocate_to_pool(0, (7, 1), [2])
    engine.allocate(5 * PAGE, stream=2)
    engine.end_allocate_to_pool(0, (7, 1))
    assert len(engine.stats()["heaps"]) == 3
    assert current(heap_of(engine, 1), "live", "reserved") == (3 * PAGE, 3 * PAGE)
    assert current(heap_of(engine, 2), "live", "reserved") == (2 * PAGE, 2 * PAGE)
    assert current(heap_of(engine, 2, (7, 1)), "live", "reserved") == (5 * PAGE, 5 * PAGE)
    assert current(engine.stats(), "live", "reserved") == (10 * PAGE, 10 * PAGE)


def test_counts_outlive_the_pool_they_were_made_in() -> None:
    engine = engine_of()
    engine.allocate(PAGE)
    for index in range(30):
        engine.begin_allocate_to_pool(0, (index, 1), [0])
        for _ in range(3):
            engine.free(engine.allocate(40 * KIB))
        engine.end_allocate_to_pool(0, (index, 1))
        engine.release_pool(0, (index, 1))
    stats = engine.stats()
    assert len(stats["heaps"]) == 1
    assert (stats["allocations"], stats["frees"]) == (91, 90)
    assert stats["requested"]["total"] == PAGE + 90 * 40 * KIB
    assert current(stats, "requested", "live", "pending") == (PAGE, PAGE, 0)
    assert stats["requested"]["peak"] <= PAGE + 40 * KIB + 2 * PEAK_ERROR, "what a pool had not published went with it"


def test_bins_say_what_they_hold() -> None:
    engine = engine_of()
    kept = [engine.allocate(size) for size in (600, 1000, 1024, 5000, 5000)]
    engine.free(engine.allocate(1024))
    engine.allocate(300 * KIB)
    heap = heap_of(engine, 0)
    bins = {row["block_bytes"]: row for row in heap["bins"]}
    assert set(bins) == {1024, 5120}
    assert {name: bins[1024][name] for name in ("live_blocks", "allocations", "requested", "rounded")} == {
        "live_blocks": 3, "allocations": 4, "requested": 2624, "rounded": 3072}  # fmt: skip
    assert bins[5120]["rounded"] == 2 * 5120
    assert heap["arena_rounded"] == 300 * KIB
    assert heap["arena_resident"] == PAGE
    assert sum(row["resident"] for row in heap["bins"]) + heap["uncut"] + PAGE == heap["resident"]["current"]
    assert all(row["requested"] <= row["rounded"] <= row["resident"] for row in heap["bins"])
    assert len(kept) == heap["live_blocks"] - 1


def test_pages_are_counted_as_they_come_and_go() -> None:
    engine = engine_of(32)
    engine.free(engine.allocate(4 * PAGE, stream=1))
    engine.allocate(PAGE, stream=1)
    assert (engine.stats()["pages_created"], engine.stats()["pages_destroyed"]) == (4, 0)
    engine.empty_cache()
    stats = engine.stats()
    assert (stats["pages_created"], stats["pages_destroyed"]) == (4, 3)
    assert stats["reserved"]["current"] == PAGE == engine.used_bytes()
    assert stats["driver_calls"]["create"] == 4
    assert stats["driver_calls"]["destroy"] == 3
    work = stats["driver_work"]
    for kind, pages in (("create", 4), ("map", 4), ("allow_access", 4), ("destroy", 3)):
        assert work[f"{kind}_pages"] == pages
        assert 0 < work[kind] <= pages
    assert re.search(rf"handles mapped by this process +{work['map']}\n", summary_of(stats))
    assert "driver time, modelled with the default price list" in summary_of(stats)


def test_aliased_pages_are_counted_with_their_mappings() -> None:
    engine = engine_of()
    low = engine.allocate(4 * PAGE)
    engine.allocate(PAGE)
    engine.free(low)
    engine.allocate(6 * PAGE)  # fits no hole: the four idle pages are mapped once more
    stats = engine.stats()
    assert stats["pages_aliased"] == 4
    assert stats["reserved"]["current"] == 7 * PAGE
    assert heap_of(engine, 0)["mappings"] == 11


def test_pages_that_belong_to_no_stream_are_idle_and_unmapped() -> None:
    engine = engine_of()
    engine.begin_allocate_to_pool(0, (1, 0), [0])
    engine.free(engine.allocate(6 * PAGE))
    engine.end_allocate_to_pool(0, (1, 0))
    assert engine.stats()["unmapped"] == 0
    engine.release_pool(0, (1, 0))
    stats = engine.stats()
    assert stats["unmapped"] == 6 * PAGE
    assert current(stats, "idle", "reserved", "resident") == (6 * PAGE, 6 * PAGE, 0)


def test_driver_calls_are_those_of_the_process() -> None:
    engine = engine_of(devices=2)
    engine.allocate(PAGE, device=0)
    engine.allocate(PAGE, device=1)
    assert engine.stats(0)["driver_calls"] == engine.stats(1)["driver_calls"]
    assert engine.stats(0)["driver_calls"]["create"] == 2
    assert all(count > 0 for count in engine.stats(0)["driver_calls"].values())


def test_a_device_nobody_used_has_zeros_and_one_that_is_not_there_an_error() -> None:
    engine = engine_of(devices=2)
    engine.allocate(PAGE, device=1)
    stats = engine.stats(0)
    assert stats["heaps"] == []
    assert all(stats[name] == {"current": 0, "peak": 0, "total": 0} for name in QUANTITIES)
    engine.reset_peak_stats(0)
    assert engine.devices() == [1]
    with pytest.raises(errors.UsageError, match="no device 2"):
        engine.stats(2)


def test_the_tables_of_the_allocator_are_small_beside_what_they_describe() -> None:
    engine = _core.Engine("", {"memory_bytes": 8 << 30})
    blocks = [engine.allocate(size) for _ in range(200) for size in (512, 4000, 40_000, 300_000, 3_000_000)]
    stats = engine.stats()
    assert 0 < stats["metadata_bytes"] < stats["reserved"]["current"] // 500
    held = stats["metadata_bytes"]
    for _ in range(20):
        for block in blocks:
            engine.free(block)
        blocks = [engine.allocate(size) for _ in range(200) for size in (512, 4000, 40_000, 300_000, 3_000_000)]
    assert engine.stats()["metadata_bytes"] <= 1.2 * held, "and do not grow with time"
