"""What `poolalloc replay` says of the time that driver calls would take, by allocator. A model, and labelled so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolalloc.costs import PRICED, CostTable, Modelled, kind_of

if TYPE_CHECKING:
    from poolalloc.against import Performed
    from poolalloc.replay import Result
    from poolalloc.trace.steps import SecondHalf, Steady


@dataclass(frozen=True)
class DriverTime:
    """The calls of one allocator, and what they come to."""

    allocator: str
    driver_calls: Mapping[str, int]
    steady: Steady | None
    """Those of the second half."""
    costs: CostTable

    @property
    def total(self) -> Modelled:
        """What all calls come to."""
        return self.costs.price(self.driver_calls)

    def second_half(self) -> tuple[str, str, str]:
        """What the calls of the second half come to, all of them and in a step, and the calls of a step; as text."""
        if self.steady is None:
            return "-", "-", "-"
        half = self.costs.price(self.steady.driver_calls)
        steps = self.steady.steps
        if steps is None:
            return str(half), "-", "-"
        made = sum(count for name, count in self.steady.driver_calls.items() if kind_of(name) in PRICED)
        return str(half), str(Modelled(half.low / steps, half.high / steps, {})), f"{made / steps:,.1f}"


def times_of(
    result: Result, performed: Sequence[Performed], half: SecondHalf | None, costs: CostTable
) -> list[DriverTime]:
    """Return poolalloc's, as replayed, then those of the allocators that performed the trace."""
    times = [DriverTime("poolalloc, replayed", result.driver_calls, result.steady, costs)]
    for one in performed:
        watched = one.observed
        steady = half.steady(watched.events, watched.driver_calls) if half and watched else None
        times.append(DriverTime(f"{one.row.allocator}, performed", one.row.driver_calls, steady, costs))
    return times


def show(times: Sequence[DriverTime]) -> None:
    """Print them as a table."""
    from poolalloc.cli.tables import Table

    headings = ["in all", "second half", "a step of it", "calls a step", "not priced"]
    table = Table(f"driver time, {times[0].costs.label}", ["allocator"], headings, silent={"not priced": ("-",)})
    for time in times:
        total = time.total
        unpriced = ", ".join(f"{count:,} {kind}" for kind, count in total.unpriced.items())
        table.add(time.allocator, str(total), *time.second_half(), unpriced or "-")
    table.print()


def to_json(times: Sequence[DriverTime]) -> dict[str, Any]:
    """Return them as plain values, seconds."""
    rows = []
    for time in times:
        half = None
        if time.steady is not None:
            priced = time.costs.price(time.steady.driver_calls).to_json()
            half = {"steps": time.steady.steps, "driver_calls": dict(time.steady.driver_calls), **priced}
        rows.append({"allocator": time.allocator, **time.total.to_json(), "second_half": half})
    return {"modelled": True, "costs": times[0].costs.to_json(), "allocators": rows}
