"""Scopes: a recording names with every allocation what the program said it was at work on, forward and backward."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from poolalloc.analysis.live_blocks import scope_of
from poolalloc.analysis.trace import Op, Trace, read

START = """
    import json
    import threading
    import torch
    from torch import nn
    from torch.utils.checkpoint import checkpoint
    import poolalloc
    from poolalloc import _core

    poolalloc.install()

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(256, 1024)
            self.down = nn.Linear(1024, 256)
        def forward(self, x):
            return x + self.down(torch.relu(self.up(x)))

    class Net(nn.Module):
        def __init__(self, checkpointed=False):
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))
            self.checkpointed = checkpointed
        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
            return x

    def empty(rows=64):
        return torch.empty(rows, 256, device="cuda")
"""


@pytest.fixture
def recorded(on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trace]:
    """recorded(program) runs it after START and returns what it recorded into run.npz."""
    monkeypatch.chdir(tmp_path)

    def run(program: str) -> Trace:
        on_sim(textwrap.dedent(START) + textwrap.dedent(program))
        return read(tmp_path / "run.npz")

    return run


def births(trace: Trace) -> dict[str, list[int]]:
    """The sizes allocated in each scope, in order."""
    found: dict[str, list[int]] = {}
    for event in trace.events[trace.initial_events :]:
        if event["op"] == Op.ALLOC:
            found.setdefault(scope_of(trace.stacks[int(event["stack"])]), []).append(int(event["requested"]))
    return found


def test_scopes_stand_inside_each_other_and_end(recorded: Callable) -> None:
    trace = recorded("""
        with poolalloc.record("run.npz"):
            kept = [empty(1)]
            with poolalloc.scope("outer"):
                kept.append(empty(2))
                with poolalloc.scope("inner"):
                    kept.append(empty(3))
                try:
                    with poolalloc.scope("failing"):
                        kept.append(empty(4))
                        raise ValueError
                except ValueError:
                    pass
                kept.append(empty(5))
                thread = threading.Thread(target=lambda: kept.append(empty(6)))
                thread.start()
                thread.join()
            kept.append(empty(7))
    """)
    row = 1024
    assert births(trace) == {
        "": [row, 6 * row, 7 * row],
        "outer": [2 * row, 5 * row],
        "outer/inner": [3 * row],
        "outer/failing": [4 * row],
    }
    assert all(len(trace.stacks[number]) <= 1 for number in range(len(trace.stacks)))  # no lines were wanted


def test_with_stacks_the_scope_is_the_outermost_frame(recorded: Callable) -> None:
    trace = recorded("""
        def deep(n):
            return deep(n - 1) if n else empty()
        with poolalloc.record("run.npz", stacks=True), poolalloc.scope("deep"):
            kept = [deep(3), deep(200)]
    """)
    made = trace.events[trace.initial_events :]
    stacks = [trace.stacks[int(number)] for number in made["stack"][made["op"] == Op.ALLOC]]
    assert [scope_of(frames) for frames in stacks] == ["deep", "deep"]
    assert [frame.function for frame in stacks[0][:5]] == ["empty", "deep", "deep", "deep", "deep"]
    assert len(stacks[1]) == 65


TRAIN = """
    model = Net(checkpointed={checkpointed}).cuda()
    poolalloc.name_modules(model)
    with poolalloc.scope("warm up"):
        model(empty()).sum().backward()
    model.zero_grad()
    with poolalloc.record("run.npz"):
        with poolalloc.scope("train"):
            model(empty(128)).sum().backward()
            after = _core.scope_here()
        kept = empty(3)
    assert after == "train", after
    assert _core.scope_here() == ""
"""


@pytest.mark.parametrize("checkpointed", [False, True])
def test_modules_are_scopes_forward_and_backward(recorded: Callable, checkpointed: bool) -> None:
    found = births(recorded(TRAIN.format(checkpointed=checkpointed)))
    rows = 128
    modules = {f"train/Net.blocks.{block}" + part for block in (0, 1) for part in ("", ".up", ".down")}
    assert modules <= set(found)
    assert set(found) - modules <= {"", "train", "train/Net"}
    assert found[""] == [3 * 1024]
    up, down = rows * 1024 * 4, rows * 256 * 4
    for block in (0, 1):
        name = f"train/Net.blocks.{block}"
        # The gradients of weights and biases are made in the backward pass alone.
        assert {1024 * 256 * 4, 1024 * 4} <= set(found[f"{name}.up"])
        assert {1024 * 256 * 4, 256 * 4} <= set(found[f"{name}.down"])
        # The outputs, as often as the forward pass runs.
        assert found[f"{name}.up"].count(up) == 1 + checkpointed
        assert down in found[f"{name}.down"]
        assert up in found[name]  # of relu


def test_modules_whose_names_were_removed_are_no_scopes(recorded: Callable) -> None:
    trace = recorded("""
        model = Net().cuda()
        with poolalloc.name_modules(model, "net"), torch.no_grad():
            with poolalloc.record("run.npz"):
                kept = model(empty())
        names = poolalloc.name_modules(model)
        names.remove()
        names.remove()
        with poolalloc.record("again.npz"):
            kept = model(empty())
    """)
    assert "net.blocks.1.down" in births(trace)
    assert set(births(read(Path("again.npz")))) == {""}


def test_a_module_that_fails_ends_its_scope(recorded: Callable) -> None:
    trace = recorded("""
        model = Net().cuda()
        poolalloc.name_modules(model)
        with poolalloc.record("run.npz"):
            try:
                model(torch.empty(64, 17, device="cuda"))
            except RuntimeError:
                pass
            kept = empty(5)
    """)
    assert births(trace)[""][-1] == 5 * 1024


def test_hooks_of_others_that_fail_do_no_harm(recorded: Callable) -> None:
    trace = recorded("""
        model = Net().cuda()
        def fail(module, args):
            if args[0].shape[0] == 7:
                raise ValueError
        model.blocks[1].register_forward_pre_hook(fail)
        poolalloc.name_modules(model)
        with poolalloc.record("run.npz"):
            try:
                model(empty(7))
            except ValueError:
                pass
            kept = empty(5)
            model(empty(9))
            kept = [kept, empty(6)]
    """)
    assert births(trace)[""][-1] == 6 * 1024
    assert 9 * 1024 * 4 in births(trace)["Net.blocks.1.up"]
    assert 5 * 1024 in births(trace)[""]


def test_compiled_modules_can_be_named(recorded: Callable) -> None:
    trace = recorded("""
        model = Net().cuda()
        poolalloc.name_modules(model)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with poolalloc.record("run.npz"), poolalloc.scope("compiled"):
            compiled(empty()).sum().backward()
        assert _core.scope_here() == ""
    """)
    assert {"compiled"} <= set(births(trace)) <= {"compiled", ""}  # "": in the backward pass
