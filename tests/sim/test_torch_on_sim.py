"""Torch's own allocator, unmodified, on the simulated GPU: what it reserved is what the simulated driver counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch_interface

PROGRAMS = Path(__file__).with_name("torch_programs.py")


@pytest.mark.parametrize(
    ("programs", "options", "allocator"),
    [
        (["training", "copies", "two_devices", "tools"], ["--devices", "2"], ""),
        (["training_expandable"], [], "expandable_segments:True"),
        (["training_async"], [], "backend:cudaMallocAsync"),
        (["graphs"], [], ""),
        (["out_of_memory"], ["--memory", "512MiB"], ""),
        (["record_stream"], ["--lag", "1000"], ""),
        (["processes"], [], ""),
    ],
)
def test_programs(programs: list[str], options: list[str], allocator: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    if torch.version.cuda is None:
        pytest.skip("needs a CUDA build of torch")
    command = [
        sys.executable,
        "-m",
        "poolalloc",
        "sim",
        "--no-values",
        "--timeout",
        "300",
        *options,
        "--",
        sys.executable,
    ]
    done = subprocess.run(
        [*command, str(PROGRAMS), *programs],
        env={**os.environ, "PYTORCH_CUDA_ALLOC_CONF": allocator},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("done ")] == [
        f"done {name}" for name in programs
    ]
    assert "simgpu: " not in done.stderr
