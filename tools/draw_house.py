"""Draws the manual's pictures of the allocator: its rooms, from what tools/check_includes.py allows, and a page's life.

    draw_house.py FOLDER     writes house.png and page.png

tools/figures.py calls it, signs the pictures, and says when they are stale.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check_includes import ROOMS

INK, SOFT = "#1f2933", "#7b8794"
FILL = {
    "top": "#e3f2fd",
    "room": "#e8f5e9",
    "base": "#f3f4f6",
    "driver": "#fff3e0",
    "live": "#c8e6c9",
    "idle": "#fff9c4",
}

# Where each room stands: column, row, columns it takes; and what it owns, in a few words.
PLACES = {
    "device": (0, 4, 3, "the heaps of one device, private pools,\nwhat happens when memory runs out"),
    "heap": (0, 3, 3, "the memory of one stream: lock, counters, deferred frees"),
    "placement": (0, 2, 1, "where a block goes: slabs,\narena, exact bins, plans"),
    "streams": (1, 2, 1, "uses by other streams,\ncaptures"),
    "sleep": (2, 2, 1, "contents of memory\nthat sleeps"),
    "backing": (0, 1, 2, "what lies behind an address: spans and\ntheir mappings, segments, spare memory"),
    "plans": (2, 1, 1, "plans of programs\nthat repeat"),
    "options": (0, 0, 1, "the table of options"),
    "recording": (1, 0, 1, "observers, the log"),
    "base": (2, 0, 1, "types, errors, locks,\nsmall containers"),
}


def box(axes: Axes, at: tuple[float, float], size: tuple[float, float], title: str, text: str, *, fill: str) -> None:
    """A box with a title and some words."""
    (x, y), (width, height) = at, size
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=INK, linewidth=1))
    lines = text.count("\n") + 1 if text else 0
    axes.text(
        x + width / 2, y + height / 2 + 0.1 * lines, title, ha="center", va="center", color=INK, weight="bold", size=11
    )
    if text:
        axes.text(x + width / 2, y + height / 2 - 0.14, text, ha="center", va="center", color=INK, size=8.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], words: str = "") -> None:
    """An arrow with words in its middle."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=INK))
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    around = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.text(*middle, words, ha="center", va="center", size=8.5, color=INK, bbox=around if words else None)


def canvas(width: float, height: float) -> Axes:
    """An empty picture of so many units."""
    _, axes = plt.subplots(figsize=(width, height), dpi=110)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return axes


def draw_house(file: Path) -> None:
    """The rooms of csrc/core, who calls them, and what they call; a room sees only rooms below it."""
    if PLACES.keys() != ROOMS.keys():
        raise SystemExit(f"PLACES lacks or has too many of {sorted(PLACES.keys() ^ ROOMS.keys())}")
    for room, seen in ROOMS.items():
        for other in set(seen) - {"driver"}:
            if PLACES[other][1] > PLACES[room][1]:
                raise SystemExit(f"{room} sees {other}, which stands above it")
    axes = canvas(9.6, 7.4)
    column, row, gap, left, bottom, above = 2.9, 0.95, 0.15, 0.3, 1.15, 6.35
    callers = {"plugin": "torch's plain door", "bridge": "torch's full interface", "python": "replay, statistics"}
    for number, (name, words) in enumerate(callers.items()):
        x = left + number * column
        box(axes, (x, above), (column - gap, 0.7), name, words, fill=FILL["top"])
        arrow(axes, (x + column / 2, above), (x + column / 2, above - 0.6))
    whole = 3 * column - gap
    frame = FancyBboxPatch((left - gap, bottom - gap), whole + 2 * gap, 5.2, boxstyle="round,pad=0,rounding_size=0.1")
    frame.set(facecolor="none", edgecolor=SOFT, linestyle="--")
    axes.add_patch(frame)
    axes.text(left + column, above - 0.3, "csrc/core, behind allocator.h", ha="center", va="center", size=9, color=SOFT)
    for room, (x, y, columns, words) in PLACES.items():
        at, size = (left + x * column, bottom + y * row), (columns * column - gap, row - gap)
        box(axes, at, size, room, words, fill=FILL["base" if y == 0 else "room"])
    calls = "the only code that calls CUDA: cuMemCreate, cuMemMap, events"
    box(axes, (left, 0.12), (whole, 0.7), "driver", calls, fill=FILL["driver"])
    arrow(axes, (left + whole / 2, bottom - gap), (left + whole / 2, 0.8))
    axes.figure.savefig(file, bbox_inches="tight", pad_inches=0.1)
    plt.close(axes.figure)


def draw_page(file: Path) -> None:
    """What becomes of a page of addresses."""
    axes = canvas(11.2, 4.0)
    width, height = 2.3, 0.95
    spots = {
        "empty": (0.2, 2.6, "no physical page\nbehind it", "white"),
        "ready": (4.45, 2.6, "mapped and idle:\na block may come", FILL["idle"]),
        "resident": (8.7, 2.6, "at least one block\noverlaps it", FILL["live"]),
        "blocked": (4.45, 0.2, "its physical page is live\nat another address", FILL["driver"]),
    }
    for name, (x, y, words, fill) in spots.items():
        box(axes, (x, y), (width, height), name, words, fill=fill)
    high, low, top, bottom = 3.32, 2.82, 2.6, 1.15
    for start, end, y, words in (
        (2.5, 4.45, high, "create or take, map\n(driver)"),
        (4.45, 2.5, low, "unmap (driver)"),
        (6.75, 8.7, high, "a block comes"),
        (8.7, 6.75, low, "the last block goes"),
    ):
        arrow(axes, (start, y), (end, y), words)
    arrow(axes, (5.1, top), (5.1, bottom), "a block comes\nto another alias")
    arrow(axes, (6.1, bottom), (6.1, top), "it goes")
    axes.figure.savefig(file, bbox_inches="tight", pad_inches=0.1)
    plt.close(axes.figure)


def draw(folder: Path) -> None:
    """Write both pictures."""
    draw_house(folder / "house.png")
    draw_page(folder / "page.png")


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
