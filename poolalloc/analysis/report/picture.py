"""Draws who holds how much over time: areas on top of each other, a panel for each device (matplotlib)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from poolalloc._internal.atomic_files import whole_file
from poolalloc._internal.trace.format import Events, Frame, Op, Trace, requested_over_time
from poolalloc._internal.trace.steps import Indexes
from poolalloc.analysis import replay_picture as picture
from poolalloc.analysis.live_blocks import NO_SCOPE, NO_STACK, labels_of, scope_of, shown, size_classes, stack_label
from poolalloc.analysis.report.tree import parts_of
from poolalloc.sizes import format_size

MOST = 10
"""Areas; what else there is makes one more."""
_POINTS = 3000
_LONGEST = 46  # characters of a label
_COLORS = (
    "#3b6ea8",
    "#e8833a",
    "#4f9d69",
    "#b8484e",
    "#8a6bb1",
    "#c2a33a",
    "#5ab0b8",
    "#d07ba8",
    "#7d8a4f",
    "#9c6b4a",
)
_REST = "#c9ced4"


def write_png(trace: Trace, title: str, path: Path, depth: int) -> None:
    """Draw a trace, with scopes as deep as `depth` told apart.

    Raises:
        TraceError: there is no matplotlib.
        OSError: the file cannot be written.
    """
    picture.require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    devices = trace.used_devices()
    height = 0.55 + 3.75 * len(devices)
    figure = Figure(figsize=(12, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.07, 1 - 0.34 / height, f"{title}: who holds the memory requested", size=13, weight="bold")
    for number, device in enumerate(devices):
        top = height - 0.8 - 3.75 * number
        axes = figure.add_axes((0.07, (top - 3.05) / height, 0.62, 3.05 / height))
        _draw(axes, trace.of_device(device), device, depth)
    with whole_file(path) as file:
        figure.savefig(file, dpi=130)


def _draw(axes: Any, trace: Trace, device: int, depth: int) -> None:
    events = trace.events
    held = requested_over_time(events)
    at = _points(held)
    names, heights, rest = _areas(trace, at, depth)
    scale, unit = picture.unit_of(int(np.sum(heights, axis=0).max()))
    x = (events["time_ns"][at] - events["time_ns"][0]) / 1e9
    colors = [*_COLORS[: len(names) - rest], _REST][: len(names)]
    axes.stackplot(
        x,
        [height / scale for height in heights],
        labels=names,
        colors=colors,
        step="post",
        linewidth=0,
        antialiased=False,
    )
    picture.dress(axes, unit, float(x[-1]))
    axes.set_title(f"device {device}: {format_size(int(held.max()))} at the peak", loc="left", size=10.5, pad=6)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)


def _points(held: npt.NDArray[np.int64]) -> Indexes:
    """The events to draw: of each of so many parts of the trace the one after which most is held."""
    edges = np.unique(np.linspace(0, len(held), _POINTS + 1).astype(np.int64))
    return np.array(
        [first + int(held[first:end].argmax()) for first, end in itertools.pairwise(edges.tolist())], np.int64
    )


def _areas(trace: Trace, at: Indexes, depth: int) -> tuple[list[str], list[npt.NDArray[np.int64]], bool]:
    """Names and bytes held at these events, of those who hold most all in all; whether the last is of all others.

    In the words of the tables: scopes and lines, or size classes where neither was recorded.
    """
    events = trace.events
    changing = np.flatnonzero((events["op"] == Op.ALLOC) | (events["op"] == Op.FREE))
    blocks = events[changing]
    labels = labels_of(trace, _at_birth(blocks, "stack"), lambda frames: _who(frames, depth))
    if set(labels.tolist()) <= {NO_SCOPE}:  # which stands for those without a stack, too
        labels = np.array([format_size(int(size)) for size in size_classes(_at_birth(blocks, "requested")).tolist()])
    names, of = np.unique(labels, return_inverse=True)
    change = np.where(blocks["op"] == Op.ALLOC, 1, -1) * blocks["requested"].astype(np.int64)
    upto = np.searchsorted(changing, at, side="right")
    held = [np.concatenate([[0], np.cumsum(np.where(of == number, change, 0))])[upto] for number in range(len(names))]
    order = sorted(range(len(names)), key=lambda number: -int(held[number].sum()))
    areas = [(_short(str(names[number])), held[number]) for number in order[:MOST]]
    rest = order[MOST:]
    if rest:
        areas.append((f"{len(rest):,} more", np.sum([held[number] for number in rest], axis=0)))
    return [name for name, _ in areas], [height for _, height in areas], bool(rest)


def _at_birth(blocks: Events, field: str) -> npt.NDArray[Any]:
    """For each allocation and free what the allocation has in this field."""
    born = blocks["op"] == Op.ALLOC
    ids = blocks["id"][born]
    order = np.argsort(ids)
    values: npt.NDArray[Any] = blocks[field][born][order][np.searchsorted(ids[order], blocks["id"])]
    return values


def _who(frames: tuple[Frame, ...], depth: int) -> str:
    """The scope, where there is one, else the line."""
    scope, line = scope_of(frames), stack_label(frames)
    return "".join(parts_of(scope)[:depth]).rstrip("/.") or (NO_SCOPE if line == NO_STACK else line)


def _short(name: str) -> str:
    name = shown(name)
    return name if len(name) <= _LONGEST else "..." + name[3 - _LONGEST :]
