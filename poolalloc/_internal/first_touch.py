"""Remembers where CUDA was first used, so that a late install() can say which line to move.

Costs one string comparison per import until torch.cuda is imported, and one entry in torch's own list of calls that
wait for CUDA's initialization. Not for anything else: it changes nothing and never raises.
"""

from __future__ import annotations

import importlib.machinery
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_touch: traceback.FrameSummary | None = None
_HERE = str(Path(__file__).parents[1])


def first_touch() -> traceback.FrameSummary | None:
    """The program's own line that initialised CUDA, or None if that was not seen."""
    return _touch


def watch() -> None:
    """Start to look out for torch's initialization of CUDA. Does not import torch."""
    cuda = sys.modules.get("torch.cuda")
    if cuda is None:
        sys.meta_path.insert(0, _TorchCudaFinder())
    else:
        _plant(cuda)


class _TorchCudaFinder:
    """Waits for the import of torch.cuda, then takes itself away."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch.cuda":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_plant(module: ModuleType) -> None:
                execute(module)
                _plant(module)

            loader.exec_module = execute_and_plant
        return spec


def _plant(cuda: ModuleType) -> None:
    try:
        if not cuda.is_initialized():
            cuda._lazy_call(_remember)
    except Exception:  # torch without these internals: the place stays unknown
        return


def _remember() -> None:
    """Runs while torch initialises CUDA: the innermost frame outside torch and poolalloc is the program's."""
    global _touch  # noqa: PLW0603
    torch = sys.modules.get("torch")
    inside = (_HERE, str(Path(torch.__file__).parent) if torch is not None and torch.__file__ else _HERE, "<frozen")
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(inside):
            _touch = frame
            return
