"""Makes the page: what view.html, view.css and view.js are filled with. Columns travel gzipped, in base64."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from poolalloc._internal.trace import steps
from poolalloc._internal.trace.format import Frame, Op, Trace, requested_over_time
from poolalloc.analysis.live_blocks import stack_label
from poolalloc.analysis.view import blocks as of_blocks
from poolalloc.analysis.view.blocks import Blocks
from poolalloc.analysis.view.layers import QUANTITIES, Layer
from poolalloc.sizes import format_size

MOST_STACKS = 4000
MOST_FRAMES = 24
"""Of a stack, from the inside out."""
_KINDS = {"f8": "Float64Array", "u4": "Uint32Array", "i4": "Int32Array", "u2": "Uint16Array"}


def render(
    trace: Trace,
    layers: Sequence[Layer],
    title: str,
    notes: Sequence[str],
    *,
    most_drawn: int = of_blocks.MOST_DRAWN,
) -> str:
    """Return the text of one HTML file that shows the layers. `notes` are lines under the title."""
    columns = _Columns()
    document = _document(trace, layers, most_drawn, columns)
    document["columns"] = columns.index
    parts = {
        "TITLE": escape(title),
        "NOTES": "".join(f"<p>{escape(note)}</p>" for note in notes),
        "TABLE": _table(trace, layers),
        "STYLE": _file("view.css"),
        "SCRIPT": _file("view.js"),
        # `<` ends a script wherever it stands before `/script`, also in a text that a trace brings along.
        "DOCUMENT": json.dumps(document, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "COLUMNS": columns.packed(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _file("view.html"))


def _file(name: str) -> str:
    return (resources.files("poolalloc.analysis.view") / name).read_text(encoding="utf-8")


class _Columns:
    """Arrays one behind the other, each at a multiple of 8 bytes."""

    def __init__(self) -> None:
        self.index: dict[str, list[Any]] = {}
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, name: str, values: npt.ArrayLike, kind: str) -> None:
        """Add a column of a kind of _KINDS."""
        data = np.ascontiguousarray(np.asarray(values), dtype="<" + kind).tobytes()
        self.index[name] = [_KINDS[kind], self._size, len(data) // int(kind[1:])]
        data += b"\0" * (-len(data) % 8)
        self._parts.append(data)
        self._size += len(data)

    def packed(self) -> str:
        """Return all of them as text."""
        return base64.b64encode(gzip.compress(b"".join(self._parts), 6, mtime=0)).decode("ascii")


def _document(trace: Trace, layers: Sequence[Layer], most: int, columns: _Columns) -> dict[str, Any]:
    """What is small, as JSON; what is long goes into `columns`."""
    times = np.append(trace.events["time_ns"], trace.events["time_ns"][-1]).astype(np.int64)
    every = of_blocks.of_trace(trace)
    drawn, left_out = of_blocks.largest(every, times, most)
    marks = np.flatnonzero(trace.events["op"] == Op.MARK)
    found = steps.find(trace) if len(marks) == 0 else np.zeros(0, np.int64)
    # Events that the page speaks of are numbered anew, densely; for these, and no others, times travel.
    known = [drawn.birth, drawn.free, drawn.gone, marks, found, *(layer.events for layer in layers)]
    lost = [layer.out_of_memory for layer in layers if layer.out_of_memory is not None]
    knots = np.unique(np.concatenate([*known, np.array([0, len(trace), *lost], np.int64)]))
    columns.add("knots", np.diff(knots, prepend=0), "u4")
    columns.add("times", np.diff(times[knots], prepend=times[0]), "f8")

    def at(events: npt.NDArray[np.int64] | list[int]) -> npt.NDArray[np.int64]:
        return np.searchsorted(knots, events)

    devices = trace.used_devices()
    for device in devices:
        _add_blocks(columns, device, drawn.take(np.flatnonzero(drawn.device == device)), at)
    return {
        "events": len(trace),
        "ordered": trace.clock == "order",
        "devices": [{"device": device, "name": trace.device_info(device).name} for device in devices],
        "layers": [_layer(f"layer{number}", layer, drawn, columns, at) for number, layer in enumerate(layers)],
        "lines": {
            "title": "mark" if len(marks) else "step",
            "knots": at(marks if len(marks) else found).tolist(),
            "texts": [trace.marks[number] for number in trace.events["id"][marks].tolist()]
            if len(marks)
            else [steps.name(number) for number in range(1, len(found) + 1)],
        },
        "initial": int(at([trace.initial_events])[0]) if trace.initial_events else 0,
        "streams": [format(stream, "#x") if stream else "default" for stream in trace.streams],
        "pools": [f"{first}, {second}" if (first, second) != (0, 0) else "" for first, second in trace.pools],
        "stacks": _stacks(trace, drawn),
        "blocks": {"drawn": len(drawn), "all": len(every), "area_left_out": left_out},
        "quantities": QUANTITIES,
    }


def _add_blocks(columns: _Columns, device: int, drawn: Blocks, at: Any) -> None:
    columns.add(f"{device}/birth", at(drawn.birth), "u4")
    columns.add(f"{device}/free", at(drawn.free), "u4")
    columns.add(f"{device}/gone", at(drawn.gone), "u4")
    columns.add(f"{device}/requested", drawn.requested, "f8")
    columns.add(f"{device}/id", drawn.id, "f8")
    columns.add(f"{device}/stack", drawn.stack, "u4")
    columns.add(f"{device}/stream", drawn.stream, "u4")
    columns.add(f"{device}/pool", drawn.pool, "u4")


def _layer(name: str, layer: Layer, drawn: Blocks, columns: _Columns, at: Any) -> dict[str, Any]:
    columns.add(f"{name}/events", at(layer.events), "u4")
    quantities = {}
    maps = {}
    for device in sorted(layer.values):
        values = layer.values[device]
        quantities[device] = [quantity for quantity in QUANTITIES if quantity in values]
        for quantity in quantities[device]:
            columns.add(f"{name}/{device}/{quantity}", values[quantity], "f8")
        if layer.placements is None:
            continue
        # Addresses of the blocks that are drawn; 0 for those that the allocator did not come to.
        ours = drawn.take(np.flatnonzero(drawn.device == device))
        reached = ours.allocation < len(layer.placements)
        addresses = np.zeros(len(ours), np.uint64)
        addresses[reached] = layer.placements[ours.allocation[reached]]
        places = of_blocks.places_of(addresses, ours.requested)
        columns.add(f"{name}/{device}/row", places.rows, "f8")
        columns.add(f"{name}/{device}/start", places.starts, "f8")
        # In two halves: a number of JavaScript holds 53 bits.
        columns.add(f"{name}/{device}/high", places.addresses >> np.uint64(32), "u4")
        columns.add(f"{name}/{device}/low", places.addresses & np.uint64(0xFFFFFFFF), "u4")
        maps[device] = places.height
    return {
        "name": layer.name,
        "how": layer.how,
        "quantities": quantities,
        "peaks": {device: dict(peaks) for device, peaks in layer.peaks.items()},
        "maps": maps,
        "lost": None if layer.out_of_memory is None else int(at([layer.out_of_memory])[0]),
    }


def _stacks(trace: Trace, drawn: Blocks) -> dict[str, Any]:
    """The stacks of the blocks drawn, those of most bytes first and no more than MOST_STACKS; each frame once."""
    used, of = np.unique(drawn.stack, return_inverse=True)
    weight = np.bincount(of, drawn.requested.astype(np.float64), len(used))
    chosen = [int(number) for number in used[np.argsort(-weight, kind="stable")] if number][:MOST_STACKS]
    frames: dict[Frame, int] = {}
    stacks = {}
    for number in chosen:
        lines = trace.stacks[number]
        numbers = [frames.setdefault(frame, len(frames)) for frame in lines[:MOST_FRAMES]]
        stacks[number] = {"name": stack_label(lines), "frames": numbers}
    return {"frames": [[frame.function, frame.file, frame.line] for frame in frames], "of": stacks}


# --- the table ------------------------------------------------------------------------------------------------------


def _table(trace: Trace, layers: Sequence[Layer]) -> str:
    devices = trace.used_devices()
    requested = {device: int(requested_over_time(trace.of_device(device).events).max()) for device in devices}
    facts = list(dict.fromkeys(heading for layer in layers for heading in layer.facts))
    head = _cells("th", ["allocator", "", *(["device"] if len(devices) > 1 else []), *_HEADINGS, *facts])
    rows = []
    for layer in layers:
        for number, device in enumerate(devices):
            names = [layer.name, layer.how] if number == 0 else ["", ""]
            if len(devices) > 1:
                names.append(str(device))
            found = [layer.facts.get(heading, "-") if number == 0 else "" for heading in facts]
            rows.append(f"<tr>{_cells('td', [*names, *_figures(layer, device, requested[device]), *found])}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


_HEADINGS = ("peak requested", "peak reserved", "overhead")


def _figures(layer: Layer, device: int, in_all: int) -> list[str]:
    """The figures of a device; `in_all` is what was requested at the peak of the whole trace."""
    peaks = layer.peaks.get(device, {})
    requested, reserved = peaks.get("requested"), peaks.get("reserved")
    below = requested or in_all
    return [
        "-" if requested is None else format_size(requested),
        "-" if reserved is None else format_size(reserved) + (" (out of memory)" if layer.out_of_memory else ""),
        f"{reserved / below:.4f}" if reserved is not None and below else "-",
    ]


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
