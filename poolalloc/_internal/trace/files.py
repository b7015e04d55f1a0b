"""Trace files: `.npz` archives of numpy arrays, read with no trust in what they hold."""

from __future__ import annotations

import json
import os
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from poolalloc._internal import npz
from poolalloc._internal.trace import log
from poolalloc._internal.trace.format import (
    CLOCKS,
    EVENT,
    FRAME,
    MAX_BYTES,
    MAX_DEVICES,
    VERSION,
    DeviceInfo,
    Stacks,
    Trace,
    TraceError,
    check,
)

_U1, _U4, _U8 = np.dtype("u1"), np.dtype("<u4"), np.dtype("<u8")
# Every array of the file: its kind, and how many columns (0: it has one dimension).
_ARRAYS: dict[str, tuple[np.dtype[Any], int]] = {
    "header": (_U1, 0),
    "events": (EVENT, 0),
    "streams": (_U8, 0),
    "threads": (_U8, 0),
    "pools": (_U8, 2),
    "texts": (_U1, 0),
    "text_ends": (_U8, 0),
    "frames": (FRAME, 0),
    "stack_frames": (_U4, 0),
    "stack_ends": (_U8, 0),
}
_KIND = npz.Kind(
    "poolalloc trace",
    VERSION,
    ("format", "version", "clock", "initial_events", "devices", "marks", "provenance"),
    TraceError,
    "it is no trace file: its header does not say so",
)
_BYTES = ("total_bytes", "reserved_at_start")
_DEVICE = ("device", "name", *_BYTES)


# --- writing --------------------------------------------------------------------------------------------------------


def write(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace. The file appears whole or not at all.

    Raises:
        TraceError: its events break the rules.
    """
    check(trace)
    npz.write(path, _arrays(trace))


def _arrays(trace: Trace) -> dict[str, npt.NDArray[Any]]:
    encoded = [text.encode("utf-8", "backslashreplace") for text in trace.stacks.texts]
    return {
        "header": np.frombuffer(json.dumps(_header(trace)).encode(), _U1),
        "events": trace.events,
        "streams": np.array(trace.streams, _U8),
        "threads": np.array(trace.threads, _U8),
        "pools": np.array(trace.pools, _U8).reshape(-1, 2),
        "texts": np.frombuffer(b"".join(encoded), _U1),
        "text_ends": np.cumsum([len(text) for text in encoded], dtype=_U8) if encoded else np.zeros(0, _U8),
        "frames": trace.stacks.frames,
        "stack_frames": trace.stacks.members.astype(_U4),
        "stack_ends": trace.stacks.ends.astype(_U8),
    }


def _header(trace: Trace) -> dict[str, Any]:
    return {
        "format": _KIND.format,
        "version": VERSION,
        "clock": trace.clock,
        "initial_events": trace.initial_events,
        "devices": [{name: getattr(info, name) for name in _DEVICE} for info in trace.devices],
        "marks": list(trace.marks),
        "provenance": trace.provenance,
    }


# --- reading --------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> Trace:
    """Return the trace in a file; a recording whose process did not end it counts up to its last whole part.

    Raises:
        TraceError: it is missing, damaged, or of a kind that is not known.
    """
    with npz.reading(path, TraceError) as file:
        return _read_archive(file)


def _read_archive(file: Any) -> Trace:
    start = file.read(len(log.MAGIC))
    if start == log.MAGIC:
        trace = log.trace_of(start + file.read())
        check(trace)
        return trace
    if not start.startswith(npz.MAGIC):
        raise TraceError("it is no trace file; snapshots and logs of other programs become one by: poolalloc import")
    with npz.opened(file, TraceError) as members:
        arrays = _read_members(members)
    header = _read_header(arrays["header"])
    streams, threads = (tuple(arrays[name].tolist()) for name in ("streams", "threads"))
    pools = tuple((int(first), int(second)) for first, second in arrays["pools"])
    if not streams or not threads or not pools or pools[0] != (0, 0):
        raise TraceError("its tables of streams, threads and pools must not be empty, and pool 0 is the ordinary one")
    trace = Trace(
        arrays["events"],
        streams,
        threads,
        pools,
        _read_stacks(arrays),
        tuple(header["marks"]),
        tuple(DeviceInfo(**row) for row in header["devices"]),
        header["initial_events"],
        header["clock"],
        header["provenance"],
    )
    check(trace)
    return trace


def _read_members(members: zipfile.ZipFile) -> dict[str, npt.NDArray[Any]]:
    names = members.namelist()
    if sorted(names) != sorted(f"{name}.npy" for name in _ARRAYS):
        if "header.npy" not in names:
            raise TraceError("it is no trace file: it has no header")
        _read_header(_read_array(members, "header"))  # a later version says so, rather than what is new in it
        unknown = sorted(set(names) ^ {f"{name}.npy" for name in _ARRAYS})
        raise TraceError(
            f"its arrays are not those of version {VERSION}: {', '.join(unknown) or 'some are there twice'}"
        )
    return {name: _read_array(members, name) for name in _ARRAYS}


def _read_array(members: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    dtype, columns = _ARRAYS[name]
    return npz.read_array(members, name, dtype, _KIND, columns)


def _read_header(array: npt.NDArray[Any]) -> dict[str, Any]:
    header = npz.read_header(array, _KIND)
    if header["clock"] not in CLOCKS:
        raise TraceError(f"its clock is {header['clock']!r}; known: {', '.join(CLOCKS)}")
    if not npz.is_whole(header["initial_events"], 1 << 62):
        raise TraceError(f"its header has {header['initial_events']!r} initial events")
    marks, provenance, devices = header["marks"], header["provenance"], header["devices"]
    if not isinstance(marks, list) or not all(isinstance(mark, str) for mark in marks):
        raise TraceError("the marks in its header are no texts")
    if not isinstance(provenance, dict):
        raise TraceError("the provenance in its header is no table")
    if not isinstance(devices, list) or not all(_is_device(row) for row in devices):
        raise TraceError("the devices in its header are not what version 1 says of devices")
    return header


def _is_device(row: object) -> bool:
    return (
        isinstance(row, dict)
        and sorted(row) == sorted(_DEVICE)
        and npz.is_whole(row["device"], MAX_DEVICES)
        and (row["name"] is None or isinstance(row["name"], str))
        and all(
            row[name] is None or npz.is_whole(row[name], MAX_BYTES) for name in ("total_bytes", "reserved_at_start")
        )
    )


def _read_stacks(arrays: dict[str, npt.NDArray[Any]]) -> Stacks:
    blob, ends = arrays["texts"].tobytes(), _ends(arrays["text_ends"], len(arrays["texts"]), "texts")
    starts = [0, *ends[:-1]]
    try:
        texts = tuple(blob[start:end].decode("utf-8") for start, end in zip(starts, ends, strict=False))
    except UnicodeDecodeError:
        raise TraceError("a text of its stacks is not UTF-8") from None
    frames, members = arrays["frames"], arrays["stack_frames"]
    if any((frames[name] >= len(texts)).any() for name in ("file", "function")):
        raise TraceError("a frame of its stacks has a text that is not in the table")
    if (members >= len(frames)).any():
        raise TraceError("a stack has a frame that is not in the table")
    stack_ends = _ends(arrays["stack_ends"], len(members), "stacks")
    if not stack_ends or stack_ends[0] != 0:
        raise TraceError("stack 0 must be there and empty")
    return Stacks(texts, frames, members, arrays["stack_ends"])


def _ends(array: npt.NDArray[Any], total: int, what: str) -> list[int]:
    """Ends of neighbouring pieces: they never decrease, and the last is the end of everything."""
    ends: list[int] = array.tolist()
    if ends != sorted(ends) or (ends[-1] if ends else 0) != total:
        raise TraceError(f"the ends of its {what} do not fit what is there")
    return ends
