"""The table of allocators, finding workloads, choosing the device: everything that needs no GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from poolalloc.bench import devices, harness, workloads
from poolalloc.bench.allocators import ALLOCATORS, TORCH_VARIABLES, cell_environment
from poolalloc.bench.harness import too_few_devices
from poolalloc.bench.workloads import Workload, WorkloadError, choose_size, describe, find, known


def test_names_of_the_table_are_its_keys() -> None:
    assert [allocator.name for allocator in ALLOCATORS.values()] == list(ALLOCATORS)
    assert list(ALLOCATORS)[:3] == ["default", "expandable", "poolalloc"]


@pytest.mark.parametrize(("version", "variable"), [((2, 4), "PYTORCH_CUDA_ALLOC_CONF"), ((2, 9), "PYTORCH_ALLOC_CONF")])
def test_expandable_is_asked_for_by_the_variable_of_its_torch(version: tuple[int, int], variable: str) -> None:
    environment = cell_environment(ALLOCATORS["expandable"], version, {"HOME": "/home/you"})
    assert environment == {"HOME": "/home/you", variable: "expandable_segments:True"}


@pytest.mark.parametrize("name", ["default", "poolalloc"])
def test_a_cell_does_not_inherit_settings_of_torchs_allocator(name: str) -> None:
    base = dict.fromkeys(TORCH_VARIABLES, "1") | {"PATH": "/bin", "POOLALLOC_CONF": "growth:fast"}
    assert cell_environment(ALLOCATORS[name], (2, 15), base) == {"PATH": "/bin", "POOLALLOC_CONF": "growth:fast"}


def test_the_workloads_of_the_project_are_found_and_have_all_sizes() -> None:
    assert {"gpt", "gpt_checkpoint", "serving", "convnet", "hf_llama", "timm_convnext"} <= set(known())
    for name in known():
        workload = find(name)
        assert not workload.is_script, name
        assert {"tiny", "full"} <= set(workload.sizes), name
        assert choose_size(workload, None) == "full"


def test_an_unknown_workload_is_answered_with_the_known_ones() -> None:
    with pytest.raises(WorkloadError, match=r"unknown workload 'gtp'; there are .*gpt"):
        find("gtp")


def test_an_installation_without_workload_files_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "folders", list)
    with pytest.raises(WorkloadError, match="workload files are not installed with this package"):
        find("gpt")


@pytest.mark.parametrize("name", ["nothing/here.py", "here.py"])
def test_a_missing_script_is_named(name: str) -> None:
    with pytest.raises(WorkloadError, match=f"no such script: {name}"):
        find(name)


def test_a_file_with_run_sizes_and_steps_is_a_workload_and_any_other_a_script(tmp_path: Path) -> None:
    text = "SIZES = {'a': 1, 'b': 2}\nSTEPS = 5\n"
    run = "def run(size, steps, device):\n    yield 1\n"
    (tmp_path / "w.py").write_text(text + run)
    (tmp_path / "s.py").write_text(run)
    workload = describe("w", tmp_path / "w.py")
    assert (workload.sizes, workload.steps, workload.is_script) == (("a", "b"), 5, False)
    assert choose_size(workload, None) == "b"  # it has no size "full"
    with pytest.raises(WorkloadError, match="w has no size 'c'; it has a, b"):
        choose_size(workload, "c")
    assert find(str(tmp_path / "s.py")).is_script


def test_a_file_that_is_not_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("def (:\n")
    with pytest.raises(WorkloadError, match="cannot read"):
        find(str(tmp_path / "x.py"))


def fake_torch(folder: Path, version: str) -> ModuleSpec:
    (folder / "torch").mkdir()
    (folder / "torch" / "version.py").write_text(version)
    return ModuleSpec("torch", None, origin=str(folder / "torch" / "__init__.py"))


@pytest.mark.parametrize(
    ("text", "torch", "major_minor"),
    [
        (
            "__version__ = '2.15.0+cu132'\ncuda: Optional[str] = '13.2'\n",
            devices.TorchInstall("2.15.0+cu132", "13.2"),
            (2, 15),
        ),
        ("__version__ = '2.4.1'\ncuda: str | None = '12.4'\n", devices.TorchInstall("2.4.1", "12.4"), (2, 4)),
    ],
)
def test_torch_is_read_without_importing_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    torch: devices.TorchInstall,
    major_minor: tuple[int, int],
) -> None:
    spec = fake_torch(tmp_path, text)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert devices.torch_install() == torch
    assert torch.major_minor == major_minor


def test_torch_without_cuda_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = fake_torch(tmp_path, "__version__ = '2.15.0+cpu'\ncuda: Optional[str] = None\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(devices.DeviceError, match=r"torch 2\.15\.0\+cpu has no CUDA in it"):
        devices.torch_install()


def test_no_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(devices.DeviceError, match="torch is not installed"):
        devices.torch_install()


def test_a_workload_says_which_packages_it_needs_and_misses(tmp_path: Path) -> None:
    path = tmp_path / "needy.py"
    path.write_text("NEEDS = ('json', 'no_such_one', 'nor_this')\nSIZES = {'full': 1}\nSTEPS = 1\ndef run(): ...\n")
    workload = describe("needy", path)
    assert workload.needs == ("json", "no_such_one", "nor_this")
    reason = "no_such_one and nor_this are not installed (pip install 'poolalloc[bench-models]')"
    assert workload.missing == reason
    assert describe("gpt", known()["gpt"]).missing is None
    for name, path in known().items():
        assert set(find(name).needs) <= {"transformers", "peft", "timm", "trl", "datasets"}, path


def test_a_workload_says_whether_it_needs_values_and_how_many_processes(tmp_path: Path) -> None:
    path = tmp_path / "w.py"
    text = "SIZES = {'full': 1}\nSTEPS = 1\ndef run(): ...\n"
    path.write_text(text)
    assert (describe("w", path).values, describe("w", path).ranks) == (False, 1)
    path.write_text(text + "VALUES = True\nPROCESSES = 4\n")
    assert (describe("w", path).values, describe("w", path).ranks) == (True, 4)
    path.write_text("print('a script may decide by values')\n")
    assert (describe("w", path).values, describe("w", path).ranks) == (True, 1)


def test_each_rank_sees_a_device_of_its_own(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    real = devices.Device(simulated=False, gpu="real", count=3)
    simulated = devices.Device(simulated=True)
    chosen = {"CUDA_VISIBLE_DEVICES": "4,6,7"}
    assert [real.environment({}, report, rank)["CUDA_VISIBLE_DEVICES"] for rank in range(3)] == ["0", "1", "2"]
    assert [real.environment(chosen, report, rank)["CUDA_VISIBLE_DEVICES"] for rank in range(3)] == ["4", "6", "7"]
    second = simulated.environment(chosen, report, 1)
    assert (second["CUDA_VISIBLE_DEVICES"], second["POOLALLOC_SIM_DEVICES"]) == ("1", "2")


def test_a_workload_with_more_ranks_than_there_are_gpus_is_skipped_with_the_reason(tmp_path: Path) -> None:
    workload = Workload("w", tmp_path / "w.py", ("full",), 1, ranks=2)
    one = devices.Device(simulated=False, gpu="real", count=1)
    assert too_few_devices(workload, one) == "it takes 2 GPUs, and torch can use 1"
    assert too_few_devices(workload, replace(one, count=2)) is None
    assert too_few_devices(workload, devices.Device(simulated=True)) is None


def test_a_rank_that_waits_for_one_that_has_ended_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "OTHER_RANKS_SECONDS", 0.0)
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as waiting,
        subprocess.Popen([sys.executable, "-c", ""]) as ended,
        harness.ended_with(waiting),
    ):
        in_time = harness.follow([waiting, ended], 300, tmp_path / "progress", lambda done: None)
    assert in_time == [False, True]
