"""Plans of made-up recordings: steps that repeat are found, their blocks placed, and a replay is served from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from poolalloc._internal.plan_file import KEPT, check
from poolalloc._internal.trace.format import EVENT
from poolalloc.analysis.plan import PlanError, make, read, write
from poolalloc.analysis.replay import replay
from poolalloc.analysis.trace import DeviceInfo, Op, Trace
from poolalloc.analysis.trace import write as write_trace
from poolalloc.cli import run as command_line

MIB = 1 << 20


class Program:
    """Writes down what a program does."""

    def __init__(self, streams: Sequence[int] = (0,), pools: Sequence[tuple[int, int]] = ((0, 0),)) -> None:
        self.streams, self.pools = tuple(streams), tuple(pools)
        self.rows: list[tuple[int, int, int, int, int, int]] = []  # op, device, stream, pool, id, requested
        self.ids = 0

    def take(self, size: int, stream: int = 0, device: int = 0, pool: int = 0) -> tuple[int, ...]:
        self.ids += 1
        block = (device, stream, pool, self.ids, size)
        self.rows.append((Op.ALLOC, *block))
        return block

    def free(self, *blocks: tuple[int, ...]) -> None:
        self.rows += [(Op.FREE, *block) for block in blocks]

    def trace(self, initial: int = 0) -> Trace:
        events = np.zeros(len(self.rows), EVENT)
        for number, (op, device, stream, pool, block, size) in enumerate(self.rows):
            events[number] = (1000 * number, op, device, stream, 0, pool, block, size, 0, 0)
        devices = tuple(DeviceInfo(device) for device in sorted({row[1] for row in self.rows}))
        return Trace(events, self.streams, (0,), self.pools, devices=devices, initial_events=initial, clock="order")


def train(program: Program, steps: int, layers: int = 6, **where: int) -> None:
    """Weights, then steps that hold activations until the way back; the optimizer's state comes with the first."""
    for layer in range(layers):
        program.take((4 + layer) * MIB, **where)
    last = None
    for step in range(steps):
        batch = program.take(3 * MIB, **where)  # before the one of the last step goes
        if last is not None:
            program.free(last)
        last = batch
        kept = []
        for layer in range(layers):
            kept.append(program.take((6 + 2 * layer) * MIB + 300, **where))
            program.free(program.take(5 * MIB, **where))
        gradients = []
        for layer in reversed(range(layers)):
            gradients.append(program.take((4 + layer) * MIB, **where))
            program.free(kept.pop())
        for layer in range(layers):
            if step == 0:
                program.take((4 + layer) * MIB, **where)
            program.free(program.take(2 * MIB, **where))
        program.free(*gradients)


def test_a_training_program_is_planned_and_served_from_its_plan() -> None:
    program = Program()
    train(program, 8)
    trace = program.trace()
    plan, (found,) = make(trace, seconds=0.5)
    assert found.problem == ""
    assert found.cycle is not None
    assert found.cycle.length == 2 * found.cycle.period  # the batches of two steps meet
    assert found.outliving == 0
    assert int((plan.parts[0].requests["until"] == KEPT).sum()) == 2 * 6
    served, without = replay(trace, plan=plan), replay(trace)
    stats = served.devices[0].stats
    assert (stats["plan_hits"], stats["plan_misses"]) == (found.requests, 0)
    assert served.devices[0].peak_reserved <= plan.parts[0].height + (2 << 20)
    assert served.devices[0].peak_reserved <= without.devices[0].peak_reserved
    assert plan.parts[0].height <= 1.02 * found.load


def test_a_longer_run_than_was_recorded_makes_no_driver_call_after_its_second_step() -> None:
    recorded, run = Program(), Program()
    train(recorded, 4)
    plan, _ = make(recorded.trace(), seconds=0.5)
    train(run, 2)
    calls = sum(replay(run.trace(), plan=plan).driver_calls.values())
    run = Program()
    train(run, 12)
    again = replay(run.trace(), plan=plan)
    assert sum(again.driver_calls.values()) == calls
    assert again.devices[0].stats["plan_misses"] == 0


def test_a_step_of_few_sizes_is_told_from_the_layers_in_it() -> None:
    program = Program()
    for _ in range(5):
        for layers in (20, 21):
            for _ in range(layers):
                program.free(program.take(MIB), program.take(2 * MIB))
            program.free(program.take(2 * MIB))
    _, (found,) = make(program.trace(), seconds=0)
    assert found.cycle is not None
    assert (found.cycle.period, found.cycle.repeats) == (2 * 41 + 2, 5)


def test_each_device_and_stream_has_a_plan_of_its_own() -> None:
    program = Program(streams=(0x7F00, 0, 0x8800))
    for step in range(5):
        for device in (0, 2):
            for stream in (0, 1, 2):
                mine = [program.take((size + stream) * MIB, stream, device) for size in (3, 9, 4)]
                program.free(*mine)
        program.free(program.take(7 * MIB + step * 512, 2, 2))  # the last stream's steps all differ
    plan, found = make(program.trace(), seconds=0.1)
    assert [(part.device, part.stream) for part in plan.parts] == [(0, 1), (0, 0), (0, 2), (2, 1), (2, 0)]
    assert [one.problem != "" for one in found] == [False] * 5 + [True]
    stats = [device.stats for device in replay(program.trace(), plan=plan).devices]
    assert [row["plan_misses"] for row in stats] == [0, 0]
    assert [row["plan_hits"] for row in stats] == [3 * 15, 2 * 15]


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ([1 * MIB], "no two whole steps"),
        ([1 * MIB, 2 * MIB, 3 * MIB, 1 * MIB, 2 * MIB], "no two whole steps"),
        ([1000] * 50, "no request is larger than 128 KiB"),
        ([(size + 1) * MIB for size in range(100)] + [MIB] * 3, "steps do not repeat"),
    ],
)
def test_what_does_not_repeat_is_refused_with_the_reason(program: list[int], problem: str) -> None:
    writing = Program()
    for size in program:
        writing.free(writing.take(size))
    with pytest.raises(PlanError, match=f"there is nothing to plan: .*{problem}"):
        make(writing.trace(), seconds=0)


def test_blocks_that_outlive_every_cycle_and_pools_and_what_was_there_are_left_out() -> None:
    program = Program(pools=((0, 0), (1, 0)))
    program.take(50 * MIB)
    for _ in range(12):
        program.free(program.take(3 * MIB), program.take(4 * MIB))
        program.take(5 * MIB)  # never freed: each step one more
        program.free(program.take(6 * MIB, pool=1))
    plan, (found,) = make(program.trace(initial=1), seconds=0)
    assert (found.initial, found.outliving, found.requests) == (1, found.cycle.length // 3, 36)  # type: ignore[union-attr]
    check(plan)
    assert replay(program.trace(initial=1), plan=plan).devices[0].stats["plan_misses"] >= 11


sizes = st.integers(1, 40).map(lambda halves: halves * 300_000)


def repeat(begin: list[int], step: list[tuple[int, int]], count: int) -> Trace:
    """What is asked for first stays; each block of a step lives for some requests more, perhaps into later steps."""
    program = Program()
    for size in begin:
        program.take(size)
    alive: list[tuple[int, tuple[int, ...]]] = []
    for now in range(count * len(step)):
        program.free(*(block for end, block in alive if end <= now))
        size, life = step[now % len(step)]
        alive = [one for one in alive if one[0] > now]
        alive.append((now + life, program.take(size)))
    return program.trace()


@given(begin=st.lists(sizes, max_size=5), step=st.lists(st.tuples(sizes, st.integers(0, 20)), min_size=1, max_size=10))
@settings(max_examples=examples(100), deadline=None)
def test_whatever_is_planned_is_sound(begin: list[int], step: list[tuple[int, int]]) -> None:
    trace = repeat(begin, step, 6)
    try:
        plan, (found,) = make(trace, seconds=0)
    except PlanError:
        return
    check(plan)
    stats = replay(trace, plan=plan).devices[0].stats
    assert stats["plan_hits"] + stats["plan_misses"] == found.requests


@given(
    begin=st.lists(sizes, max_size=5),
    step=st.lists(st.tuples(sizes, st.floats(0, 2)), min_size=1, max_size=10, unique_by=lambda request: request[0]),
)
@settings(max_examples=examples(100), deadline=None)
def test_what_is_gone_within_two_steps_is_always_where_it_was_planned(
    begin: list[int], step: list[tuple[int, float]]
) -> None:
    trace = repeat(begin, [(size, int(life * len(step))) for size, life in step], 8)
    plan, (found,) = make(trace, seconds=0)
    assert found.outliving == 0
    stats = replay(trace, plan=plan).devices[0].stats
    assert (stats["plan_hits"], stats["plan_misses"]) == (found.requests, 0)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_plan_and_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = Program()
    train(program, 5)
    program.free(program.take(1000))
    write_trace(program.trace(), tmp_path / "run.npz")
    out = tmp_path / "plan.npz"
    arguments = ["plan", str(tmp_path / "run.npz"), "-o", str(out), "--time", "100ms"]
    assert command_line(arguments) == 0
    text = capsys.readouterr().out
    assert "1 smaller requests are not planned" in text
    assert command_line([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (stream,) = report["streams"]
    assert stream["height_bytes"] == read(out).parts[0].height
    assert stream["problem"] is None
    assert (stream["covered"], stream["covered_bytes"]) == (stream["requests"], stream["bytes"])
    assert report["replayed"]["cost"] <= 0.1
    assert "driver calls with the plan" in text
    assert command_line(["replay", str(tmp_path / "run.npz"), "--plan", str(out)]) == 0
    assert f"plan: {stream['requests']:,} of {stream['requests']:,} requests served" in capsys.readouterr().out


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = Program()
    program.take(MIB)
    run = tmp_path / "run.npz"
    write_trace(program.trace(), run)
    good = Program()
    train(good, 4)
    plan = tmp_path / "plan.npz"
    write(make(good.trace(), seconds=0)[0], plan)
    for arguments, problem in (
        (["plan", str(run), "-o", str(tmp_path / "x.npz")], "nothing to plan"),
        (["plan", str(plan), "-o", str(tmp_path / "x.npz")], "plan.npz"),
        (["plan", str(tmp_path / "none.npz"), "-o", str(tmp_path / "x.npz")], "No such file"),
        (["plan", str(run), "-o", str(tmp_path / "x.npz"), "--above", "much"], "--above"),
        (["replay", str(run), "--plan", str(run)], "no plan file"),
    ):
        assert command_line(arguments) == 2
        text = capsys.readouterr().err
        assert problem in text
        assert text.count("\n") == 1
    assert not (tmp_path / "x.npz").exists()
