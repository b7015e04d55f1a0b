"""tools/figures.py: tables and pictures of the manual are what the recorded results say, and what is stale is named."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, at work on copies of the pages, pictures and results."""
    spec = importlib.util.spec_from_file_location("figures", ROOT / "tools/figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "figures", module)
    spec.loader.exec_module(module)
    for name in (
        "README.md",
        "docs/benchmarks.md",
        "benchmarks/results/simulated-h100.json",
        "benchmarks/results/simulated-h100-trials.json",
        "benchmarks/results/simulated-h100-small.json",
        "benchmarks/results/demo.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "docs/images", tmp_path / "docs/images")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "benchmarks/results/simulated-h100.json")
    monkeypatch.setattr(module, "DEMO", tmp_path / "benchmarks/results/demo.json")
    monkeypatch.setattr(module, "IMAGES", tmp_path / "docs/images")

    def here(file: Path) -> Path:
        return tmp_path / file.relative_to(ROOT)

    monkeypatch.setattr(
        module, "TABLES", [(here(page), name, table, here(file)) for page, name, table, file in module.TABLES]
    )
    sources = dict(module.SOURCES)
    sources["demo.png"] = [module.DEMO, *sources["demo.png"][1:]]
    monkeypatch.setattr(module, "SOURCES", sources)
    return module


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_nothing_is_stale(tool: ModuleType) -> None:
    assert [line for line in tool.stale() if "its sources have changed" not in line] == []


def test_what_is_stale_is_named_and_mended(tool: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture")
    tool.write()
    assert [line for line in tool.stale() if "who.png" not in line] == []
    figure = json.loads(tool.RESULTS.read_text())["rows"][0]["overhead"]
    change(tool.RESULTS, f'"overhead": {figure}', f'"overhead": {figure + 1}')
    change(tmp_path / "README.md", "**1.", "**2.")
    change(tmp_path / "docs/benchmarks.md", "| `gpt_ddp rank 1` |", "| `gpt_ddp rank 2` |")
    lines = tool.stale()
    assert any("the table 'trials' is not what simulated-h100-trials.json says" in line for line in lines)
    assert any(line.startswith("README.md: ") for line in lines)
    assert any(line.startswith("docs/benchmarks.md: ") for line in lines)
    change(tool.DEMO, '"retries": 0', '"retries": 7')
    lines = tool.stale()
    assert any("demo.png" in line for line in lines)
    assert any("differ for gpt" in line for line in lines)
    # A fresh run brings all of them together again.
    fresh = tmp_path / "fresh.json"
    shutil.copy2(tool.DEMO, fresh)
    tool.take_demo(fresh)
    tool.write()
    assert [line for line in tool.stale() if "who.png" not in line] == []
