"""Draws a replay: requested, live, resident and reserved memory over time, a panel for each device (matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from poolalloc._internal.atomic_files import whole_file
from poolalloc._internal.trace.format import TraceError
from poolalloc.analysis.replay import DeviceResult, Result
from poolalloc.sizes import format_size

__all__ = ["write_png"]

REQUESTED = "#3b6ea8"
LIVE = "#7ba3d0"
RESIDENT = "#cfdbe8"
RESERVED = "#e8833a"
RECORDED = "#8a2f5b"
INK = "#22262b"
FAINT = "#8a929c"

_STEPS = "steps-post"


def missing_matplotlib() -> str | None:
    """Return why no picture can be drawn, in one line; None if one can."""
    try:
        require_matplotlib()
    except TraceError as error:
        return str(error)
    return None


def require_matplotlib() -> None:
    """Raise TraceError if nothing could be drawn; called before the work rather than after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise TraceError("--png needs matplotlib; install it with: pip install 'poolalloc[report]'") from None


def write_png(result: Result, title: str, path: Path) -> None:
    """Draw a replay that was made with samples.

    Raises:
        TraceError: there is no matplotlib.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [device for device in result.devices if device.curve is not None]
    height = 0.9 + 3.6 * len(panels)
    figure = Figure(figsize=(11, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.07, 1 - 0.36 / height, title, size=13, weight="bold", color=INK)
    figure.text(0.07, 1 - 0.6 / height, _subtitle(result), size=10, color=FAINT)
    for number, device in enumerate(panels):
        top = height - 1.15 - 3.6 * number
        axes = figure.add_axes((0.07, (top - 2.75) / height, 0.73, 2.75 / height))
        _draw(axes, result, device)
    with whole_file(path) as file:
        figure.savefig(file, dpi=130)


def _subtitle(result: Result) -> str:
    text = f"poolalloc, replayed on a modelled device of {format_size(result.memory_bytes)} ({result.memory_source})"
    return text + (f"; {result.config}" if result.config else "")


def _draw(axes: Any, result: Result, device: DeviceResult) -> None:
    curve = device.curve
    assert curve is not None
    scale, unit = unit_of(max(device.peak_reserved, device.recorded.peak_reserved if device.recorded else 0))
    x = curve.seconds
    y = {name: values / scale for name, values in curve.values.items()}
    axes.fill_between(x, y["resident"], step="post", color=RESIDENT, linewidth=0, label="resident")
    axes.fill_between(x, y["requested"], step="post", color=REQUESTED, linewidth=0, label="requested")
    axes.plot(x, y["live"], drawstyle=_STEPS, color=LIVE, linewidth=0.9, label="live")
    axes.plot(x, y["reserved"], drawstyle=_STEPS, color=RESERVED, linewidth=1.6, label="reserved")
    if curve.recorded_reserved is not None and device.recorded is not None:
        recorded = curve.recorded_reserved / scale
        label = f"reserved by {device.recorded.source.replace(', ', ',' + chr(10))}"
        axes.plot(x, recorded, drawstyle=_STEPS, color=RECORDED, linewidth=1.3, linestyle=(0, (4, 2)), label=label)
    lost = result.out_of_memory
    if lost is not None:
        axes.axvline(lost.seconds, color="#b3261e", linewidth=1, label=f"out of memory\n(event {lost.event:,})")
    dress(axes, unit, float(x[-1]))
    overhead = "" if device.overhead is None else f", overhead {device.overhead:.4f}"
    peaks = f"{format_size(device.peak_reserved)} reserved, {format_size(device.peak_requested)} requested at the peak"
    axes.set_title(f"device {device.device}: {peaks}{overhead}", loc="left", size=10.5, color=INK, pad=6)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, labelcolor=INK)


def dress(axes: Any, unit: str, seconds: float) -> None:
    """Give axes of memory over time, which reaches so far, the looks that all have."""
    axes.set_xlim(0, max(seconds, 1e-9))
    axes.set_ylim(0, None)
    axes.set_ylabel(unit, color=FAINT, size=9)
    axes.set_xlabel("seconds since the first event", color=FAINT, size=9)
    axes.tick_params(colors=FAINT, labelsize=8.5, length=2)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9ced4")


def unit_of(largest: int) -> tuple[float, str]:
    """Return the unit to draw up to so many bytes in, and its name."""
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if largest >= scale:
            return float(scale), unit
    return 1024.0, "KiB"
