"""How a program is started on a simulated GPU: its environment, and that its life is its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import started
from hypothesis import given
from hypothesis import strategies as st

from poolalloc import sim
from poolalloc.analysis import costs
from poolalloc.sim import launching, programs
from poolalloc.sizes import UNITS, format_size, parse_size

ROOT = Path(__file__).resolve().parents[2]


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 << 30),
        ("80 gib", 80 << 30),
        ("24GB", 24 * 10**9),
        ("1.5 MiB", 3 << 19),
        ("512", 512),
        (" 2KB ", 2000),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "-1 GiB", "0", "0.1", "1e9", "1,5GiB", "80 G", "nan", "1 GiB 2", "9 EiB"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f'"{text}"')):
        parse_size(text)


@given(st.integers(1, 2**20), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]))
def test_a_formatted_whole_size_reads_back(count: int, unit: str) -> None:
    size = count * UNITS[unit.lower()]
    text = format_size(size)
    assert parse_size(text) == size or re.fullmatch(r"[0-9]+\.[0-9]{2} [KMGT]iB", text)


@given(st.integers(1, 2**62))
def test_a_formatted_size_is_right_to_its_two_decimals(size: int) -> None:
    text = format_size(size)
    unit = UNITS[text.split()[1].lower()]
    assert abs(parse_size(text) - size) <= unit / 100


# --- cards -----------------------------------------------------------------------------------------------------------


def test_the_launcher_and_the_runtime_read_one_card_table() -> None:
    rows = re.findall(
        r'^GPU\("([^"]+)", *"([^"]+)", *([^)]+)\)', (ROOT / "csrc/simgpu/gpus.def").read_text(), re.MULTILINE
    )
    table = {key: (name, [int(figure) for figure in figures.split(",")]) for key, name, figures in rows}
    assert list(table) == list(sim.gpus())
    for key, card in sim.gpus().items():
        values = list(vars(card).values())
        assert (card.key, card.name, values[2:]) == (key, *table[key])


@pytest.mark.parametrize(
    "key", ["h100", "h200", "b200", "a100", "a100-40gb", "l4", "l40s", "a10g", "t4", "v100", "rtx4090"]
)
def test_the_figures_of_a_card_are_possible(key: str) -> None:
    card = sim.find_gpu(key)
    assert card.smem_per_block <= card.smem_optin <= card.smem_per_sm
    assert card.max_threads_per_sm % 32 == 0
    nominal = re.search(r"([0-9]+)GB", card.name)
    if nominal:
        assert 0.9 * int(nominal[1]) * 2**30 < card.memory_bytes <= int(nominal[1]) * 2**30


def test_an_unknown_card_names_the_nearest() -> None:
    assert sim.find_gpu("A100").key == "a100"
    with pytest.raises(sim.SimulationError, match="did you mean rtx4090"):
        sim.find_gpu("rtx-4090")


# --- environment -----------------------------------------------------------------------------------------------------


def test_environment() -> None:
    base = {
        "LD_PRELOAD": "/usr/lib/other.so",
        "LD_LIBRARY_PATH": "/opt/lib",
        "CUDA_VISIBLE_DEVICES": "",
        "POOLALLOC_SIM_MEMORY": "1",
        "POOLALLOC_SIM_PATIENCE": "3",
        "POOLALLOC_CONF": "kept:1",
    }
    environment = sim.sim_environment("A100", devices=2, lag=3, report="report.json", base=base)
    folder = sim.library_folder()
    assert environment["LD_PRELOAD"] == f"{folder}/libsimgpu.so:/usr/lib/other.so"
    assert environment["LD_LIBRARY_PATH"] == f"{folder}:/opt/lib"
    assert "CUDA_VISIBLE_DEVICES" not in environment
    assert "POOLALLOC_SIM_MEMORY" not in environment, "the card decides, not what was left over from outside"
    assert environment["POOLALLOC_CONF"] == "kept:1"
    assert environment["POOLALLOC_SIM_PATIENCE"] == "3", "what no option sets can be set from outside"
    assert environment["POOLALLOC_SIM_REPORT"] == os.path.abspath("report.json")
    assert [environment[f"POOLALLOC_SIM_{name}"] for name in ("GPU", "DEVICES", "LAG")] == ["a100", "2", "3"]
    priced = sim.sim_environment(prices=costs.find(), base=base)
    assert "map=1.5:0.03,allow_access=40:0.03" in priced["POOLALLOC_SIM_DRIVER_COSTS"]
    assert "POOLALLOC_SIM_DRIVER_COSTS" not in sim.sim_environment(base=priced)
    again = sim.sim_environment(base=environment)
    assert again["LD_PRELOAD"] == environment["LD_PRELOAD"], "one simulator inside another preloads it once"


def test_faults_and_peers_are_checked() -> None:
    environment = sim.sim_environment(devices=3, peers="0-1,1-2", vmm_fault="rdma", base={})
    assert [environment[f"POOLALLOC_SIM_{name}"] for name in ("PEERS", "VMM_FAULT")] == ["0-1,1-2", "rdma"]
    assert "POOLALLOC_SIM_PEERS" not in sim.sim_environment(base=environment)
    for wrong in ("0-2", "0-0", "1", "0-1,", "0-1;1-2"):
        with pytest.raises(sim.SimulationError, match="no pair of the 2 devices"):
            sim.sim_environment(devices=2, peers=wrong)
    with pytest.raises(sim.SimulationError, match="known are rdma, access"):
        sim.sim_environment(vmm_fault="all")


def test_the_name_of_shared_cards_is_checked() -> None:
    environment = sim.sim_environment(shared="train.1", base={})
    assert environment["POOLALLOC_SIM_SHARED"] == "train.1"
    assert "POOLALLOC_SIM_SHARED" not in sim.sim_environment(base=environment)
    for wrong in ("", "a/b", "a b", "ä", "a" * 65):
        with pytest.raises(sim.SimulationError, match="is no name of at most 64 letters"):
            sim.sim_environment(shared=wrong)


# --- which Python a command starts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "flags", "script"),
    [
        (["train.py", "-S"], [], "train.py"),
        (["-u", "-W", "error", "train.py"], ["-u", "-W", "error"], "train.py"),
        (["-X", "dev", "-S", "-m", "package"], ["-X", "dev", "-S"], None),
        (["-Sc", "pass", "train.py"], [], None),
        (["-", "train.py"], [], None),
        ([], [], None),
    ],
)
def test_python_arguments(arguments: list[str], flags: list[str], script: str | None) -> None:
    assert programs._split_python_arguments(arguments) == (tuple(flags), Path(script) if script else None)


@pytest.mark.parametrize(
    "first_lines",
    [
        "#!{python}\n",
        "#!{python} -u\n",
        "#!/usr/bin/env {python}\n",
        "#!/usr/bin/env -S {python} -u\n",
        "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''\n",
        "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n",
    ],
)
def test_scripts_that_start_python_by_their_first_line(first_lines: str, tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_text(first_lines.format(python=sys.executable))
    found = programs._find_python(str(script), [str(script)], os.environ)
    assert found is not None
    assert found.interpreter == sys.executable


@pytest.mark.parametrize("content", [b"#!/bin/sh\necho hello\n", b"\x7fELF", b"", b"#!", b"#!/usr/bin/env\n"])
def test_programs_that_do_not_start_python(content: bytes, tmp_path: Path) -> None:
    program = tmp_path / "tool"
    program.write_bytes(content)
    assert programs._find_python(str(program), [str(program)], os.environ) is None


# --- a program's life ------------------------------------------------------------------------------------------------


def launcher(*options: str) -> list[str]:
    return [sys.executable, "-m", "poolalloc", "sim", "--no-values", *options, "--"]


def in_shell(text: str, *options: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    command = [*launcher(*options), "sh", "-c", text]
    return subprocess.run(command, capture_output=True, text=True, check=False, **keywords)  # type: ignore[call-overload]


LIMITS = pytest.mark.parametrize("options", [[], ["--timeout", "300"]], ids=["alone", "supervised"])


def wait_for(condition: object) -> None:
    """Wait until condition() holds; the test's own time limit ends a wait in vain."""
    while not condition():  # type: ignore[operator]
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@LIMITS
def test_output_input_and_exit_code_are_the_programs(options: list[str]) -> None:
    result = in_shell("cat; echo complaint >&2; exit 7", *options, input="some input")
    assert (result.returncode, result.stdout, result.stderr) == (7, "some input", "complaint\n")


@LIMITS
def test_arguments_reach_the_program_untouched(options: list[str]) -> None:
    words = ["--gpu", "-x", "", "a b", "--", "--help", "*"]
    result = subprocess.run([*launcher(*options), "printf", "[%s]", *words], capture_output=True, text=True, check=True)
    assert result.stdout == "".join(f"[{word}]" for word in words)


def test_death_by_signal() -> None:
    assert in_shell("kill -KILL $$").returncode == -signal.SIGKILL
    assert in_shell("kill -KILL $$", "--timeout", "300").returncode == 128 + signal.SIGKILL


def test_the_program_inherits_no_ignored_signals() -> None:
    """Python ignores SIGPIPE; a program started from it must not, or `... | head` hangs it."""
    ignored = in_shell("grep SigIgn /proc/self/status").stdout.split()[1]
    assert int(ignored, 16) & (1 << (signal.SIGPIPE - 1)) == 0


def with_interrupts(handler: signal.Handlers) -> Callable[[], object]:
    return lambda: signal.signal(signal.SIGINT, handler)


@LIMITS
@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN], ids=["as usual", "ignored at first"])
def test_ctrl_c_reaches_the_program(options: list[str], tmp_path: Path, before: signal.Handlers) -> None:
    """Also where what starts it ignores the signal: nohup, cron, a shell that runs it in the background."""
    ready = tmp_path / "ready"
    script = f"trap 'echo stopped; exit 5' INT; : > {ready}; while :; do sleep 0.05; done"
    command = [*launcher(*options), "sh", "-c", script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command, preexec_fn=with_interrupts(before), **pipes) as process:
        wait_for(ready.exists)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("stopped\n", "")
        assert process.returncode == 5


def test_the_time_limit_ends_the_whole_group_and_says_why(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    result = in_shell(f"sleep 1000 & echo $$ $! > {pids}; wait", "--timeout", "1")
    assert result.returncode == 124
    (line,) = result.stderr.splitlines()
    assert "after 1 s" in line
    assert "it may have waited for such a value" in line
    for process in map(int, pids.read_text().split()):
        wait_for(lambda process=process: not is_alive(process))


def test_a_program_that_ignores_the_request_to_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_GRACE_SECONDS", 0.2)
    pid = tmp_path / "pid"
    script = f"trap '' TERM; echo $$ > {pid}; while :; do sleep 0.05; done"
    code, _, _ = sim.supervise(["sh", "-c", script], sim.sim_environment(), timeout=1)
    assert code is None
    assert not is_alive(int(pid.read_text()))


def test_a_process_that_left_the_group_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launching, "_GRACE_SECONDS", 0.5)
    pid = tmp_path / "pid"
    script = f"echo before; setsid sh -c 'echo $$ > {pid}; exec sleep 1000' & sleep 1000"
    run = sim.run_simulated(["sh", "-c", script], timeout=1)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    assert (run.timed_out, run.stdout) == (True, "before\n")


def test_ctrl_c_before_the_program_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a signal waits for the program: it neither ends the launcher alone nor gets lost."""
    real = subprocess.Popen

    def interrupted(*arguments: Any, **keywords: Any) -> subprocess.Popen[str]:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **keywords)

    environment = sim.sim_environment()
    monkeypatch.setattr(launching.subprocess, "Popen", interrupted)
    code, _, _ = sim.supervise(["sleep", "1000"], environment, timeout=300)
    assert code == 128 + signal.SIGINT


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    code = (
        "import sys; from poolalloc.sim import run_simulated as run; sys.exit(run(['sh', '-c', 'exit 3']).returncode)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 3
    in_shell("true", "--timeout", "300", env=environment)
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_an_earlier_run_does_not_survive(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("stale")
    in_shell("kill -KILL $$", "-o", str(report))
    assert not report.exists()


def test_run_simulated_captures_output() -> None:
    run = sim.run_simulated(["sh", "-c", "echo out; echo err >&2; exit 4"])
    assert (run.returncode, run.timed_out, run.stdout, run.stderr) == (4, False, "out\n", "err\n")


def test_run_simulated_from_a_thread_with_a_time_limit() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(sim.run_simulated, ["sleep", "1000"], timeout=0.5).result()
    assert (run.returncode, run.timed_out) == (124, True)
