"""Recordings as the engine writes them while a program runs (event_log.h in csrc/core), and the traces they become.

A recording names blocks by address, a trace by id. Frames are read up to the last one that is whole, so what a killed
process left is a recording too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from poolalloc._internal.trace.format import EVENT, DeviceInfo, Frame, Op, StackTable, Trace, TraceError

MAGIC = b"poolalloc log 1\n"
_FRAME = struct.Struct("<II")
_HEADER, _EVENTS, _MARK, _POOL, _CLOCK, _STACK = 1, 2, 3, 4, 5, 6
_INITIAL = 64
_RECORD = np.dtype(
    [
        ("ticks", "<u8"),
        ("address", "<u8"),
        ("requested", "<u8"),
        ("stream", "<u8"),
        ("thread", "<u4"),
        ("pool", "<u4"),
        ("op", "u1"),
        ("device", "u1"),
        ("unused", "V2"),
        ("stack", "<u4"),
    ]
)
_KNOWN = (
    Op.ALLOC,
    Op.FREE,
    Op.FREE_COMPLETED,
    Op.RECORD_STREAM,
    Op.SEGMENT_MAP,
    Op.SEGMENT_UNMAP,
    Op.OUT_OF_MEMORY,
    Op.MARK,
    Op.RELEASE_POOL,
    _INITIAL,
)
_OF_BLOCKS = (_INITIAL, Op.ALLOC, Op.FREE, Op.FREE_COMPLETED, Op.RECORD_STREAM)
_BIRTHS = (_INITIAL, Op.ALLOC)

Numbers = npt.NDArray[np.int64]


def trace_of(data: bytes, devices: Sequence[DeviceInfo] = (), provenance: Mapping[str, Any] | None = None) -> Trace:
    """Return the trace of a recording. `devices` and `provenance` are what is known besides what it says itself.

    Raises:
        TraceError: it is no recording, or one of a kind this reader does not know.
    """
    found = _read_frames(data)
    records, dropped = _only_what_makes_sense(found.records())
    streams, stream_numbers = _table(records["stream"])
    threads, thread_numbers = _table(records["thread"].astype(np.uint64))
    initial = records["op"] == _INITIAL
    events = np.zeros(len(records), EVENT)
    events["time_ns"] = _times(records["ticks"], found.clock)
    for name in ("requested", "pool", "stack"):
        events[name] = records[name]
    events["op"] = np.where(initial, Op.ALLOC, records["op"])
    events["device"] = records["device"]
    events["stream"] = stream_numbers
    events["thread"] = thread_numbers
    is_mark = records["op"] == Op.MARK
    events["id"][is_mark] = records["address"][is_mark]
    _number_blocks(events, records)
    pages = np.isin(events["op"], (Op.SEGMENT_MAP, Op.SEGMENT_UNMAP))
    events["rounded"][pages] = events["requested"][pages]
    of_blocks = np.isin(events["op"], _OF_BLOCKS)
    events["rounded"][of_blocks] = _rounded(events["requested"][of_blocks], found.header.get("bin_limit", 0))
    first = np.flatnonzero(initial)
    order = np.concatenate([first, np.flatnonzero(~initial)])
    events = events[order]
    if len(first) < len(events):
        events["time_ns"][: len(first)] = events["time_ns"][:].min()
    about = {**found.header.get("provenance", {}), **(provenance or {})}
    if found.cut_off:
        about["bytes_cut_off"] = found.cut_off
    if dropped:
        about["events_left_out"] = dropped
    return Trace(
        events,
        streams=streams,
        threads=threads,
        pools=((0, 0), *found.pools),
        stacks=found.stacks.table(),
        marks=tuple(found.marks),
        devices=tuple(devices),
        initial_events=len(first),
        clock="monotonic",
        provenance=about,
    )


_Pairs = list[tuple[int, int]]


@dataclass
class _Frames:
    """What the frames hold, one after the other."""

    header: dict[str, Any] = field(default_factory=dict)
    events: list[npt.NDArray[Any]] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    pools: _Pairs = field(default_factory=list)
    clock: _Pairs = field(default_factory=list)
    stacks: StackTable = field(default_factory=StackTable)
    stack_numbers: list[int] = field(default_factory=lambda: [0])
    """In the table, for each number in the events."""
    cut_off: int = 0
    """Bytes at the end that are no whole frame."""

    def records(self) -> npt.NDArray[Any]:
        """All events, with the numbers of `stacks`."""
        records = np.concatenate([np.zeros(0, _RECORD), *self.events])
        if len(records) == 0:
            raise TraceError("it has no events")
        ops = records["op"]
        if len(unknown := np.flatnonzero(~np.isin(ops, _KNOWN))):
            raise TraceError(f"its event {unknown[0]} is of the unknown kind {ops[unknown[0]]}")
        if len(beyond := np.flatnonzero(records["stack"] >= len(self.stack_numbers))):
            raise TraceError(f"its event {beyond[0]} names a stack that the file does not have")
        records["stack"] = np.array(self.stack_numbers, np.uint32)[records["stack"]]
        return records


def _read_frames(data: bytes) -> _Frames:
    if not data.startswith(MAGIC):
        raise TraceError("it is no recording of poolalloc, or of a version this reader does not know")
    found = _Frames()
    headed = False
    at = len(MAGIC)
    while at + _FRAME.size <= len(data):
        kind, size = _FRAME.unpack_from(data, at)
        payload = data[at + _FRAME.size : at + _FRAME.size + size]
        if len(payload) < size:
            break
        if kind == _HEADER and not headed:
            found.header, headed = _read_header(payload), True
        elif kind == _EVENTS and size % _RECORD.itemsize == 0:
            found.events.append(np.frombuffer(payload, _RECORD))
        elif kind == _MARK:
            found.marks.append(payload.decode("utf-8", "replace"))
        elif kind == _STACK:
            found.stack_numbers.append(found.stacks.add(_read_stack(payload)))
        elif kind in (_POOL, _CLOCK) and size == 16:
            first, second = struct.unpack("<QQ", payload)
            (found.pools if kind == _POOL else found.clock).append((first, second))
        else:
            raise TraceError(f"it has a frame of the unknown kind {kind} with {size} bytes at byte {at}")
        at += _FRAME.size + size
    if not headed:
        raise TraceError("it was cut off before its header")
    found.cut_off = len(data) - at
    return found


def _read_stack(payload: bytes) -> list[Frame]:
    rows = _json(payload, "a stack")
    if not isinstance(rows, list):
        raise TraceError("a stack in it is no list")
    return [_read_line(row) for row in rows]


def _read_line(row: Any) -> Frame:
    match row:
        case [str(file), str(function), int(line)] if 0 <= line < 1 << 32:
            return Frame(file, function, line)
    raise TraceError("a stack in it has a line that is not [file, function, line]")


def _times(ticks: npt.NDArray[np.uint64], clock: _Pairs) -> npt.NDArray[np.uint64]:
    """Nanoseconds of the monotonic clock for ticks of the cheap one, between the moments at which both were read."""
    if not clock:
        return ticks
    start_ticks, start_ns = clock[0]
    known_ticks = np.array([moment[0] - start_ticks for moment in clock], np.float64)
    known_ns = np.array([moment[1] - start_ns for moment in clock], np.float64)
    since = ticks.astype(np.float64) - start_ticks
    return np.maximum.accumulate((np.interp(since, known_ticks, known_ns) + start_ns).astype(np.uint64))


def _read_header(payload: bytes) -> dict[str, Any]:
    header = _json(payload, "its header")
    if not isinstance(header, dict):
        raise TraceError("its header is no table")
    if not isinstance(header.get("bin_limit", 0), int) or not isinstance(header.get("provenance", {}), dict):
        raise TraceError("its header has a bin_limit or a provenance of another kind than this reader knows")
    return header


def _json(payload: bytes, what: str) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        raise TraceError(f"{what} is no JSON text") from None


# --- blocks -----------------------------------------------------------------------------------------------------------


def _by_address(records: npt.NDArray[Any]) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """The events of blocks ordered by address, then as they came; and which of them begins another address."""
    places = np.flatnonzero(np.isin(records["op"], _OF_BLOCKS))
    places = places[np.argsort(records["address"][places], kind="stable")]
    addresses = records["address"][places]
    begins = np.ones(len(places), bool)
    begins[1:] = addresses[1:] != addresses[:-1]
    return places, begins


def _birth_of(ops: npt.NDArray[np.uint8], begins: npt.NDArray[np.bool_]) -> Numbers:
    """For each event in that order, where its block's birth stands; -1 where there was none at this address."""
    here = np.arange(len(ops))
    births = np.maximum.accumulate(np.where(np.isin(ops, _BIRTHS), here, -1)) if len(ops) else here
    return np.where(births >= np.maximum.accumulate(np.where(begins, here, 0)), births, -1) if len(ops) else births


def _only_what_makes_sense(records: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
    """Leave out events of blocks nobody was given: second frees, what a program passed by mistake; and count them.

    A block that came while the recording began stands among the initial ones and has an alloc: that one counts.
    """
    places, begins = _by_address(records)
    ops = records["op"][places]
    wrong = np.zeros(len(places), bool)
    twice = np.zeros(len(places), bool)
    twice[:-1] = (ops[:-1] == _INITIAL) & (ops[1:] == Op.ALLOC) & ~begins[1:]
    births = _birth_of(ops, begins)
    wrong |= births < 0
    for op in (Op.FREE, Op.FREE_COMPLETED):
        here = np.flatnonzero((ops == op) & ~wrong)
        first = np.zeros(len(places), bool)
        first[here[np.unique(births[here], return_index=True)[1]]] = True
        wrong |= (ops == op) & ~first
    freed = np.full(len(places) + 1, len(places))
    frees = np.flatnonzero((ops == Op.FREE) & ~wrong)
    freed[births[frees]] = frees
    wrong |= (ops == Op.RECORD_STREAM) & (np.arange(len(places)) > freed[births])
    wrong |= (ops == Op.FREE_COMPLETED) & (np.arange(len(places)) < freed[births])
    keep = np.ones(len(records), bool)
    keep[places[wrong | twice]] = False
    return records[keep], int(np.count_nonzero(wrong))


def _number_blocks(events: npt.NDArray[Any], records: npt.NDArray[Any]) -> None:
    """Ids count the births; whatever happens to a block carries its size, device, pool and, but for uses, stream."""
    places, begins = _by_address(records)
    births = places[_birth_of(records["op"][places], begins)]
    born = np.flatnonzero(np.isin(records["op"], _BIRTHS))
    numbers = np.zeros(len(records), np.uint64)
    numbers[born] = np.arange(1, len(born) + 1)
    events["id"][places] = numbers[births]
    for name in ("requested", "device", "pool"):
        events[name][places] = events[name][births]
    own = places[records["op"][places] != Op.RECORD_STREAM]
    events["stream"][own] = events["stream"][births[records["op"][places] != Op.RECORD_STREAM]]


def _rounded(requested: npt.NDArray[np.uint64], bin_limit: int) -> npt.NDArray[np.uint64]:
    """What the engine set aside for each: size classes up to `bin_limit`, 512 B multiples above."""
    from poolalloc import _core

    sizes, back = np.unique(requested, return_inverse=True)
    granularity = _core.GRANULARITY
    rounded = [
        _core.bin_bytes(_core.bin_of(size)) if size <= bin_limit else -(-size // granularity) * granularity
        for size in sizes.tolist()
    ]
    return np.array(rounded, np.uint64)[back]


def _table(values: npt.NDArray[np.uint64]) -> tuple[tuple[int, ...], npt.NDArray[np.uint32]]:
    """Numbers for values in the order in which they first appear; 0 is number 0."""
    found, first, back = np.unique(np.concatenate([[np.uint64(0)], values]), return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    number = np.empty(len(order), np.uint32)
    number[order] = np.arange(len(order))
    return tuple(found[order].tolist()), number[back][1:]
