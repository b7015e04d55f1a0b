"""Draws the report as a PNG with matplotlib: requested and reserved memory over time, and the table under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from poolalloc._internal.atomic_files import whole_file
from poolalloc.bench.panels import (
    BEYOND_LABEL,
    HELD_LABEL,
    REQUESTED_LABEL,
    Figure,
    Panel,
    device_text,
    figures,
    overhead_text,
)
from poolalloc.bench.results import Results
from poolalloc.errors import PoolallocError

REQUESTED = "#3b6ea8"
HELD = "#cfdbe8"
BEYOND = "#e8833a"
INK = "#22262b"
FAINT = "#8a929c"
ALARM = "#b3261e"

LINE_HEIGHT = 0.3  # of the table, in inches
MARGIN = 0.45
GAP = 0.18  # between its columns, at least
LEAST_WIDTH = 1.2  # of its first column
TABLE_SIZE = 9.5  # of its letters, in points


class MissingReportError(PoolallocError, ImportError):
    """matplotlib is not installed."""


def require_matplotlib() -> None:
    """Raise MissingReportError if the PNG cannot be drawn; called before a long run rather than after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingReportError("--png needs matplotlib; install it with: pip install 'poolalloc[report]'") from error


def write_png(results: Results, path: Path) -> None:
    """Draw the results into a PNG file.

    Raises:
        MissingReportError: there is no matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    parts = figures(results)
    columns = max((len(part.panels) for part in parts), default=1)
    panel_height = 3.4
    table_height = LINE_HEIGHT * (len(results.rows) + 1)
    width = max(12.0, 4.0 * columns + 0.9)
    height = 1.4 + (panel_height + 0.6) * len(parts) + table_height + 0.35
    canvas = Canvas(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(canvas)
    canvas.text(
        0.45 / width, 1 - 0.42 / height, "Memory requested and memory reserved", size=17, weight="bold", color=INK
    )
    canvas.text(0.45 / width, 1 - 0.72 / height, device_text(results), size=10.5, color=FAINT)
    draw_legend(canvas, width, height)

    top = height - 1.4
    for part in parts:
        canvas.text(0.45 / width, (top - 0.02) / height, part.heading, size=12, weight="bold", color=INK, va="top")
        bottom = top + 0.1 - panel_height
        left, gap = 0.8, 0.25
        panel_width = (width - left - 0.3 - gap * (columns - 1)) / columns
        for index, panel in enumerate(part.panels):
            x = left + index * (panel_width + gap)
            axes = canvas.add_axes((x / width, bottom / height, panel_width / width, (panel_height - 0.65) / height))
            draw_panel(axes, part, panel, first=index == 0)
        top -= panel_height + 0.6
    draw_table(canvas, results, top)
    with whole_file(path) as file:
        canvas.savefig(file, dpi=130)


def draw_legend(canvas: Any, width: float, height: float) -> None:
    """Draw the three colours and what they mean, under the heading."""
    from matplotlib.patches import Patch

    canvas.legend(
        handles=[
            Patch(color=REQUESTED, label=REQUESTED_LABEL),
            Patch(color=HELD, label=HELD_LABEL),
            Patch(color=BEYOND, label=BEYOND_LABEL),
        ],
        loc="upper left",
        bbox_to_anchor=(0.45 / width, 1 - 0.88 / height),
        ncols=3,
        borderaxespad=0.0,
        borderpad=0.0,
        handlelength=1.0,
        columnspacing=1.6,
        frameon=False,
        fontsize=10,
        labelcolor=FAINT,
    )


def draw_panel(axes: Any, part: Figure, panel: Panel, first: bool) -> None:
    """Draw one cell: the areas, its peaks, its notes."""
    from matplotlib.patheffects import withStroke

    if panel.x:
        axes.fill_between(panel.x, 0, panel.reserved, color=BEYOND, linewidth=0)
        axes.fill_between(panel.x, 0, panel.within(), color=HELD, linewidth=0)
        axes.fill_between(panel.x, 0, panel.requested, color=REQUESTED, linewidth=0)
    axes.set_xlim(0, part.x_max)
    axes.set_ylim(0, part.y_max)
    axes.set_xticks(part.x_ticks())
    axes.set_yticks(part.y_ticks())
    axes.tick_params(colors=FAINT, labelsize=8.5, length=2, labelleft=first)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9ced4")
    axes.set_xlabel(part.x_label, color=FAINT, size=9)
    if first:
        axes.set_ylabel(part.unit, color=FAINT, size=9)
    axes.set_title(panel.title, loc="left", size=10.5, color=INK, pad=6)
    axes.set_title(overhead_text(panel.row), loc="right", size=10.5, weight="bold", color=INK, pad=6)
    if panel.peak_reserved is not None and panel.peak_requested is not None:
        axes.axhline(panel.peak_reserved, color=INK, linewidth=0.8, linestyle=(0, (4, 2)))
        axes.annotate(
            f"peak {panel.peak_reserved:.2f} {part.unit} reserved, {panel.peak_requested:.2f} requested",
            (0.01 * part.x_max, panel.peak_reserved),
            xytext=(0, 3),
            textcoords="offset points",
            size=8.5,
            color=INK,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    if part.capacity is not None:
        axes.axhline(part.capacity, color=ALARM, linewidth=0.9)
        axes.annotate(
            f"{part.capacity:.1f} {part.unit} card",
            (part.x_max, part.capacity),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            size=8.5,
            color=ALARM,
        )
    if panel.note:
        axes.text(
            0.98, 0.04, panel.note, transform=axes.transAxes, ha="right", size=9, weight="bold", color=ALARM,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2},
        )  # fmt: skip


def draw_table(canvas: Any, results: Results, top: float) -> None:
    """Write the rows as text in columns as wide as what is in them, from `top` inches downwards."""
    from poolalloc.bench.table import NAMES, lines_of

    width, height = canvas.get_size_inches()
    lines = lines_of(results)
    room = width - 2 * MARGIN - GAP * (len(lines[0]) - 1)
    widths = [max(_width(canvas, line[column]) for line in lines) for column in range(len(lines[0]))]
    if (over := sum(widths) - room) > 0:  # only the first column has texts of any length: paths of scripts
        widths[0] = max(widths[0] - over, LEAST_WIDTH)
        lines = [(_fitting(canvas, line[0], widths[0]), *line[1:]) for line in lines]
    size = TABLE_SIZE
    if (wide := sum(widths)) > room:  # figures are not cut, so all of the text gets smaller
        size *= room / wide
        widths = [each * room / wide for each in widths]
    gap = GAP + max(0.0, room - sum(widths)) / (len(widths) - 1)
    for index, texts in enumerate(lines):
        y = top - LINE_HEIGHT * (index + 0.6)
        x = MARGIN
        for column, text in enumerate(texts):
            is_name = column < NAMES
            canvas.text(
                (x if is_name else x + widths[column]) / width,
                y / height,
                text,
                size=size,
                color=FAINT if index == 0 else INK,
                ha="left" if is_name else "right",
            )
            x += widths[column] + gap
        rule = (y - 0.1) / height
        canvas.add_artist(rule_line(MARGIN / width, 1 - MARGIN / width, rule))


def _width(canvas: Any, text: str) -> float:
    """How wide a text of the table is, in inches."""
    drawn = canvas.text(0, 0, text, size=TABLE_SIZE)
    extent = drawn.get_window_extent(canvas.canvas.get_renderer())
    drawn.remove()
    return float(extent.width) / float(canvas.dpi)


def _fitting(canvas: Any, text: str, width: float) -> str:
    """The text without as much of its beginning as there is no room for."""
    shown, cut = text, 0
    while _width(canvas, shown) > width and cut < len(text) - 1:
        cut += 1
        shown = "\N{HORIZONTAL ELLIPSIS}" + text[cut:]
    return shown


def rule_line(left: float, right: float, y: float) -> Any:
    """Return a thin horizontal line across the figure."""
    from matplotlib.lines import Line2D

    return Line2D([left, right], [y, y], color="#e0e3e7", linewidth=0.7)
