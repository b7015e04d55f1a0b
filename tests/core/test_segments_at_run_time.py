"""New memory in whole allocations for a while, on a device that maps pages: torch's expandable_segments at run time."""

import pytest
from engines import MIB, PAGE, calls, engine_of, fill, sound
from hypothesis import given, settings
from hypothesis import strategies as st

from poolalloc import _core, errors


def is_whole(engine: _core.Engine, pages: int, stream: int = 0) -> bool:
    """Whether new memory is: of a size that nothing idle serves."""
    before = calls(engine, "allocate_segment")
    engine.allocate(pages * PAGE, stream=stream)
    return calls(engine, "allocate_segment") != before


def test_new_memory_is_whole_from_the_call_on_and_mapped_again_after_the_next() -> None:
    engine = engine_of(256)
    assert not is_whole(engine, 3, stream=0)
    engine.want_segments(True)
    assert is_whole(engine, 3, stream=0)
    assert is_whole(engine, 3, stream=1), "a stream that is new"
    engine.want_segments(False)
    assert [is_whole(engine, 3, stream=stream) for stream in (0, 1, 2)] == [False, False, False]
    sound(engine)


def test_each_kind_serves_again_when_it_is_asked_for_again() -> None:
    engine = engine_of(64)
    mapped = engine.allocate(4 * PAGE)
    engine.want_segments(True)
    whole = engine.allocate(4 * PAGE)
    engine.free(mapped)
    engine.free(whole)
    before = calls(engine)
    for wanted, address in ((True, whole), (False, mapped), (True, whole)):
        engine.want_segments(wanted)
        assert engine.allocate(4 * PAGE) == address
        engine.free(address)
    assert calls(engine) == before
    engine.trim()
    assert engine.used_bytes() == 0
    sound(engine)


@pytest.mark.parametrize("first", [False, True])
def test_what_lies_idle_in_one_kind_makes_room_for_the_other(first: bool) -> None:
    engine = engine_of(32)
    engine.want_segments(first)
    for address in fill(engine, 4 * PAGE, streams=(0, 1)):
        engine.free(address)
    assert engine.used_bytes() >= 28 * PAGE
    engine.want_segments(not first)
    assert engine.allocate(20 * PAGE) != 0
    assert engine.used_bytes() <= 32 * PAGE
    sound(engine)


def test_a_pool_takes_what_is_wanted_now() -> None:
    engine = engine_of(128)
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    assert not is_whole(engine, 3, stream=7)
    engine.want_segments(True)
    assert is_whole(engine, 3, stream=7)
    engine.want_segments(False)
    engine.end_allocate_to_pool(0, (1, 0))
    sound(engine)


def test_a_device_that_is_used_later_does_as_the_others() -> None:
    engine = engine_of(64, devices=2)
    engine.want_segments(True)
    address = engine.allocate(3 * PAGE, device=1)
    assert engine.stats(1)["driver_calls"]["allocate_segment"] == 1
    engine.free(address)
    sound(engine)


def test_where_memory_is_whole_anyway_nothing_changes() -> None:
    engine = engine_of(64, "segments:true")
    for wanted in (False, True, False):
        engine.want_segments(wanted)
        assert is_whole(engine, 5)
    sound(engine)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_order_of_switches_loses_nothing(data: st.DataObject) -> None:
    engine = engine_of(48, event_lag=3)
    live: list[int] = []
    for _ in range(data.draw(st.integers(5, 60))):
        action = data.draw(
            st.sampled_from(["allocate", "allocate", "allocate", "free", "free", "switch", "trim", "use"])
        )
        if action == "switch":
            engine.want_segments(data.draw(st.booleans()))
        elif action == "trim":
            engine.trim(data.draw(st.integers(0, 40)) * PAGE, wait=data.draw(st.booleans()))
        elif action == "allocate":
            size = data.draw(st.sampled_from([512, 300_000, MIB, 3 * MIB, 2 * PAGE, 7 * PAGE]))
            try:
                live.append(engine.allocate(size, stream=data.draw(st.integers(0, 2))))
            except errors.OutOfMemoryError:
                assert sum((engine.base_allocation(address) or (0, 0))[1] for address in live) + size > 12 * PAGE
        elif live:
            address = data.draw(st.sampled_from(live))
            if action == "use":
                engine.record_stream(address, data.draw(st.integers(0, 2)))
            else:
                live.remove(address)
                engine.free(address)
        engine.validate()
    for address in live:
        engine.free(address)
    engine.advance(10)
    engine.trim(wait=True)
    assert engine.used_bytes() == 0
    assert engine.stats()["requested"]["current"] == 0
    sound(engine)
