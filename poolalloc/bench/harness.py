"""Runs the cells of a bench one after the other, each (workload, allocator) in a process of its own, or one a rank."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from poolalloc._internal.driver_work import DriverWork
from poolalloc._internal.price_lists import PriceList
from poolalloc._internal.price_lists import find as find_prices
from poolalloc.bench.allocators import Allocator, cell_environment
from poolalloc.bench.child import Spec
from poolalloc.bench.devices import Device, TorchInstall
from poolalloc.bench.results import Results, Row, Timeline
from poolalloc.bench.workloads import Workload
from poolalloc.sim import add_values

__all__ = ["Cell", "Setting", "Watcher", "run_cell", "run_cells"]

POLL_SECONDS = 0.1
OTHER_RANKS_SECONDS = 60.0
"""How long the other ranks may take to end once one has ended; they may wait for it for ever."""
STDERR_LINES = 8


@dataclass(frozen=True)
class Cell:
    """One program under one allocator. size is None for a script."""

    workload: Workload
    allocator: Allocator
    size: str | None = None
    steps: int = 0
    arguments: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    """What all cells of a bench share; timeout is in seconds, for each cell."""

    device: Device
    torch: TorchInstall
    timeout: float
    prices: PriceList = field(default_factory=find_prices)
    """With which the driver's work is priced."""


@dataclass(frozen=True)
class Outcome:
    """What became of a cell's process."""

    exit_code: int
    timed_out: bool
    stderr: str
    result: dict[str, Any] | None
    report: dict[str, Any] | None


class Watcher:
    """Told how a bench goes on; every method may be overridden."""

    def cell_started(self, cell: Cell) -> None:
        """A cell's process starts."""

    def cell_stepped(self, cell: Cell, done: int) -> None:
        """`done` of its steps are done."""

    def cell_ended(self, cell: Cell, row: Row) -> None:
        """Its row is there."""


def run_cells(
    cells: list[Cell],
    setting: Setting,
    command: str,
    watcher: Watcher,
    keep: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Run every cell and return the results; a row says so where one failed or could not run.

    `keep` is called with the results so far whenever a row has come: a bench that is ended early loses none.
    """
    device = setting.device
    results = Results(setting.torch.version, device.gpu, device.memory_bytes, device.simulated, command)
    results.prices = setting.prices
    results.prices_taken = device.prices is not None
    for cell in cells:
        watcher.cell_started(cell)
        if (missing := cell.workload.missing or too_few_devices(cell.workload, device)) is not None:
            row = Row(cell.workload.name, cell.allocator.name, size=cell.size, steps=cell.steps, skipped=missing)
            results.rows.append(row)
            keep(results)
            watcher.cell_ended(cell, row)
            continue
        with tempfile.TemporaryDirectory(prefix="poolalloc-bench-") as folder:
            outcomes = run_cell(cell, setting, Path(folder), watcher)
        rows = [make_row(cell, outcome, setting, rank) for rank, outcome in enumerate(outcomes)]
        results.rows += rows
        for outcome in outcomes:
            if outcome.result is not None and "device_name" in outcome.result:
                results.device_name = outcome.result["device_name"]
                results.memory_bytes = outcome.result["memory_bytes"]
        keep(results)
        watcher.cell_ended(cell, next((row for row in rows if row.error is not None), rows[0]))
    return results


def too_few_devices(workload: Workload, device: Device) -> str | None:
    """Why a workload with several ranks cannot run on the real devices, or None. There are enough simulated ones."""
    if device.simulated or workload.ranks <= device.count:
        return None
    return f"it takes {workload.ranks} GPUs, and torch can use {device.count}"


def run_cell(cell: Cell, setting: Setting, folder: Path, watcher: Watcher) -> list[Outcome]:
    """Run one cell, each rank in a process group of its own, ended when its time is up; `folder` is for its files.

    There is an outcome for each rank.
    """
    ranks = cell.workload.ranks
    meeting = (
        {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if ranks > 1 else {}
    )
    places = [folder / str(rank) for rank in range(ranks)]
    with contextlib.ExitStack() as stack:
        processes = []
        for rank, place in enumerate(places):
            place.mkdir()
            one = {**meeting, "RANK": str(rank), "LOCAL_RANK": "0"} if ranks > 1 else {}
            process = start(cell, setting, place, one)
            stack.enter_context(ended_with(process))
            processes.append(process)
        in_time = follow(
            processes, setting.timeout, places[0] / "progress", lambda done: watcher.cell_stepped(cell, done)
        )
    return [
        Outcome(
            exit_code=process.returncode,
            timed_out=not ended,
            stderr=(place / "stderr").read_text(encoding="utf-8", errors="replace"),
            result=read_json(place / "result.json"),
            report=read_json(place / "report.json"),
        )
        for process, place, ended in zip(processes, places, in_time, strict=True)
    ]


def start(cell: Cell, setting: Setting, folder: Path, rank: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start one process of a cell; `rank` is what tells it, in its environment, which of several it is."""
    spec = Spec(
        allocator=cell.allocator.name,
        path=str(cell.workload.path),
        size=cell.size,
        steps=cell.steps,
        arguments=cell.arguments,
        simulated=setting.device.simulated,
        result=str(folder / "result.json"),
        progress=str(folder / "progress"),
    )
    (folder / "spec.json").write_text(json.dumps(asdict(spec)), encoding="utf-8")
    command = [sys.executable, "-m", "poolalloc.bench.child", str(folder / "spec.json")]
    environment = cell_environment(cell.allocator, setting.torch.major_minor, os.environ) | rank
    environment = setting.device.environment(environment, folder / "report.json", int(rank["RANK"]) if rank else None)
    if setting.device.simulated and cell.workload.values:
        # Most workloads decide nothing by values, and are measured without.
        add_values(command, environment, lambda line: print(f"poolalloc: {line}", file=sys.stderr))
    with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )


def free_port() -> int:
    """Return a port of this machine where ranks can meet."""
    with socket.socket() as meeting:
        meeting.bind(("127.0.0.1", 0))
        port: int = meeting.getsockname()[1]
    return port


def follow(
    processes: list[subprocess.Popen[bytes]], timeout: float, progress: Path, stepped: Callable[[int], None]
) -> list[bool]:
    """Wait for the processes, passing on the steps noted in `progress`. Returns which of them ended in time."""
    deadline = time.monotonic() + timeout
    one_has_ended = False
    seen: IO[bytes] | None = None
    with contextlib.ExitStack() as stack:
        while True:
            running = [process for process in processes if process.poll() is None]
            with contextlib.suppress(subprocess.TimeoutExpired):
                for process in running[:1]:
                    process.wait(POLL_SECONDS)
            ended = [process.poll() is not None for process in processes]
            if any(ended) and not one_has_ended:
                one_has_ended = True
                deadline = min(deadline, time.monotonic() + OTHER_RANKS_SECONDS)
            if seen is None and progress.exists():
                seen = stack.enter_context(open(progress, "rb"))
            lines = seen.read().split() if seen is not None else []
            if lines:
                stepped(int(lines[-1]))
            if all(ended) or time.monotonic() > deadline:
                return ended


@contextlib.contextmanager
def ended_with(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave no process behind: on the way out its whole group is killed if it still runs."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what the file holds, or None if it is missing or was cut off."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data


def make_row(cell: Cell, outcome: Outcome, setting: Setting, rank: int) -> Row:
    """Return the row of a cell's rank, with an error if it failed or its figures cannot be trusted."""
    name = cell.workload.name if cell.workload.ranks == 1 else f"{cell.workload.name} rank {rank}"
    row = Row(name, cell.allocator.name, size=cell.size, steps=cell.steps or None)
    result = outcome.result
    last_lines = f"its last lines on stderr:\n{tail(outcome.stderr)}"
    if result is None:
        if outcome.timed_out:
            other = f", or {OTHER_RANKS_SECONDS:g} seconds after another rank" if cell.workload.ranks > 1 else ""
            row.error = f"did not end within {setting.timeout:g} seconds{other}; {last_lines}"
        else:
            row.error = f"{ending(outcome.exit_code)} before it could report; {last_lines}"
        return row
    row.out_of_memory = result["out_of_memory"]
    row.seconds = result["seconds"]
    row.steps_done = result["steps_done"] if row.steps else None
    row.timeline = Timeline(**result["timeline"])
    if "devices" in result:
        devices = result["devices"]
        row.peak_requested_bytes = sum(one["requested_peak"] for one in devices)
        row.peak_live_bytes = sum(one["live_peak"] for one in devices)
        row.peak_reserved_bytes = sum(one["reserved_peak"] for one in devices)
        row.retries = sum(one["retries"] for one in devices)
        row.out_of_memory = row.out_of_memory or any(one["out_of_memory"] for one in devices)
        row.driver_calls = dict(sorted(result["driver_calls"].items()))
        if result["driver_work"] is not None:
            row.driver_work = DriverWork.from_json(result["driver_work"])
        if setting.device.simulated:
            row.driver_peak_bytes = sum(one["driver_peak"] for one in devices)
    wrong = list(result["wrong"])
    if setting.device.simulated:
        wrong += check_report(result, outcome.report)
    if result["failed"] is not None:
        row.error = f"{result['failed']}; {last_lines}"
    elif outcome.timed_out:
        row.error = (
            f"the program was over, but its process did not end within {setting.timeout:g} seconds; {last_lines}"
        )
    elif outcome.exit_code != 0:
        row.error = f"the program was over, but its process {ending(outcome.exit_code)}; {last_lines}"
    elif wrong:
        row.error = "; ".join(wrong)
    return row


def check_report(result: dict[str, Any], report: dict[str, Any] | None) -> list[str]:
    """Return how the simulated GPU's report at exit contradicts what the cell read, and the rules that were broken."""
    if report is None:
        return ["the simulated GPU left no report"]
    wrong = []
    at_exit = {one["device"]: one["peak_used_bytes"] for one in report["devices"]}
    for one in result.get("devices", []):
        if at_exit.get(one["device"]) != one["driver_peak"]:
            wrong.append(
                f"device {one['device']}: the driver's peak was {one['driver_peak']} bytes when the program ended, and "
                f"{at_exit.get(one['device'])} in the report at exit"
            )
    broken = {kind: count for kind, count in report["violations"].items() if count}
    if broken:
        wrong.append("rules of CUDA were broken: " + ", ".join(f"{kind} {count}" for kind, count in broken.items()))
    return wrong


def ending(exit_code: int) -> str:
    """Return how a process ended, in words."""
    if exit_code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"


def tail(text: str) -> str:
    """Return the last lines of a program's stderr."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip(" ^~")]
    return "\n".join(lines[-STDERR_LINES:]) or "(nothing on stderr)"
