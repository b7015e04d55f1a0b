"""What commands show on stderr while they work, and consoles that also suit files and pipes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import rich.progress
from rich.console import Console
from rich.table import Table

WIDTH = 130  # of tables that go to a file or a pipe


def stdout_console() -> Console:
    """Return a console on stdout whose tables are not squeezed into 80 columns where there is no terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    return console


def figures_table(title: str, names: Sequence[str], figures: Sequence[str]) -> Table:
    """Return a table whose first columns hold names, and the others figures."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for heading in names:
        table.add_column(heading)
    for heading in figures:
        table.add_column(heading, justify="right")
    return table


@contextmanager
def working(what: str, total: int | None = None) -> Iterator[Bar]:
    """Show a bar on stderr while the block runs, if that is a terminal; it goes away at the end."""
    console = Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(what, total=total))


class Bar:
    """The bar of one piece of work."""

    def __init__(self, progress: rich.progress.Progress, task: rich.progress.TaskID) -> None:
        self._progress = progress
        self._task = task

    def at(self, done: int, total: int) -> None:
        """Show how much is done."""
        self._progress.update(self._task, completed=done, total=total)
