"""What a trace is: its events, tables and stacks, and the rules they obey. The manual: docs/trace-format.md.

Not for files: files.py; nor for making traces of other programs' recordings: torch_snapshot.py and rmm_csv.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from poolalloc.errors import PoolallocError

VERSION = 1
MAX_DEVICES = 64
MAX_BYTES = 1 << 48
"""No allocation, segment or device is larger: what a device can address."""

EVENT = np.dtype(
    [
        ("time_ns", "<u8"),
        ("op", "u1"),
        ("device", "<i2"),
        ("stream", "<u4"),
        ("thread", "<u4"),
        ("pool", "<u4"),
        ("id", "<u8"),
        ("requested", "<u8"),
        ("rounded", "<u8"),
        ("stack", "<u4"),
    ]
)
FRAME = np.dtype([("file", "<u4"), ("function", "<u4"), ("line", "<u4")])

Events = npt.NDArray[np.void]
Indexes = npt.NDArray[np.int64]


class TraceError(PoolallocError, ValueError):
    """A file is no trace, or no recording that a trace can be made of. One line that says what is wrong with it."""


class Op(IntEnum):
    """The kinds of events. Numbers are part of the file format and never change their meaning."""

    ALLOC = 1
    FREE = 2
    FREE_COMPLETED = 3
    RECORD_STREAM = 4
    SEGMENT_ALLOC = 5
    SEGMENT_FREE = 6
    SEGMENT_MAP = 7
    SEGMENT_UNMAP = 8
    OUT_OF_MEMORY = 9
    MARK = 10
    SNAPSHOT = 11
    RELEASE_POOL = 12


OF_BLOCKS = (Op.ALLOC, Op.FREE, Op.FREE_COMPLETED, Op.RECORD_STREAM)
"""The events whose `id` is that of an allocation."""


SCOPE_FILE = "<scope>"
"""The file of a stack's outermost frame that is none: its function is the scope (poolalloc/scopes.py) around it."""


class Frame(NamedTuple):
    """One line of a stack."""

    file: str
    function: str
    line: int

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{self.function} ({where})" if where else self.function


def frames_to_json(frames: Iterable[Frame]) -> list[dict[str, Any]]:
    """Return the lines of a stack as plain values."""
    return [frame._asdict() for frame in frames]


@dataclass(frozen=True)
class Stacks:
    """Stacks, innermost frame first, each frame and text stored once. Stack 0 is the empty one: not recorded."""

    texts: tuple[str, ...] = ()
    frames: npt.NDArray[np.void] = field(default_factory=lambda: np.zeros(0, FRAME))
    members: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    ends: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(1, np.uint64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, stack: int) -> tuple[Frame, ...]:
        if not 0 <= stack < len(self):
            raise IndexError(f"there is no stack {stack}")
        start = int(self.ends[stack - 1]) if stack else 0
        rows = self.frames[self.members[start : int(self.ends[stack])]]
        return tuple(Frame(self.texts[file], self.texts[function], line) for file, function, line in rows.tolist())


class StackTable:
    """Collects stacks and numbers them."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._frames: dict[Frame, int] = {}
        self._stacks: dict[tuple[Frame, ...], int] = {(): 0}
        self._members: list[int] = []
        self._ends = [0]

    def add(self, frames: Iterable[Frame]) -> int:
        """Return the number of this stack."""
        key = tuple(frames)
        number = self._stacks.get(key)
        if number is None:
            number = self._stacks[key] = len(self._ends)
            self._members += [self._frame(frame) for frame in key]
            self._ends.append(len(self._members))
        return number

    def _frame(self, frame: Frame) -> int:
        self._text(frame.file)
        self._text(frame.function)
        return self._frames.setdefault(frame, len(self._frames))

    def _text(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))

    def table(self) -> Stacks:
        """Return everything collected."""
        frames = np.zeros(len(self._frames), FRAME)
        for row, frame in enumerate(self._frames):
            frames[row] = (self._texts[frame.file], self._texts[frame.function], frame.line)
        return Stacks(tuple(self._texts), frames, np.array(self._members, np.uint32), np.array(self._ends, np.uint64))


@dataclass(frozen=True)
class DeviceInfo:
    """What is known of a device; None is not known. Bytes."""

    device: int
    name: str | None = None
    total_bytes: int | None = None
    reserved_at_start: int | None = None
    """What the recorded allocator held before the first event; segment events change it from there."""


@dataclass(frozen=True)
class Trace:
    """A recording. `streams`, `threads` and `pools` give the original value for each number in the events.

    The first `initial_events` events are no events: they stand for what was there when the recording began.
    """

    events: Events
    streams: tuple[int, ...] = (0,)
    threads: tuple[int, ...] = (0,)
    pools: tuple[tuple[int, int], ...] = ((0, 0),)
    stacks: Stacks = field(default_factory=Stacks)
    marks: tuple[str, ...] = ()
    devices: tuple[DeviceInfo, ...] = ()
    initial_events: int = 0
    clock: str = "monotonic"
    """Where times come from: `monotonic`, `unix`, or `order` (not recorded: 1000 ns from one event to the next)."""
    provenance: dict[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.events)

    def device_info(self, device: int) -> DeviceInfo:
        """Return what is known of a device."""
        return next((info for info in self.devices if info.device == device), DeviceInfo(device))

    def used_devices(self) -> list[int]:
        """Return the devices on which anything was allocated."""
        return [int(device) for device in np.unique(self.events["device"][self.events["op"] == Op.ALLOC])]

    def of_device(self, device: int) -> Trace:
        """Return the events of one device alone."""
        keep = self.events["device"] == device
        return Trace(
            np.ascontiguousarray(self.events[keep]),
            self.streams,
            self.threads,
            self.pools,
            self.stacks,
            self.marks,
            tuple(info for info in self.devices if info.device == device),
            int(np.count_nonzero(keep[: self.initial_events])),
            self.clock,
            self.provenance,
        )


CLOCKS = ("monotonic", "unix", "order")


# --- the rules ------------------------------------------------------------------------------------------------------


def check(trace: Trace) -> None:
    """Raise TraceError unless the events obey the rules of the format, and number tables that exist."""
    events = trace.events
    if events.dtype != EVENT or events.ndim != 1:
        raise TraceError(f"its events are of the kind {events.dtype}, and this reader knows {EVENT}")
    if len(events) == 0:
        raise TraceError("it has no events")
    _check_numbers(trace)
    _check_sizes(events)
    _check_lives(events)


def _check_numbers(trace: Trace) -> None:
    events = trace.events
    ops = events["op"]
    _refuse(~np.isin(ops, list(Op)), lambda i: f"is of the unknown kind {ops[i]}")
    devices = events["device"]
    _refuse((devices < 0) | (devices >= MAX_DEVICES), lambda i: f"is on device {devices[i]}; there are 0 to 63")
    tables: tuple[tuple[str, Sequence[object] | Stacks], ...] = (
        ("stream", trace.streams),
        ("thread", trace.threads),
        ("pool", trace.pools),
        ("stack", trace.stacks),
    )
    for name, table in tables:
        column = events[name]
        beyond = np.flatnonzero(column >= len(table))
        if len(beyond):
            raise TraceError(
                f"event {beyond[0]} has {name} {column[beyond[0]]}, and there are {len(table)} in the table"
            )
    marks = np.flatnonzero(ops == Op.MARK)
    _refuse(events["id"][marks] >= len(trace.marks), lambda i: f"has no text for its mark {events['id'][i]}", marks)
    times = events["time_ns"]
    _refuse(times[1:] < times[:-1], lambda i: f"is followed by an earlier one ({times[i + 1]} ns after {times[i]} ns)")
    if not 0 <= trace.initial_events <= len(events):
        raise TraceError(f"{trace.initial_events} of its {len(events)} events are said to be the initial state")
    initial = ops[: trace.initial_events]
    _refuse(~np.isin(initial, (Op.ALLOC, Op.FREE)), lambda i: "is no part of an initial state, but said to be")


def _check_sizes(events: Events) -> None:
    requested, rounded = events["requested"], events["rounded"]
    sized = np.flatnonzero(np.isin(events["op"], (*OF_BLOCKS, *range(Op.SEGMENT_ALLOC, Op.SEGMENT_UNMAP + 1))))
    for column in (requested, rounded):
        absurd = sized[column[sized] > MAX_BYTES]
        if len(absurd):
            raise TraceError(f"event {absurd[0]} has an absurd size: {int(column.astype(np.int64)[absurd[0]])} bytes")
    wrong = (rounded != 0) & (rounded < requested)
    _refuse(wrong, lambda i: f"has {rounded[i]} bytes rounded for {requested[i]} requested")


def _check_lives(events: Events) -> None:
    """Every block is allocated once, then used by other streams, freed, completed, each at most once but uses."""
    ops, ids = events["op"], events["id"]
    allocs = np.flatnonzero(ops == Op.ALLOC)
    _refuse(ids[allocs] == 0, lambda i: "allocates the id 0, which no allocation has", allocs)
    order = allocs[np.argsort(ids[allocs], kind="stable")]
    known = ids[order]
    _refuse(known[1:] == known[:-1], lambda i: f"allocates id {ids[i]} a second time", order[1:])
    born_of = _Lookup(known, order)
    frees = np.flatnonzero(ops == Op.FREE)
    _refuse_unless_after(events, frees, born_of, "frees", "was not allocated before")
    order = frees[np.argsort(ids[frees], kind="stable")]
    known = ids[order]
    _refuse(known[1:] == known[:-1], lambda i: f"frees id {ids[i]} a second time", order[1:])
    freed_of = _Lookup(known, order)
    completed = np.flatnonzero(ops == Op.FREE_COMPLETED)
    _refuse_unless_after(events, completed, freed_of, "completes the free of", "was not freed before")
    again = completed[np.argsort(ids[completed], kind="stable")]
    _refuse(ids[again][1:] == ids[again][:-1], lambda i: f"completes the free of id {ids[i]} a second time", again[1:])
    uses = np.flatnonzero(ops == Op.RECORD_STREAM)
    _refuse_unless_after(events, uses, born_of, "uses", "was not allocated before")
    late = freed_of.find(ids[uses])
    _refuse((late >= 0) & (late < uses), lambda i: f"uses id {ids[i]}, which was freed before", uses)


class _Lookup:
    """Where in the events each id is; `known` is sorted."""

    def __init__(self, known: npt.NDArray[np.uint64], places: Indexes) -> None:
        self._known = known
        self._places = places

    def find(self, ids: npt.NDArray[np.uint64]) -> Indexes:
        """Return the place of each id, -1 where there is none."""
        if len(self._known) == 0:
            return np.full(len(ids), -1)
        at = np.minimum(np.searchsorted(self._known, ids), len(self._known) - 1)
        return np.where(self._known[at] == ids, self._places[at], -1)


def _refuse_unless_after(events: Events, places: Indexes, lookup: _Lookup, verb: str, problem: str) -> None:
    ids = events["id"]
    before = lookup.find(ids[places])
    _refuse((before < 0) | (before > places), lambda i: f"{verb} id {ids[i]}, which {problem}", places)
    for name in ("requested", "device"):
        differs = events[name][places] != events[name][before]
        _refuse(differs, partial(_say_differs, events, verb, name), places)


def _say_differs(events: Events, verb: str, name: str, event: int) -> str:
    return f"{verb} id {events['id'][event]} with another {name} than before"


def _refuse(wrong: npt.NDArray[np.bool_], say: Any, places: Indexes | None = None) -> None:
    """Raise TraceError about the first event that is wrong. `places` are the numbers of the events judged."""
    if wrong.any():
        first = int(np.argmax(wrong))
        number = first if places is None else int(places[first])
        raise TraceError(f"event {number} {say(number)}")


# --- what follows from the events -----------------------------------------------------------------------------------


def requested_over_time(events: Events) -> npt.NDArray[np.int64]:
    """Return the bytes that the program held after each event, all devices together."""
    change = np.zeros(len(events), np.int64)
    requested = events["requested"].astype(np.int64)
    allocated, freed = events["op"] == Op.ALLOC, events["op"] == Op.FREE
    change[allocated] = requested[allocated]
    change[freed] = -requested[freed]
    return np.cumsum(change)


def recorded_reserved_over_time(trace: Trace, device: int) -> npt.NDArray[np.int64] | None:
    """Return what the recorded allocator held on a device after each event; None if the recording does not say."""
    start = trace.device_info(device).reserved_at_start
    if start is None:
        return None
    events = trace.events
    ours = events["device"] == device
    gained = ours & np.isin(events["op"], (Op.SEGMENT_ALLOC, Op.SEGMENT_MAP))
    lost = ours & np.isin(events["op"], (Op.SEGMENT_FREE, Op.SEGMENT_UNMAP))
    requested = events["requested"].astype(np.int64)
    return start + np.cumsum(np.where(gained, requested, 0) - np.where(lost, requested, 0))
