"""Who holds the memory of a recorded program: at its peak, at its end, and what stays behind step after step.

    from poolalloc.analysis.report import report

    found = report(read("run.npz"))
    for device in found.devices:
        print(device.peak.by_scope, device.growth)

Lines are told where stacks were recorded, scopes where the program named them (poolalloc/scopes.py). The memory of
blocks alone, requested bytes; what an allocator makes of it is replay.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poolalloc._internal.trace import steps
from poolalloc._internal.trace.format import Op, Trace
from poolalloc.analysis.live_blocks import LiveBlocks, Phases, live_blocks, peak_live_blocks, phases_of
from poolalloc.analysis.report.growth import Growth, LeftBehind, growth

__all__ = ["DeviceReport", "Growth", "LeftBehind", "Report", "report"]


@dataclass(frozen=True)
class DeviceReport:
    """One device. Bytes are requested ones."""

    device: int
    name: str | None
    allocations: int
    """While it was recorded; what was there before is not counted."""
    allocated: int
    """Bytes of these, one after the other."""
    peak: LiveBlocks
    end: LiveBlocks
    growth: Growth


@dataclass(frozen=True)
class Report:
    """Who holds the memory of a recorded program."""

    events: int
    seconds: float
    steps: int
    """That the program marked, or that were found; 0 where there are none."""
    devices: tuple[DeviceReport, ...]

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values; bytes and seconds."""
        return {
            "schema": 1,
            **vars(self),
            "devices": [
                {
                    **vars(device),
                    "peak": device.peak.to_json(),
                    "end": device.end.to_json(),
                    "growth": device.growth.to_json(),
                }
                for device in self.devices
            ],
        }


def report(trace: Trace) -> Report:
    """Return who holds the memory of a recorded program."""
    events = trace.events
    times = events["time_ns"]
    starts, phases = steps.beginnings(trace), phases_of(trace)
    return Report(
        events=len(trace),
        seconds=(int(times[-1]) - int(times[0])) / 1e9,
        steps=len(starts),
        devices=tuple(_device(trace, device, starts, phases) for device in trace.used_devices()),
    )


def _device(trace: Trace, device: int, starts: steps.Indexes, phases: Phases) -> DeviceReport:
    later = trace.events[trace.initial_events :]
    made = later[(later["op"] == Op.ALLOC) & (later["device"] == device)]
    return DeviceReport(
        device=device,
        name=trace.device_info(device).name,
        allocations=len(made),
        allocated=int(made["requested"].sum()),
        peak=peak_live_blocks(trace, device, phases),
        end=live_blocks(trace, device, int(np.flatnonzero(trace.events["device"] == device)[-1]), phases),
        growth=growth(trace, device, starts),
    )
