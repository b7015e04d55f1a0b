"""What a bench shows on a terminal: a progress bar for every cell while it runs, and the table at the end."""

from __future__ import annotations

from types import TracebackType

import rich.progress
from rich.console import Console
from rich.table import Table

from poolalloc.bench.devices import Device
from poolalloc.bench.harness import Cell, Watcher
from poolalloc.bench.panels import device_text
from poolalloc.bench.results import Results, Row
from poolalloc.bench.table import HEADINGS, cells, summary


class Progress(Watcher):
    """Shows cells as they run, on stderr; where that is no terminal, one line for each cell that ended."""

    def __init__(self, all_cells: list[Cell], device: Device) -> None:
        self._console = Console(stderr=True)
        self._count = len(all_cells)
        self._ended = 0
        where = f"a simulated {device.gpu}" if device.simulated else "the real GPU"
        self._console.print(f"{self._count} cell{'s' if self._count > 1 else ''} on {where}", highlight=False)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[done]}"),
            rich.progress.TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def cell_started(self, cell: Cell) -> None:
        """Add a bar for the cell; a script has no steps to count."""
        self._task = self._bar.add_task(describe(cell), total=cell.steps or None, done="starting")

    def cell_stepped(self, cell: Cell, done: int) -> None:
        """Move the cell's bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, done=f"step {done}/{cell.steps}")

    def cell_ended(self, cell: Cell, row: Row) -> None:
        """Finish the cell's bar, with its peak in place of its steps."""
        self._ended += 1
        if self._task is not None:
            done = row.steps_done or 0
            total = cell.steps or 1
            finished = row.error is None and row.skipped is None and not row.out_of_memory
            self._bar.update(self._task, total=total, completed=total if finished else done, done=summary(row))
            self._bar.stop_task(self._task)
        if not self._console.is_terminal:
            text = f"{self._ended}/{self._count} {describe(cell)}: {summary(row)}"
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def describe(cell: Cell) -> str:
    """Return the cell's name for people."""
    return f"{cell.workload.name} under {cell.allocator.name}"


def print_results(results: Results) -> None:
    """Print the table on stdout, what was skipped under it, and the errors of cells that failed on stderr."""
    console = Console()
    table = Table(title=device_text(results), title_justify="left", title_style="bold", header_style="dim")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index < 2 else "right", no_wrap=index > 1)
    for row in results.rows:
        table.add_row(*cells(row))
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    skipped = {row.workload: row.skipped for row in results.rows if row.skipped is not None}
    for workload, reason in skipped.items():
        console.print(f"{workload} skipped: {reason}", highlight=False, markup=False, soft_wrap=True)
    errors = Console(stderr=True)
    for row in results.rows:
        if row.error is not None:
            text = f"{row.workload} under {row.allocator} failed: {row.error}"
            errors.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
