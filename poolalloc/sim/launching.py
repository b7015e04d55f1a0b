"""Starts programs on simulated GPUs: in place of this process, or under its supervision with a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from poolalloc._internal.price_lists import PriceList
from poolalloc.sim.cards import DEFAULT_GPU
from poolalloc.sim.environment import sim_environment
from poolalloc.sim.programs import prepare

TIMED_OUT = 124
"""The exit code of a run that its time limit ended, as timeout(1) has it."""

_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class SimulatedRun:
    """What became of a program: exit code (124 if timed out), output where it was captured, and the device's report."""

    args: tuple[str, ...]
    returncode: int
    timed_out: bool
    seconds: float
    stdout: str | None
    stderr: str | None
    report: dict[str, object] | None


def execute(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Replace this process by the program, so that signals, terminal and exit code are the program's own."""
    program = prepare(command, environment)
    # What is ignored here stays so in the program: Python ignores the first two, and whatever runs this in the
    # background (nohup, cron, some CI) the others.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    os.execve(program, list(command), dict(environment))


def run_simulated(
    command: Sequence[str],
    *,
    gpu: str = DEFAULT_GPU,
    memory: int | None = None,
    devices: int = 1,
    lag: int = 0,
    virtual_memory: bool = True,
    vmm_fault: str | None = None,
    peers: str | None = None,
    shared: str | None = None,
    prices: PriceList | None = None,
    quiet: bool = False,
    timeout: float | None = None,
    capture: bool = True,
    cwd: str | os.PathLike[str] | None = None,
    base: Mapping[str, str] | None = None,
) -> SimulatedRun:
    """Run `command` on simulated GPUs and return what became of it, with the device's report.

    Parameters as for sim_environment; `timeout` is in seconds.

    Raises:
        SimulationError: it cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="poolalloc-sim-") as folder:
        report_file = Path(folder) / "report.json"
        environment = sim_environment(
            gpu,
            memory,
            devices=devices,
            lag=lag,
            virtual_memory=virtual_memory,
            vmm_fault=vmm_fault,
            peers=peers,
            shared=shared,
            prices=prices,
            report=report_file,
            quiet=quiet,
            base=base,
        )
        started = time.monotonic()
        returncode, stdout, stderr = supervise(command, environment, timeout, capture=capture, cwd=cwd)
        seconds = time.monotonic() - started
        report = json.loads(report_file.read_text()) if report_file.is_file() else None
    timed_out = returncode is None
    code = TIMED_OUT if returncode is None else returncode
    return SimulatedRun(tuple(command), code, timed_out, seconds, stdout, stderr, report)


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    timeout: float | None,
    capture: bool = False,
    cwd: str | os.PathLike[str] | None = None,
) -> tuple[int | None, str | None, str | None]:
    """Run the program under a time limit in seconds; return exit code (None: timed out), and captured output or None.

    A program that was ended by signal N has exit code 128 + N. Signals sent to this process are passed on. At the limit
    the whole process group is told to end, and killed where it does not.
    """
    program = prepare(command, environment)
    pipe = subprocess.PIPE if capture else None
    group = _Group()
    with _signals_passed_on(group):
        # A session of its own makes it lead a group that can be ended as a whole; it can still read from the terminal.
        process = subprocess.Popen(
            list(command),
            executable=program,
            env=dict(environment),
            cwd=cwd,
            stdout=pipe,
            stderr=pipe,
            stdin=subprocess.DEVNULL if capture else None,
            text=True,
            start_new_session=True,
        )
        group.start(process.pid)
        with process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                _end_group(group, process)
                return None, *_rest_of_output(process)
            except BaseException:
                _end_group(group, process)
                raise
    code = process.returncode
    return (128 - code if code < 0 else code), stdout, stderr


def _rest_of_output(process: subprocess.Popen[str]) -> tuple[str | None, str | None]:
    """Return what an ended process wrote, without waiting for processes that left its group with its pipes open."""
    try:
        return process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired as error:
        parts = (error.stdout, error.stderr)
        stdout, stderr = (part.decode(errors="replace") if isinstance(part, bytes) else part for part in parts)
        return stdout, stderr


class _Group:
    """The process group of a program; signals that come before there is one wait for it."""

    def __init__(self) -> None:
        self._leader: int | None = None
        self._waiting: list[int] = []

    def start(self, leader: int) -> None:
        self._leader = leader
        while self._waiting:
            self.send(self._waiting.pop(0))

    def send(self, number: int) -> None:
        if self._leader is None:
            self._waiting.append(number)
            return
        with suppress(ProcessLookupError, PermissionError):  # nobody is left
            os.killpg(self._leader, number)


def _end_group(group: _Group, process: subprocess.Popen[str]) -> None:
    """End the process and all of its group: SIGTERM, and SIGKILL for whoever is left after the grace time."""
    group.send(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SECONDS)
    group.send(signal.SIGKILL)
    process.wait()


@contextmanager
def _signals_passed_on(group: _Group) -> Iterator[None]:
    """While in force, signals that ask this process to end go to the group, which decides what to do."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    previous = {number: signal.signal(number, lambda received, _: group.send(received)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
