"""The simulated CUDA runtime: every case of cases_*.py in a process of its own, broken rules by their lines on
stderr and their counts, the report at exit, and a few programs with torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CASES, VIOLATIONS, load

from poolalloc import sim

HERE = Path(__file__).resolve().parent
CLIENT = HERE / "cases.py"

load()


def run_case(name: str, tmp_path: Path, **extra: str) -> tuple[str, dict[str, object]]:
    """What the case wrote to stderr, and its report."""
    report = tmp_path / "report.json"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("POOLALLOC_SIM_")}
    environment |= CASES[name][1] | {"POOLALLOC_SIM_REPORT": str(report)} | extra
    done = subprocess.run(
        [sys.executable, str(CLIENT), name], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded: dict[str, object] = json.loads(report.read_text())
    return done.stderr, loaded


# This one is a child of another case, which gives it what to open.
CHILDREN = {"open_memory_of_another_process"}


@pytest.mark.parametrize("name", sorted(set(CASES) - set(VIOLATIONS) - CHILDREN))
def test_rule(name: str, tmp_path: Path) -> None:
    run_case(name, tmp_path)


@pytest.mark.parametrize("name", sorted(VIOLATIONS))
def test_broken_rule(name: str, tmp_path: Path) -> None:
    errors, report = run_case(name, tmp_path)
    kind = VIOLATIONS[name]
    assert [line for line in errors.splitlines() if line.startswith("simgpu: ")] == [errors.strip()]
    assert errors.startswith(f"simgpu: {kind}: ")
    assert report["violations"] == {kind: 1}


def test_quiet_says_nothing_but_counts(tmp_path: Path) -> None:
    errors, report = run_case("free_twice", tmp_path, POOLALLOC_SIM_QUIET="1")
    assert errors == ""
    assert report["violations"] == {"double_free": 1}


def test_a_waiting_loop_is_warned_about_once(tmp_path: Path) -> None:
    errors, _ = run_case("a_loop_that_waits_for_a_value_is_named_once", tmp_path)
    assert errors.count("simgpu: ") == 1
    assert "a loop that waits for another value never ends" in errors
    errors, _ = run_case("training_that_reads_its_loss_is_not_suspected", tmp_path)
    assert errors == ""


def test_polling_for_a_lagging_event_is_named(tmp_path: Path) -> None:
    errors, _ = run_case("polling_for_ever_ends", tmp_path)
    assert errors.startswith("simgpu: cudaEventQuery: an event was polled")


def test_the_report_says_what_happened(tmp_path: Path) -> None:
    _, report = run_case("malloc_takes_whole_pages", tmp_path)
    assert report["schema"] == 1
    assert report["gpu"] == "h100"
    assert report["devices"] == [
        {"device": 0, "capacity_bytes": 64 << 20, "used_bytes": 0, "peak_used_bytes": 2 << 20, "launches": 0}
    ]
    calls = report["calls"]
    assert isinstance(calls, dict)
    assert calls["cudaMalloc"] == 2
    assert calls["cudaFree"] == 3
    assert min(calls.values()) > 0


def test_only_the_owner_writes_the_plain_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    environment = {**os.environ, "POOLALLOC_SIM_REPORT": str(report), "POOLALLOC_SIM_OWNER": "1"}
    subprocess.run([sys.executable, str(CLIENT), "launches_are_checked"], env=environment, check=True)
    assert not report.exists()
    (suffixed,) = tmp_path.iterdir()
    assert suffixed.name.startswith("report.json.")
    assert suffixed.name == f"report.json.{json.loads(suffixed.read_text())['pid']}"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GPU", "voodoo2"),
        ("MEMORY", "80GiB"),
        ("MEMORY", "1"),
        ("DEVICES", "0"),
        ("DEVICES", "65"),
        ("LAG", "-1"),
        ("PEERS", "0-1"),
        ("VMM_FAULT", "all"),
        ("SHARED", "a/b"),
        ("SHARED", "a" * 65),
        ("DRIVER_COSTS", "map=fast"),
    ],
)
def test_a_wrong_switch_is_one_line_and_no_device(variable: str, value: str, tmp_path: Path) -> None:
    program = (
        "import ctypes, sys; n = ctypes.c_int(-1);"
        "code = ctypes.CDLL(sys.argv[1]).cudaGetDeviceCount(ctypes.byref(n)); print(code, n.value)"
    )
    library = str(sim.library_folder() / "libsimgpu.so")
    environment = {**os.environ, f"POOLALLOC_SIM_{variable}": value}
    done = subprocess.run(
        [sys.executable, "-c", program, library], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["100", "0"]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"simgpu: POOLALLOC_SIM_{variable} is '{value}'")


# --- what programs link against ------------------------------------------------------------------------------------


def exported(library: Path) -> set[str]:
    done = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in done.stdout.splitlines()}


def needed_by(library: Path) -> set[str]:
    done = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    return {line.split()[1].split("@")[0] for line in done.stdout.splitlines()}


def test_everything_torch_needs_of_cuda_is_there() -> None:
    torch = pytest.importorskip("torch", reason="needs torch's libraries to compare with")
    if torch.version.cuda is None:
        pytest.skip("needs a CUDA build of torch to compare with")
    have = exported(sim.library_folder() / "libsimgpu.so")
    runtime = ("cuda", "__cuda")
    for library in sorted((Path(torch.__file__).parent / "lib").glob("lib*.so")):
        missing = {name for name in needed_by(library) if name.startswith(runtime)} - have
        assert not missing, (library.name, missing)


def test_the_front_libraries_export_what_they_list() -> None:
    folder = sim.library_folder()
    for library, listed in (("libcuda.so.1", "driver.def"), ("libnvidia-ml.so.1", "nvml.def")):
        text = (HERE.parents[1] / "csrc/simgpu" / listed).read_text()
        names = {line.rpartition(", ")[2].rstrip(")") for line in text.splitlines() if line.startswith("FUNCTION(")}
        assert names
        assert names <= exported(folder / library)


def test_no_cxx_library_is_forced_on_the_program() -> None:
    done = subprocess.run(
        ["readelf", "-d", str(sim.library_folder() / "libsimgpu.so")], capture_output=True, text=True, check=True
    )
    assert "libstdc++" not in done.stdout
