"""Performing a recording under torch's own allocators gives the peaks that the recorded run itself reported."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RECORDED_BY_TORCH = """
    import json, sys
    import torch

    torch.cuda.memory._record_memory_history(context=None)
    other = torch.cuda.Stream()
    model = torch.nn.Sequential(*[torch.nn.Linear(700, 700) for _ in range(8)]).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(6):
        rows = 1000 + 977 * (step % 4)
        inputs = torch.empty(rows, 700, device="cuda")
        with torch.cuda.stream(other):
            copy = torch.empty(rows, 333, device="cuda")
        inputs.record_stream(other)
        model(inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    stats = torch.cuda.memory_stats()
    torch.cuda.memory._dump_snapshot("snapshot.pickle")
    print(json.dumps([stats["requested_bytes.all.peak"], stats["reserved_bytes.all.peak"]]))
"""


def command(*words: str, code: int = 0) -> str:
    done = subprocess.run([sys.executable, "-m", "poolalloc", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("allocator", "settings"), [("default", ""), ("expandable", "expandable_segments:True")])
def test_torch_reserves_what_it_reserved_then(
    on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allocator: str, settings: str
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"PYTORCH_ALLOC_CONF": settings} if settings else {}
    requested, reserved = on_sim(RECORDED_BY_TORCH, environment=environment).value
    command("import", "snapshot.pickle", "-o", "run.npz")
    shown = command("replay", "run.npz", "--against", allocator, "--json", "figures.json")
    assert allocator in shown
    (row,) = json.loads(Path("figures.json").read_text())["performed"]
    assert row["peak_requested_bytes"] == requested
    assert row["peak_reserved_bytes"] == reserved
    assert row["allocator"] == allocator


def test_settings_of_torch_and_poolalloc_itself_can_be_compared(
    on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    on_sim(
        """
        import torch, poolalloc
        poolalloc.install()
        with poolalloc.record("run.npz"):
            pool = torch.cuda.MemPool()
            for size in range(1, 60):
                kept = torch.empty(size * 300_000, dtype=torch.uint8, device="cuda")
                with torch.cuda.use_mem_pool(pool):
                    inside = torch.empty(size * 50_000, dtype=torch.uint8, device="cuda")
        """
    )
    power = "roundup_power2_divisions:1"
    command("replay", "run.npz", "--against", "poolalloc", "--against", power, "--json", "figures.json")
    figures = json.loads(Path("figures.json").read_text())
    ours, rounded_up = figures["performed"]
    assert ours["peak_reserved_bytes"] == figures["devices"][0]["peak_reserved"]
    assert ours["peak_requested_bytes"] == rounded_up["peak_requested_bytes"]
    assert rounded_up["allocator"] == power
    assert rounded_up["peak_reserved_bytes"] > ours["peak_reserved_bytes"]


def test_running_out_of_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_sim: Callable) -> None:
    monkeypatch.chdir(tmp_path)
    on_sim(
        """
        import torch, poolalloc
        poolalloc.install()
        with poolalloc.record("run.npz"):
            kept = [torch.empty(100 << 20, dtype=torch.uint8, device="cuda") for _ in range(6)]
        """
    )
    command("replay", "run.npz", "--against", "default", "--memory", "512MiB", "--json", "figures.json", code=1)
    (row,) = json.loads(Path("figures.json").read_text())["performed"]
    assert row["out_of_memory"]


def test_an_unknown_allocator_is_one_clear_line(tmp_path: Path, on_sim: Callable) -> None:
    on_sim(
        f"""
        import torch, poolalloc
        poolalloc.install()
        with poolalloc.record({str(tmp_path / "run.npz")!r}):
            torch.empty(10, device="cuda")
        """
    )
    said = command("replay", str(tmp_path / "run.npz"), "--against", "best", code=2)
    assert "unknown allocator 'best'; there are default, expandable, poolalloc" in said
