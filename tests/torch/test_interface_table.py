"""docs/torch-interface.md, row by row, on torch's own allocator, on the plain plugin and with the bridge.

Each row has a program (interface_programs.py) or a probe (interface_probe.cpp), which is run on all three; what becomes
of it is what the table says. A function that the table lacks is an error, in whatever version of torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from fork_server import ForkServer

pytestmark = pytest.mark.torch_interface

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PYTHON = os.environ.get("POOLALLOC_TEST_PYTHON", sys.executable)
MANUAL = ROOT / "docs" / "torch-interface.md"
ALLOCATORS = ("builtin", "plugin", "bridge")

FIND_FUNCTIONS = """
import json, pathlib, re, torch
memory = torch.cuda.memory
names = [f"torch.cuda.memory.{name}" for name, value in vars(memory).items()
         if callable(value) and getattr(value, "__module__", None) == memory.__name__]
accelerator = torch.accelerator.memory if hasattr(torch.accelerator, "memory") else torch.accelerator
names += [f"torch.accelerator.{name}" for name, value in vars(accelerator).items()
          if callable(value) and getattr(value, "__module__", None) == accelerator.__name__
          and ("memory" in name or name in ("_snapshot", "empty_cache", "empty_host_cache"))]
include = pathlib.Path(torch.__file__).parent / "include"
for file, start in (("c10/cuda/CUDACachingAllocator.h", "class CUDAAllocator"),
                    ("c10/core/CachingDeviceAllocator.h", "DeviceAllocator : public"),
                    ("c10/core/Allocator.h", "struct C10_API Allocator")):
    text = (include / file).read_text()
    text = re.sub("//.*", "", text[text.index(start):].split("\\n};")[0])
    names += [f"C++ {name}" for name in re.findall(r"virtual\\s+[^;{(]*?(\\w+)\\(", text) if name != "Allocator"]
print(json.dumps(names))
"""


def programs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("interface_programs", HERE / "interface_programs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table() -> dict[str, list[str]]:
    """Row of the manual -> its cells, for torch's own allocator, the plugin and the bridge."""
    rows = {}
    prefix = ""
    for line in MANUAL.read_text().splitlines():
        if line.startswith("## "):
            prefix = {"## C++": "C++ "}.get(line[:6], "")
        found = re.fullmatch(r"\| `(.+?)` \| (yes|raises|no effect) \| (.+?) \| (.+?) \| (.*?) ?\|", line)
        if found:
            rows[prefix + found[1]] = [found[2], found[3], found[4]]
    return rows


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory, clean_environment: dict[str, str], fork_server: ForkServer) -> Path:
    """interface_probe.cpp, compiled as the bridge is."""
    library = tmp_path_factory.mktemp("probe") / "probe.so"
    find = library.with_name("find.py")
    find.write_text(
        "import json, torch; from poolalloc._internal import bridge; print(json.dumps(bridge.plan(torch).command))"
    )
    code, found, said = fork_server.run([str(find)], clean_environment, 100)
    assert code == 0, said
    command = [str(HERE / "interface_probe.cpp") if word == "-" else word for word in json.loads(found)]
    done = subprocess.run([*command, "-O0", "-o", str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    return library


@pytest.fixture(scope="module")
def outcomes(
    probe: Path,
    tmp_path_factory: pytest.TempPathFactory,
    clean_environment: dict[str, str],
    fork_server: ForkServer,
) -> dict[str, dict[str, str]]:
    """What became of each row, for each allocator."""
    home = tmp_path_factory.mktemp("home")
    script = home / ".cache" / "flamegraph.pl"  # torch fetches one from the network if there is none
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexec cat\n")
    script.chmod(0o755)
    cache = clean_environment.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    found = {}
    for allocator in ALLOCATORS:
        done = fork_server.simulated(
            [str(HERE / "interface_programs.py"), allocator, str(probe)],
            memory=8 << 30,
            devices=2,
            lag=1000,
            timeout=400,
            base={**clean_environment, "PYTHONPATH": str(ROOT), "HOME": str(home), "XDG_CACHE_HOME": cache},
        )
        assert done.returncode == 0, done.stderr
        found[allocator] = json.loads((done.stdout or "").splitlines()[-1])
    return found


ROWS = table()


IN_SEGMENTS = {"C++ getIpcDevPtr"}
"""Rows that fail where memory comes in segments: they open shared memory in ways of pages."""


def test_every_row_is_true(outcomes: dict[str, dict[str, str]], clean_environment: dict[str, str]) -> None:
    """One test for all, since building the probe and running the programs takes longer than looking at them."""
    assert outcomes["bridge"].keys() == ROWS.keys(), "every row has a program, and every program a row"
    left_out = IN_SEGMENTS if "segments:true" in clean_environment.get("POOLALLOC_CONF", "") else set()
    wrong = {}
    for row, cells in ROWS.items():
        seen = [outcomes[allocator][row] for allocator in ALLOCATORS]
        if "absent" in seen or row in left_out:
            continue
        # Where the table says "not yet" it must not work: if it does, the table is too modest.
        true = seen[:2] == cells[:2] and seen[2] != "yes" if cells[2] == "not yet" else seen == cells
        if not true:
            wrong[row] = {"seen": seen, "in the table": cells}
    assert wrong == {}


def test_no_function_lacks_a_row(on_sim: Callable) -> None:
    names = on_sim(FIND_FUNCTIONS, command=(PYTHON,)).value
    parts = {f"torch.cuda.memory.{name}" for name in programs().PARTS}
    assert set(names) - parts <= ROWS.keys()


# Virtual functions that the bridge leaves as CUDAPluggableAllocator and its bases have them, and why.
LEFT_TO_TORCH = {
    "allocateWithAddress": "no block is placed at an address of the caller's choice",
    "copy_data": "final: a copy on the device",
    "getMemoryInfo": "asks the device",
    "initialized": "says what init() has set",
    "is_simple_data_ptr": "compares data and context, which are the same",
}


def test_the_bridge_has_every_virtual_function_of_this_torch(on_sim: Callable) -> None:
    """They are declared without `override`, so what is new in torch would be left out in silence."""
    names = {name.removeprefix("C++ ") for name in on_sim(FIND_FUNCTIONS, command=(PYTHON,)).value if " " in name}
    header = re.sub("//.*", "", (ROOT / "csrc" / "bridge" / "torch_allocator.h").read_text())
    own = set(re.findall(r"(\w+)\(", header))
    assert sorted(names - own - LEFT_TO_TORCH.keys()) == []
    assert sorted(LEFT_TO_TORCH.keys() & own) == []
