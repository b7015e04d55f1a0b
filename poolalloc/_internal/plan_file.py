"""What a plan is, its rules, and plan files: `.npz` archives of numpy arrays, read with no trust in what they hold.

A plan has a part for each device and stream that repeats itself. A part lists the requests that are larger than the
plan's `above`, in their order: a beginning, then a cycle that comes again and again. Each has a size, an offset in the
part's addresses, and `until`, the number of the first request before which its block is freed; where a block outlives
the cycle the numbers go on behind its end.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from poolalloc._internal import npz
from poolalloc.errors import PoolallocError

VERSION = 1
GRANULARITY = 512
MAX_BYTES = 1 << 48
MAX_DEVICES = 64
REQUEST = np.dtype([("size", "<u8"), ("offset", "<u8"), ("until", "<u8")])
UNPLANNED = (1 << 64) - 1
"""The offset of a request that is in the plan only so that it is known."""
KEPT = (1 << 64) - 1
"""The `until` of a block of the beginning that stays."""

_PART = ("device", "stream", "requests", "first", "period", "height")
_ARRAYS: dict[str, np.dtype[Any]] = {"header": np.dtype("u1"), "requests": REQUEST}


class PlanError(PoolallocError, ValueError):
    """A file is no plan, or there is nothing to plan. One line that says what is wrong."""


_KIND = npz.Kind(
    "poolalloc plan",
    VERSION,
    ("format", "version", "above", "parts", "provenance"),
    PlanError,
    "it is no plan file, or its header does not say so; a recording becomes one by: poolalloc plan",
)


@dataclass(frozen=True)
class Part:
    """The plan of one device and stream."""

    device: int
    stream: int
    """0 is the default stream, 1 the first other one on which memory of the device is asked for, and so on."""
    requests: npt.NDArray[np.void]
    """Of the kind REQUEST, bytes: first the beginning, then the cycle."""
    first: int
    """The number of the cycle's first request."""
    period: int
    """A cycle is some periods, each of which asks for the same sizes."""
    height: int
    """The end of the highest block, in bytes."""

    @property
    def planned(self) -> int:
        """How many of its requests have a place."""
        return int(np.count_nonzero(self.requests["offset"] != UNPLANNED))


@dataclass(frozen=True)
class Plan:
    """Where the blocks of a program go whose steps repeat."""

    parts: tuple[Part, ...]
    above: int
    """Only requests larger than so many bytes are in it."""
    provenance: dict[str, object] = field(default_factory=dict)
    """What it was made of."""

    def to_core(self) -> dict[str, object]:
        """Return it as poolalloc._core takes it."""
        return {
            "above": self.above,
            "parts": [
                {
                    **{name: getattr(part, name) for name in ("device", "stream", "first", "period", "height")},
                    "sizes": np.ascontiguousarray(part.requests["size"]),
                    "offsets": np.ascontiguousarray(part.requests["offset"]),
                }
                for part in self.parts
            ],
        }


# --- the rules ------------------------------------------------------------------------------------------------------


def check(plan: Plan) -> None:
    """Raise PlanError unless the plan obeys the rules; two blocks in one place at one time above all."""
    if not plan.parts:
        raise PlanError("it has no parts")
    if not npz.is_whole(plan.above, MAX_BYTES):
        raise PlanError(f"it is said to begin above {plan.above!r} bytes")
    seen = set()
    for number, part in enumerate(plan.parts):
        if (part.device, part.stream) in seen:
            raise PlanError(f"part {number} is of device {part.device} and stream {part.stream}, as one before it")
        seen.add((part.device, part.stream))
        try:
            _check_part(part, plan.above)
        except PlanError as error:
            raise PlanError(f"part {number}: {error}") from None


def _check_part(part: Part, above: int) -> None:
    requests, count = part.requests, len(part.requests)
    if requests.dtype != REQUEST or requests.ndim != 1:
        raise PlanError(f"its requests are of the kind {requests.dtype}, and this reader knows {REQUEST}")
    if not 0 <= part.first < count or part.period < 1 or (count - part.first) % part.period:
        raise PlanError(
            f"a cycle of {count - part.first} requests from {part.first} on is not whole periods of {part.period}"
        )
    size, offset, until = requests["size"], requests["offset"], requests["until"]
    numbers = np.arange(count, dtype=np.uint64)
    _refuse((size == 0) | (size > MAX_BYTES), lambda i: f"has an absurd size: {int(size[i].astype(np.int64))} bytes")
    _refuse(size % GRANULARITY != 0, lambda i: f"has {size[i]} bytes, no multiple of {GRANULARITY}")
    _refuse(size <= above, lambda i: f"has {size[i]} bytes; the plan begins above {above}")
    cycle = size[part.first :]
    differs = np.concatenate((np.zeros(part.first, bool), cycle != np.roll(cycle, part.period)))
    _refuse(differs, lambda i: "asks for another size than the one a period before it")
    planned = offset != UNPLANNED
    _refuse(planned & (offset % GRANULARITY != 0), lambda i: f"lies at {offset[i]}, no multiple of {GRANULARITY}")
    beyond = planned & ((offset > part.height) | (size > part.height - np.minimum(offset, part.height)))
    _refuse(beyond, lambda i: f"lies at {offset[i]} and ends beyond the height, {part.height}")
    _refuse(planned & (until <= numbers), lambda i: f"is freed before request {until[i]}, so before it is there")
    late = planned & (numbers >= part.first) & (until > numbers + np.uint64(count - part.first))
    _refuse(late, lambda i: "has a place, and its block outlives the cycle that comes back to it")
    _check_overlaps(part)


def _refuse(wrong: npt.NDArray[np.bool_], say: Any) -> None:
    if wrong.any():
        number = int(np.argmax(wrong))
        raise PlanError(f"request {number} {say(number)}")


def _check_overlaps(part: Part) -> None:
    """Follow it through the beginning and the cycle, twice: the third time finds what the second did."""
    size, offset, until = (part.requests[name].tolist() for name in REQUEST.names or ())
    count, length = len(size), len(size) - part.first
    live: list[tuple[int, int, int]] = []  # start, end, number
    deaths: dict[int, list[tuple[int, int, int]]] = {}
    for time in range(count + length):
        for block in deaths.pop(time, ()):
            del live[bisect_left(live, block)]
        number, shift = (time, 0) if time < count else (time - length, length)
        if offset[number] == UNPLANNED:
            continue
        block = (offset[number], offset[number] + size[number], number)
        place = bisect_left(live, block)
        for other in live[max(place - 1, 0) : place + 1]:
            if other[0] < block[1] and block[0] < other[1]:
                raise PlanError(f"request {number} gets a place where the block of request {other[2]} lives")
        insort(live, block)
        if until[number] != KEPT:
            deaths.setdefault(until[number] + shift, []).append(block)


# --- writing --------------------------------------------------------------------------------------------------------


def write(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan. The file appears whole or not at all.

    Raises:
        PlanError: it breaks the rules.
        OSError: it cannot be written.
    """
    check(plan)
    header = {
        "format": _KIND.format,
        "version": VERSION,
        "above": plan.above,
        "parts": [
            {**{name: getattr(part, name) for name in _PART}, "requests": len(part.requests)} for part in plan.parts
        ],
        "provenance": plan.provenance,
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "requests": np.concatenate([part.requests for part in plan.parts]),
    }
    npz.write(path, arrays)


# --- reading --------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> Plan:
    """Return the plan in a file.

    Raises:
        PlanError: it is missing, damaged, or of a kind that is not known.
    """
    with npz.reading(path, PlanError) as file:
        plan = _read_archive(file)
        check(plan)
    return plan


def _read_archive(file: Any) -> Plan:
    if not file.read(4).startswith(npz.MAGIC):
        raise PlanError("it is no plan file; a recording becomes one by: poolalloc plan")
    with npz.opened(file, PlanError) as members:
        names = sorted(members.namelist())
        if names != sorted(f"{name}.npy" for name in _ARRAYS):
            if "header.npy" in names:  # a trace, or a later version, says so
                _read_header(npz.read_array(members, "header", _ARRAYS["header"], _KIND))
            raise PlanError("it is no plan file: its arrays are not those of one")
        arrays = {name: npz.read_array(members, name, dtype, _KIND) for name, dtype in _ARRAYS.items()}
    header = _read_header(arrays["header"])
    parts, start = [], 0
    for row in header["parts"]:
        end = start + row["requests"]
        parts.append(Part(**{**row, "requests": arrays["requests"][start:end]}))
        if len(parts[-1].requests) != row["requests"]:
            raise PlanError("its header has more requests than there are")
        start = end
    if start != len(arrays["requests"]):
        raise PlanError("it has more requests than its header says")
    return Plan(tuple(parts), header["above"], header["provenance"])


def _read_header(array: npt.NDArray[Any]) -> dict[str, Any]:
    header = npz.read_header(array, _KIND)
    parts = header["parts"]
    if not npz.is_whole(header["above"], MAX_BYTES) or not isinstance(header["provenance"], dict):
        raise PlanError("its header is not what version 1 says")
    if not isinstance(parts, list) or not all(_is_part(row) for row in parts):
        raise PlanError("the parts in its header are not what version 1 says of parts")
    return header


def _is_part(row: object) -> bool:
    return (
        isinstance(row, dict)
        and sorted(row) == sorted(_PART)
        and npz.is_whole(row["device"], MAX_DEVICES)
        and all(npz.is_whole(row[name], 1 << 32) for name in ("stream", "requests", "first", "period"))
        and npz.is_whole(row["height"], MAX_BYTES)
    )
