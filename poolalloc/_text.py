"""Plain text: tables of it, and text from files made harmless."""

from __future__ import annotations

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


def printable(text: str) -> str:
    """Return text from a file without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)
