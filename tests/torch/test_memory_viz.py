"""torch's own viewer reads what poolalloc dumps: `python -m torch.cuda._memory_viz`."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch_interface

DUMP = """
    import torch, poolalloc
    assert poolalloc.install(bridge=True).backend == "bridge"
    torch.cuda.memory._record_memory_history(stacks="python")
    def weights():
        return torch.empty(37 << 20, dtype=torch.uint8, device="cuda")
    kept = weights()
    gone = torch.empty(11 << 20, dtype=torch.uint8, device="cuda")
    small = [torch.empty(1000, device="cuda") for _ in range(20)]
    del gone, small[::2]
    torch.cuda.memory._dump_snapshot("snapshot.pickle")
    print(torch.cuda.memory_allocated(), torch.cuda.memory_reserved())
"""


@pytest.fixture
def dump(on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    on_sim(DUMP)
    return tmp_path / "snapshot.pickle"


def viewer(*words: str) -> str:
    command = [sys.executable, "-m", "torch.cuda._memory_viz", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_viewer_shows_segments_and_entries(dump: Path) -> None:
    assert "total_reserved" in viewer("stats", str(dump))
    entries = viewer("trace", str(dump))
    assert "weights" in entries
    assert "37.0MiB" in entries
    assert "free completed for b 11.0MiB" in entries


@pytest.mark.parametrize("plot", ["trace_plot", "segment_plot"])
def test_the_viewer_makes_its_pages(dump: Path, tmp_path: Path, plot: str) -> None:
    page = tmp_path / f"{plot}.html"
    viewer(plot, str(dump), "-o", str(page))
    assert page.stat().st_size > 1000
    assert "<html" in page.read_text().lower() or "<script" in page.read_text().lower()
