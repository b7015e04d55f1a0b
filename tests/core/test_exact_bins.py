"""Exact bins: what is kept, whom it serves, when it goes, and what the figures say of it."""

import numpy as np
import pytest
from engines import MIB, PAGE, calls, engine_of, sound

from poolalloc import _core, errors
from poolalloc.memory import fragmentation_of, summary_of

SIZE = 3 * PAGE
GROWTH = ("tight", "balanced", "fast")


def engine_with(bins: str, pages: int = 64, conf: str = "", **model: int) -> _core.Engine:
    return engine_of(pages, conf=f"exact_bins:{bins}{',' if conf else ''}{conf}", **model)


def keep(engine: _core.Engine, count: int, size: int = SIZE, stream: int = 0) -> list[int]:
    """So many blocks at one time, all freed."""
    blocks = [engine.allocate(size, stream=stream) for _ in range(count)]
    for block in blocks:
        engine.free(block)
    return blocks


def kept(engine: _core.Engine) -> int:
    sound(engine)
    bytes_kept = engine.stats()["kept"]["current"]
    assert isinstance(bytes_kept, int)
    return bytes_kept


def counts(engine: _core.Engine) -> tuple[int, int, int]:
    stats = engine.stats()
    return stats["kept_hits"], stats["kept_misses"], stats["kept_released"]


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_freed_block_serves_the_next_request_of_its_size_and_no_other() -> None:
    engine = engine_with("6MiB/1/8")
    (block,) = keep(engine, 1)
    before = calls(engine)
    others = [engine.allocate(size) for size in (SIZE + 1, SIZE - 512, PAGE)]
    assert all(other + SIZE <= block or other >= block + SIZE for other in others)
    assert kept(engine) == SIZE
    made = calls(engine)
    assert made > before
    assert engine.allocate(SIZE - 511) == block, "it rounds to the size"
    assert calls(engine) == made
    assert engine.base_allocation(block + SIZE - 1) == (block, SIZE)
    assert kept(engine) == 0
    assert counts(engine) == (2, 0, 0)


def test_the_latest_block_comes_first_and_no_more_than_keep_are_kept() -> None:
    engine = engine_with("6MiB/0/3")
    blocks = keep(engine, 5)
    assert kept(engine) == 3 * SIZE
    assert [engine.allocate(SIZE) for _ in range(3)] == blocks[2::-1]
    assert kept(engine) == 0
    assert counts(engine) == (3, 5, 0)


def test_a_size_between_two_multiples_means_what_it_rounds_to() -> None:
    engine = engine_with("6291455/0/1+1000001/0/1")
    (block,) = keep(engine, 1, SIZE)
    assert engine.allocate(SIZE) == block
    (block,) = keep(engine, 1, 1000400)
    assert engine.allocate(1000300) == block


def test_a_kept_block_is_nobodys() -> None:
    engine = engine_with("6MiB/0/1")
    (block,) = keep(engine, 1)
    for refused in (engine.free, lambda address: engine.record_stream(address, 7)):
        with pytest.raises(errors.UsageError, match=hex(block)):
            refused(block)
    assert engine.base_allocation(block) is None
    assert engine.owns(block)
    assert kept(engine) == SIZE


def test_streams_keep_their_own() -> None:
    engine = engine_with("6MiB/0/2")
    mine, theirs = keep(engine, 2, stream=0), keep(engine, 2, stream=1)
    assert kept(engine) == 4 * SIZE
    assert {engine.allocate(SIZE, stream=1) for _ in range(2)} == set(theirs)
    assert {engine.allocate(SIZE, stream=0) for _ in range(2)} == set(mine)
    sound(engine)


def test_a_block_that_another_stream_uses_is_kept_once_that_is_done() -> None:
    engine = engine_with("6MiB/1/2", event_lag=5)
    block = engine.allocate(SIZE)
    engine.record_stream(block, 7)
    engine.free(block)
    assert kept(engine) == 0
    assert engine.stats()["pending"]["current"] == SIZE
    assert engine.allocate(SIZE) != block, "work of the other stream may still use it"
    engine.advance(5)
    assert engine.allocate(40 * PAGE), "looks at what is pending"
    assert kept(engine) == SIZE
    assert engine.allocate(SIZE) == block


def test_private_pools_keep_nothing_and_a_capture_may_take_what_is_kept() -> None:
    engine = engine_with("6MiB/2/4")
    keep(engine, 1)
    before = kept(engine)
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    keep(engine, 3, stream=7)
    assert kept(engine) == before
    made = calls(engine)
    assert engine.allocate(SIZE, stream=0)
    assert calls(engine) == made
    assert kept(engine) == before - SIZE
    engine.end_allocate_to_pool(0, (1, 0))
    sound(engine)


@pytest.mark.parametrize("growth", GROWTH)
def test_sizes_that_come_and_go_need_no_driver_call_nor_a_search(growth: str) -> None:
    engine = engine_with("6MiB/0/4+20MiB/0/4", 512, conf=f"growth:{growth}")

    def step() -> None:
        blocks = [engine.allocate(size) for size in (SIZE, 20 * MIB, 5 * MIB) * 3]
        for block in blocks:
            engine.free(block)

    for _ in range(3):
        step()
    before, (hits, misses, released) = calls(engine), counts(engine)
    for _ in range(20):
        step()
    assert calls(engine) == before
    assert counts(engine) == (hits + 20 * 6, misses, released)
    sound(engine)


# --- made ahead -------------------------------------------------------------------------------------------------------


def test_the_first_request_makes_so_many_on_its_stream_and_once_on_a_device() -> None:
    engine = engine_with("6MiB/4/8+20MiB/2/2", 128, devices=2)
    engine.allocate(1000)
    assert kept(engine) == 0, "not before the size is asked for"
    block = engine.allocate(SIZE, stream=5)
    assert kept(engine) == 3 * SIZE
    made = calls(engine)
    assert all(engine.allocate(SIZE, stream=5) for _ in range(3))
    assert calls(engine) == made
    assert counts(engine) == (4, 0, 0)
    engine.allocate(SIZE, stream=6)
    assert kept(engine) == 0, "another stream makes none"
    engine.allocate(SIZE, device=1)
    assert engine.stats(1)["kept"]["current"] == 3 * SIZE, "another device does"
    engine.free(block)
    sound(engine)


def test_where_memory_is_short_as_many_are_made_as_there_is_room_for() -> None:
    engine = engine_with("6MiB/16/16", 16)
    engine.allocate(5 * PAGE)
    assert engine.allocate(SIZE)
    assert kept(engine) == 2 * SIZE
    assert engine.stats()["out_of_memory"] == engine.stats()["retries"] == 0


def test_none_are_made_while_a_graph_is_captured() -> None:
    engine = engine_with("6MiB/4/8")
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.begin_capture(7)
    block = engine.allocate(SIZE)
    assert kept(engine) == 0
    engine.end_capture(7)
    engine.end_allocate_to_pool(0, (1, 0))
    engine.free(block)
    assert engine.allocate(SIZE)
    assert engine.allocate(SIZE)
    assert kept(engine) == 3 * SIZE


# --- when it goes -----------------------------------------------------------------------------------------------------


def test_a_stream_takes_its_surplus_before_it_grows_and_not_what_was_made_ahead() -> None:
    engine = engine_with("6MiB/2/8")
    keep(engine, 6)
    assert kept(engine) == 6 * SIZE == engine.used_bytes()
    engine.allocate(4 * PAGE)
    assert kept(engine) == 4 * SIZE, "two blocks are six pages"
    engine.allocate(2 * PAGE)
    engine.allocate(2 * SIZE)
    assert engine.used_bytes() == 6 * SIZE, "nothing had to be created"
    assert kept(engine) == 2 * SIZE
    assert counts(engine)[2] == 4
    engine.allocate(PAGE)
    assert kept(engine) == 2 * SIZE
    assert engine.used_bytes() == 6 * SIZE + PAGE
    assert engine.stats()["retries"] == 0


def test_small_blocks_take_it_too() -> None:
    engine = engine_with("6MiB/0/8")
    keep(engine, 2)
    engine.allocate(1000)
    assert kept(engine) == SIZE
    assert engine.used_bytes() == 2 * SIZE


def test_growth_that_is_allowed_comes_first() -> None:
    engine = engine_with("6MiB/0/8", conf="growth:fast")
    keep(engine, 6)
    engine.allocate(4 * PAGE)
    assert kept(engine) == 6 * SIZE
    assert engine.used_bytes() >= 6 * SIZE + 4 * PAGE


def test_idle_memory_of_other_streams_goes_first() -> None:
    engine = engine_with("6MiB/0/8")
    other = engine.allocate(8 * PAGE, stream=1)
    keep(engine, 2)
    engine.free(other)
    engine.allocate(8 * PAGE)
    assert kept(engine) == 2 * SIZE
    engine.allocate(PAGE)
    assert kept(engine) == SIZE
    assert engine.used_bytes() == 8 * PAGE + 2 * SIZE


@pytest.mark.parametrize("growth", GROWTH)
def test_a_program_that_would_run_out_gets_it_all(growth: str) -> None:
    engine = engine_with("6MiB/10/20", 60, conf=f"growth:{growth}")
    keep(engine, 12)
    assert engine.allocate(60 * PAGE)
    assert kept(engine) == 0
    stats = engine.stats()
    assert stats["out_of_memory"] == 0
    assert stats["kept_released"] == 12
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(SIZE)
    sound(engine)


def test_only_what_is_missing_is_released() -> None:
    engine = engine_with("6MiB/20/20", 60)
    keep(engine, 20)
    engine.allocate(6 * PAGE)
    assert kept(engine) == 18 * SIZE
    stats = engine.stats()
    assert stats["retries"] == stats["after_releasing"] == 1


@pytest.mark.parametrize("lag", [0, 50])
def test_what_another_stream_keeps_comes_once_its_work_is_done(lag: int) -> None:
    engine = engine_with("6MiB/10/10", 60)
    engine.set_stream_lag(7, lag)
    keep(engine, 10, stream=7)
    start = engine.now()
    assert engine.allocate(50 * PAGE, stream=3)
    assert kept(engine) == 0, "of a block, all its pages are released"
    stats = engine.stats()
    assert (stats["after_releasing"], stats["after_waiting"]) == ((1, 0) if lag == 0 else (0, 1))
    assert engine.now() >= start + lag
    sound(engine)


def test_nothing_kept_leaves_a_stream_while_a_graph_is_captured() -> None:
    engine = engine_with("6MiB/10/10", 60)
    keep(engine, 10, stream=7)
    engine.begin_allocate_to_pool(0, (1, 0), [3])
    engine.begin_capture(3)
    assert engine.allocate(30 * PAGE, stream=3)
    with pytest.raises(errors.OutOfMemoryError):
        engine.allocate(10 * PAGE, stream=3)
    assert kept(engine) == 10 * SIZE
    assert engine.allocate(10 * PAGE, stream=7), "its own stream may have it"
    engine.end_capture(3)
    engine.end_allocate_to_pool(0, (1, 0))
    sound(engine)


def test_emptying_the_cache_and_trimming_take_it_last() -> None:
    engine = engine_with("6MiB/4/8")
    for block in [*[engine.allocate(SIZE) for _ in range(6)], engine.allocate(10 * PAGE)]:
        engine.free(block)
    assert engine.used_bytes() == 28 * PAGE
    assert engine.trim(18 * PAGE) == 10 * PAGE
    assert kept(engine) == 6 * SIZE, "what was idle was enough"
    assert engine.trim(11 * PAGE) == 7 * PAGE
    assert kept(engine) == 3 * SIZE
    assert engine.used_bytes() == 11 * PAGE
    assert engine.empty_cache() == 11 * PAGE
    assert kept(engine) == engine.used_bytes() == 0
    keep(engine, 1)
    assert kept(engine) == SIZE, "from then on as before, but none is made ahead again"


def test_trimming_that_waits_takes_what_work_still_uses() -> None:
    engine = engine_with("6MiB/0/8", event_lag=40)
    keep(engine, 6)
    assert engine.trim(0) == 0
    assert engine.trim(0, wait=True) == 6 * SIZE
    assert engine.used_bytes() == 0
    sound(engine)


def test_a_lower_limit_takes_it() -> None:
    engine = engine_with("6MiB/4/8")
    keep(engine, 6)
    engine.set_memory_limit(10 * PAGE)
    assert engine.used_bytes() == 10 * PAGE
    assert kept(engine) == 3 * SIZE
    engine.set_memory_fraction(0.0)
    assert kept(engine) == engine.used_bytes() == 0


# --- figures ----------------------------------------------------------------------------------------------------------


def test_every_byte_is_somewhere() -> None:
    engine = engine_with("6MiB/0/8+300001/0/4", event_lag=10)
    blocks = [engine.allocate(size, stream=stream) for stream in (0, 7) for size in (100, 300_001, SIZE, MIB) * 4]
    engine.record_stream(blocks[2], 99)
    for block in blocks[::2]:
        engine.free(block)
    for block in blocks[1::4]:
        engine.free(block)
    stats = engine.stats()
    now = {name: stats[name]["current"] for name in ("live", "pending", "kept", "resident", "reserved")}
    assert now["kept"] == 7 * SIZE + 8 * 300_032
    assert now["pending"] == SIZE
    assert now["live"] + now["pending"] + now["kept"] + stats["all"]["unused"]["current"] == now["resident"]
    assert sum(heap["kept"]["current"] for heap in stats["heaps"]) == now["kept"]
    for part in ("all", "small", "large"):
        unused = stats[part]["unused"]
        assert 0 <= unused["current"] <= min(unused["peak"], unused["total"])
    where = fragmentation_of(stats)
    assert where.total.kept == now["kept"]
    assert where.total.reserved == now["reserved"] == engine.used_bytes()
    assert sum(row.resident for row in where.bins) + where.uncut == now["resident"]
    arena = next(row for row in where.bins if row.block_bytes is None)
    assert arena.kept == now["kept"]
    assert arena.rounded + arena.kept + arena.half_empty == arena.resident
    assert "kept" in summary_of({**stats})
    sound(engine)
    for block in (b for i, b in enumerate(blocks) if i % 2 and i % 4 != 1):
        engine.free(block)
    engine.advance(10)
    engine.empty_cache()
    stats = engine.stats()
    assert stats["reserved"]["current"] == stats["kept"]["current"] == 0
    for part in ("all", "small", "large"):
        assert stats[part]["unused"]["current"] == 0
        assert stats[part]["unused"]["total"] >= stats[part]["unused"]["peak"]
    sound(engine)


def test_peaks_of_what_is_kept_start_anew() -> None:
    engine = engine_with("6MiB/0/8")
    keep(engine, 5)
    taken = [engine.allocate(SIZE) for _ in range(4)]
    assert engine.stats()["kept"] == {"current": SIZE, "peak": 5 * SIZE, "total": 5 * SIZE}
    engine.reset_peak_stats()
    assert engine.stats()["kept"]["peak"] == SIZE
    engine.free(taken[0])
    assert engine.stats()["kept"] == {"current": 2 * SIZE, "peak": 2 * SIZE, "total": 6 * SIZE}


def test_a_plan_has_its_requests_and_exact_bins_what_it_misses() -> None:
    plan = {
        "above": 1 * MIB,
        "parts": [
            {
                "device": 0,
                "stream": 0,
                "sizes": np.array([SIZE, 4 * MIB], dtype=np.uint64),
                "offsets": np.array([0, SIZE], dtype=np.uint64),
                "first": 0,
                "period": 2,
                "height": SIZE + 4 * MIB,
            }
        ],
    }
    engine = _core.Engine("exact_bins:6MiB/0/4+4MiB/0/4", {"memory_bytes": 64 * PAGE}, plan)
    for _ in range(4):
        planned, other = engine.allocate(SIZE), engine.allocate(4 * MIB)
        engine.free(planned)
        engine.free(other)
    assert engine.stats()["plan_hits"] == 8
    assert kept(engine) == 0, "planned blocks stay where the plan has them"
    mine = [engine.allocate(SIZE) for _ in range(4)]
    for block in mine:
        engine.free(block)
    assert kept(engine) > 0
    assert engine.allocate(SIZE)
    assert counts(engine)[0] + engine.stats()["plan_hits"] > 8
    sound(engine)
