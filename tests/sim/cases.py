"""The rules of the simulated CUDA runtime, one function each in cases_*.py, for test_runtime.py.

Every case runs in a process of its own (the simulator reads its switches once and keeps one state), with the switches
its decorator names: `python cases.py NAME`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from cuda_client import MIB, Cuda

Case = Callable[[Cuda], None]
CASES: dict[str, tuple[Case, dict[str, str]]] = {}
"""Each case by name, with the environment it needs."""
VIOLATIONS: dict[str, str] = {}
"""The kind of violation that a case causes exactly once, by the case's name."""


def case(**switches: str) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        environment = {f"POOLALLOC_SIM_{key.upper()}": value for key, value in switches.items()}
        CASES[function.__name__] = (function, environment)
        return function

    return add


def breaks(kind: str) -> Callable[[Case], Case]:
    """Mark a case that breaks one rule exactly once: the test checks the line on stderr and the count."""

    def add(function: Case) -> Case:
        CASES[function.__name__] = (function, {"POOLALLOC_SIM_MEMORY": str(256 * MIB)})
        VIOLATIONS[function.__name__] = kind
        return function

    return add


def load() -> None:
    """Import every cases_*.py, which fills the tables above."""
    for file in sorted(Path(__file__).parent.glob("cases_*.py")):
        importlib.import_module(file.stem)


if __name__ == "__main__":
    # The cases register with the module of this name, not with __main__.
    registry = importlib.import_module("cases")
    registry.load()
    registry.CASES[sys.argv[1]][0](Cuda())
