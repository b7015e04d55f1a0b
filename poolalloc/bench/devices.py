"""Chooses the GPU of a bench: a real one where there is one and torch can use it, the simulated one otherwise."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from poolalloc._internal.price_lists import PriceList
from poolalloc.errors import PoolallocError
from poolalloc.sim import DEFAULT_GPU, SimulationError, sim_environment

__all__ = ["Device", "DeviceError", "TorchInstall", "has_real_gpu", "real_gpus", "torch_install"]


class DeviceError(PoolallocError, ValueError):
    """The bench cannot run on what was asked for; the message is for the user."""


@dataclass(frozen=True)
class TorchInstall:
    """The torch that cells will import. cuda is None for a build without CUDA."""

    version: str
    cuda: str | None

    @property
    def major_minor(self) -> tuple[int, int]:
        """Return the version as numbers that can be compared."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(found[1]), int(found[2])) if found else (0, 0)


def torch_install() -> TorchInstall:
    """Return the installed torch without importing it.

    Raises:
        DeviceError: there is none, or none with CUDA.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise DeviceError("torch is not installed; install a CUDA build of it: pip install torch")
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda: .* = '([^']+)'", text, re.MULTILINE)
    install = TorchInstall(version[1] if version else "unknown", cuda[1] if cuda else None)
    if install.cuda is None:
        raise DeviceError(
            f"torch {install.version} has no CUDA in it; install a CUDA build of it: pip install torch (Linux)"
        )
    return install


def has_real_gpu() -> bool:
    """Whether torch can use a CUDA device of this machine."""
    return real_gpus() > 0


def real_gpus() -> int:
    """How many CUDA devices of this machine torch can use; asks torch only if the driver's device file is there."""
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()):
        return 0
    probe = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0


@dataclass(frozen=True)
class Device:
    """Where cells run. The rest describes simulated cards: memory_bytes None is the card's own."""

    simulated: bool
    gpu: str = DEFAULT_GPU
    memory_bytes: int | None = None
    count: int = 1
    """How many there are; of simulated ones there are as many as a program takes."""
    prices: PriceList | None = None
    """What the driver's work takes there; None is nothing."""

    def environment(self, base: Mapping[str, str], report: Path, rank: int | None = None) -> dict[str, str]:
        """Return the environment of a cell made from `base`; a simulated device writes its report to `report`.

        A rank sees one device of its own.
        """
        if rank is not None:
            visible = base.get("CUDA_VISIBLE_DEVICES", "") if not self.simulated else ""
            mine = visible.split(",")[rank] if visible else str(rank)
            alone = replace(self, count=max(self.count, rank + 1))
            return alone.environment(base, report) | {"CUDA_VISIBLE_DEVICES": mine}
        if not self.simulated:
            return dict(base)
        return sim_environment(
            self.gpu, self.memory_bytes, devices=self.count, prices=self.prices, report=report, base=base
        )

    def check(self) -> None:
        """Raise DeviceError if there is no such card, it cannot have this memory, or the simulator is not built."""
        try:
            self.environment({}, Path("report.json"))
        except SimulationError as error:
            raise DeviceError(str(error)) from error
