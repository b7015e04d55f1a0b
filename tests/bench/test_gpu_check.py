"""tools/gpu_check.py: no step loses the results of another, whatever becomes of it."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "gpu_check.py"


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


def python(tool: ModuleType, name: str, program: str, seconds: float = 60) -> object:
    return tool.Step(name, [sys.executable, "-c", program], seconds)


def test_a_step_that_fails_hangs_or_is_missing_does_not_stop_the_next(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = tmp_path / "child"
    hanging = (
        "import subprocess, sys, time, pathlib\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(other.pid))\n"
        "print('said before')\ntime.sleep(600)\n"
    )
    chosen = [
        python(tool, "fails", "print('a figure'); raise SystemExit(3)"),
        python(tool, "hangs", hanging, 3),
        tool.Step("missing", ["no-such-program"], 60),
        python(tool, "works", "print('done')"),
    ]
    done = tool.run_all(chosen, tmp_path, 10, {"gpu": ["a card"]})
    assert [each.code for each in done] == [3, None, 127, 0]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["machine"] == {"gpu": ["a card"]}
    assert [step["name"] for step in report["steps"]] == ["fails", "hangs", "missing", "works"]
    assert [step["last_lines"] for step in report["steps"]][:2] == [["a figure"], ["said before"]]
    assert report["steps"][3]["last_lines"] == ["done"]
    log = (tmp_path / "log.txt").read_text()
    assert log.index("a figure") < log.index("said before") < log.index("done")
    assert "ended at its limit" in capsys.readouterr().out
    gone_by = time.monotonic() + 10
    while Path(f"/proc/{child.read_text()}/exe").exists() and time.monotonic() < gone_by:
        time.sleep(0.05)
    assert not Path(f"/proc/{child.read_text()}/exe").exists(), "what a step started ends with it"


def test_what_is_not_begun_in_time_is_in_the_report(tool: ModuleType, tmp_path: Path) -> None:
    chosen = [python(tool, "late", "print('done')")]
    assert not tool.run_all(chosen, tmp_path, 0, {})[0].ok
    (step,) = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert step["code"] is None
    assert "time was up" in step["last_lines"][0]


def test_every_file_that_a_step_runs_is_there(tool: ModuleType, tmp_path: Path) -> None:
    words = [word for step in tool.steps(tmp_path) for part in step.command for word in part.split()]
    folders = tuple(f"{tool.ROOT}/{folder}" for folder in ("benchmarks", "tests", "pyproject"))
    files = [word for word in words if word.startswith(folders)]
    assert len(files) >= 6
    assert [file for file in files if not Path(file).exists()] == []


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there may be a real GPU")
def test_without_a_gpu_nothing_is_run(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "out")])
    assert tool.main() == 0
    assert "no real CUDA device" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
