"""The table of a bench as text cells, for the terminal, the PNG and the HTML alike."""

from __future__ import annotations

from poolalloc._internal import driver_work
from poolalloc.bench.results import Results, Row
from poolalloc.sizes import format_size

HEADINGS = (
    "workload",
    "allocator",
    "peak requested",
    "peak reserved",
    "overhead",
    *driver_work.HEADINGS,
    "retries",
    "seconds",
    "step time",
    "out of memory",
)
NAMES = 2
"""So many of them are names; the others are figures."""
SILENT = {"retries": ("0", "-"), "step time": ("-",), "out of memory": ("no",)}
"""What says nothing where a whole column says only that."""
LEAST_FIRST = (
    "seconds",
    "retries",
    "handles mapped",
    "a step, 1st half",
    "step time",
    "start-up",
    "modelled driver ms",
    "peak requested",
)
"""The order in which columns go where a terminal is too narrow."""


def cells(row: Row, results: Results) -> tuple[str, ...]:
    """Return the row under HEADINGS; a figure that is not known is a dash."""

    def size(value: int | None) -> str:
        return "-" if value is None else format_size(value)

    time = row.driver_time(results.prices)
    # Without the driver's time in it, the host's time of a step says little.
    ratio = results.step_ratio(row) if results.prices_taken else None
    return (
        row.workload,
        row.allocator,
        size(row.peak_requested_bytes),
        size(row.peak_reserved_bytes),
        "-" if row.overhead is None else f"{row.overhead:.4f}",
        *("-" for _ in (driver_work.HEADINGS if time is None else ())),
        *(() if time is None else time.cells()),
        "-" if row.retries is None else str(row.retries),
        "-" if row.seconds is None else f"{row.seconds:.1f}",
        "-" if ratio is None else f"{ratio:.2f}x",
        end(row),
    )


def lines_of(results: Results) -> list[tuple[str, ...]]:
    """Return the headings and the rows, without columns that say nothing, for tables that draw themselves."""
    found = [cells(row, results) for row in results.rows]
    shown = [
        column
        for column, heading in enumerate(HEADINGS)
        if heading not in SILENT or any(line[column] not in SILENT[heading] for line in found)
    ]
    return [tuple(line[column] for column in shown) for line in (HEADINGS, *found)]


def about(results: Results) -> str:
    """Return what must be known about the times in the table."""
    text = f"Driver time is {results.prices.label}; start-up lasts to the end of the first step."
    if results.prices_taken:
        text += (
            " The simulated driver took that time. Step time is the median wall time of a step of the second half, over"
            " that of the workload's first row."
        )
    return text


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
