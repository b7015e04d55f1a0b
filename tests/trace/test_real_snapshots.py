"""Snapshots that the installed torch writes on a simulated GPU give, imported, the figures torch itself reports."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trace_kit import summary

from poolalloc._internal.trace.format import check
from poolalloc.analysis.replay import recorded_figures, replay
from poolalloc.analysis.trace import Op, Trace
from poolalloc.analysis.trace.import_report import ImportReport
from poolalloc.analysis.trace.torch_snapshot import import_snapshot
from poolalloc.sim import SimulationError, run_simulated

PROGRAM = Path(__file__).parent / "snapshot_programs.py"
WHOLE = ("streams", "pools", "oom", "emptied", "devices", "training", "graphs")
CUT = ("streams-late", "training-late", "devices-late", "pools-late", "streams-ring", "training-ring", "devices-ring")
EXPANDABLE = tuple(f"expandable-{name}" for name in ("streams", "emptied", "pools", "training-late", "training-ring"))

Imported = tuple[Trace, ImportReport, list[dict[str, Any]]]


@pytest.fixture(scope="session")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Imported]:
    """Every scenario's trace, account and torch's own statistics."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    folder = tmp_path_factory.mktemp("snapshots")
    base = {name: value for name, value in os.environ.items() if not name.startswith(("PYTORCH_", "POOLALLOC_CONF"))}
    for scenarios, conf in ((WHOLE + CUT, ""), (EXPANDABLE, "expandable_segments:True")):
        try:
            done = run_simulated(
                [sys.executable, str(PROGRAM), str(folder), *scenarios],
                memory=8 << 30,
                devices=2,
                lag=30,
                timeout=300,
                base={**base, "PYTORCH_CUDA_ALLOC_CONF": conf, "PYTORCH_ALLOC_CONF": conf},
            )
        except SimulationError as error:
            pytest.skip(f"no simulated GPU: {error}")
        assert done.returncode == 0, done.stderr
    return {name: load(folder, name) for name in WHOLE + CUT + EXPANDABLE}


def load(folder: Path, name: str) -> Imported:
    trace, report = import_snapshot((folder / f"{name}.pickle").read_bytes(), f"{name}.pickle")
    return trace, report, json.loads((folder / f"{name}.json").read_text())["stats"]


def most_requested(trace: Trace, device: int) -> int:
    """Torch counts a late free as requested until it completes."""
    events = trace.events[trace.events["device"] == device]
    late = np.isin(events["id"], events["id"][events["op"] == Op.FREE_COMPLETED]) & (events["op"] == Op.FREE)
    gone = ((events["op"] == Op.FREE) & ~late) | (events["op"] == Op.FREE_COMPLETED)
    sizes = events["requested"].astype(np.int64)
    change = np.where(events["op"] == Op.ALLOC, sizes, 0) - np.where(gone, sizes, 0)
    return int(np.cumsum(change)[max(trace.initial_events - 1, 0) :].max())


@pytest.mark.parametrize("name", WHOLE + CUT + EXPANDABLE)
def test_nothing_is_dropped_and_the_end_is_torchs(snapshots: dict[str, Imported], name: str) -> None:
    trace, report, stats = snapshots[name]
    check(trace)
    assert len(set(report.balance())) == 1
    assert not report.left_out
    assert (
        report.inferred["allocations that the recording lost"] == report.inferred["frees that the recording lost"] == 0
    )
    for device in trace.used_devices():
        recorded = recorded_figures(trace, device)
        assert recorded is not None
        assert recorded.reserved_at_end == stats[device]["reserved_bytes.all.current"]
        events = trace.events[trace.events["device"] == device]
        left = np.isin(events["id"], events["id"][events["op"] == Op.FREE], invert=True) & (events["op"] == Op.ALLOC)
        assert events["rounded"][left].sum() == stats[device]["allocated_bytes.all.current"]


@pytest.mark.parametrize("name", [*WHOLE, *(name for name in CUT + EXPANDABLE if not name.endswith("-ring"))])
def test_peaks_are_those_torch_reports(snapshots: dict[str, Imported], name: str) -> None:
    """Torch's peaks began with the recording, so the two must agree to the byte."""
    trace, _, stats = snapshots[name]
    assert trace.used_devices()
    for device in trace.used_devices():
        recorded = recorded_figures(trace, device)
        assert recorded is not None
        assert recorded.peak_reserved == stats[device]["reserved_bytes.all.peak"]
        assert most_requested(trace, device) == stats[device]["requested_bytes.all.peak"]


@pytest.mark.parametrize("name", WHOLE + CUT + EXPANDABLE)
def test_every_snapshot_replays(snapshots: dict[str, Imported], name: str) -> None:
    trace, _, _ = snapshots[name]
    result = replay(trace)
    assert result.out_of_memory is None
    for device in result.devices:
        assert device.stats["live_blocks"] >= device.stats["allocations"] - device.stats["frees"]


def test_late_frees_keep_their_memory(snapshots: dict[str, Imported]) -> None:
    trace, _, _ = snapshots["streams"]
    assert np.count_nonzero(trace.events["op"] == Op.FREE_COMPLETED) > 0
    assert len(trace.streams) == 2
    assert replay(trace).devices[0].peak("pending") > 0


def test_pools_are_those_of_the_segments(snapshots: dict[str, Imported]) -> None:
    """Older versions write no pools of entries: then only pools that are still there at the end are known."""
    trace, report, _ = snapshots["pools"]
    written = "pools of entries: this version does not write them" not in report.missing
    pools = {pool for name, *_, pool in summary(trace) if name == "ALLOC"}
    assert len(pools) == (3 if written else 2)
    assert report.written["release_pool"] == (1 if written else 0)


def test_graphs_have_pools_of_their_own(snapshots: dict[str, Imported]) -> None:
    trace, report, _ = snapshots["graphs"]
    written = "pools of entries: this version does not write them" not in report.missing
    private = {pool for name, *_, pool in summary(trace) if name == "ALLOC" and pool != (0, 0)}
    assert len(private) == (2 if written else 1)
    held = {trace.pools[event["pool"]] for event in trace.events if event["op"] == Op.RELEASE_POOL} ^ private
    assert held <= {tuple(heap["pool"]) for heap in replay(trace).devices[0].stats["heaps"]}


def test_out_of_memory_is_kept(snapshots: dict[str, Imported]) -> None:
    trace, _, _ = snapshots["oom"]
    failed = trace.events[trace.events["op"] == Op.OUT_OF_MEMORY]
    assert failed["requested"].tolist() == [1 << 40, 1 << 42]
    assert np.all((failed["id"] > 0) & (failed["id"] <= 8 << 30))


def test_devices_and_stacks_are_kept(snapshots: dict[str, Imported]) -> None:
    trace, _, _ = snapshots["devices"]
    assert trace.used_devices() == [0, 1]
    functions = {frame.function for number in range(len(trace.stacks)) for frame in trace.stacks[number]}
    assert {"mixed", "empty", "devices"} <= functions


def test_a_ring_buffer_that_lost_most(snapshots: dict[str, Imported]) -> None:
    trace, report, _ = snapshots["training-ring"]
    assert report.found.total() - report.found["annotation"] == 25
    assert trace.initial_events > 0
