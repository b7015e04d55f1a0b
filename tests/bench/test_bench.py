"""`poolalloc bench` on the simulated GPU: rows, cross-checks that catch planted lies, cells that die, scripts."""

from __future__ import annotations

import html
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_rig import Bench
from command_line import poolalloc, refused, started

from poolalloc.bench.workloads import find, known
from poolalloc.sim import find_gpu

MIB = 1 << 20
WORKLOADS = ("gpt", "gpt_checkpoint", "serving", "convnet")
Script = Callable[[str], str]

HOLD = "import torch\nkept = torch.empty(30 << 20, dtype=torch.uint8, device='cuda')\n"


def test_small_programs_run_at_their_smallest_size(sim_bench: Bench) -> None:
    names = ("small_buffer", "small_convnet", "small_encoder", "small_gpt", "small_unet")
    ran = sim_bench(*names, "--size", "tiny", "--steps", "10", "--against", "poolalloc")
    assert ran.code == 0, ran.err
    assert ran.data is not None
    assert tuple(row["workload"] for row in ran.data["rows"]) == names
    assert all(row["peak_requested_bytes"] > 0 and "error" not in row for row in ran.data["rows"])


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_workload_runs_under_every_allocator(sim_bench: Bench, workload: str) -> None:
    priced = workload == "gpt"  # the driver takes its time there
    more = ("--driver-costs", "default") if priced else ()
    ran = sim_bench(workload, "--size", "tiny", "--steps", "3", "--gpu", "a100", *more)
    assert ran.code == 0, ran.err
    assert ran.data is not None
    assert ran.data["device"]["simulated"] is True
    assert ran.data["prices"]["taken"] is priced
    assert ("that of the workload's first row" in ran.out) is priced
    assert [row.get("step_time_ratio", 0) > 0 for row in ran.data["rows"]] == [priced] * 3
    if priced:
        for row, details in zip(ran.data["rows"], ran.data["details"], strict=True):
            taken = row["driver_milliseconds"]["total"][0] / 1e3  # at the end of the steps
            assert row["seconds"] >= details["timeline"]["steps"][-1] > 0
            assert row["seconds"] > taken
    assert "A100" in ran.data["device"]["name"]
    assert ran.data["device"]["memory_bytes"] == find_gpu("a100").memory_bytes
    assert [row["allocator"] for row in ran.data["rows"]] == ["default", "expandable", "poolalloc"]
    requested = {row["peak_requested_bytes"] for row in ran.data["rows"]}
    for row, details in zip(ran.data["rows"], ran.data["details"], strict=True):
        assert row["workload"] == workload
        assert 0 < row["peak_requested_bytes"] <= row["peak_live_bytes"] <= row["peak_reserved_bytes"]
        assert row["overhead"] == pytest.approx(row["peak_reserved_bytes"] / row["peak_requested_bytes"], abs=1e-6)
        assert row["out_of_memory"] is False
        assert row["retries"] == 0
        assert row["seconds"] > 0
        assert "error" not in row
        assert details["steps_done"] == 3
        assert len(details["timeline"]["steps"]) == 3
        assert details["driver_peak_bytes"] == row["peak_reserved_bytes"]
        for name in ("requested", "live", "reserved"):
            assert max(details["timeline"][name]) == row[f"peak_{name}_bytes"]
    assert len(requested) == 1  # the program asks for the same under every allocator
    for row, details in zip(ran.data["rows"], ran.data["details"], strict=True):
        work = details["driver_work"]
        assert row["handles_mapped"] == work["total"].get("map", 0) + work["total"].get("allocate_segment", 0) > 0
        assert (work["first_half"], work["second_half"]["steps"]) == (None, 2)
        assert 0 < row["driver_milliseconds"]["start_up"][0] <= row["driver_milliseconds"]["total"][0]
    ours = ran.data["details"][2]["driver_work"]["total"]
    assert ours["map"] == ours["allow_access"] <= ours["map_pages"]
    default, *others = (row["driver_calls"] for row in ran.data["rows"])
    assert "cudaMalloc" in default
    assert "cuMemCreate" not in default
    for calls in others:
        assert "cudaMalloc" not in calls
        assert {"cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemSetAccess"} <= set(calls)
        assert not [name for name in calls if "Event" in name or "Stream" in name or "cpy" in name]


@pytest.mark.parametrize("name", [name for name in known() if find(name).needs])
def test_a_workload_of_a_library_runs_where_the_library_is(sim_bench: Bench, name: str) -> None:
    if (missing := find(name).missing) is not None:
        pytest.skip(missing)
    ran = sim_bench(name, "--size", "tiny", "--steps", "1", "--against", "default,poolalloc")
    assert ran.code == 0, ran.err
    default, ours = (ran.row(name)["peak_requested_bytes"] for name in ("default", "poolalloc"))
    assert ours == pytest.approx(default, abs=4 * 64 << 10)
    assert default > 0


def test_ranks_run_side_by_side_and_have_a_row_each(sim_bench: Bench) -> None:
    ran = sim_bench("gpt_ddp", "--size", "tiny", "--steps", "2", "--against", "poolalloc")
    assert ran.code == 0, ran.err
    assert ran.data is not None
    assert [row["workload"] for row in ran.data["rows"]] == ["gpt_ddp rank 0", "gpt_ddp rank 1"]
    for row, details in zip(ran.data["rows"], ran.data["details"], strict=True):
        assert row["overhead"] > 1
        assert details["steps_done"] == 2
        assert details["driver_peak_bytes"] == row["peak_reserved_bytes"]
    first, second = (row["peak_requested_bytes"] for row in ran.data["rows"])  # batches are each rank's own
    assert first != second


def test_a_workload_without_its_packages_is_skipped_with_the_reason(sim_bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "workloads"
    folder.mkdir(parents=True)
    text = "NEEDS = ('no_such_package',)\nSIZES = {'full': 1}\nSTEPS = 2\ndef run(size, steps, device): ...\n"
    (folder / "needy.py").write_text(text)
    ran = sim_bench("needy", "--html", "report.html", "--png", "report.png")
    assert ran.code == 0, ran.err
    reason = "no_such_package is not installed (pip install 'poolalloc[bench-models]')"
    assert f"needy skipped: {reason}" in ran.out
    assert ran.data is not None
    assert [row["skipped"] for row in ran.data["rows"]] == [reason] * 3
    assert all(row["overhead"] is None and "error" not in row for row in ran.data["rows"])
    assert reason in html.unescape((tmp_path / "report.html").read_text())


def test_settings_of_torchs_allocator_outside_do_not_reach_a_cell(sim_bench: Bench) -> None:
    ran = sim_bench(
        "gpt",
        "--size",
        "tiny",
        "--steps",
        "1",
        "--against",
        "default",
        PYTORCH_ALLOC_CONF="expandable_segments:True",
    )
    assert ran.code == 0, ran.err
    assert "PYTORCH_ALLOC_CONF is not passed on" in ran.err
    assert "cudaMalloc" in ran.row("default")["driver_calls"]


def test_memory_taken_behind_the_allocators_back_is_an_error_with_both_figures(
    sim_bench: Bench, script: Script
) -> None:
    plant = "import ctypes\nctypes.CDLL(None).cudaMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(6 << 20))\n"
    ran = sim_bench(script(HOLD + plant), "--against", "default,poolalloc")
    assert ran.code == 1
    for allocator, reserved in (("default", 30 * MIB), ("poolalloc", ran.row("poolalloc")["peak_reserved_bytes"])):
        error = ran.row(allocator)["error"]
        assert f"{reserved} bytes" in error
        assert str(reserved + 6 * MIB) in error
        assert error in ran.err


def test_a_peak_that_the_driver_did_not_see_is_an_error(sim_bench: Bench, script: Script) -> None:
    ran = sim_bench(script(HOLD + "import ctypes\nctypes.CDLL(None).simgpu_reset_peak(0)\n"), "--against", "default")
    assert ran.code == 0, ran.err  # the peak became what is in use now, and that is the same
    free = "del kept\ntorch.cuda.empty_cache()\n"
    ran = sim_bench(
        script(HOLD + free + "import ctypes\nctypes.CDLL(None).simgpu_reset_peak(0)\n"), "--against", "default"
    )
    assert ran.code == 1
    assert f"peak reserved was {30 * MIB} bytes, the driver says 0" in ran.row("default")["error"]


def test_a_broken_rule_of_cuda_is_an_error(sim_bench: Bench, script: Script) -> None:
    plant = "import ctypes\nctypes.CDLL(None).cudaFree(ctypes.c_void_p(0x12345000))\n"
    ran = sim_bench(script(HOLD + plant), "--against", "default")
    assert ran.code == 1
    assert "rules of CUDA were broken" in ran.row("default")["error"]


def test_another_allocator_than_the_one_asked_for_is_an_error(sim_bench: Bench, script: Script) -> None:
    plant = "import torch\ntorch._C._accelerator_setAllocatorSettings('expandable_segments:False')\n"
    ran = sim_bench(script(plant + HOLD), "--against", "expandable")
    assert ran.code == 1
    assert "expandable_segments=False instead of True" in ran.row("expandable")["error"]


def test_a_peak_before_a_reset_counts(sim_bench: Bench, script: Script) -> None:
    text = (
        HOLD
        + "del kept\ntorch.cuda.empty_cache()\nRESET\nkept = torch.empty(4 << 20, device='cuda', dtype=torch.uint8)\n"
    )
    ran = sim_bench(script(text.replace("RESET", "torch.cuda.reset_peak_memory_stats()")), "--against", "default")
    assert ran.code == 0, ran.err
    assert ran.row("default")["peak_requested_bytes"] == 30 * MIB
    text = text.replace("RESET", "import poolalloc; poolalloc.reset_peak_stats()")
    ran = sim_bench(script(text), "--against", "poolalloc")
    assert ran.code == 0, ran.err
    assert ran.row("poolalloc")["peak_requested_bytes"] == 30 * MIB


def test_out_of_memory_is_a_row_and_no_failure(sim_bench: Bench) -> None:
    ran = sim_bench("gpt", "--size", "small", "--steps", "2", "--memory", "1GiB")
    assert ran.code == 0, ran.err
    assert ran.data is not None
    for row, details in zip(ran.data["rows"], ran.data["details"], strict=True):
        assert row["out_of_memory"] is True
        assert "error" not in row
        assert 0 < row["peak_reserved_bytes"] <= 1024 * MIB
        assert details["steps_done"] < 2
    assert "yes" in ran.out


def test_a_script_gets_its_arguments_and_runs_as_main(sim_bench: Bench, script: Script, tmp_path: Path) -> None:
    text = HOLD + "import sys\nassert __name__ == '__main__'\nopen('seen', 'a').write(repr(sys.argv[1:]) + '\\n')\n"
    ran = sim_bench(script(text), "--against", "default,poolalloc", "--", "--layers", "3")
    assert ran.code == 0, ran.err
    assert (tmp_path / "seen").read_text() == "['--layers', '3']\n" * 2
    assert ran.row("default")["peak_requested_bytes"] == 30 * MIB
    assert ran.row("poolalloc")["peak_requested_bytes"] == 30 * MIB


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("import sys; sys.exit(3)", "ended with exit code 3"),
        ("import os; os._exit(5)", "ended with exit code 5 before it could report"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
    ],
)
def test_a_cell_that_dies_is_an_error_row(sim_bench: Bench, script: Script, end: str, said: str) -> None:
    ran = sim_bench(script(f"{end}\n"), "--against", "default")
    assert ran.code == 1
    assert said in ran.row("default")["error"]
    assert said in ran.err


def test_a_cell_that_fails_keeps_its_figures_and_the_others_still_run(sim_bench: Bench, script: Script) -> None:
    text = HOLD + "if torch.cuda.memory.get_allocator_backend() == 'native':\n    raise ValueError('a bad day')\n"
    ran = sim_bench(script(text), "--against", "default,poolalloc")
    assert ran.code == 1
    assert "ValueError: a bad day" in ran.row("default")["error"]
    assert "ValueError: a bad day" in ran.err
    assert ran.row("default")["peak_requested_bytes"] == 30 * MIB
    assert "error" not in ran.row("poolalloc")
    assert ran.row("poolalloc")["peak_requested_bytes"] == 30 * MIB


def test_a_cell_that_does_not_end_is_ended(sim_bench: Bench, script: Script) -> None:
    ran = sim_bench(script("import time\ntime.sleep(1000)\n"), "--against", "default", "--timeout", "1")
    assert ran.code == 1
    assert "did not end within 1 seconds" in ran.row("default")["error"]


def test_a_bench_that_is_told_to_end_keeps_its_rows_and_leaves_no_process_behind(
    sim_bench: Bench, script: Script, tmp_path: Path
) -> None:
    del sim_bench  # it only says whether there is a torch to run with
    hang = "    import os, time\n    open('pid', 'w').write(str(os.getpid()) + '\\n')\n    time.sleep(1000)\n"
    path = script(HOLD + "if torch.cuda.memory.get_allocator_backend() != 'native':\n" + hang)
    allocators = ["--against", "default,poolalloc", "-o", "rows.json"]
    command = [sys.executable, "-m", "poolalloc", "bench", path, *allocators]
    with started(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (row["allocator"], row["peak_requested_bytes"]) == ("default", 30 * MIB)


def test_a_script_that_uses_no_gpu_is_an_error(sim_bench: Bench, script: Script) -> None:
    ran = sim_bench(script("print('hello')\n"), "--against", "default")
    assert ran.code == 1
    assert "never used the GPU" in ran.row("default")["error"]


def test_the_report_and_the_picture_are_written(sim_bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = sim_bench(
        *("serving", "--size", "tiny", "--steps", "5", "--against", "default,poolalloc"),
        *("--html", str(tmp_path / "deep" / "r.html"), "--png", str(tmp_path / "deep" / "r.png")),
    )
    assert ran.code == 0, ran.err
    assert "poolalloc" in (tmp_path / "deep" / "r.html").read_text()
    assert (tmp_path / "deep" / "r.png").stat().st_size > 20_000
    for text in ("simulated", "requested", "overhead", "default", "poolalloc"):
        assert text in ran.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gtp",), "unknown workload 'gtp'"),
        (("missing.py",), "no such script: missing.py"),
        (("gpt", "--against", "jemalloc"), "unknown allocator 'jemalloc'"),
        (("gpt", "--against", ","), "name at least one"),
        (("gpt", "--gpu", "voodoo2"), "voodoo2"),
        (("gpt", "--memory", "-3GiB"), "negative"),
        (("gpt", "--memory", "1GiB", "--device", "real"), "--memory"),
        (("gpt", "--size", "huge"), "gpt has no size 'huge'"),
        (("gpt", "--steps", "0"), "--steps: 0"),
        (("gpt", "--timeout", "0"), '--timeout: "0"'),
        (("gpt", "--nonsense"), "--nonsense"),
        (("gpt", "--html", "/"), "--html: / cannot be written"),
        (("gpt", "--", "--layers", "3"), "arguments after -- are for a script"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(bench: Bench, arguments: tuple[str, ...], said: str) -> None:
    ran = bench(*arguments)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1
    assert ran.data is None


def test_a_size_is_refused_for_a_script(bench: Bench, script: Script) -> None:
    ran = bench(script(HOLD), "--size", "tiny")
    assert (ran.code, ran.data) == (2, None)
    assert "is a script" in ran.err


def test_torch_without_cuda_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("")
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.15.0+cpu'\ncuda: Optional[str] = None\n")
    ran = poolalloc("bench", "gpt", env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert "2.15.0+cpu has no CUDA in it" in refused(ran)


def test_the_list_names_workloads_and_allocators(bench: Bench) -> None:
    ran = bench("--list")
    assert ran.code == 0
    for name in (*WORKLOADS, "default", "expandable", "poolalloc"):
        assert name in ran.out
