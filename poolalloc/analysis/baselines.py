"""A trace performed under torch's own allocators, on simulated GPUs or real ones: their figures beside a replay's.

    from poolalloc.analysis import baselines

    done = baselines.perform("run.npz", read("run.npz"), "expandable", memory=24 << 30)
    done.row.peak_reserved_bytes, done.row.out_of_memory

Each performance is a process of its own with the installed torch in it (trace/perform.py), a cell of a bench.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from poolalloc._internal.driver_work import DriverWork
from poolalloc._internal.moved import old_names
from poolalloc._internal.trace.format import Trace
from poolalloc._internal.trace.steps import Phases
from poolalloc.analysis.trace import perform as performer
from poolalloc.analysis.trace.observe import Observed
from poolalloc.bench import harness
from poolalloc.bench.allocators import Allocator, named
from poolalloc.bench.devices import Device, DeviceError, TorchInstall, has_real_gpu, torch_install
from poolalloc.bench.results import Row
from poolalloc.bench.workloads import Workload
from poolalloc.errors import PoolallocError

__all__ = ["BaselineError", "Performed", "perform", "require", "title"]

SECONDS = 3600.0
"""After which a performance is given up."""


class BaselineError(PoolallocError, ValueError):
    """There is no such allocator, or nothing to perform it on: no CUDA build of torch, no simulator."""


@dataclass(frozen=True)
class Performed:
    """What an allocator did with a trace."""

    row: Row
    """Its figures, all devices together; `error` says why it has none."""
    observed: Observed | None
    """What was watched; None if nothing was, or it did not come so far."""
    device_name: str | None = None
    """The real GPU that it was performed on; None for a simulated one."""

    def to_json(self) -> dict[str, object]:
        """Return its figures; those of a real device with its name, and what the requests and frees took."""
        if self.device_name is None:
            return self.row.to_json()
        seconds = None if self.observed is None else self.observed.seconds
        return {**self.row.to_json(), "device": self.device_name, "requests_seconds": seconds}

    def work(self, phases: Phases | None) -> DriverWork:
        """Return what the driver did for it, by the phases of the trace as far as they were watched."""
        work, watched = self.row.driver_work or DriverWork({}), self.observed
        return phases.work(work.total, watched.events, watched.driver_work) if phases and watched else work

    @property
    def out_of_memory(self) -> int | None:
        """The event at which memory ran out, as far as it is known: the first that was not done."""
        if not self.row.out_of_memory or self.observed is None:
            return None
        return self.observed.done


def require(names: Sequence[str], *, real: bool = False) -> None:
    """Check that these allocators can be performed here; called before long work rather than after.

    Raises:
        BaselineError: they cannot.
    """
    for name in names:
        _allocator(name)
    if names:
        _torch()
    if real and not has_real_gpu():
        raise BaselineError("torch sees no CUDA device here; on simulated ones any machine can do it")


def perform(
    path: str | os.PathLike[str],
    trace: Trace,
    allocator: str,
    memory: int,
    *,
    points: Sequence[int] = (),
    placements: bool = False,
    real: bool = False,
) -> Performed:
    """Perform the trace in a file under one allocator, on simulated devices of `memory` bytes each.

    `real`: on the GPUs of this machine instead, as they are.

    `points` are the events after which memory and driver calls are looked at; `placements`: note every address. Raises
    BaselineError.
    """
    chosen = _allocator(allocator)
    count = performer.devices_of(trace)
    device = Device(simulated=False, gpu="real") if real else Device(simulated=True, memory_bytes=memory, count=count)
    try:
        device.check()
    except DeviceError as error:
        raise BaselineError(str(error)) from None
    setting = harness.Setting(device, _torch(), timeout=SECONDS)
    program = Workload(Path(path).name, Path(performer.__file__))
    with tempfile.TemporaryDirectory(prefix="poolalloc-against-") as folder:
        arguments = [os.path.abspath(path)]
        watched = Path(folder, "watched")
        if points or placements or real:
            watched.write_text(json.dumps({"points": list(points), "placements": placements}), encoding="utf-8")
            arguments.append(str(watched))
        cell = harness.Cell(program, chosen, arguments=arguments)
        results = harness.run_cells([cell], setting, "", harness.Watcher())
        observed = Observed.read(watched) if watched.exists() else None
        return Performed(results.rows[0], observed, results.device_name if real else None)


def title(allocator: str) -> str:
    """Return the name of an allocator for people.

    Raises:
        BaselineError: there is none by this name.
    """
    return _allocator(allocator).title


def _allocator(name: str) -> Allocator:
    try:
        return named(name)
    except KeyError as error:
        raise BaselineError(str(error.args[0])) from None


def _torch() -> TorchInstall:
    try:
        return torch_install()
    except DeviceError as error:
        raise BaselineError(str(error)) from None


if not TYPE_CHECKING:  # names of before, which warn
    __getattr__ = old_names(__name__, {"AgainstError": "BaselineError"})
