"""torch's own viewer reads what poolalloc dumps: `python -m torch.cuda._memory_viz`."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fork_server import ForkServer

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


@pytest.fixture
def viewer(fork_server: ForkServer) -> Callable[..., str]:
    def run(*words: str) -> str:
        code, out, err = fork_server.run(["-m", "torch.cuda._memory_viz", *words], os.environ, 300)
        assert code == 0, out + err
        return out

    return run


def test_the_viewer_shows_segments_and_entries(dump: Path, viewer: Callable[..., str]) -> None:
    assert "total_reserved" in viewer("stats", str(dump))
    entries = viewer("trace", str(dump))
    assert "weights" in entries
    assert "37.0MiB" in entries
    assert "free completed for b 11.0MiB" in entries


@pytest.mark.parametrize("plot", ["trace_plot", "segment_plot"])
def test_the_viewer_makes_its_pages(dump: Path, viewer: Callable[..., str], tmp_path: Path, plot: str) -> None:
    page = tmp_path / f"{plot}.html"
    viewer(plot, str(dump), "-o", str(page))
    assert page.stat().st_size > 1000
    assert "<html" in page.read_text().lower() or "<script" in page.read_text().lower()
