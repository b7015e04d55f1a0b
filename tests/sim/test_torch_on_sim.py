"""Torch's own allocator, unmodified, on the simulated GPU: what it reserved is what the simulated driver counted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from fork_server import ForkServer

from poolalloc.sim import run_simulated

pytestmark = pytest.mark.torch_interface

PROGRAMS = Path(__file__).with_name("torch_programs.py")


@pytest.mark.parametrize(
    ("programs", "device", "allocator"),
    [
        (["training", "copies", "two_devices", "tools"], {"devices": 2}, ""),
        (["training_expandable"], {}, "expandable_segments:True"),
        (["training_async"], {}, "backend:cudaMallocAsync"),
        (["graphs"], {}, ""),
        (["out_of_memory"], {"memory": 512 << 20}, ""),
        (["record_stream"], {"lag": 1000}, ""),
        (["processes"], {}, ""),
    ],
)
def test_programs(fork_server: ForkServer, programs: list[str], device: dict[str, int], allocator: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    if torch.version.cuda is None:
        pytest.skip("needs a CUDA build of torch")
    command, base = [str(PROGRAMS), *programs], {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": allocator}
    if "backend" in allocator:  # which torch reads when it is loaded
        done = run_simulated([sys.executable, *command], **device, timeout=300, base=base)
    else:
        done = fork_server.simulated(command, **device, base=base)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert done.stdout is not None
    assert done.stderr is not None
    assert [line for line in done.stdout.splitlines() if line.startswith("done ")] == [
        f"done {name}" for name in programs
    ]
    assert "simgpu: " not in done.stderr
