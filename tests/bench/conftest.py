"""Fixtures that run `poolalloc bench` in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bench_rig import Bench, Ran, run_bench
from fork_server import ForkServer

from poolalloc.bench.devices import DeviceError, torch_install


@pytest.fixture
def bench(tmp_path: Path, fork_server: ForkServer) -> Bench:
    """A function that runs a bench in a folder of its own and returns what it left behind."""

    def run(*arguments: str, **environment: str) -> Ran:
        return run_bench(fork_server, tmp_path, *arguments, **environment)

    return run


@pytest.fixture
def sim_bench(bench: Bench) -> Bench:
    """The same, for benches that need a CUDA build of torch (on the simulated GPU)."""
    try:
        torch_install()
    except DeviceError as error:
        pytest.skip(str(error))
    return bench


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """A function that writes a script and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(text)
        return str(path)

    return write
