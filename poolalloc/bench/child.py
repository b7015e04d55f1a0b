"""Runs one cell: `python -m poolalloc.bench.child SPEC.json`, in a process of its own, started by the harness.

It puts the allocator in place, runs the workload or script, and writes what it measured to the file the spec names.
A program that fails leaves its traceback on stderr and its figures in the file.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poolalloc._internal.driver_work import DriverWork
from poolalloc.bench.allocators import Allocator, named
from poolalloc.bench.check import DeviceFigures, compare_real, compare_simulated
from poolalloc.bench.sampling import Figures, Sampler
from poolalloc.bench.sources import (
    MEMORY_CALLS,
    Peaks,
    PoolallocSource,
    SimulatedDriver,
    Source,
    TorchSource,
    nvml_used_bytes,
)
from poolalloc.errors import PoolallocError

TIMELINE_POINTS = 1500


@dataclass
class Spec:
    """What the harness asks for; size is None for a script."""

    allocator: str
    path: str
    size: str | None
    steps: int
    arguments: list[str]
    simulated: bool
    result: str
    progress: str


class ScriptError(PoolallocError, RuntimeError):
    """A script ended with an exit code other than 0."""


def load_run(path: Path) -> Callable[..., Iterator[int]]:
    """Return the function run of a workload file; files beside it can be imported by it."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    run: Callable[..., Iterator[int]] = module.run
    return run


def run_program(spec: Spec, sampler: Sampler, stepped: Callable[[], None]) -> int:
    """Run the workload or script to its end; returns the steps done, 0 for a script. `stepped` is called after each."""
    if spec.size is None:
        sys.argv = [spec.path, *spec.arguments]
        sys.path.insert(0, str(Path(spec.path).resolve().parent))
        try:
            runpy.run_path(spec.path, run_name="__main__")
        except SystemExit as end:
            if end.code not in (None, 0):
                raise ScriptError(f"the script ended with exit code {end.code}") from None
        return 0
    import torch

    done = 0
    with open(spec.progress, "a", encoding="ascii") as progress:
        for done in load_run(Path(spec.path))(spec.size, spec.steps, torch.device("cuda", 0)):
            sampler.step()
            stepped()
            progress.write(f"{done}\n")
            progress.flush()
    return done


def put_in_place(allocator: Allocator) -> Source:
    """Install the allocator and return where its figures come from."""
    if allocator.install:
        module, function = allocator.install.split(":")
        getattr(importlib.import_module(module), function)()
    return TorchSource() if allocator.figures == "torch" else PoolallocSource()


def watch_resets(peaks: Peaks, allocator: Allocator) -> None:
    """Keep peaks over every way a program may reset them."""
    import torch

    peaks.watch(torch._C, "_cuda_resetPeakMemoryStats")
    peaks.watch(torch._C, "_accelerator_resetPeakStats")
    if allocator.figures == "poolalloc":
        from poolalloc import _core

        peaks.watch(_core, "reset_peak_stats")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a program ended because the device had no memory left, under any allocator."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def device_figures(peaks: Peaks, source: Source, driver: SimulatedDriver | None) -> list[DeviceFigures]:
    """Return the allocator's and the driver's figures of every device."""
    import torch

    found = []
    real = {} if driver else nvml_used_bytes()
    for device in source.devices():
        reading = peaks.read(device)
        properties = torch.cuda.get_device_properties(device)
        found.append(
            DeviceFigures(
                device=device,
                requested_peak=reading.requested_peak,
                live_peak=reading.live_peak,
                reserved_peak=reading.reserved_peak,
                reserved_current=reading.reserved,
                retries=reading.retries,
                out_of_memory=reading.out_of_memory,
                driver_current=driver.used(device) if driver else real[str(properties.uuid)],
                driver_peak=driver.peak(device) if driver else None,
                capacity=driver.capacity(device) if driver else properties.total_memory,
            )
        )
    return found


def wrong_settings(allocator: Allocator) -> list[str]:
    """Return what says that another allocator ran than the one asked for."""
    import torch

    if allocator.figures != "torch":
        return []  # another allocator's figures would not match the driver's
    backend = torch.cuda.memory.get_allocator_backend()
    if backend != "native":
        return [f"the program replaced torch's allocator (the backend is {backend!r})"]
    settings = torch.cuda.memory._snapshot()["allocator_settings"]
    return [
        f"torch's allocator runs with {name}={settings.get(name)!r} instead of {wanted!r}"
        for name, wanted in allocator.settings
        if settings.get(name) != wanted
    ]


def measure(spec: Spec) -> dict[str, Any]:
    """Run the cell and return its result: figures, "failed" if the program did, and what is "wrong" with the figures.

    The harness makes a row of it.
    """
    allocator = named(spec.allocator)
    driver = SimulatedDriver() if spec.simulated else None
    used_before = {} if driver else nvml_used_bytes()
    source = put_in_place(allocator)
    import torch

    peaks = Peaks(source)
    watch_resets(peaks, allocator)

    def figures_now() -> Figures:
        readings = [source.read(device) for device in source.devices()]
        return (
            (sum(r.requested for r in readings), sum(r.live for r in readings), sum(r.reserved for r in readings)),
            (
                sum(r.requested_peak for r in readings),
                sum(r.live_peak for r in readings),
                sum(r.reserved_peak for r in readings),
            ),
        )

    result: dict[str, Any] = {
        "torch": torch.__version__,
        "failed": None,
        "wrong": [],
        "out_of_memory": False,
        "steps_done": None,
    }
    after_steps: list[dict[str, int]] = []
    start = time.perf_counter()
    with Sampler(figures_now, source.reset_peaks) as sampler:
        try:
            result["steps_done"] = run_program(
                spec, sampler, lambda: after_steps.append(driver.work() if driver else source.driver_work())
            )
        except Exception as error:
            traceback.print_exc()
            result["out_of_memory"] = is_out_of_memory(error)
            if not result["out_of_memory"]:
                result["failed"] = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - start
    result["seconds"] = seconds
    result["timeline"] = asdict(sampler.timeline(TIMELINE_POINTS))
    if result["steps_done"] is None:
        result["steps_done"] = len(result["timeline"]["steps"])
    if len(source.devices()) == 0:
        result["wrong"] = ["the program never used the GPU"]
        return result

    figures = device_figures(peaks, source, driver)
    result["devices"] = [asdict(one) for one in figures]
    result["device_name"] = torch.cuda.get_device_name(0)
    result["memory_bytes"] = figures[0].capacity
    calls = driver.report()["calls"] if driver else source.driver_calls()
    result["driver_calls"] = {name: n for name, n in calls.items() if driver is None or name in MEMORY_CALLS}
    work = driver.work() if driver else source.driver_work()
    result["driver_work"] = DriverWork.of_steps(work, after_steps).to_json() if work else None
    wrong = result["wrong"] = wrong_settings(allocator)
    for one in figures:
        if driver:
            wrong += compare_simulated(one)
        else:
            wrong += compare_real(one, used_before[str(torch.cuda.get_device_properties(one.device).uuid)])
    return result


def main() -> None:
    """Run the cell whose spec is the file named on the command line."""
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    result = measure(spec)
    Path(spec.result).write_text(json.dumps(result), encoding="utf-8")
    if result["failed"] is not None:
        sys.exit(1)


if __name__ == "__main__":
    main()
