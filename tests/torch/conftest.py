"""Runs short programs with real torch on a simulated GPU, each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from poolalloc.sim import run_simulated
from poolalloc.sizes import parse_size

TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    code: int
    out: str
    err: str
    report: dict[str, Any]

    @property
    def value(self) -> Any:
        """What the program printed last, read as JSON."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture(scope="session", autouse=True)
def _needs_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """This process's environment without settings that would change what is tested."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("POOLALLOC_CONF", "POOLALLOC_BRIDGE", "PYTORCH_"))
    }
    return {**kept, "POOLALLOC_CONF": "segments:true"} if "POOLALLOC_TEST_SEGMENTS" in os.environ else kept


@pytest.fixture
def on_sim(tmp_path: Path, clean_environment: dict[str, str]) -> Callable[..., Outcome]:
    """on_sim(code) runs the program on a simulated GPU and expects it to end well (code=N: with exit code N)."""

    def run(
        program: str,
        *,
        gpu: str = "h100",
        memory: str = "8 GiB",
        devices: int = 1,
        lag: int = 0,
        virtual_memory: bool = True,
        code: int | None = 0,
        environment: dict[str, str] | None = None,
        command: tuple[str, ...] = (sys.executable,),
        arguments: tuple[str, ...] = (),
    ) -> Outcome:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(program))
        done = run_simulated(
            [*command, str(script), *arguments],
            gpu=gpu,
            memory=parse_size(memory),
            devices=devices,
            lag=lag,
            virtual_memory=virtual_memory,
            timeout=TIMEOUT_SECONDS,
            base={**clean_environment, **(environment or {})},
        )
        outcome = Outcome(done.returncode, done.stdout or "", done.stderr or "", done.report or {})
        assert code is None or outcome.code == code, f"exit code {outcome.code}\n{outcome.out}\n{outcome.err}"
        return outcome

    return run


@pytest.fixture
def without_gpu(tmp_path: Path, clean_environment: dict[str, str]) -> Callable[..., Outcome]:
    """The same without any GPU."""

    def run(program: str, *, code: int = 0, environment: dict[str, str] | None = None) -> Outcome:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(program))
        done = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            env={**clean_environment, "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
            check=False,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Outcome(done.returncode, done.stdout, done.stderr, {})

    return run
