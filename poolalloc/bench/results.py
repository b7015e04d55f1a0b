"""The figures of a bench and their JSON form. Bytes are whole numbers, times are seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from poolalloc._internal.driver_work import DriverTime, DriverWork
from poolalloc._internal.price_lists import PriceList, find
from poolalloc.errors import UsageError

__all__ = ["Results", "Row", "Timeline"]

SCHEMA = 1


@dataclass
class Timeline:
    """Memory over time: equally long lists of seconds since the program's start and bytes. steps: when each ended."""

    seconds: list[float] = field(default_factory=list)
    requested: list[int] = field(default_factory=list)
    live: list[int] = field(default_factory=list)
    reserved: list[int] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def thinned(self, points: int) -> Timeline:
        """Return at most `points` samples; each carries the largest figures of the interval it stands for."""
        count = len(self.seconds)
        if count <= points:
            return self
        thin = Timeline(steps=self.steps)
        for index in range(points):
            part = slice(index * count // points, (index + 1) * count // points)
            # A point stands at the end of its interval, so that the last one is the last sample.
            thin.seconds.append(self.seconds[part][-1])
            thin.requested.append(max(self.requested[part]))
            thin.live.append(max(self.live[part]))
            thin.reserved.append(max(self.reserved[part]))
        return thin

    def from_first_use(self) -> Timeline:
        """Return the same from the last sample that holds nothing: a program may import for long before it begins."""
        used = next((index for index, held in enumerate(self.reserved) if held), 0)
        first = max(used - 1, 0)
        begin = self.seconds[first] if self.seconds else 0.0
        return Timeline(
            [second - begin for second in self.seconds[first:]],
            self.requested[first:],
            self.live[first:],
            self.reserved[first:],
            [end - begin for end in self.steps],
        )

    def to_json(self) -> dict[str, object]:
        """Return the lists by name."""
        return {
            "seconds": [round(value, 4) for value in self.seconds],
            "requested": self.requested,
            "live": self.live,
            "reserved": self.reserved,
            "steps": [round(value, 4) for value in self.steps],
        }


@dataclass
class Row:
    """One cell: a workload under an allocator. A figure that is not known (the cell died, or was skipped) is None."""

    workload: str
    allocator: str
    peak_requested_bytes: int | None = None
    peak_live_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    driver_calls: dict[str, int] = field(default_factory=dict)
    driver_work: DriverWork | None = None
    retries: int | None = None
    seconds: float | None = None
    out_of_memory: bool = False
    error: str | None = None
    skipped: str | None = None  # why it was not run
    # What the rows of the JSON do not hold; it stands under "details".
    size: str | None = None
    steps: int | None = None
    steps_done: int | None = None
    driver_peak_bytes: int | None = None
    timeline: Timeline = field(default_factory=Timeline)

    @property
    def overhead(self) -> float | None:
        """Peak reserved / peak requested, or None where nothing was requested."""
        if not self.peak_requested_bytes or self.peak_reserved_bytes is None:
            return None
        return self.peak_reserved_bytes / self.peak_requested_bytes

    @property
    def step_seconds(self) -> float | None:
        """The median wall time of a step of the second half; None where no steps are known."""
        ends = self.timeline.steps
        lengths = [end - begin for begin, end in pairwise(ends)]
        return median(lengths[len(lengths) // 2 :]) if lengths else None

    def driver_time(self, prices: PriceList) -> DriverTime | None:
        """Return the modelled time of the driver's work; None where that is not known."""
        return None if self.driver_work is None else self.driver_work.price(prices)

    def to_json(self, prices: PriceList | None = None) -> dict[str, object]:
        """Return the row, its driver time by `prices` (None: the default list).

        "error" is there only if the cell failed, "skipped" only if it was not run.
        """
        time = self.driver_time(prices or find())
        row: dict[str, Any] = {
            "workload": self.workload,
            "allocator": self.allocator,
            "peak_requested_bytes": self.peak_requested_bytes,
            "peak_live_bytes": self.peak_live_bytes,
            "peak_reserved_bytes": self.peak_reserved_bytes,
            "overhead": None if self.overhead is None else round(self.overhead, 6),
            "handles_mapped": None if time is None else time.work.handles_mapped,
            "driver_milliseconds": None if time is None else time.to_json()["milliseconds"],
            "driver_calls": self.driver_calls,
            "retries": self.retries,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "out_of_memory": self.out_of_memory,
        }
        if self.error is not None:
            row["error"] = self.error
        if self.skipped is not None:
            row["skipped"] = self.skipped
        return row

    def details_json(self) -> dict[str, object]:
        """Return what is known of the cell beyond its row."""
        return {
            "workload": self.workload,
            "allocator": self.allocator,
            "size": self.size,
            "steps": self.steps,
            "steps_done": self.steps_done,
            "driver_peak_bytes": self.driver_peak_bytes,
            "driver_work": None if self.driver_work is None else self.driver_work.to_json(),
            "timeline": self.timeline.to_json(),
        }


@dataclass
class Results:
    """Everything one bench found."""

    torch: str
    device_name: str
    memory_bytes: int | None
    simulated: bool
    command: str
    rows: list[Row] = field(default_factory=list)
    prices: PriceList = field(default_factory=find)
    """With which the driver's work is priced."""
    prices_taken: bool = False
    """Whether the simulated driver took that time, so that seconds contain it."""

    def step_ratio(self, row: Row) -> float | None:
        """Return the wall time of a step of the second half over that of the workload's first row."""
        first = next(one for one in self.rows if one.workload == row.workload)
        mine, theirs = row.step_seconds, first.step_seconds
        return mine / theirs if mine is not None and theirs else None

    def to_json(self) -> dict[str, object]:
        """Return the results in schema 1; "details" runs beside "rows" and holds the time lines."""
        return {
            "schema": SCHEMA,
            "torch": self.torch,
            "device": {"name": self.device_name, "memory_bytes": self.memory_bytes, "simulated": self.simulated},
            "command": self.command,
            "prices": {**self.prices.to_json(), "taken": self.prices_taken},
            "rows": [self._row(row) for row in self.rows],
            "details": [row.details_json() for row in self.rows],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        found = row.to_json(self.prices)
        if self.prices_taken:
            ratio = self.step_ratio(row)
            found["step_time_ratio"] = None if ratio is None else round(ratio, 4)
        return found

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Results:
        """Return the results that to_json wrote.

        Raises:
            UsageError: they are of another schema.
        """
        if data.get("schema") != SCHEMA:
            raise UsageError(f"unknown schema {data.get('schema')!r}; this version reads {SCHEMA}")
        rows = []
        for row, details in zip(data["rows"], data["details"], strict=True):
            figures = {key: value for key, value in row.items() if key not in _FIGURED}
            extra = {key: value for key, value in details.items() if key not in _OF_DETAILS}
            work = details.get("driver_work")
            rows.append(
                Row(
                    **figures,
                    **extra,
                    driver_work=None if work is None else DriverWork.from_json(work),
                    timeline=Timeline(**details["timeline"]),
                )
            )
        device = data["device"]
        prices = data.get("prices")
        return cls(
            data["torch"],
            device["name"],
            device["memory_bytes"],
            device["simulated"],
            data["command"],
            rows,
            find() if prices is None else PriceList.from_json(prices),
            prices is not None and prices["taken"],
        )


_FIGURED = ("overhead", "handles_mapped", "driver_milliseconds", "step_time_ratio")  # made of what a row has
_OF_DETAILS = ("workload", "allocator", "driver_work", "timeline")
