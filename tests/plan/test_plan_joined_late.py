"""A plan that a program joins late, or leaves: it may miss, but costs next to no memory."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from effort import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_plan_making import MIB, Program, train

from poolalloc.analysis.plan import Plan, PlanError, make
from poolalloc.analysis.replay import replay
from poolalloc.analysis.trace import Op, Trace
from poolalloc.config import Config

SOME_PAGES = 8 * MIB  # that a plan may cost in any case


def joined(recorded: Program, start: int, others: list[int]) -> Trace:
    """The recorded program from an event on, with other weights than were recorded."""
    run = Program()
    for size in others:
        run.take(size)
    rows = recorded.rows[start:]
    allocated = {row[4] for row in rows if row[0] == Op.ALLOC}
    run.rows += [(*row[:4], row[4] + len(others), row[5]) for row in rows if row[4] in allocated]
    return run.trace()


def left(recorded: Program, stop: int, others: list[int]) -> Trace:
    """The recorded program up to an event; then it frees everything and does something else."""
    run = Program()
    run.rows = recorded.rows[:stop]
    freed = {row[4] for row in run.rows if row[0] == Op.FREE}
    run.free(*(row[1:] for row in run.rows if row[0] == Op.ALLOC and row[4] not in freed))
    run.ids = recorded.ids
    for size in others:
        run.free(run.take(size))
    return run.trace()


def reserved(trace: Trace, growth: str, plan: Plan | None = None) -> int:
    return replay(trace, Config(growth=growth), plan=plan).devices[0].peak_reserved


@dataclass
class Shape:
    weights: list[int]
    activations: list[int]
    temporaries: list[int]
    gradients: list[int]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    unit = draw(st.sampled_from([MIB // 3, MIB, 5 * MIB]))
    sizes = st.integers(1, 30).map(lambda n: n * unit // 512 * 512 + 512)
    layers = draw(st.integers(2, 6))
    lists = [draw(st.lists(sizes, min_size=layers, max_size=layers)) for _ in range(3)]
    return Shape(draw(st.lists(sizes, max_size=8)), *lists)


def run(shape: Shape, steps: int) -> Program:
    program = Program()
    for size in shape.weights:
        program.take(size)
    for _ in range(steps):
        kept, gradients = [], []
        for activation, temporary in zip(shape.activations, shape.temporaries, strict=True):
            kept.append(program.take(activation))
            program.free(program.take(temporary))
        for size in reversed(shape.gradients):
            gradients.append(program.take(size))
            program.free(kept.pop())
        program.free(*gradients)
    return program


@given(shape=shapes(), data=st.data())
@settings(max_examples=examples(60), deadline=None)
def test_a_plan_that_is_joined_late_costs_next_to_nothing(shape: Shape, data: st.DataObject) -> None:
    recorded = run(shape, 5)
    try:
        plan, _ = make(recorded.trace(), seconds=0)
    except PlanError:
        assume(False)
    step = (len(recorded.rows) - len(shape.weights)) // 5
    start = data.draw(st.integers(1, len(shape.weights) + step))
    others = data.draw(st.lists(st.integers(1, 40).map(lambda n: n * MIB), max_size=4))
    trace = joined(recorded, start, others)
    assert reserved(trace, "tight", plan) <= (1 + 1 / 16) * reserved(trace, "tight") + SOME_PAGES


@pytest.mark.parametrize(("growth", "part"), [("tight", 1 / 16), ("balanced", 1 / 8)])
def test_a_training_program_may_join_or_leave_its_plan_anywhere(growth: str, part: float) -> None:
    once, recorded = Program(), Program()
    train(once, 2)
    train(recorded, 6)
    plan, _ = make(recorded.trace(), seconds=0.2)
    for start in range(1, len(once.rows), 7):
        trace = joined(recorded, start, [])
        assert reserved(trace, growth, plan) <= (1 + part) * reserved(trace, growth) + SOME_PAGES, start
    # Who leaves in the first cycle may hold what the whole cycle would have taken.
    height = plan.parts[0].height
    for stop in range(1, 2 * len(once.rows), 11):
        trace = left(recorded, stop, [size * MIB + 512 for size in (50, 9, 70, 31, 17)])
        most = max((1 + part) * reserved(trace, growth), height)
        assert reserved(trace, growth, plan) <= most + SOME_PAGES, stop


def test_a_late_program_takes_idle_memory_for_its_plan() -> None:
    """Without the recorded weights, which stood for the first requests of the plan."""

    def loop(weights: int) -> Program:
        program = Program()
        for _ in range(weights):
            program.take(8 * MIB)
        for _ in range(20):
            program.free(*reversed([program.take(size * MIB) for size in (40, 24, 100, 300, 7, 55)]))
        return program

    plan, _ = make(loop(8).trace(), seconds=0)
    trace = loop(0).trace()
    for growth in ("tight", "balanced", "fast"):
        result = replay(trace, Config(growth=growth), plan=plan).devices[0]
        assert result.peak_reserved <= 1.05 * reserved(trace, growth)
        assert result.stats["plan_hits"] > result.stats["plan_misses"]
