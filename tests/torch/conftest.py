"""Runs short programs with real torch on a simulated GPU, each in a process of its own.

Most of them are forked from a process that has imported torch (fork_server.py), which takes longer than what they do.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkServer

from poolalloc.sim import run_simulated
from poolalloc.sizes import parse_size

TIMEOUT_SECONDS = 300.0

ROOT = Path(__file__).parents[2]

SEGMENTS = os.environ.get("POOLALLOC_TEST_SEGMENTS", "") not in ("", "0")
"""Whether these tests run once more with memory in whole segments (make test-segments)."""

RUN = ("-m", "poolalloc", "run")

READ_AT_FIRST_USE = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Torch's variables that it reads when CUDA is first used, but for the backend, which it reads when it is loaded."""


_COUNTS = "counts pages, bytes of them, or the calls that map them"
_ROOM = "fills a device nearly to its end, for which segments are too coarse"
_PLANS = "is served from a plan, which segments do not allow"
_SHARES = "opens or names shared memory in ways of pages; segments have the handles of CUDA"

OTHERWISE_WITH_SEGMENTS = {
    "test_on_a_simulated_gpu_everything_is_found": _COUNTS,
    "test_it_works[torch.cuda.memory_reserved, max_memory_reserved, empty_cache]": _COUNTS,
    "test_it_works[torch.cuda.memory_stats, reset_accumulated_memory_stats]": _COUNTS,
    "test_it_works[torch.accelerator.memory_allocated and its like]": _COUNTS,
    "test_it_works[torch.cuda.MemPool, torch.cuda.use_mem_pool]": _COUNTS,
    "test_peers_reach_each_others_memory": _COUNTS,
    "test_a_page_with_two_addresses_is_one_page": _COUNTS,
    "test_a_graph_allocates_from_a_pool_of_its_own": _COUNTS,
    "test_trimmed_memory_is_seen_by_others": _COUNTS,
    "test_a_replay_gives_the_peaks_of_the_run": _COUNTS,
    "test_blocks_of_other_streams_and_pools_and_what_was_there_before": _COUNTS,
    "test_a_training_script_that_nobody_adapted_runs_on_poolalloc": _COUNTS,
    "test_an_mlp_trains": _COUNTS,
    "test_a_transformer_trains": _COUNTS,
    "test_a_transformer_trains_while_the_device_lags_behind": _COUNTS,
    "test_segments_and_entries_add_up": _ROOM,
    "test_a_cache_of_tensors_is_given_up_when_memory_runs_out": _ROOM,
    "test_the_next_run_is_served_from_the_plan": _PLANS,
    "test_the_command_and_the_environment_name_a_plan_too": _PLANS,
    "test_a_program_that_leaves_the_plan_for_a_while_is_followed_again": _PLANS,
    "test_what_cannot_be_opened_says_why": _SHARES,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With memory in segments, skip what does not hold there."""
    for item in items if SEGMENTS else ():
        whole, of_all = item.name, item.name.partition("[")[0]
        if reason := OTHERWISE_WITH_SEGMENTS.get(whole) or OTHERWISE_WITH_SEGMENTS.get(of_all):
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    code: int
    out: str
    err: str
    report: dict[str, Any]

    @property
    def value(self) -> Any:
        """What the program printed last, read as JSON."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture(scope="session", autouse=True)
def _needs_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """This process's environment without settings that would change what is tested."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("POOLALLOC_CONF", "POOLALLOC_PLAN", "POOLALLOC_BRIDGE", "PYTORCH_"))
    }
    return {**kept, "POOLALLOC_CONF": "segments:true"} if SEGMENTS else kept


@pytest.fixture
def on_sim(tmp_path: Path, clean_environment: dict[str, str], fork_server: ForkServer) -> Callable[..., Outcome]:
    """on_sim(code) runs the program on a simulated GPU and expects it to end well (code=N: with exit code N).

    With fresh=True, another command than `poolalloc run`, or a variable that torch or Python reads at its start,
    the program itself imports torch.
    """

    def run(
        program: str,
        *,
        gpu: str = "h100",
        memory: str = "8 GiB",
        devices: int = 1,
        lag: int = 0,
        virtual_memory: bool = True,
        vmm_fault: str | None = None,
        peers: str | None = None,
        code: int | None = 0,
        environment: dict[str, str] | None = None,
        command: tuple[str, ...] = (sys.executable,),
        arguments: tuple[str, ...] = (),
        fresh: bool = False,
        imports: tuple[str, ...] = (),
    ) -> Outcome:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(program))
        base = {**clean_environment, **(environment or {})}
        device = {
            "gpu": gpu,
            "memory": parse_size(memory),
            "devices": devices,
            "lag": lag,
            "virtual_memory": virtual_memory,
            "vmm_fault": vmm_fault,
            "peers": peers,
        }
        here = {"PYTHONPATH": str(ROOT)}  # means nothing to this Python, which has poolalloc from there
        outside = [
            name
            for name, value in dict(environment or {}).items() - here.items()
            if not (name.startswith("POOLALLOC_") or (name in READ_AT_FIRST_USE and "backend" not in value))
        ]
        if fresh or outside or command[:1] != (sys.executable,) or command[1:4] not in ((), RUN):
            done = run_simulated([*command, str(script), *arguments], **device, timeout=TIMEOUT_SECONDS, base=base)
        else:
            done = fork_server.simulated(
                [*command[1:], str(script), *arguments], **device, base=base, timeout=TIMEOUT_SECONDS, imports=imports
            )
        outcome = Outcome(done.returncode, done.stdout or "", done.stderr or "", done.report or {})
        assert code is None or outcome.code == code, f"exit code {outcome.code}\n{outcome.out}\n{outcome.err}"
        return outcome

    return run


@pytest.fixture
def without_gpu(tmp_path: Path, clean_environment: dict[str, str], fork_server: ForkServer) -> Callable[..., Outcome]:
    """The same without any GPU; forked=True: a program that has imported torch, on a machine whose GPUs are hidden."""

    def run(program: str, *, code: int = 0, environment: dict[str, str] | None = None, forked: bool = False) -> Outcome:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(program))
        if forked:
            hidden = {**clean_environment, "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
            ended, out, err = fork_server.run([str(script)], hidden, TIMEOUT_SECONDS)
            assert ended == code, f"exit code {ended}\n{out}\n{err}"
            return Outcome(ended, out, err, {})
        done = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            env={**clean_environment, "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
            check=False,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Outcome(done.returncode, done.stdout, done.stderr, {})

    return run
