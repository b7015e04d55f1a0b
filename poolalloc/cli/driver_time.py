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
    """Those of the steps in the second half."""
    costs: CostTable

    @property
    def total(self) -> Modelled:
        """What all calls come to."""
        return self.costs.price(self.driver_calls)

    def a_step(self) -> tuple[Modelled, float] | None:
        """What a step of the second half comes to, and how many calls it makes; None where no steps are known."""
        if self.steady is None:
            return None
        steps, calls = self.steady.steps, self.steady.driver_calls
        half = self.costs.price(calls)
        made = sum(count for name, count in calls.items() if kind_of(name) in PRICED)
        return Modelled(half.low / steps, half.high / steps, half.unpriced), made / steps


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
    from poolalloc.cli.progress import figures_table, stdout_console

    headings = ["in all", "a step, second half", "calls a step", "not priced"]
    table = figures_table(f"driver time, {times[0].costs.label}", ["allocator"], headings)
    for time in times:
        step = time.a_step()
        by_step = ("-", "-") if step is None else (str(step[0]), f"{step[1]:,.1f}")
        total = time.total
        unpriced = ", ".join(f"{count:,} {kind}" for kind, count in total.unpriced.items())
        table.add_row(time.allocator, str(total), *by_step, unpriced or "-")
    stdout_console().print(table, markup=False)


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
