"""The option `growth`, what a placement asks of the driver, and how many mappings there may be. Calls are counted."""

import random

import pytest
from engines import KIB, MIB, PAGE, calls, engine_of, sound

from poolalloc import _core

MAPPING = ("create", "map", "allow_access", "unmap", "destroy")
POLICIES = ("tight", "balanced", "fast")


def step(engine: _core.Engine, scale: float) -> None:
    """A training step, as an allocator sees it: activations kept, temporaries between them, all freed in reverse."""
    kept = []
    for layer in range(12):
        temporary = engine.allocate(int(3 * MIB * scale) + layer * 512)
        kept.append(engine.allocate(int((2 + layer % 3) * 4 * MIB * scale)))
        kept.append(engine.allocate(int(700 * KIB * scale)))
        engine.free(temporary)
    for block in reversed(kept):
        gradient = engine.allocate(int(5 * MIB * scale))
        engine.free(block)
        engine.free(gradient)


def changing(conf: str, steps: int = 60) -> tuple[_core.Engine, list[int]]:
    """An engine after steps of changing shapes, and the driver calls of each."""
    engine = engine_of(4096, conf=conf)
    engine.allocate(40 * MIB + 7)  # the model
    draw = random.Random(5)
    made = []
    for _ in range(steps):
        before = calls(engine)
        step(engine, draw.uniform(0.2, 1.0))
        made.append(calls(engine) - before)
    sound(engine)
    return engine, made


def peak_reserved(engine: _core.Engine) -> int:
    peak = engine.stats()["reserved"]["peak"]
    assert isinstance(peak, int)
    return peak


# --- steady state ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", POLICIES)
def test_a_program_of_fixed_shapes_makes_no_driver_call_after_it_has_warmed_up(growth: str) -> None:
    engine = engine_of(4096, conf=f"growth:{growth}")
    for _ in range(3):
        step(engine, 1.0)
    before = calls(engine)
    for _ in range(20):
        step(engine, 1.0)
    assert calls(engine) == before
    sound(engine)


@pytest.mark.parametrize("growth", POLICIES)
def test_shapes_that_change_and_come_back_make_no_driver_call_in_the_end(growth: str) -> None:
    engine = engine_of(4096, conf=f"growth:{growth}")
    made = 0
    for cycle in range(30):
        before = calls(engine)
        for scale in (1.0, 0.37, 0.71, 0.52):
            step(engine, scale)
        made = calls(engine) - before
        assert cycle == 0 or made <= 400
    assert made == 0


def test_shapes_that_never_repeat_cost_a_bounded_number_of_driver_calls_a_step() -> None:
    engine, made = changing("")
    pages = engine.stats()["reserved"]["peak"] // PAGE
    late = made[len(made) // 2 :]
    assert sum(late) / len(late) <= 0.1 * pages, "far fewer than mapping every page anew"
    assert max(late) <= pages


# --- growth ----------------------------------------------------------------------------------------------------------


def test_each_policy_trades_memory_for_driver_calls() -> None:
    held, handles = {}, {}
    for growth in POLICIES:
        engine, _ = changing(f"growth:{growth}")
        held[growth] = peak_reserved(engine)
        handles[growth] = calls(engine, "create", "map")  # each call is for one handle
    assert held["tight"] <= held["balanced"] <= held["fast"]
    assert held["tight"] < held["fast"]
    assert handles["tight"] > 2 * handles["balanced"], "a span is many pages"
    assert handles["tight"] > 2 * handles["fast"]


def test_tight_holds_what_was_resident_at_the_peak_and_no_page_more() -> None:
    engine, _ = changing("")
    stats = engine.stats()
    assert stats["reserved"]["peak"] == stats["resident"]["peak"]


def test_balanced_stays_within_its_margin_over_the_most_that_was_resident() -> None:
    engine, _ = changing("growth:balanced")
    stats = engine.stats()
    assert stats["reserved"]["peak"] <= 1.05 * stats["resident"]["peak"] + 8 * PAGE  # one growth
    assert stats["reserved"]["peak"] > stats["resident"]["peak"]


@pytest.mark.parametrize("scale", [0.1, 0.2, 0.3])
def test_a_small_program_holds_little_that_is_idle_at_its_peak(scale: float) -> None:
    """Its idle pages would be a large part of what it holds: it grows by few at a time."""
    engine = engine_of(4096, conf="growth:balanced")
    engine.allocate(int(40 * MIB * scale))  # the model
    draw = random.Random(5)
    for _ in range(30):
        step(engine, draw.uniform(0.7, 1.0) * scale)
    stats = engine.stats()
    assert stats["reserved"]["peak"] <= 1.05 * stats["resident"]["peak"]
    sound(engine)


def cut_up(engine: _core.Engine) -> None:
    """Leaves 8 pages idle, in two holes that a block of 8 pages does not fit into."""
    blocks = [engine.allocate(4 * PAGE), engine.allocate(PAGE), engine.allocate(4 * PAGE), engine.allocate(PAGE)]
    for block in blocks[::2]:
        engine.free(block)


def test_tight_maps_idle_memory_before_it_creates_any() -> None:
    engine = engine_of(1024)
    cut_up(engine)
    created = engine.stats()["pages_created"]
    engine.allocate(8 * PAGE)
    assert engine.stats()["pages_created"] == created
    assert engine.stats()["pages_aliased"] > 0


def test_fast_creates_memory_until_the_limit_is_nearly_full() -> None:
    engine = engine_of(1024, conf=f"growth:fast,memory_limit:{64 * PAGE}")
    cut_up(engine)
    before = engine.stats()["pages_created"]
    engine.allocate(16 * PAGE)
    assert engine.stats()["pages_created"] >= before + 12, "little of it from what is idle"
    assert engine.stats()["pages_aliased"] == 0
    engine.allocate(60 * PAGE - engine.used_bytes())  # 60 of 64: nearly full
    created = engine.stats()["pages_created"]
    engine.allocate(4 * PAGE)
    assert engine.stats()["pages_created"] == created
    sound(engine)


def test_fast_uses_idle_memory_where_the_device_has_no_more() -> None:
    engine = engine_of(20, conf="growth:fast")
    cut_up(engine)
    for nth in range(1, 9):  # of however few pages
        engine.fail("create", nth, "out_of_memory")
    engine.allocate(8 * PAGE)
    assert engine.stats()["pages_aliased"] != 0
    assert engine.stats()["retries"] == 0
    sound(engine)


@pytest.mark.parametrize("growth", POLICIES)
def test_no_policy_refuses_what_fits(growth: str) -> None:
    engine = engine_of(64, conf=f"growth:{growth}")
    for _ in range(3):
        blocks = [engine.allocate(PAGE) for _ in range(64)]
        for block in blocks:
            engine.free(block)
        engine.free(engine.allocate(64 * PAGE))
    sound(engine)


# --- mappings --------------------------------------------------------------------------------------------------------


def test_a_block_goes_into_the_middle_of_a_hole_where_that_needs_no_driver_call() -> None:
    engine = engine_of(64)
    low, middle, high, pin = (engine.allocate(size * PAGE) for size in (4, 6, 4, 1))
    for block in (low, high):
        engine.free(block)
    other = engine.allocate(8 * PAGE)  # takes the idle frames of both away
    engine.free(middle)
    before = calls(engine)
    assert engine.allocate(6 * PAGE) == middle
    assert calls(engine) == before
    engine.free(other)
    engine.free(pin)
    sound(engine)


def churn(engine: _core.Engine, steps: int, stream: int = 0, ticks: int = 0) -> list[int]:
    """Blocks of all sizes come and go in disorder. Returns those that are left."""
    draw = random.Random(3)
    live: list[int] = []
    for _ in range(steps):
        engine.advance(ticks)
        if len(live) > 20:
            engine.free(live.pop(draw.randrange(len(live))))
        live.append(engine.allocate(draw.randrange(1, 40) * 700 * KIB, stream=stream))
    return live


def mappings(engine: _core.Engine) -> int:
    return sum(heap["mappings"] for heap in engine.stats()["heaps"])


def test_mappings_are_bounded_and_no_memory_is_lost_by_it() -> None:
    """Those go that are unused for longest, but none of the place that a block has just been given."""
    held = {}
    for bound in (1 << 30, 1024):
        engine = engine_of(2048, conf=f"max_mappings:{bound}", event_lag=100)
        engine.allocate(500 * PAGE, stream=1)  # the bound is one for all streams
        churn(engine, 3000, ticks=1)
        assert (mappings(engine) > 1200) == (bound > 1200), "those of the last 100 ticks may still be in use"
        held[bound] = engine.stats()["reserved"]["peak"]
        sound(engine)
    assert held[1024] <= 1.02 * held[1 << 30]


def test_no_mapping_goes_that_running_work_may_still_use() -> None:
    engine = engine_of(4096, conf="max_mappings:1024", event_lag=10**9)
    blocks = churn(engine, 1500)
    assert calls(engine, "unmap") == 0
    assert mappings(engine) > 1024
    sound(engine)
    for _ in range(4):  # one event is under way at a time
        engine.advance(10**9)
        engine.allocate(100 * PAGE)
    assert mappings(engine) <= 1024
    assert len(blocks) > 20
    sound(engine)
