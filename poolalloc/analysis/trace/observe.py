"""Watches an allocator while it performs a trace: memory and the driver's work after chosen events, and addresses.

Used inside the process that performs; what was seen travels as a file to the one that asked.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from poolalloc.bench.sources import SimulatedDriver

QUANTITIES = ("requested", "live", "resident", "reserved")
_WORK = "work/"


@dataclass(frozen=True)
class Observed:
    """What was seen. Bytes; `values[device][quantity]` after each of `events`. torch does not say what is resident."""

    events: npt.NDArray[np.int64]
    values: dict[int, dict[str, npt.NDArray[np.int64]]]
    driver_work: dict[str, npt.NDArray[np.int64]]
    """What the driver had done until then (_internal/driver_work.py); empty on a real device, which does not say."""
    placements: npt.NDArray[np.uint64] | None
    """The address of each allocation, in their order, as far as it came."""
    done: int
    """How many events were performed: all, unless memory ran out."""
    seconds: float
    """What performing them took by the clock, without the looking."""

    @classmethod
    def read(cls, path: Path) -> Observed | None:
        """Return what an Observer has written; None if none wrote to the file."""
        if not zipfile.is_zipfile(path):
            return None
        with np.load(path) as archive:
            values: dict[int, dict[str, npt.NDArray[np.int64]]] = {}
            for name in archive.files:
                device, _, quantity = name.partition("/")
                if quantity in QUANTITIES:
                    values.setdefault(int(device), {})[quantity] = archive[name]
            return cls(
                archive["events"],
                values,
                {name[len(_WORK) :]: archive[name] for name in archive.files if name.startswith(_WORK)},
                archive["placements"] if "placements" in archive.files else None,
                int(archive["done"]),
                float(archive["seconds"]),
            )


class Observer:
    """Takes samples after the events `points`, which increase, on devices 0 to `devices` - 1."""

    def __init__(self, points: Sequence[int], devices: int, *, placements: bool) -> None:
        self._points = points
        self._devices = range(devices)
        self._next = 0
        self._rows: list[list[Any]] = []
        self._peaks: dict[tuple[int, str], int] = {}
        self.placements: list[int] | None = [] if placements else None
        self.done = 0
        self.seconds = 0.0

    @property
    def next_point(self) -> int:
        """The event after which sample() is to be called; -1 after the last."""
        return self._points[self._next] if self._next < len(self._points) else -1

    def sample(self) -> None:
        """Take the next sample now. The driver's work is that of a simulated driver; a real one counts none."""
        from poolalloc.bench.sources import source_in_place

        started = time.perf_counter()
        source = source_in_place()
        work = self._driver.work() if self._driver is not None else {}
        readings = [vars(source.read(device)) for device in self._devices]
        shown = [
            {name: self._shown(device, name, reading) for name in QUANTITIES if reading[name] is not None}
            for device, reading in zip(self._devices, readings, strict=True)
        ]
        self._rows.append([shown, work])
        self._next += 1
        self.seconds -= time.perf_counter() - started

    @cached_property
    def _driver(self) -> SimulatedDriver | None:
        from poolalloc.bench.sources import SimulatedDriver
        from poolalloc.sim import is_simulated

        return SimulatedDriver() if is_simulated() else None

    def _shown(self, device: int, name: str, reading: dict[str, int]) -> int:
        """What is held now; or the peak, if it was reached since the last sample."""
        peak = reading.get(f"{name}_peak", 0)
        seen = self._peaks.get((device, name), 0)
        self._peaks[device, name] = max(peak, seen)
        return peak if peak > seen else reading[name]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write what was seen to a file that Observed.read reads."""
        columns: dict[str, Any] = {"events": np.array(self._points[: len(self._rows)], np.int64)}
        columns |= {"done": self.done, "seconds": self.seconds}
        for device in self._devices:
            for name in QUANTITIES:
                values = [shown[device].get(name) for shown, _ in self._rows]
                if values and None not in values:
                    columns[f"{device}/{name}"] = np.array(values, np.int64)
        for kind in sorted({kind for _, work in self._rows for kind in work}):
            columns[_WORK + kind] = np.array([work.get(kind, 0) for _, work in self._rows], np.int64)
        if self.placements is not None:
            columns["placements"] = np.array(self.placements, np.uint64)
        with open(path, "wb") as file:
            np.savez(file, **columns)
