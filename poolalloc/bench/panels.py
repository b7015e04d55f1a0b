"""What the report's pictures show, before it is drawn: a panel per cell, all panels of a workload on one scale."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from poolalloc.bench.allocators import ALLOCATORS
from poolalloc.bench.results import Results, Row, Timeline

# What the colours mean, in the report's words.
REQUESTED_LABEL = "requested by the program"
HELD_LABEL = "reserved, within what was requested at the peak"
BEYOND_LABEL = "reserved beyond that: overhead"

GIB = 1 << 30
MIB = 1 << 20


@dataclass
class Panel:
    """The time line of one cell; y values are in the figure's unit."""

    row: Row
    title: str
    x: list[float]
    requested: list[float]
    reserved: list[float]
    peak_requested: float | None
    peak_reserved: float | None
    note: str

    def within(self) -> list[float]:
        """Return what of the reserved memory lies below the peak requested; the rest is the overhead."""
        top = self.peak_requested
        return self.reserved if top is None else [min(value, top) for value in self.reserved]


@dataclass
class Figure:
    """The panels of one workload side by side, with common axes from 0."""

    workload: str
    heading: str
    panels: list[Panel]
    x_label: str
    x_max: float
    y_max: float
    unit: str
    capacity: float | None

    def y_ticks(self) -> list[float]:
        """Return round values from 0 up to the top of the axis, about six."""
        return ticks(self.y_max, 6)

    def x_ticks(self) -> list[float]:
        """Return round values from 0 up to the end of the axis, about four."""
        return ticks(self.x_max, 4)


def ticks(top: float, about: int) -> list[float]:
    """Return 0, s, 2s, ... up to top, for s of the form 1, 2, 2.5 or 5 times a power of ten."""
    if top <= 0:
        return [0.0]
    raw = top / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    return [step * index for index in range(int(top / step + 1e-9) + 1)]


def to_steps(timeline: Timeline) -> list[float]:
    """Return each sample's place in steps: 2.5 is half way in time through the third step."""
    ends = timeline.steps
    found = []
    for second in timeline.seconds:
        step = bisect.bisect_left(ends, second)
        if step == len(ends):
            found.append(float(step))  # after the last step: its end
            continue
        begin = ends[step - 1] if step else 0.0
        length = ends[step] - begin
        found.append(step + (second - begin) / length if length > 0 else float(step))
    return found


def figures(results: Results) -> list[Figure]:
    """Return one figure for each workload that was not skipped, in the order of the results."""
    names = list(dict.fromkeys(row.workload for row in results.rows if row.skipped is None))
    return [figure(name, [row for row in results.rows if row.workload == name], results) for name in names]


def figure(workload: str, rows: list[Row], results: Results) -> Figure:
    """Return the panels of one workload."""
    by_steps = all(row.timeline.steps for row in rows if row.timeline.seconds)
    top = max((row.peak_reserved_bytes or 0 for row in rows), default=0)
    unit, scale = ("GiB", GIB) if top >= GIB else ("MiB", MIB)
    panels = []
    for row in rows:
        timeline = row.timeline
        if not by_steps:
            timeline = timeline.from_first_use()
        x = to_steps(timeline) if by_steps else timeline.seconds
        allocator = ALLOCATORS.get(row.allocator)
        panels.append(
            Panel(
                row=row,
                title=allocator.title if allocator else row.allocator,
                x=x,
                requested=[value / scale for value in timeline.requested],
                reserved=[value / scale for value in timeline.reserved],
                peak_requested=None if row.peak_requested_bytes is None else row.peak_requested_bytes / scale,
                peak_reserved=None if row.peak_reserved_bytes is None else row.peak_reserved_bytes / scale,
                note=note(row),
            )
        )
    first = rows[0]
    size = f" ({first.size}, {first.steps} steps)" if first.size else ""
    capacity = None if not results.memory_bytes else results.memory_bytes / scale
    ends = [panel.x[-1] for panel in panels if panel.x]
    if by_steps:
        ends += [float(row.steps) for row in rows if row.steps]
    y_max = max(top / scale * 1.12, 1e-9)
    return Figure(
        workload=workload,
        heading=f"{workload}{size}",
        panels=panels,
        x_label="step" if by_steps else "seconds since the first use of the GPU",
        x_max=max(ends, default=0.0) or 1.0,
        y_max=y_max,
        unit=unit,
        capacity=capacity if capacity is not None and capacity <= y_max else None,
    )


def note(row: Row) -> str:
    """Return what a reader must know about a cell that did not simply finish, or ''."""
    if row.error is not None:
        return "failed"
    if row.out_of_memory:
        where = f" in step {row.steps_done + 1}" if row.steps_done is not None and row.steps else ""
        return f"out of memory{where}"
    if row.retries:
        return f"{row.retries} retries"
    return ""


def overhead_text(row: Row) -> str:
    """Return the overhead as the share of memory reserved beyond what was requested, such as '+3.1 %'."""
    return "" if row.overhead is None else f"+{100 * (row.overhead - 1):.1f} %"


def device_text(results: Results) -> str:
    """Return the device, its memory and whether it is simulated, in one line."""
    memory = "" if results.memory_bytes is None else f", {results.memory_bytes / GIB:.1f} GiB"
    kind = "simulated" if results.simulated else "real GPU"
    return f"{results.device_name} ({kind}{memory}) · torch {results.torch}"
