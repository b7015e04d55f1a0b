"""`poolalloc report`: what steps leave behind, who holds what, and how it is printed."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_kit import MiB, trace_of

from poolalloc._internal.trace.format import SCOPE_FILE
from poolalloc.analysis.live_blocks import BlockGroup, live_blocks
from poolalloc.analysis.report import report
from poolalloc.analysis.report.growth import FEWEST
from poolalloc.analysis.report.tree import tree_of
from poolalloc.analysis.trace import Frame, Op, StackTable, Trace, read, write
from poolalloc.cli import run


class Program:
    """Writes the events of a program down."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.stacks = StackTable()
        self.marks: list[str] = []
        self._sizes: dict[int, int] = {}

    def allocate(self, requested: int, line: str = "", scope: str = "", device: int = 0) -> int:
        frames = [Frame("/home/me/train.py", line, 7)] if line else []
        frames += [Frame(SCOPE_FILE, scope, 0)] if scope else []
        block = len(self._sizes) + 1
        self._sizes[block] = requested
        self.rows.append((Op.ALLOC, block, requested, {"stack": self.stacks.add(frames), "device": device}))
        return block

    def free(self, block: int) -> None:
        self.rows.append((Op.FREE, block, self._sizes[block]))

    def step(self) -> None:
        self.rows.append((Op.MARK, len(self.marks), 0))
        self.marks.append(f"step {len(self.marks)}")

    def trace(self) -> Trace:
        return trace_of(self.rows, stacks=self.stacks.table(), marks=tuple(self.marks))


def a_step(program: Program) -> None:
    program.step()
    for block in [program.allocate(size * MiB, "forward") for size in (3, 2, 1)]:
        program.free(block)


@given(
    steps=st.integers(FEWEST, 30),
    every=st.integers(1, 2),
    blocks=st.integers(1, 3),
    depth=st.integers(0, 1),
    data=st.data(),
)
def test_what_every_step_leaves_is_found_and_nothing_else(
    steps: int, every: int, blocks: int, depth: int, data: st.DataObject
) -> None:
    program = Program()
    program.allocate(7 * MiB, "weights")
    state, cache, handed = [], [], []
    full = data.draw(st.integers(1, 2))  # steps, until the cache is full
    left = 0
    for step in range(steps):
        a_step(program)
        if step == 0:
            state.append(program.allocate(5 * MiB, "optimizer"))
        if step < full:
            cache.append(program.allocate(MiB, "cache"))
        handed.append(program.allocate(MiB, "handed on"))
        if len(handed) > depth + 1:
            program.free(handed.pop(0))
        if step % every == 0:
            for _ in range(blocks):
                program.allocate(1000, "log", "train/logging")
            left += blocks * (1 <= step <= steps - 3)
    (device,) = report(program.trace()).devices
    growth = device.growth
    assert growth.found
    assert growth.steps == steps - 3
    if every == 2 and steps < 12:
        return  # not every third of the few looked at has some
    assert [(each.label, each.scope) for each in growth.left_behind] == [("log (/home/me/train.py:7)", "train/logging")]
    (log,) = growth.left_behind
    assert (log.blocks, log.requested) == (left, 1000 * left)
    assert growth.per_step == pytest.approx(1000 * left / growth.steps)


def test_what_is_let_go_before_the_end_was_no_growth() -> None:
    program = Program()
    held = []
    for step in range(20):
        a_step(program)
        held.append(program.allocate(MiB, "window"))
        if step == 18:
            for block in held:
                program.free(block)
    assert report(program.trace()).devices[0].growth.left_behind == ()


def test_a_program_that_frees_all_at_its_end_still_grew() -> None:
    program = Program()
    held = []
    for _ in range(20):
        a_step(program)
        held.append(program.allocate(MiB, "losses"))
    for block in held:
        program.free(block)
    (device,) = report(program.trace()).devices
    assert [each.blocks for each in device.growth.left_behind] == [17]
    assert device.end.requested == 0


def test_without_stacks_growth_is_told_by_size_and_without_steps_by_parts() -> None:
    program = Program()
    chance = random.Random(1)
    for _ in range(400):
        for size in chance.sample(range(4096, 1 << 30), chance.randrange(1, 9)):  # never twice
            program.free(program.allocate(size))
        program.allocate(2048)
    growth = report(program.trace()).devices[0].growth
    assert not growth.found
    assert growth.steps == 17
    assert [each.label for each in growth.left_behind] == ["blocks of 2 KiB"]
    assert growth.left_behind[0].steps == 17


@pytest.mark.parametrize("steps", range(FEWEST))
def test_of_few_events_nothing_is_said(steps: int) -> None:
    program = Program()
    for _ in range(steps):
        program.step()
    program.allocate(MiB, "only")
    growth = report(program.trace()).devices[0].growth
    assert (growth.steps, growth.left_behind, growth.per_step) == (0, (), 0.0)


def test_each_device_is_told_of_its_own() -> None:
    program = Program()
    for _ in range(12):
        program.step()
        program.allocate(MiB, "leak", device=1)
        program.free(program.allocate(2 * MiB, "scratch"))
    first, second = report(program.trace()).devices
    assert first.growth.left_behind == ()
    assert second.growth.left_behind[0].label.startswith("leak")
    assert (first.peak.requested, second.end.requested) == (2 * MiB, 12 * MiB)
    assert (first.allocations, first.allocated) == (12, 24 * MiB)


# --- lines and scopes -------------------------------------------------------------------------------------------------


def test_blocks_of_a_line_count_together_whatever_it_is_in() -> None:
    program = Program()
    program.allocate(MiB, "forward", "a")
    program.allocate(MiB, "forward", "b.x")
    program.allocate(MiB, "", "b.y")
    program.allocate(MiB)
    live = live_blocks(program.trace(), 0, 3)
    assert [(share.label, share.blocks) for share in live.by_line] == [
        ("(no stack of Python, as in backward passes)", 2),
        ("forward (/home/me/train.py:7)", 2),
    ]
    assert [share.label for share in live.by_scope] == ["(in no scope)", "a", "b.x", "b.y"]
    assert len(live.by_stack) == 4
    early = live_blocks(program.trace(), 0, 0)
    assert (early.blocks, early.requested) == (1, MiB)


def test_what_was_not_recorded_is_not_listed() -> None:
    program = Program()
    program.allocate(MiB)
    live = live_blocks(program.trace(), 0, 0)
    assert live.by_line == live.by_stack == live.by_scope == ()
    program.allocate(MiB, scope="here")
    live = live_blocks(program.trace(), 0, 1)
    assert live.by_line == live.by_stack == ()
    assert [share.label for share in live.by_scope] == ["(in no scope)", "here"]


def test_scopes_are_a_tree() -> None:
    shares = [
        BlockGroup(label, 1, size, size, size)
        for label, size in (
            ("train/Net.blocks.0.up", 10),
            ("train/Net.blocks.0.down", 20),
            ("train/Net.blocks.1", 40),
            ("train/optimizer", 100),
            ("validation/Net.head.linear", 1),
        )
    ]
    seen = [(depth, node.name, node.blocks, node.requested) for depth, node in tree_of(shares).flat()]
    assert seen == [
        (0, "train", 4, 170),
        (1, "optimizer", 1, 100),
        (1, "Net.blocks", 3, 70),
        (2, "1", 1, 40),
        (2, "0", 2, 30),
        (3, "down", 1, 20),
        (3, "up", 1, 10),
        (0, "validation.Net.head.linear", 1, 1),
    ]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    program = Program()
    program.allocate(8 * MiB, "weights", "Net.head")
    for _ in range(12):
        a_step(program)
        program.allocate(1024, "log", "train/log\x1b[2J")
    path = tmp_path / "run.npz"
    write(program.trace(), path)
    return path


def test_the_command_prints_who_holds_what(leaking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(leaking)]) == 0
    out = capsys.readouterr().out
    assert "12 steps" in out
    assert re.search(r"weights \(/home/me/train.py:7\) +│ +1 │ +8 MiB", out)
    assert "every step leaves 1 KiB behind; 9 looked at" in out
    assert "\x1b[2J" not in out


def test_files_are_told_from_the_current_folder_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stacks = StackTable()
    numbers = [stacks.add([Frame(f"{folder}/a.py", "step", 3)]) for folder in (tmp_path, f"{tmp_path}er")]
    rows = [(Op.ALLOC, number, number * MiB, {"stack": number}) for number in numbers]
    write(trace_of(rows, stacks=stacks.table()), tmp_path / "run.npz")
    monkeypatch.chdir(tmp_path)
    assert run(["report", "run.npz"]) == 0
    out = re.sub(r"[\s│]|8 MiB", "", capsys.readouterr().out)
    assert "step(a.py:3)" in out
    assert "er/a.py:3)" in out


def test_scopes_that_are_all_small_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = Program()
    for number in range(200):
        program.allocate(MiB, "step", f"request {number}")
    write(program.trace(), tmp_path / "run.npz")
    assert run(["report", str(tmp_path / "run.npz")]) == 0
    out = capsys.readouterr().out
    assert "smaller ones are left out" in out
    assert "request" not in out.replace("requested", "")


def test_the_command_prints_json(leaking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(leaking), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (device,) = found["devices"]
    assert device["growth"]["left_behind"][0]["requested"] == 9 * 1024
    assert device["peak"]["requested"] == 14 * MiB + 11 * 1024
    assert device["peak"]["by_scope"][0]["label"] == "Net.head"


def test_the_command_draws(leaking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="pictures are an extra")
    picture = tmp_path / "who.png"
    assert run(["report", str(leaking), "--png", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "wrote" in capsys.readouterr().out
    assert run(["report", str(leaking), "--png", str(tmp_path / "no" / "such.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_picture_uses_the_words_of_the_tables(leaking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="pictures are an extra")
    from poolalloc.analysis.report import picture

    def areas(trace: Trace) -> list[str]:
        return picture._areas(trace, np.arange(len(trace)), 9)[0]

    assert run(["report", str(leaking), "--depth", "9", "--rows", "40"]) == 0
    table = capsys.readouterr().out
    scopes = [name for name in areas(read(leaking)) if not name.startswith(("train.py", "/"))]
    assert scopes
    assert all(part in table for name in scopes for part in name.split(".")), (scopes, table)

    program = Program()
    for block in [program.allocate(size) for size in (600, 3 * MiB)] + [program.allocate(700) for _ in range(3)]:
        program.free(block)
    path = leaking.parent / "no-stacks.npz"
    write(program.trace(), path)
    assert run(["report", str(path)]) == 0
    table = capsys.readouterr().out
    assert areas(program.trace())[0] == "3 MiB"
    assert "by line: no stacks were recorded" in table
    assert "3 MiB" in table
    lines = Program()
    lines.allocate(MiB, "forward")
    here = Frame(str(Path.cwd() / "train.py"), "forward", 7)
    assert picture._short(str(here)) == "forward (train.py:7)"


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.npz"
    empty.write_bytes(b"")
    for arguments in ([str(empty)], [str(tmp_path / "none.npz")], [str(empty), "--depth", "0"]):
        assert run(["report", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
