"""Values on the simulated GPU: small integers and booleans are computed where they are known, so that programs which
decide by them end; everything else is zero, and a loop that waits for it is named.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from poolalloc import sim

pytestmark = pytest.mark.torch_interface

PROGRAMS = Path(__file__).with_name("values_programs.py")


def run(*names: str, devices: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "poolalloc", "sim", "--devices", str(devices), "--", sys.executable]
    return subprocess.run([*command, str(PROGRAMS), *names], capture_output=True, text=True, timeout=300, check=False)


def needs_torch() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    if torch.version.cuda is None:
        pytest.skip("needs a CUDA build of torch")


def test_programs() -> None:
    needs_torch()
    names = [
        "operators_are_carried_out",
        "sizes_follow_known_values",
        "unknown_values_are_zero",
        "unknown_numbers_are_finite",
        "a_kernel_of_nobody_makes_all_unknown",
        "graphs_do_not_run_while_they_are_captured",
        "transforms_and_backward_passes_run",
    ]
    if importlib.util.find_spec("transformers"):
        names.append("generation_ends")
    done = run(*names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split("\n")[:-1] == [f"done {name}" for name in names]
    assert "simgpu: " not in done.stderr


def test_operators_on_two_streams_that_do_not_wait_are_named() -> None:
    needs_torch()
    command = [sys.executable, "-m", "poolalloc", "sim", "--lag", "1000000", "--", sys.executable, str(PROGRAMS)]
    done = subprocess.run([*command, "early_uses_are_named"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "simgpu: use_too_early: aten::add_ " in done.stderr
    assert "which does not follow aten::mul_ on stream" in done.stderr


def test_ranks_train_over_nccl() -> None:
    needs_torch()
    done = run("ranks_train_over_nccl", devices=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "simgpu: " not in done.stderr


@pytest.mark.parametrize("name", ["a_loop_without_end_is_named", "a_slow_loop_without_end_is_named"])
def test_a_loop_without_end_is_named(name: str) -> None:
    needs_torch()
    command = [sys.executable, "-m", "poolalloc", "sim", "--", sys.executable, str(PROGRAMS), name]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stderr is not None
            line = next(line for line in program.stderr if line.startswith("simgpu: "))
        finally:
            program.kill()
    assert "aten::all would have computed" in line or "aten::gt would have computed" in line


def test_a_program_that_cannot_have_values_says_why_and_runs(tmp_path: Path) -> None:
    needs_torch()
    environment = {**os.environ, "CXX": "no-such-compiler", "POOLALLOC_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "poolalloc", "sim", "--", sys.executable, "-c", "print('ran')"],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr.startswith("poolalloc: sim: no values are computed, every one is zero: ")
    assert "no-such-compiler" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("origin", [None, Path(), Path("/nowhere/torch/__init__.py")])
def test_a_program_without_torch_is_left_as_it_is(origin: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.programs, "_find_torch", lambda *_: origin)
    environment = {"PATH": os.environ["PATH"]}
    said: list[str] = []
    sim.add_values(["sh", "-c", "true"], environment, said.append)
    assert said == []
    assert list(environment) == ["PATH"]


# --- which devices a program sees ------------------------------------------------------------------------------------

SHOW = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).cudaGetDeviceCount(ctypes.byref(n)); print(n.value)"


@pytest.mark.parametrize(
    ("visible", "devices", "kept"),
    [("1", 2, True), ("1,0", 2, True), ("3", 2, False), ("", 1, False), ("-1", 1, False), ("GPU-706f", 1, True)],
)
def test_a_choice_of_devices_is_kept_where_it_is_one(visible: str, devices: int, kept: bool) -> None:
    base = {"CUDA_VISIBLE_DEVICES": visible}
    assert sim.sees_devices(base, devices) is kept
    assert ("CUDA_VISIBLE_DEVICES" in sim.sim_environment(devices=devices, base=base)) is kept


def test_the_program_sees_the_devices_that_were_chosen() -> None:
    command = [
        sys.executable,
        "-m",
        "poolalloc",
        "sim",
        "--no-values",
        "--devices",
        "4",
        "--",
        sys.executable,
        "-c",
        SHOW,
    ]
    for visible, seen in (("1,3", "2\n"), ("9", "4\n")):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout == seen, done.stderr
        assert ("names none of the simulated devices" in done.stderr) is (visible == "9")
