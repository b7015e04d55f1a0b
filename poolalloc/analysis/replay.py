"""What poolalloc would have held for a recorded program: a trace through its engine, on modelled devices.

    from poolalloc.analysis.replay import replay
    from poolalloc.analysis.trace import read

    result = replay(read("run.npz"), memory="40 GiB")
    print(result.devices[0].peak_reserved, result.devices[0].overhead)

Figures are exact and the same on every machine; only the speed differs. docs/replay.md says how recorded streams, pools
and late frees are carried over, and what a replay cannot know. Not for torch's own allocators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from poolalloc import _core
from poolalloc._internal.driver_work import DriverWork
from poolalloc._internal.trace import steps
from poolalloc._internal.trace.format import Op, Trace, TraceError, recorded_reserved_over_time, requested_over_time
from poolalloc.config import Config
from poolalloc.errors import UnknownNameError
from poolalloc.sizes import format_size, parse_size

if TYPE_CHECKING:
    from poolalloc.analysis.plan import Plan

__all__ = ["Curve", "DeviceResult", "OutOfMemory", "Recorded", "Replayer", "Result", "recorded_figures", "replay"]

DEFAULT_MEMORY = 80 << 30
MOST_MEMORY = 1 << 43
"""Of a device that can be modelled."""
QUANTITIES = ("requested", "live", "pending", "kept", "resident", "reserved")
_ROOM = 2  # a device of unknown size has at least this times the most that was requested


@dataclass(frozen=True)
class Curve:
    """A device's memory over time, in bytes: after each of the events with these numbers."""

    events: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    """Since the first event of the trace."""
    values: dict[str, npt.NDArray[np.int64]]
    """requested, live, pending, kept, resident, reserved: the replay's."""
    recorded_reserved: npt.NDArray[np.int64] | None
    """What the recorded allocator held; None if the recording does not say."""
    driver_work: dict[str, npt.NDArray[np.int64]]
    """Done until then, by kind, for all devices together."""


@dataclass(frozen=True)
class Recorded:
    """What the recording says of the allocator that ran then. Bytes; None is not known."""

    source: str
    peak_reserved: int
    reserved_at_start: int
    reserved_at_end: int
    out_of_memory: int
    """Times it ran out of memory."""


@dataclass(frozen=True)
class DeviceResult:
    """One device's figures, in bytes. `stats` has everything, by the names of poolalloc.memory_stats()."""

    device: int
    stats: Mapping[str, Any] = field(repr=False)
    recorded: Recorded | None
    curve: Curve | None = field(repr=False)

    def peak(self, quantity: str) -> int:
        """Return the peak of requested, live, pending, kept, resident or reserved."""
        return int(self.stats[quantity]["peak"])

    @property
    def peak_requested(self) -> int:
        """The most that the program had asked for at once."""
        return self.peak("requested")

    @property
    def peak_reserved(self) -> int:
        """The most physical memory held at once."""
        return self.peak("reserved")

    @property
    def overhead(self) -> float | None:
        """Peak reserved / peak requested; None if nothing was requested."""
        return self.peak_reserved / self.peak_requested if self.peak_requested else None


@dataclass(frozen=True)
class OutOfMemory:
    """Where a replay ran out of memory. The events behind it were not replayed."""

    event: int
    seconds: float
    """Since the first event of the trace."""
    device: int
    requested: int
    message: str


@dataclass(frozen=True)
class Result:
    """What a replay found."""

    events: int
    """That were replayed: all, unless it ran out of memory."""
    of_events: int
    core_seconds: float
    """Processor time of the replay itself, on one core."""
    compile_core_seconds: float
    """Processor time of making the trace ready, once for any number of replays."""
    memory_bytes: int
    """Of each device."""
    memory_source: str
    """`given`, `recorded` or `default`."""
    config: str
    """Options that differ from the defaults."""
    devices: tuple[DeviceResult, ...]
    driver_calls: Mapping[str, int]
    """By kind. What the driver charges for is its work."""
    driver_work: DriverWork
    """Handles and pages, all devices together; without samples only the total is known."""
    out_of_memory: OutOfMemory | None
    placements: npt.NDArray[np.uint64] | None = field(default=None, repr=False)
    """The address at which each allocation of the trace was placed, in their order, as far as it came; if asked for."""

    @property
    def events_per_second(self) -> float:
        """Events replayed in a second of one core."""
        return self.events / self.core_seconds if self.core_seconds else 0.0

    def device(self, index: int) -> DeviceResult:
        """Return one device's figures.

        Raises:
            UnknownNameError: nothing was allocated on this device.
        """
        for device in self.devices:
            if device.device == index:
                return device
        raise UnknownNameError(f"nothing was allocated on device {index}")

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values; bytes and seconds."""
        lost = self.out_of_memory
        return {
            "schema": 1,
            "source": "poolalloc, replayed on modelled devices",
            "events": self.events,
            "of_events": self.of_events,
            "core_seconds": self.core_seconds,
            "compile_core_seconds": self.compile_core_seconds,
            "events_per_second": self.events_per_second,
            "memory_bytes": self.memory_bytes,
            "memory_source": self.memory_source,
            "config": self.config,
            "driver_calls": dict(self.driver_calls),
            "driver_work": self.driver_work.to_json(),
            "out_of_memory": None if lost is None else vars(lost).copy(),
            "devices": [_device_json(device) for device in self.devices],
        }


def _device_json(device: DeviceResult) -> dict[str, Any]:
    curve = device.curve
    over_time: dict[str, Any] | None = None
    if curve is not None:
        over_time = {"event": curve.events.tolist(), "seconds": curve.seconds.tolist()}
        over_time |= {name: values.tolist() for name, values in curve.values.items()}
        recorded = curve.recorded_reserved
        over_time["recorded_reserved"] = None if recorded is None else recorded.tolist()
    return {
        "device": device.device,
        "overhead": device.overhead,
        **{f"peak_{name}": device.peak(name) for name in QUANTITIES},
        "recorded": None if device.recorded is None else vars(device.recorded).copy(),
        "stats": {name: value for name, value in device.stats.items() if name not in ("driver_calls", "driver_work")},
        "over_time": over_time,
    }


class Replayer:
    """A trace made ready to be replayed many times, with different configurations and memory."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._program = _core.Replay(trace.events, trace.streams, trace.pools)
        self._start_ns = int(trace.events["time_ns"][0])
        self._memory_unless_given = _usual_memory(trace)
        self._recorded = {device: recorded_figures(trace, device) for device in trace.used_devices()}

    def run(
        self,
        config: Config | None = None,
        memory: int | str | None = None,
        samples: int = 0,
        *,
        placements: bool = False,
        plan: Plan | None = None,
    ) -> Result:
        """Replay it, each device with `memory` bytes (None: as recorded, else 80 GiB or what it takes).

        `samples`: how many points the curves over time have, about; 0 makes none. `placements`: also note where each
        allocation was placed. `plan`: what requests are served from (plan.read).

        Raises:
            ConfigError: an option is wrong.
            InvariantViolation: the engine's own figures contradict each other.
        """
        memory_bytes, source = self._memory_unless_given
        if memory is not None:
            memory_bytes, source = (parse_size(memory) if isinstance(memory, str) else memory), "given"
        conf = "" if config is None else config.to_conf()
        points = self.points(samples) if samples else []
        raw = self._program.run(conf, memory_bytes, points, placements, None if plan is None else plan.to_core())
        lost = raw["out_of_memory"]
        failure = None if lost is None else OutOfMemory(seconds=self._seconds(lost["event"]), **lost)
        devices = tuple(
            DeviceResult(index, raw["devices"][index], recorded, self._curve(raw["samples"], index))
            for index, recorded in self._recorded.items()
        )
        return Result(
            events=raw["events"],
            of_events=len(self.trace),
            core_seconds=raw["seconds"],
            compile_core_seconds=self._program.info()["seconds"],
            memory_bytes=memory_bytes,
            memory_source=source,
            config=conf,
            devices=devices,
            driver_calls=raw["devices"][0]["driver_calls"],
            driver_work=self._work(raw["devices"][0]["driver_work"], devices),
            out_of_memory=failure,
            placements=raw["placements"],
        )

    def points(self, samples: int) -> list[int]:
        """Return the numbers of the events after which about so many samples are taken."""
        ends = [] if self.phases is None else self.phases.points
        return sorted({*sample_points(self.trace, samples), *ends})

    @cached_property
    def phases(self) -> steps.Phases | None:
        """Start-up and the halves of the trace; None where it is too short to have them."""
        return steps.phases(self.trace)

    def _work(self, total: Mapping[str, int], devices: Sequence[DeviceResult]) -> DriverWork:
        curve = next((device.curve for device in devices if device.curve is not None), None)
        if curve is None or self.phases is None:
            return DriverWork(total)
        return self.phases.work(total, curve.events, curve.driver_work)

    def _seconds(self, event: int) -> float:
        return (int(self.trace.events["time_ns"][event]) - self._start_ns) / 1e9

    def _curve(self, samples: Sequence[Mapping[str, Any]], device: int) -> Curve | None:
        rows = [row for row in samples if row["device"] == device]
        if not rows:
            return None
        events = np.array([row["event"] for row in rows])
        recorded = recorded_reserved_over_time(self.trace, device)
        return Curve(
            events=events,
            seconds=(self.trace.events["time_ns"][events] - np.uint64(self._start_ns)).astype(np.int64) / 1e9,
            values={name: np.array([row[name] for row in rows]) for name in QUANTITIES},
            recorded_reserved=None if recorded is None else recorded[events],
            driver_work={
                kind: np.array([row["driver_work"].get(kind, 0) for row in rows]) for kind in rows[-1]["driver_work"]
            },
        )


def _usual_memory(trace: Trace) -> tuple[int, str]:
    known = [info.total_bytes for info in trace.devices if info.total_bytes]
    if known:
        return max(known), "recorded"
    return max(DEFAULT_MEMORY, _ROOM * int(requested_over_time(trace.events).max())), "default"


def replay(
    trace: Trace,
    config: Config | None = None,
    memory: int | str | None = None,
    *,
    samples: int = 0,
    plan: Plan | None = None,
) -> Result:
    """Replay a trace once. Arguments and errors are those of Replayer.run."""
    return Replayer(trace).run(config, memory, samples, plan=plan)


def sample_points(trace: Trace, count: int) -> list[int]:
    """Return the numbers of about `count` events: evenly spread, and where most is requested between two of them."""
    total = len(trace)
    ends = np.unique(np.linspace(0, total, min(max(count // 2, 1), total) + 1).astype(np.int64))
    points = {0, *(ends[1:] - 1).tolist()}
    for device in trace.used_devices():
        requested = requested_over_time(
            np.where(trace.events["device"] == device, trace.events, np.zeros_like(trace.events))
        )
        starts = ends[:-1]
        highest = np.maximum.reduceat(requested, starts)
        for start, end, most in zip(starts.tolist(), ends[1:].tolist(), highest.tolist(), strict=True):
            points.add(start + int(np.argmax(requested[start:end] == most)))
    return sorted(points)


def recorded_figures(trace: Trace, device: int) -> Recorded | None:
    """Return what a recording says of the allocator that ran then; None where it does not say."""
    reserved = recorded_reserved_over_time(trace, device)
    if reserved is None:
        return None
    start = trace.device_info(device).reserved_at_start or 0
    failed = (trace.events["op"] == Op.OUT_OF_MEMORY) & (trace.events["device"] == device)
    return Recorded(
        source=f"{trace.provenance.get('allocator') or 'the allocator'}, as recorded",
        peak_reserved=max(start, int(reserved.max())),
        reserved_at_start=start,
        reserved_at_end=int(reserved[-1]),
        out_of_memory=int(np.count_nonzero(failed)),
    )


def require_memory(memory: int) -> int:
    """Return `memory` if a device of so many bytes can be modelled.

    Raises:
        TraceError: it cannot.
    """
    if not _core.PAGE_BYTES <= memory <= MOST_MEMORY:
        raise TraceError(
            f"a device of {format_size(memory)} cannot be modelled; allowed: {format_size(_core.PAGE_BYTES)} to "
            f"{format_size(MOST_MEMORY)}"
        )
    return memory
