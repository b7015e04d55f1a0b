"""Trace files: `.npz` archives of numpy arrays, read with no trust in what they hold."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from poolalloc.trace import log
from poolalloc.trace.format import (
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

_FORMAT = "poolalloc trace"
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
_HEADER = ("format", "version", "clock", "initial_events", "devices", "marks", "provenance")
_DEVICE = ("device", "name", "total_bytes", "reserved_at_start")
_WHEN = (1980, 1, 1, 0, 0, 0)  # the date of every member: the same trace makes the same file


# --- writing --------------------------------------------------------------------------------------------------------


def write(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace. The file appears whole or not at all. Raises TraceError for events that break the rules."""
    check(trace)
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            _write_archive(trace, file)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _write_archive(trace: Trace, file: Any) -> None:
    encoded = [text.encode("utf-8", "backslashreplace") for text in trace.stacks.texts]
    arrays: dict[str, npt.NDArray[Any]] = {
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
    # Level 1: events shrink to an eighth or less, at several times the speed of the default level.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", _WHEN)
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=array.nbytes > 1 << 30) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), (1, 0), allow_pickle=False)


def _header(trace: Trace) -> dict[str, Any]:
    return {
        "format": _FORMAT,
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

    Raises TraceError for one that is missing, damaged, or of a kind it does not know.
    """
    name = os.path.basename(os.fspath(path))
    try:
        with open(path, "rb") as file:
            return _read_archive(file)
    except TraceError as error:
        raise TraceError(f"{name}: {error}") from None
    except OSError as error:
        raise TraceError(f"{name}: {error.strerror or error}") from None
    except MemoryError:
        raise TraceError(f"{name}: it does not fit into this machine's memory") from None


def _read_archive(file: Any) -> Trace:
    start = file.read(len(log.MAGIC))
    if start == log.MAGIC:
        trace = log.trace_of(start + file.read())
        check(trace)
        return trace
    if not start.startswith(b"PK\x03\x04"):
        raise TraceError("it is no trace file; snapshots and logs of other programs become one by: poolalloc import")
    try:
        with zipfile.ZipFile(file) as archive:
            arrays = _read_members(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"it is damaged or was cut off: {' '.join(str(error).split())}") from None
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


def _read_members(archive: zipfile.ZipFile) -> dict[str, npt.NDArray[Any]]:
    names = archive.namelist()
    if sorted(names) != sorted(f"{name}.npy" for name in _ARRAYS):
        if "header.npy" not in names:
            raise TraceError("it is no trace file: it has no header")
        _read_header(_read_array(archive, "header"))  # a later version says so, rather than what is new in it
        unknown = sorted(set(names) ^ {f"{name}.npy" for name in _ARRAYS})
        raise TraceError(
            f"its arrays are not those of version {VERSION}: {', '.join(unknown) or 'some are there twice'}"
        )
    return {name: _read_array(archive, name) for name in _ARRAYS}


def _read_array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """An array of the kind it must be; its size is believed only as far as there are bytes for it."""
    dtype, columns = _ARRAYS[name]
    with archive.open(f"{name}.npy") as stream:
        head = io.BytesIO(stream.read(4096))
        try:
            version = np.lib.format.read_magic(head)
            if version != (1, 0):
                raise TraceError(f"array {name} is of numpy's format {version[0]}.{version[1]}; this reader knows 1.0")
            shape, fortran, found = np.lib.format.read_array_header_1_0(head, max_header_size=4096)
        except TraceError:
            raise
        except Exception as error:  # numpy evaluates the header as Python and lets whatever happens there out
            raise TraceError(f"array {name} has no header of numpy's: {' '.join(str(error).split())[:120]}") from None
        if found != dtype or fortran or len(shape) != (2 if columns else 1) or (columns and shape[1] != columns):
            raise TraceError(f"array {name} is of the kind {found}, shape {shape}; version {VERSION} has {dtype}")
        data = head.read() + stream.read()
    count = int(np.prod(shape, dtype=object))
    if len(data) != count * dtype.itemsize:
        raise TraceError(f"array {name} has {len(data)} bytes where {count} entries need {count * dtype.itemsize}")
    return np.frombuffer(data, dtype).reshape(shape)


def _read_header(array: npt.NDArray[Any]) -> dict[str, Any]:
    try:
        header = json.loads(array.tobytes().decode("utf-8"))
    except (ValueError, RecursionError):
        raise TraceError("its header is no JSON text") from None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise TraceError("it is no trace file: its header does not say so")
    if header.get("version") != VERSION:
        raise TraceError(f"it is of version {header.get('version')!r}; this poolalloc reads version {VERSION}")
    if sorted(header) != sorted(_HEADER):
        odd = sorted(set(header) ^ set(_HEADER))
        raise TraceError(f"its header is not that of version {VERSION}: {', '.join(map(repr, odd))}")
    if header["clock"] not in CLOCKS:
        raise TraceError(f"its clock is {header['clock']!r}; known: {', '.join(CLOCKS)}")
    if not _whole(header["initial_events"], 1 << 62):
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
        and _whole(row["device"], MAX_DEVICES)
        and (row["name"] is None or isinstance(row["name"], str))
        and all(row[name] is None or _whole(row[name], MAX_BYTES) for name in ("total_bytes", "reserved_at_start"))
    )


def _whole(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


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
