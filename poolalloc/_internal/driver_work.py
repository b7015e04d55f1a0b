"""What an allocator asked of the driver over a program's life, and the modelled time that it comes to.

Work is a table from kinds to counts: handles of each kind as "map", the pages of 2 MiB in them as "map_pages". It is
counted in the same way for every allocator: by the simulated GPU, from the calls that really come (csrc/simgpu/
driver_work.h), and by poolalloc itself (csrc/driver/driver_work.h). Prices are poolalloc._internal.price_lists.

Start-up lasts to the end of the first step. The two halves share the other steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poolalloc._internal.price_lists import Modelled, PriceList

Work = Mapping[str, int]

HEADINGS = ("handles mapped", "modelled driver ms", "start-up", "a step, 1st half", "a step, 2nd half")
"""Of what DriverTime.cells() returns."""


def handles_mapped(work: Work) -> int:
    """Return how many handles were mapped; a cudaMalloc counts as one."""
    return work.get("map", 0) + work.get("allocate_segment", 0)


def less(work: Work, before: Work) -> dict[str, int]:
    """Return the work since `before`."""
    left = {kind: count - before.get(kind, 0) for kind, count in work.items()}
    return {kind: count for kind, count in left.items() if count}


@dataclass(frozen=True)
class Part:
    """The work of some steps; `steps` is None where a program has none that are known."""

    steps: int | None
    work: Work

    def to_json(self) -> dict[str, object]:
        """Return it as plain values."""
        return {"steps": self.steps, "work": dict(self.work)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Part | None:
        """Return what to_json wrote."""
        return None if data is None else cls(data["steps"], data["work"])


@dataclass(frozen=True)
class DriverWork:
    """The work of a whole program, and its parts as far as they are known."""

    total: Work
    start_up: Work | None = None
    first_half: Part | None = None
    second_half: Part | None = None

    @classmethod
    def of_steps(cls, total: Work, after: Sequence[Work]) -> DriverWork:
        """Return the parts of a program, from the work that was done after each of its steps, the first included."""
        count = len(after)
        if not count:
            return cls(total)
        middle = max(count // 2, 1)
        first = Part(middle - 1, less(after[middle - 1], after[0])) if middle > 1 else None
        second = Part(count - middle, less(after[-1], after[middle - 1])) if count > middle else None
        return cls(total, dict(after[0]), first, second)

    @property
    def handles_mapped(self) -> int:
        """How many handles were mapped in all; a cudaMalloc counts as one."""
        return handles_mapped(self.total)

    def price(self, prices: PriceList) -> DriverTime:
        """Return the time that it comes to."""

        def step(part: Part | None) -> Modelled | None:
            return prices.price(part.work) / part.steps if part is not None and part.steps else None

        return DriverTime(
            self,
            prices,
            prices.price(self.total),
            None if self.start_up is None else prices.price(self.start_up),
            step(self.first_half),
            step(self.second_half),
        )

    def to_json(self) -> dict[str, object]:
        """Return it as plain values."""
        return {
            "total": dict(self.total),
            "start_up": None if self.start_up is None else dict(self.start_up),
            "first_half": None if self.first_half is None else self.first_half.to_json(),
            "second_half": None if self.second_half is None else self.second_half.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DriverWork:
        """Return what to_json wrote."""
        halves = (Part.from_json(data[name]) for name in ("first_half", "second_half"))
        return cls(data["total"], data["start_up"], *halves)


@dataclass(frozen=True)
class DriverTime:
    """Modelled time; a part that is not known is None."""

    work: DriverWork
    prices: PriceList
    total: Modelled
    start_up: Modelled | None
    first_half_step: Modelled | None
    second_half_step: Modelled | None

    def cells(self) -> tuple[str, ...]:
        """Return it as text under HEADINGS, times in milliseconds."""
        times = (self.total, self.start_up, self.first_half_step, self.second_half_step)
        return f"{self.work.handles_mapped:,}", *("-" if time is None else time.milliseconds for time in times)

    def to_json(self) -> dict[str, object]:
        """Return it as plain values: milliseconds, each as [lowest, highest] or None."""
        named = {
            "total": self.total,
            "start_up": self.start_up,
            "first_half_step": self.first_half_step,
            "second_half_step": self.second_half_step,
        }
        milliseconds = {
            name: None if time is None else [round(time.low * 1e3, 6), round(time.high * 1e3, 6)]
            for name, time in named.items()
        }
        return {
            "handles_mapped": self.work.handles_mapped,
            "prices": self.prices.name,
            "milliseconds": milliseconds,
            "unpriced": dict(self.total.unpriced),
        }
