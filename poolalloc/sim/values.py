"""The library that carries out operators for the simulated GPU (csrc/simvalues): compiled against a torch, and kept.

The program that it serves may run in another Python, so its torch is known by folder and never imported. Not for what
the library does, or for loading it: csrc/simgpu/operations.h.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from poolalloc._internal.bridge import BridgeError, Plan, build_plan, cache_folder, compiler, sources

_FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-DNDEBUG")
_FILES = ("simvalues/values.cpp", "simvalues/operators.h", "simvalues/views.h", "simgpu/operations.h")


def build_values(torch_folder: Path) -> Path:
    """Return the library for the torch in this folder, built if it is not there yet.

    Raises:
        BridgeError: it cannot be built; one line.
    """
    return build_plan(plan_values(torch_folder), force=False).path


def values_are_built(torch_folder: Path) -> bool:
    """Whether that will not take a compiler."""
    return (cache_folder() / plan_values(torch_folder).name).is_file()


def plan_values(torch_folder: Path) -> Plan:
    """How to build the library for the torch in this folder."""
    folder = sources()
    torch_folder = torch_folder.resolve()
    if not (torch_folder / "include" / "ATen" / "record_function.h").is_file():
        raise BridgeError(f"the torch in {torch_folder} has no C++ headers")
    libraries = torch_folder / "lib"
    command = (
        *compiler(),
        *_FLAGS,
        f'-DPOOLALLOC_TORCH_FOLDER="{libraries}"',
        f"-I{folder}",
        f"-isystem{torch_folder / 'include'}",
        "-xc++",
        "-",
        "-xnone",
        f"-L{libraries}",
        "-ltorch_cpu",
        "-lc10",
        f"-Wl,-rpath,{libraries}",
    )
    digest = hashlib.sha256(repr((command, (torch_folder / "version.py").read_text())).encode())
    for name in _FILES:
        digest.update(f"{name}\0".encode() + (folder / name).read_bytes())
    name = f"simvalues-torch{_version(torch_folder)}-{digest.hexdigest()[:16]}.so"
    return Plan(command, '#include "simvalues/values.cpp"\n', name)


def _version(torch_folder: Path) -> str:
    found = re.search(
        r"^__version__[^=\n]*=\s*['\"](.+?)['\"]", (torch_folder / "version.py").read_text(), re.MULTILINE
    )
    return found[1] if found else "unknown"
