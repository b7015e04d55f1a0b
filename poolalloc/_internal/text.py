"""Plain text: tables of it, and text from files made harmless."""

from __future__ import annotations

import re
from collections.abc import Iterable


def text_table(rows: Iterable[tuple[str, ...]], align: str = "<", *, header: bool = True) -> list[str]:
    """Return rows as lines of plain text; columns beyond `align` are right-aligned."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    sides = align.ljust(len(widths), ">")
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """Return text for a terminal, of any number of lines, without what a terminal takes for a command."""
    return _COMMANDS.sub("?", text)


def printable(text: str) -> str:
    """Return text from a file without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)
