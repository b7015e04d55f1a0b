"""Recording: a trace of what a program asked, whose replay gives the peaks that the run itself reported."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import started

from poolalloc.analysis.replay import replay
from poolalloc.analysis.trace import Op, read
from poolalloc.sim import sim_environment
from poolalloc.sizes import parse_size

TRAIN = """
    import json
    import torch
    import poolalloc

    poolalloc.install()
    recording = poolalloc.record("run.npz")
    model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(6)]).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(8):
        {mark}
        rows = 2048 + {varying} * (37 * step % 200) * 64
        model(torch.empty(rows, 256, device="cuda")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    stats = poolalloc.memory_stats()
    recording.stop()
    print(json.dumps({{name: stats[name]["peak"] for name in ("requested", "live", "reserved")}}))
"""


@pytest.mark.parametrize("varying", [0, 1])
def test_a_replay_gives_the_peaks_of_the_run(
    on_sim: Callable, varying: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reported = on_sim(TRAIN.format(mark="pass", varying=varying)).value
    trace = read(tmp_path / "run.npz")
    again = replay(trace).devices[0]
    assert {name: again.peak(name) for name in reported} == reported
    assert again.recorded is not None
    assert again.recorded.peak_reserved == reported["reserved"]
    assert trace.provenance["settings"] == ""
    assert trace.marks == tuple(f"step {number} (found)" for number in range(1, len(trace.marks) + 1))
    # Eight steps are few: where their sizes differ, two of them may look like one.
    assert len(trace.marks) in (range(3, 9) if varying else (7, 8))


def test_marks_stand_where_the_program_set_them(
    on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    on_sim(TRAIN.format(mark='poolalloc.mark(f"step {step}")', varying=0))
    trace = read(tmp_path / "run.npz")
    assert trace.marks == tuple(f"step {step}" for step in range(8))
    marks = np.flatnonzero(trace.events["op"] == Op.MARK)
    allocations = np.searchsorted(np.flatnonzero(trace.events["op"] == Op.ALLOC), marks)
    assert len(set(np.diff(allocations)[1:].tolist())) == 1  # from the second step on, the same each time


def test_blocks_of_other_streams_and_pools_and_what_was_there_before(
    on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    on_sim(
        """
        import torch, poolalloc
        poolalloc.install()
        before = torch.empty(1000, dtype=torch.uint8, device="cuda")
        pool = torch.cuda.MemPool()
        with poolalloc.record("run.npz"):
            other = torch.cuda.Stream()
            shared = torch.empty(5 << 20, dtype=torch.uint8, device="cuda")
            shared.record_stream(other)
            with torch.cuda.stream(other):
                torch.cuda._sleep(1000)
                own = torch.empty(3 << 20, dtype=torch.uint8, device="cuda")
            del shared
            with torch.cuda.use_mem_pool(pool):
                inside = torch.empty(7 << 20, dtype=torch.uint8, device="cuda")
            del before
            torch.cuda.synchronize()
            torch.empty(5 << 20, dtype=torch.uint8, device="cuda")
        """,
        lag=3,
    )
    trace = read(tmp_path / "run.npz")
    events = trace.events
    assert trace.initial_events == 1
    assert events["requested"][0] == 1000
    of_size = {size: events[events["requested"] == size << 20] for size in (3, 5, 7)}
    assert list(of_size[5]["op"][:3]) == [Op.ALLOC, Op.RECORD_STREAM, Op.FREE]
    assert Op.FREE_COMPLETED in of_size[5]["op"]
    other = trace.streams[of_size[5]["stream"][1]]
    assert other != 0
    assert trace.streams[of_size[3]["stream"][0]] == other
    assert trace.pools[of_size[7]["pool"][0]] != (0, 0)
    assert list(events["op"][events["id"] == events["id"][0]]) == [Op.ALLOC, Op.FREE]


def test_threads_record_side_by_side(on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    on_sim(
        """
        import threading, torch, poolalloc
        poolalloc.install()
        torch.cuda.init()
        def work(number):
            with torch.cuda.stream(torch.cuda.Stream()):
                for step in range(3000):
                    torch.empty(1000 + 512 * (step % 50) + number, dtype=torch.uint8, device="cuda")
        with poolalloc.record("run.npz"):
            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
        """
    )
    trace = read(tmp_path / "run.npz")
    assert np.count_nonzero(trace.events["op"] == Op.ALLOC) == 12000
    assert np.count_nonzero(trace.events["op"] == Op.FREE) == 12000
    assert len(trace.threads) == 5  # and "not recorded"
    assert "events_left_out" not in trace.provenance


def test_what_a_killed_process_left_is_a_trace(clean_environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "import torch, poolalloc, time\n"
        "poolalloc.install()\n"
        'poolalloc.record("run.npz")\n'
        "kept = [torch.empty(2 << 20, device='cuda') for _ in range(5)]\n"
        'poolalloc.mark("all there")\n'
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05); torch.empty(10, device='cuda')\n"
    )
    environment = sim_environment(memory=parse_size("8 GiB"), base=clean_environment)
    with started(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(200):  # until the first half second is on the disk
            time.sleep(0.1)
            if (tmp_path / "run.npz").stat().st_size > 1000:
                break
        process.send_signal(signal.SIGKILL)
    trace = read(tmp_path / "run.npz")
    blocks = trace.events[trace.events["op"] == Op.ALLOC]
    assert np.count_nonzero(blocks["requested"] == 8 << 20) == 5
    assert trace.marks == ("all there",)


def test_a_disk_that_is_full_at_the_end_of_the_process_is_one_line(
    clean_environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "steps.py"
    script.write_text(
        "import resource, torch, poolalloc\n"
        "poolalloc.install()\n"
        'poolalloc.record("run.npz")\n'
        "kept = [torch.empty(2 << 20, device='cuda') for _ in range(5)]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))\n"
    )
    environment = sim_environment(memory=parse_size("8 GiB"), base=clean_environment)
    ended = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith(f"poolalloc: {tmp_path / 'run.npz'}: the recording could not be written to its end")


def test_run_records_a_program_as_it_is(on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    on_sim(
        "import torch; torch.empty(1 << 20, device='cuda')",
        command=(sys.executable, "-m", "poolalloc", "run", "--record", "run.npz"),
    )
    trace = read(tmp_path / "run.npz")
    assert [Op(op) for op in trace.events["op"] if op in (Op.ALLOC, Op.FREE)] == [Op.ALLOC, Op.FREE]
    assert trace.device_info(0).name


ASKED_BY_NAME = """
    import os, torch, poolalloc
    {install}
    def grow():
        return torch.empty(1 << 20, device="cuda")
    kept = [grow() for _ in range(3)]
    os.chdir("/")
"""


@pytest.mark.parametrize("stacks", [False, True])
def test_a_recording_asked_for_from_outside(
    on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stacks: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    conf = f"record:run-%p.npz,record_stacks:{stacks}".lower()
    on_sim(ASKED_BY_NAME.format(install="poolalloc.install()"), environment={"POOLALLOC_CONF": conf})
    (path,) = tmp_path.glob("run-*.npz")
    assert path.stem.removeprefix("run-").isdecimal()
    trace = read(path)
    assert trace.provenance["settings"] == ""
    born = trace.events[trace.events["op"] == Op.ALLOC]
    assert born["requested"].tolist() == [4 << 20] * 3
    assert len(trace.stacks) == (2 if stacks else 1)
    if stacks:
        assert born["stack"].tolist() == [1, 1, 1]
        assert next((line.function.split(".")[-1], line.line) for line in trace.stacks[1]) == ("grow", 5)


def test_the_plain_library_records_without_python(
    on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = """
    library = os.path.join(os.path.dirname(poolalloc.__file__), "libpoolalloc.so")
    handle = torch.cuda.memory.CUDAPluggableAllocator(library, "poolalloc_malloc", "poolalloc_free")
    torch.cuda.memory.change_current_allocator(handle)
    """
    program = ASKED_BY_NAME.format(install=alone.strip())
    on_sim(program, environment={"POOLALLOC_CONF": f"record:{tmp_path}/run.npz"})
    trace = read(tmp_path / "run.npz")
    born = trace.events[trace.events["op"] == Op.ALLOC]
    assert born["requested"].tolist() == [4 << 20] * 3
    assert born["rounded"].tolist() == [4 << 20] * 3


def test_stacks_of_threads_and_of_what_python_did_not_ask_for(
    on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    on_sim(
        """
        import threading, torch, poolalloc
        poolalloc.install()
        def work(size):
            for _ in range(500):
                torch.empty(size, dtype=torch.uint8, device="cuda")
        def deep(n):
            return deep(n - 1) if n else torch.empty(7777, dtype=torch.uint8, device="cuda")
        with poolalloc.record("run.npz", stacks=True):
            threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(1, 4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            deep(100)
            weight = torch.ones(100, 100, device="cuda", requires_grad=True)
            (weight @ weight).sum().backward()
        with poolalloc.record("again.npz", stacks=True):
            work(5000)
        """
    )
    trace = read(tmp_path / "run.npz")
    born = trace.events[trace.events["op"] == Op.ALLOC]
    for size in (1000, 2000, 3000):
        stacks = born["stack"][born["requested"] == size]
        assert len(stacks) == 500
        assert set(stacks.tolist()) == {stacks[0]}
        assert trace.stacks[int(stacks[0])][0].function == "work"
    (deep,) = born["stack"][born["requested"] == 7777]
    assert [line.function for line in trace.stacks[int(deep)]] == ["deep"] * 64
    assert 0 in born["stack"]  # the backward pass runs on a thread that has no Python
    again = read(tmp_path / "again.npz")
    assert next(line.function for line in again.stacks[1]) == "work"
    assert len(again.stacks) == 2


def test_a_forked_child_leaves_the_recording_to_its_parent(
    on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = on_sim(
        """
        import os, sys, torch, poolalloc
        poolalloc.install()
        poolalloc.record("run.npz")
        kept = torch.empty(1000, device="cuda")
        child = os.fork()
        if child == 0:
            del kept
            sys.exit(0)  # with all that Python does at an end
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        more = torch.empty(2000, device="cuda")
        """
    )
    assert outcome.err == ""
    trace = read(tmp_path / "run.npz")
    assert trace.events["requested"][trace.events["op"] == Op.ALLOC].tolist() == [4000, 8000]


def test_mistakes_are_one_clear_error(on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    errors = on_sim(
        """
        import json, os, poolalloc
        poolalloc.mark("nobody listens")
        errors = []
        def attempt(call):
            try:
                call()
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
        attempt(lambda: poolalloc.record("early.npz"))
        poolalloc.install()
        attempt(lambda: poolalloc.record("nowhere/run.npz"))
        os.mkfifo("pipe")
        held = os.open("pipe", os.O_RDWR)
        attempt(lambda: poolalloc.record("pipe"))
        recording = poolalloc.record("run.npz")
        attempt(lambda: poolalloc.record("second.npz"))
        recording.stop()
        recording.stop()
        print(json.dumps(errors))
        """
    ).value
    assert "NotInstalledError" in errors[0]
    assert "nowhere/run.npz: No such file" in errors[1]
    assert "pipe: it is no file" in errors[2]
    assert "run.npz is going on" in errors[3]
    assert len(errors) == 4
