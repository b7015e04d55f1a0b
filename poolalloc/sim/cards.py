"""The cards that can be simulated, and the folder of the libraries that simulate them."""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from poolalloc.errors import PoolallocError

DEFAULT_GPU = "h100"


class SimulationError(PoolallocError, ValueError):
    """A program cannot be run on a simulated GPU; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class SimGpu:
    """One card that can be simulated, with the figures of the real one. Bytes, kHz and bits."""

    key: str
    name: str
    memory_bytes: int
    major: int
    minor: int
    sm_count: int
    clock_khz: int
    mem_clock_khz: int
    bus_bits: int
    l2_bytes: int
    smem_per_block: int
    smem_optin: int
    smem_per_sm: int
    regs_per_sm: int
    max_threads_per_sm: int
    max_blocks_per_sm: int


def is_simulated() -> bool:
    """Return whether this process runs on simulated GPUs."""
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return re.search(r"/libsimgpu\.so$", mapped, re.MULTILINE) is not None


def library_folder() -> Path:
    """Return the folder of libsimgpu.so, libcuda.so.1 and gpus.json; POOLALLOC_SIMGPU_DIR names another.

    Raises:
        SimulationError: the simulated runtime was not built.
    """
    folder = Path(os.environ.get("POOLALLOC_SIMGPU_DIR") or Path(__file__).resolve().parents[1] / "simgpu")
    for name in ("libsimgpu.so", "libcuda.so.1", "gpus.json"):
        if not (folder / name).is_file():
            raise SimulationError(
                f"the simulated GPU is not built: {folder / name} is missing; build it with: pip install ."
            )
    return folder


def gpus() -> dict[str, SimGpu]:
    """Return the cards that can be simulated, by key; the first is the default."""
    return dict(_read_gpus(library_folder() / "gpus.json"))


@cache
def _read_gpus(file: Path) -> dict[str, SimGpu]:
    return {row["key"]: SimGpu(**row) for row in json.loads(file.read_text())}


def find_gpu(name: str) -> SimGpu:
    """Return the card called `name` (a key such as `a100`, in any case).

    Raises:
        SimulationError: there is none; the text names the nearest.
    """
    known = gpus()
    if name.lower() in known:
        return known[name.lower()]
    nearest = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known are {', '.join(known)}"
    raise SimulationError(f'there is no simulated GPU "{name}"; {hint}')
