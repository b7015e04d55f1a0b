"""`poolalloc doctor`: says what poolalloc finds on this machine, tries the swap, and lists what torch loses by it."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from poolalloc._internal.version import __version__
from poolalloc.cli.common import NO, Json, print_json
from poolalloc.config import describe_profiles
from poolalloc.sim import SimulationError, is_simulated, library_folder
from poolalloc.sizes import format_size

_SETTINGS = (
    "POOLALLOC_CONFIG",
    "POOLALLOC_CONF",
    "POOLALLOC_PLAN",
    "POOLALLOC_BRIDGE",
    "POOLALLOC_CACHE_DIR",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
)
_TORCHS = "of torch's own allocator; under poolalloc"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("doctor")(doctor)


def doctor(json: Json = False) -> int:
    """Show versions, the CUDA driver, the devices, whether torch can be served, and what torch loses by it.

    The exit code is 0 if poolalloc can serve torch here, 1 if not.

    Example: poolalloc doctor --json
    """
    findings = examine()
    if json:
        print_json(findings)
    else:
        print("\n".join(describe(findings)))
    return 0 if findings["swap"]["works"] else NO


def examine() -> dict[str, Any]:
    """The findings. Imports torch, and uses the first device if there is one; the others stay untouched."""
    from poolalloc import _core

    torch = _torch()
    swap = _try_swap(bool(_core.probe_devices()["devices"]))
    probe = _core.probe_devices()  # of a device in use it tells what is free, too
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    libcuda = sorted(path for path in mapped if Path(path).name.startswith("libcuda.so"))
    return {
        "schema": 1,
        "poolalloc": __version__,
        "python": platform.python_version(),
        "torch": torch,
        "driver": {"library": libcuda[0] if libcuda else None, "problem": probe["problem"] or None},
        "simulated": is_simulated(),
        "simulator": {"problem": _simulator_problem(torch)},
        "devices": probe["devices"],
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
        "swap": swap,
        "profiles": describe_profiles(),
        "missing": dict(_missing()),
    }


def _simulator_problem(torch: dict[str, Any]) -> str | None:
    """Why `poolalloc sim` would not run this torch; None if it would."""
    if not torch["cuda"]:
        return "it needs a CUDA build of torch: pip install torch"
    try:
        library_folder()
    except SimulationError as error:
        return str(error)
    return None


def _missing() -> Mapping[str, str]:
    from poolalloc import installing

    installed = installing.installation()
    return {} if installed is None else installed.missing


def _torch() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"version": None, "cuda": None, "problem": str(error)}
    return {"version": torch.__version__, "cuda": torch.version.cuda, "problem": None}


def _try_swap(have_device: bool) -> dict[str, Any]:
    """Install for real, in this process, and see whether a tensor's memory comes from poolalloc."""
    from poolalloc import installing, memory

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            installed = installing.install()
        if not have_device:
            return {
                "works": False,
                "problem": "poolalloc can be installed, but there is no device to use it on",
                "backend": installed.backend,
            }
        torch = sys.modules["torch"]
        tensor = torch.empty(1024, dtype=torch.uint8, device="cuda")
        stats = memory.memory_stats(0)
        if stats["live_blocks"] != 1 or not tensor.is_cuda:
            return {"works": False, "problem": "a tensor was made, but poolalloc did not hand out its memory"}
    except Exception as error:  # whatever is wrong here is the finding
        return {"works": False, "problem": " ".join(str(error).split())}
    return {
        "works": True,
        "problem": None,
        "backend": installed.backend,
        "library": str(installed.library),
        "virtual_memory": stats["virtual_memory"],
        "warnings": [" ".join(str(warning.message).split()) for warning in caught],
        "accelerator": installed.accelerator,
    }


def describe(findings: dict[str, Any]) -> list[str]:
    """The findings as lines for people."""
    torch, driver, swap = findings["torch"], findings["driver"], findings["swap"]
    cuda = f"built for CUDA {torch['cuda']}" if torch["cuda"] else "built without CUDA"
    lines = [
        f"poolalloc  {findings['poolalloc']}",
        f"python     {findings['python']}",
        f"torch      {torch['version']}, {cuda}" if torch["version"] else f"torch      not found: {torch['problem']}",
        f"driver     {driver['problem'] or driver['library']}",
    ]
    for device in findings["devices"]:
        manages = "with" if device["virtual_memory"] else "without"
        means = "" if device["virtual_memory"] else ", so memory comes in whole segments"
        free = "" if device["free_bytes"] is None else f"{format_size(device['free_bytes'])} free, "
        lines.append(
            f"GPU {device['device']:<6} {device['name']}{' (simulated)' if findings['simulated'] else ''}, "
            f"{format_size(device['total_bytes'])}, {free}{manages} virtual memory management{means}"
        )
        if device["fault"]:
            lines.append(f"           announced by the driver, but: {device['fault']}")
    for name, value in findings["settings"].items():
        takes = "what has a counterpart counts" if swap.get("backend") == "bridge" else "it has no effect"
        lines.append(f"setting    {name}={value}{f' ({_TORCHS} {takes})' if name.startswith('PYTORCH') else ''}")
    mode = "mapped pages" if swap.get("virtual_memory") else "whole segments"
    works = f"works, with the {swap['backend']} ({swap['library']}) and {mode}" if swap["works"] else ""
    lines.append(f"swap       {works or 'does not work: ' + swap['problem']}")
    lines += [f"warning    {text}" for text in swap.get("warnings", [])]
    if not findings["simulated"]:
        problem = findings["simulator"]["problem"]
        lines.append(
            f"simulator  {f'does not work: {problem}' if problem else 'works: poolalloc sim -- python train.py'}"
        )
    lines += ["", 'Profiles, as in install("serving") or poolalloc run --config serving:']
    lines += [f"  {name}: {about}" for name, about in findings["profiles"].items()]
    if findings["missing"]:
        lines += ["", "What torch cannot do under poolalloc today:"]
    lines += [f"  {feature}: {what}" for feature, what in findings["missing"].items()]
    return lines
