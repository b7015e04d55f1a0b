"""What a bench shows on a terminal while it runs: a progress bar for every cell."""

from __future__ import annotations

from types import TracebackType

import rich.progress
from rich.console import Console

from poolalloc.bench.devices import Device
from poolalloc.bench.harness import Cell, Watcher
from poolalloc.bench.results import Row
from poolalloc.bench.table import summary


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
