"""What a cell does on a real GPU (figures from NVML, tolerances), over the simulated NVML where there is none."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from poolalloc.bench.child import Spec
from poolalloc.bench.devices import DeviceError, torch_install
from poolalloc.sim import run_simulated

MIB = 1 << 20
HOLD = "import torch\nkept = torch.empty(300 << 20, dtype=torch.uint8, device='cuda')\n"

Cell = Callable[[str, str], dict[str, Any]]


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    """cell(allocator, script) runs the script as on a real GPU and returns the result."""
    try:
        torch_install()
    except DeviceError as error:
        pytest.skip(str(error))

    def run(allocator: str, text: str) -> dict[str, Any]:
        (tmp_path / "script.py").write_text(text)
        spec = Spec(
            allocator=allocator,
            path=str(tmp_path / "script.py"),
            size=None,
            steps=0,
            arguments=[],
            simulated=False,
            result=str(tmp_path / "result.json"),
            progress=str(tmp_path / "progress"),
        )
        (tmp_path / "spec.json").write_text(json.dumps(asdict(spec)))
        done = run_simulated([sys.executable, "-m", "poolalloc.bench.child", str(tmp_path / "spec.json")], timeout=300)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads((tmp_path / "result.json").read_text())
        return result

    return run


@pytest.mark.parametrize(("allocator", "call"), [("default", "num_device_alloc"), ("poolalloc", "create")])
def test_figures_agree_with_nvml_and_calls_are_the_allocators_own(cell: Cell, allocator: str, call: str) -> None:
    result = cell(allocator, HOLD)
    assert result["wrong"] == []
    (device,) = result["devices"]
    assert device["requested_peak"] == 300 * MIB
    assert device["driver_current"] >= device["reserved_current"] == device["reserved_peak"] >= 300 * MIB
    assert device["driver_peak"] is None
    assert result["driver_calls"][call] > 0
    assert not [name for name in result["driver_calls"] if name.startswith("cu")]


def test_growth_beyond_the_tolerance_is_told_with_both_figures(cell: Cell) -> None:
    plant = "import ctypes\nctypes.CDLL(None).cudaMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(3 << 30))\n"
    (wrong,) = cell("default", HOLD + plant)["wrong"]
    assert f"{300 * MIB} bytes are reserved" in wrong
    assert f"grew by {300 * MIB + (3 << 30)}" in wrong
