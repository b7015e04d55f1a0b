"""What serves this process: the installation that poolalloc.install() made, and whether it is still in torch's place.

The runtime's modules ask here. Not for installing it: poolalloc/installing.py.
"""

from __future__ import annotations

import atexit
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from poolalloc._internal.torch_slot import Watch
from poolalloc._internal.version import __version__
from poolalloc.errors import NotInstalledError

if TYPE_CHECKING:
    from poolalloc.config import Config

MISSING = {
    "torch.cuda.memory_stats, memory_allocated, max_memory_allocated, memory_reserved, memory_summary": (
        "raise RuntimeError; use poolalloc.memory_stats and poolalloc.memory_summary"
    ),
    "torch.cuda.reset_peak_memory_stats, reset_accumulated_memory_stats": (
        "raise RuntimeError; use poolalloc.reset_peak_stats"
    ),
    "torch.accelerator.memory_allocated and its like": "raise RuntimeError; torch.accelerator.empty_cache works",
    "torch.cuda.memory_snapshot, memory._snapshot, memory._record_memory_history": "raise RuntimeError",
    "torch.cuda.get_per_process_memory_fraction": "raises RuntimeError; setting it works",
    "torch.cuda.MemPool, torch.cuda.use_mem_pool": "raise RuntimeError",
    'torch.compile(mode="reduce-overhead")': "raises RuntimeError: its CUDA graphs ask the allocator for more",
    "torch.OutOfMemoryError": "out of memory is a RuntimeError that names the figures",
    "sharing CUDA tensors between processes (IPC)": "raises RuntimeError",
    "torch.backends.cudnn.benchmark": "raises RuntimeError at the first convolution",
    "memory in torch.profiler": "shows 0 bytes",
}
"""What torch's plain pluggable door cannot do, whatever stands behind it: feature, what happens."""


BRIDGE_MISSING = {
    "allocateWithAddress (C++ only)": "raises RuntimeError; no block is placed at an address of the caller's choice",
}
"""What does not work with the bridge: feature, what happens."""


@dataclass(frozen=True)
class Installation:
    """What install() did. Printing it says so in one line."""

    config: Config
    torch_version: str
    library: Path
    """What torch loaded: the bridge built for it, or libpoolalloc.so."""
    backend: str = "plugin"
    """`bridge`: nearly all of torch.cuda's memory calls work; `plugin`: see `missing`."""
    accelerator: bool = True
    """Whether torch.accelerator's memory functions reach poolalloc too."""
    plan: Path | None = None
    """The plan that requests are served from."""

    @property
    def missing(self) -> dict[str, str]:
        """Features of torch that do not work with this backend, and what happens instead."""
        return dict(BRIDGE_MISSING if self.backend == "bridge" else MISSING)

    def __str__(self) -> str:
        return f"poolalloc {__version__} serves torch {self.torch_version} ({self.backend})"


_installation: Installation | None = None


def keep(done: Installation) -> None:
    """Remember what serves this process, and watch that it goes on doing so. Called once."""
    global _installation, _watch  # noqa: PLW0603
    _watch = Watch()
    atexit.register(_say_at_exit)
    _installation = done


def made() -> Installation | None:
    """Return what install() made, also where another allocator has taken its place since."""
    return _installation


def is_installed() -> bool:
    """Whether poolalloc serves this process's CUDA memory."""
    return _installation is not None and not _watch.changed()


def installation() -> Installation | None:
    """What install() returned; None before it, and after another library has put its own allocator in the place."""
    if (problem := replaced()) is not None:
        _say_once(problem)
        return None
    return _installation


def require_installed() -> Installation:
    """Return what install() returned.

    Raises:
        NotInstalledError: poolalloc does not serve this process.
    """
    if _installation is None:
        raise NotInstalledError(
            "poolalloc is not installed in this process, so there are no figures; call poolalloc.install() before "
            "anything touches CUDA, or start the program with: poolalloc run"
        )
    if (problem := replaced()) is not None:
        raise NotInstalledError(f"{problem}, so there are no figures. Remove that call, or poolalloc")
    return _installation


# --- another library's allocator ---------------------------------------------------------------------------------
#
# torch lets anybody change the allocator as often as they like until CUDA is first used, and tells nobody.
_watch: Watch
_said = False


def replaced() -> str | None:
    """What to say where another allocator has taken poolalloc's place; None where none has."""
    if _installation is None or not _watch.changed():
        return None
    return (
        "poolalloc was installed, but does not serve torch: torch.cuda.memory.change_current_allocator was called "
        "after it, so all CUDA memory comes from another library's allocator"
    )


def _say_once(problem: str) -> None:
    global _said  # noqa: PLW0603
    if not _said:
        _said = True
        warnings.warn(problem, RuntimeWarning, stacklevel=3)


def _say_at_exit() -> None:
    """For programs that never ask for figures."""
    if not _said and (problem := replaced()) is not None:
        print(f"poolalloc: {problem}", file=sys.stderr)
