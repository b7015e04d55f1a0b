"""Memory that moves between the streams of a device: who gets what another one left, when, and at what price."""

import pytest
from engines import KIB, MIB, PAGE, calls, engine_of, handles, sound

from poolalloc import _core

MAPPING = ("create", "map", "allow_access", "unmap", "destroy")
ONE, OTHER = 1, 2


def left_by(engine: _core.Engine, stream: int, pages: int) -> int:
    """Where a block of so many pages was."""
    block = engine.allocate(pages * PAGE, stream=stream)
    engine.free(block)
    return block


def take_turns(engine: _core.Engine, rounds: int, streams: tuple[int, ...] = (ONE, OTHER, 3)) -> None:
    for _ in range(rounds):
        for stream in streams:
            kept = [engine.allocate(layer * 1900 * KIB, stream=stream) for layer in range(1, 9)]
            small = [engine.allocate(size * KIB, stream=stream) for size in (3, 40, 200) for _ in range(12)]
            for block in kept[::2] + small + kept[1::2]:
                engine.free(block)


def test_what_one_stream_left_comes_before_new_memory() -> None:
    engine = engine_of(64)
    left_by(engine, ONE, 12)
    under = set(handles(engine, engine.allocate(10 * PAGE, stream=OTHER)))
    stats = engine.stats()
    assert (stats["pages_created"], stats["pages_stolen"]) == (12, 10)
    assert stats["reserved"]["current"] == 12 * PAGE
    assert stats["retries"] == 0, "that is no memory running out"
    assert len(under) == 10
    sound(engine)


def test_no_more_is_taken_than_is_missing() -> None:
    engine = engine_of(64)
    left_by(engine, OTHER, 4)
    left_by(engine, ONE, 12)  # four of them the other stream's
    engine.allocate(6 * PAGE, stream=OTHER)
    stats = engine.stats()
    assert (stats["pages_created"], stats["pages_stolen"]) == (12, 4 + 6)
    sound(engine)


def test_streams_that_peak_in_turn_hold_what_was_resident_at_one_time() -> None:
    engine = engine_of(512)
    take_turns(engine, 10)
    stats = engine.stats()
    assert stats["reserved"]["peak"] == stats["resident"]["peak"]
    alone = engine_of(512)
    take_turns(alone, 1, (ONE,))
    assert stats["reserved"]["peak"] <= alone.stats()["reserved"]["peak"] + 2 * PAGE, "a sleeping slab's page apiece"
    sound(engine)


def test_streams_that_take_turns_map_nothing_in_the_end() -> None:
    engine = engine_of(512)
    take_turns(engine, 4)
    before = calls(engine, *MAPPING)
    stolen = engine.stats()["pages_stolen"]
    take_turns(engine, 20)
    assert calls(engine, *MAPPING) == before
    assert engine.stats()["pages_stolen"] > stolen, "though memory goes to and fro"
    sound(engine)


def test_memory_comes_back_to_the_addresses_it_had() -> None:
    engine = engine_of(64)
    first = engine.allocate(10 * PAGE, stream=ONE)
    under = handles(engine, first)
    engine.free(first)
    left_by(engine, OTHER, 10)
    before = calls(engine, *MAPPING)
    again = engine.allocate(10 * PAGE, stream=ONE)
    assert again == first
    assert handles(engine, again) == under
    assert calls(engine, *MAPPING) == before
    sound(engine)


def test_memory_in_use_elsewhere_does_not_come_back() -> None:
    engine = engine_of(64)
    place = left_by(engine, ONE, 10)
    elsewhere = handles(engine, engine.allocate(10 * PAGE, stream=OTHER))
    again = engine.allocate(10 * PAGE, stream=ONE)
    assert not set(handles(engine, again)) & set(elsewhere)
    assert engine.stats()["reserved"]["current"] == 20 * PAGE
    assert engine.base_allocation(place) is None or again == place
    sound(engine)


def test_memory_that_a_stream_may_still_use_is_not_taken() -> None:
    engine = engine_of(64, event_lag=10)
    left_by(engine, ONE, 10)
    time = engine.now()
    first = engine.allocate(5 * PAGE, stream=OTHER)
    assert engine.now() == time, "nobody waited"
    assert engine.stats()["pages_created"] == 15
    engine.advance(10)
    engine.allocate(6 * PAGE, stream=OTHER)
    assert (engine.stats()["pages_created"], engine.stats()["pages_stolen"]) == (15, 6)
    engine.free(first)
    sound(engine)


def test_what_a_settled_stream_left_is_known_before_anybody_asks_again() -> None:
    engine = engine_of(256, event_lag=10)
    left_by(engine, ONE, 32)
    engine.allocate(PAGE, stream=OTHER)  # the first to ask: nothing is known to be done
    assert engine.stats()["pages_stolen"] == 0
    left_by(engine, ONE, 32)
    engine.advance(10)
    created = engine.stats()["pages_created"]
    engine.allocate(20 * PAGE, stream=OTHER)
    assert (engine.stats()["pages_created"], engine.stats()["pages_stolen"]) == (created, 20)
    sound(engine)


def test_a_device_far_behind_is_followed_all_the_same() -> None:
    engine = engine_of(512, event_lag=100)
    large = engine.allocate(64 * PAGE, stream=ONE)
    left_by(engine, ONE, 8)
    engine.allocate(PAGE, stream=OTHER)
    for round_ in range(400):  # more marks than are kept
        if round_ == 200:
            engine.free(large)
        left_by(engine, ONE, 8)
        engine.advance(1)
    created = engine.stats()["pages_created"]
    engine.allocate(40 * PAGE, stream=OTHER)
    assert engine.stats()["pages_created"] == created
    sound(engine)


def test_a_stream_leaves_marks_only_while_others_ask() -> None:
    engine = engine_of(64)
    blocks = [engine.allocate(8 * PAGE, stream=stream) for stream in (ONE, OTHER)]  # neither has anything idle
    for block in blocks:
        engine.free(block)
    before = calls(engine)
    for _ in range(50):
        left_by(engine, ONE, 8)
        left_by(engine, OTHER, 8)
    assert calls(engine) == before, "nobody has asked"
    engine.allocate(9 * PAGE, stream=OTHER)
    left_by(engine, ONE, 7)
    assert calls(engine, "record_event") != 0
    for _ in range(3000):
        left_by(engine, ONE, 7)
    before = calls(engine)
    for _ in range(50):
        left_by(engine, ONE, 7)
    assert calls(engine) == before, "nobody has asked for long"
    sound(engine)


def test_pages_that_cannot_come_back_yet_are_mapped_anew() -> None:
    engine = engine_of(64, event_lag=10)
    left_by(engine, ONE, 10)
    engine.allocate(PAGE, stream=OTHER)  # notes how far the first stream is
    engine.advance(10)
    left_by(engine, OTHER, 10)
    assert engine.stats()["pages_stolen"] == 10
    again = engine.allocate(10 * PAGE, stream=ONE)  # the other stream's work is not over
    assert len(set(handles(engine, again))) == 10
    sound(engine)


@pytest.mark.parametrize("growth", ["balanced", "fast"])
def test_a_program_that_trades_memory_for_calls_creates_first(growth: str) -> None:
    engine = engine_of(256, conf=f"growth:{growth}")
    left_by(engine, ONE, 20)
    left_by(engine, OTHER, 20)
    stolen = engine.stats()["pages_stolen"]
    assert stolen == (20 if growth == "balanced" else 0), "the margin of balanced is over the stream's own peak"
    sound(engine)


def test_during_a_capture_nothing_moves_between_streams() -> None:
    engine = engine_of(64)
    left_by(engine, ONE, 10)
    engine.begin_allocate_to_pool(0, (1, 0), [7])
    engine.begin_capture(7)
    engine.allocate(10 * PAGE, stream=OTHER)
    engine.allocate(PAGE, stream=7)
    engine.end_capture(7)
    engine.end_allocate_to_pool(0, (1, 0))
    assert engine.stats()["pages_stolen"] == 0
    sound(engine)


def test_a_pool_in_use_lends_nothing() -> None:
    engine = engine_of(64)
    engine.begin_allocate_to_pool(0, (1, 0), [ONE])
    block = engine.allocate(10 * PAGE, stream=ONE)
    engine.end_allocate_to_pool(0, (1, 0))
    engine.free(block)
    engine.allocate(10 * PAGE, stream=OTHER)
    assert engine.stats()["pages_stolen"] == 0
    sound(engine)


# --- the end of a loan -----------------------------------------------------------------------------------------------


def test_memory_that_goes_back_to_the_device_is_unmapped_everywhere() -> None:
    engine = engine_of(64)
    places = [left_by(engine, stream, 10) for stream in (ONE, OTHER, 3)]
    assert all(engine.physical(place) is not None for place in places)
    assert engine.used_bytes() == 10 * PAGE
    assert engine.trim() == 10 * PAGE
    assert engine.used_bytes() == 0
    assert all(engine.physical(place) is None for place in places)
    sound(engine)


@pytest.mark.parametrize("nth", [1, 5, 15])
def test_what_the_driver_refuses_to_unmap_is_held_and_goes_later(nth: int) -> None:
    engine = engine_of(64)
    for stream in (ONE, OTHER, 3):
        left_by(engine, stream, 10)
    engine.fail("unmap", nth, "failed")
    gone = engine.trim()
    assert gone == 9 * PAGE
    assert engine.used_bytes() == engine.stats()["reserved"]["current"] == PAGE
    sound(engine)
    assert engine.trim() == PAGE
    assert engine.used_bytes() == 0
    sound(engine)


def test_a_placement_over_pages_whose_memory_is_away_gets_memory_of_its_own() -> None:
    engine = engine_of(64)
    left_by(engine, ONE, 8)
    elsewhere = engine.allocate(5 * PAGE, stream=OTHER)
    blocks = [engine.allocate(3 * MIB, stream=ONE) for _ in range(6)]
    own = {page for block in blocks for page in handles(engine, block)}
    assert not own & set(handles(engine, elsewhere))
    assert engine.stats()["reserved"]["current"] == (len(own) + 5) * PAGE
    sound(engine)
