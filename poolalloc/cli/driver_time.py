"""What commands say of the time that the driver's work would take, by allocator. A model, and labelled so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolalloc._internal.driver_work import HEADINGS, DriverTime

if TYPE_CHECKING:
    from poolalloc._internal.trace.steps import Phases
    from poolalloc.analysis.baselines import Performed
    from poolalloc.analysis.costs import PriceList
    from poolalloc.analysis.replay import Result


@dataclass(frozen=True)
class Priced:
    """An allocator, and the time of its work."""

    allocator: str
    overhead: float | None
    time: DriverTime


def times_of(result: Result, performed: Sequence[Performed], phases: Phases | None, prices: PriceList) -> list[Priced]:
    """Return poolalloc's, as replayed, then those of the allocators that performed the trace."""
    peaks = [sum(device.peak(name) for device in result.devices) for name in ("reserved", "requested")]
    overhead = peaks[0] / peaks[1] if peaks[1] else None
    times = [Priced("poolalloc, replayed", overhead, result.driver_work.price(prices))]
    for one in performed:
        time = one.work(phases).price(prices)
        times.append(Priced(f"{one.row.allocator}, performed", one.row.overhead, time))
    return times


def show(times: Sequence[Priced]) -> None:
    """Print them as a table."""
    from poolalloc.cli.tables import Table

    table = Table(
        f"the driver's time, {times[0].time.prices.label}",
        ["allocator"],
        ["overhead", *HEADINGS, "not priced"],
        silent={"not priced": ("-",)},
    )
    for one in times:
        unpriced = ", ".join(f"{count:,} {kind}" for kind, count in one.time.total.unpriced.items())
        overhead = "-" if one.overhead is None else f"{one.overhead:.4f}"
        table.add(one.allocator, overhead, *one.time.cells(), unpriced or "-")
    table.print()


def to_json(times: Sequence[Priced]) -> dict[str, Any]:
    """Return them as plain values, milliseconds."""
    rows = [
        {"allocator": one.allocator, "overhead": one.overhead, **one.time.to_json(), "work": one.time.work.to_json()}
        for one in times
    ]
    return {"modelled": True, "prices": times[0].time.prices.to_json(), "allocators": rows}
