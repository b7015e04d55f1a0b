"""Tables for people, on terminals of any width, in files and in pipes. No figure in them is ever cut or broken.

Rich draws them; how wide each column is gets decided here, since Rich takes room from columns until some are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table as Drawing
from rich.text import Text

from poolalloc._internal.text import harmless

PIPE_WIDTH = 130
"""Of tables that go to a file or a pipe."""
_NAME_LEAST = 8  # characters that a column of names keeps; longer names go on in the next line


def stdout_console() -> Console:
    """Return a console on stdout whose tables are not squeezed into 80 columns where there is no terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is: whole, however narrow the terminal, and nothing in it taken for markup or for commands."""
    console.print(harmless(line), style=style, highlight=False, markup=False, soft_wrap=True)


class Table:
    """Rows under headings: first columns of names, then columns of figures."""

    def __init__(
        self,
        title: str,
        names: Sequence[str],
        figures: Sequence[str],
        silent: Mapping[str, Sequence[str]] | None = None,
        least_first: Sequence[str] = (),
    ) -> None:
        """Begin a table.

        Args:
            title: what stands above it; may be empty.
            names: headings of columns whose cells may go on in a next line.
            figures: headings of columns whose cells stay whole.
            silent: by heading, the cells that say nothing: a column of only such cells is left out.
            least_first: headings of the columns that go, in this order, where a terminal is too narrow for all.
        """
        self._title = title
        self._headings = [*names, *figures]
        self._names = len(names)
        self._silent = silent or {}
        self._least_first = least_first
        self._rows: list[tuple[str, ...]] = []
        self._sections: set[int] = set()

    def add(self, *cells: str) -> None:
        """Add a row."""
        assert len(cells) == len(self._headings)
        self._rows.append(tuple(map(harmless, cells)))

    def end_section(self) -> None:
        """Draw a line under the last row."""
        self._sections.add(len(self._rows))

    def print(self, console: Console | None = None) -> None:
        """Print it; where a terminal is narrower than what must stay, the terminal breaks the lines."""
        console = console or stdout_console()
        if self._title:
            say(console, self._title, "bold")
        shown = [index for index in range(len(self._headings)) if self._says_something(index)]
        dropped = self._drop_columns(shown, console.width)
        widths = self._widths(shown, console.width - _borders(shown))
        console.width = max(console.width, sum(widths) + _borders(shown))
        drawing = Drawing(header_style="dim")
        for index, width in zip(shown, widths, strict=True):
            justify: JustifyMethod = "left" if index < self._names else "right"
            drawing.add_column(Text(self._headings[index]), justify=justify, width=width, overflow="fold")
        for number, row in enumerate(self._rows, 1):
            drawing.add_row(*(Text(row[index]) for index in shown), end_section=number in self._sections)
        console.print(drawing)
        if dropped:
            say(console, f"not shown, for want of room: {'; '.join(dropped)}", "dim")

    def _drop_columns(self, shown: list[int], room: int) -> list[str]:
        """Take the least important columns out of `shown` until the rest fits; returns their headings."""
        dropped = []
        for heading in self._least_first:
            index = self._headings.index(heading)
            if sum(floors[1] for floors in map(self._floors, shown)) + _borders(shown) <= room:
                break
            if index in shown:
                shown.remove(index)
                dropped.append(heading)
        return dropped

    def _says_something(self, index: int) -> bool:
        silent = self._silent.get(self._headings[index], ())
        return not silent or any(row[index] not in silent for row in self._rows)

    def _widths(self, shown: Sequence[int], room: int) -> list[int]:
        """Return the width of each column. Where room is short, headings are broken first, then names."""
        widths = [max(_longest(row[index] for row in self._rows), len(self._headings[index]), 1) for index in shown]
        for floors in zip(*map(self._floors, shown), strict=True):
            _shrink(widths, floors, room)
        return widths

    def _floors(self, index: int) -> list[int]:
        """How narrow a column may get: with its heading broken, with its names broken between words, and within."""
        column = [row[index] for row in self._rows]
        cell = _longest(column)
        least = [cell, cell, cell]
        if index < self._names:
            part = _longest(text for name in column for text in name.split())
            least = [cell, part, min(part, _NAME_LEAST)]
        word = _longest(self._headings[index].split())
        return [max(word, floor, 1) for floor in least]


def _borders(shown: Sequence[int]) -> int:
    return 3 * len(shown) + 1


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def _shrink(widths: list[int], floors: Sequence[int], room: int) -> None:
    """Take from the widest that are above their floors until they fit, or nothing can be taken."""
    while sum(widths) > room:
        above = [index for index, floor in enumerate(floors) if widths[index] > floor]
        if not above:
            return
        widths[max(above, key=lambda index: widths[index])] -= 1
