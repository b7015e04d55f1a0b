"""The table of a bench as text cells, for the terminal, the PNG and the HTML alike."""

from __future__ import annotations

from collections.abc import Sequence

from poolalloc.bench.results import Row
from poolalloc.sizes import format_size

HEADINGS = (
    "workload",
    "allocator",
    "peak requested",
    "peak reserved",
    "overhead",
    "driver calls",
    "retries",
    "seconds",
    "out of memory",
)
NAMES = 2
"""So many of them are names; the others are figures."""
SILENT = {"retries": ("0", "-"), "out of memory": ("no",)}
"""What says nothing where a whole column says only that."""


def cells(row: Row) -> tuple[str, ...]:
    """Return the row under HEADINGS; a figure that is not known is a dash."""

    def size(value: int | None) -> str:
        return "-" if value is None else format_size(value)

    return (
        row.workload,
        row.allocator,
        size(row.peak_requested_bytes),
        size(row.peak_reserved_bytes),
        "-" if row.overhead is None else f"{row.overhead:.4f}",
        f"{sum(row.driver_calls.values()):,}" if row.peak_reserved_bytes is not None else "-",
        "-" if row.retries is None else str(row.retries),
        "-" if row.seconds is None else f"{row.seconds:.1f}",
        end(row),
    )


def lines_of(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the headings and the rows, without columns that say nothing, for tables that draw themselves."""
    found = [cells(row) for row in rows]
    shown = [
        column
        for column, heading in enumerate(HEADINGS)
        if heading not in SILENT or any(line[column] not in SILENT[heading] for line in found)
    ]
    return [tuple(line[column] for column in shown) for line in (HEADINGS, *found)]


def end(row: Row) -> str:
    """Return what became of the row's program, under the heading "out of memory"."""
    if row.skipped is not None:
        return "skipped"
    if row.error is not None:
        return "failed"
    return "yes" if row.out_of_memory else "no"


def summary(row: Row) -> str:
    """Return the row in a few words."""
    if row.skipped is not None:
        return f"skipped: {row.skipped}"
    if row.error is not None:
        return f"failed: {row.error.splitlines()[0]}"
    end = ", ran out of memory" if row.out_of_memory else ""
    return f"peak {format_size(row.peak_reserved_bytes or 0)} reserved{end}, {row.seconds or 0:.1f} s"
