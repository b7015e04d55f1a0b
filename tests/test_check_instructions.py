"""tools/check_instructions.py: reads callgrind's files, and fails where a count has grown."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "check_instructions.py"

PROFILE = """\
fn=(1) main
10 100
fn=(2) (anonymous namespace)::Counted<(anonymous namespace)::one_size>::allocate(poolalloc::Allocator&, unsigned long)
0 20
cfn=(3) poolalloc::Allocator::allocate(unsigned long, int, unsigned long)
calls=10 0
0 980
fn=(3)
0 900
fn=(4) (anonymous namespace)::Counted<(anonymous namespace)::one_size>::free(poolalloc::Allocator&, unsigned long)
0 500
fn=(2)
+3 7
"""


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_instructions", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cost_of_a_function_is_its_own_and_that_of_its_calls(tool: ModuleType) -> None:
    assert tool.inclusive_costs(PROFILE) == {("one_size", "allocate"): 20 + 980 + 7, ("one_size", "free"): 500}


@pytest.mark.parametrize(("now", "code"), [(100.0, 0), (104.9, 0), (105.1, 1), (50.0, 0)])
def test_growth_by_more_than_five_percent_fails(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, now: float, code: int
) -> None:
    record = tmp_path / "instructions.json"
    record.write_text(json.dumps({"gcc 1": {"one_size": {"allocate": 100.0}}}))
    monkeypatch.setattr(tool, "RECORD", record)
    monkeypatch.setattr(tool, "compiler", lambda build: "gcc 1")
    monkeypatch.setattr(tool, "count", lambda build: {"one_size": {"allocate": now}})
    monkeypatch.setattr(tool.shutil, "which", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["check_instructions.py", str(tmp_path)])
    assert tool.main() == code
    monkeypatch.setattr(sys, "argv", ["check_instructions.py", str(tmp_path), "--record"])
    assert tool.main() == 0
    assert json.loads(record.read_text())["gcc 1"]["one_size"]["allocate"] == now


def test_counts_of_another_compiler_are_not_compared(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "compiler", lambda build: "a compiler nobody has")
    monkeypatch.setattr(tool.shutil, "which", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["check_instructions.py", str(tmp_path)])
    assert tool.main() == 0
    assert "none are recorded for a compiler nobody has" in capsys.readouterr().out


def test_without_valgrind_one_line_says_so(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["check_instructions.py", str(tmp_path)])
    assert tool.main() == 0
    assert capsys.readouterr().out.count("\n") == 1
