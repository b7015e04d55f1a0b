"""The blocks of a trace as rectangles: from which event to which each lived, and where an allocator placed it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from poolalloc._internal.trace.format import Op, Trace

MOST_DRAWN = 150_000
"""Blocks in a page, all devices together: what a browser draws and searches without delay, in some megabytes."""
GAP = 4 << 20
"""Addresses that no block ever used are left out of the map where there are more than so many in a row."""


@dataclass(frozen=True)
class Blocks:
    """Allocations, each column by block; `birth`, `free` and `gone` are numbers of events."""

    allocation: npt.NDArray[np.int64]
    """Its number among all allocations of the trace."""
    device: npt.NDArray[np.int16]
    birth: npt.NDArray[np.int64]
    free: npt.NDArray[np.int64]
    """When the program gave it back; the number of events if it never did."""
    gone: npt.NDArray[np.int64]
    """When its memory could be used again: `free`, or later where other streams had to be done with it."""
    requested: npt.NDArray[np.uint64]
    id: npt.NDArray[np.uint64]
    stack: npt.NDArray[np.uint32]
    stream: npt.NDArray[np.uint32]
    pool: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.birth)

    def take(self, rows: npt.NDArray[np.int64]) -> Blocks:
        """Return these rows alone."""
        return Blocks(**{name: column[rows] for name, column in vars(self).items()})


def of_trace(trace: Trace) -> Blocks:
    """Return every allocation of a trace, in their order."""
    events = trace.events
    end = len(events)
    births = np.flatnonzero(events["op"] == Op.ALLOC)
    ids = events["id"][births]
    order = np.argsort(ids, kind="stable")
    frees = np.full(len(births), end)
    gone = np.full(len(births), end)
    freed = np.flatnonzero(events["op"] == Op.FREE)
    owner = order[np.searchsorted(ids[order], events["id"][freed])]
    frees[owner] = freed
    gone[owner] = freed
    # Freed for good only when other streams are done; never, for all the recording knows, where it does not say when.
    used = np.flatnonzero(events["op"] == Op.RECORD_STREAM)
    gone[order[np.searchsorted(ids[order], events["id"][used])]] = end
    completed = np.flatnonzero(events["op"] == Op.FREE_COMPLETED)
    gone[order[np.searchsorted(ids[order], events["id"][completed])]] = completed
    rows = events[births]
    columns = {name: rows[name].copy() for name in ("device", "requested", "id", "stack", "stream", "pool")}
    return Blocks(allocation=np.arange(len(births)), birth=births, free=frees, gone=gone, **columns)


def largest(blocks: Blocks, times: npt.NDArray[np.int64], most: int) -> tuple[Blocks, float]:
    """Return the `most` blocks that cover most of the map, by time or by events, and what share of it the rest covers.

    `times` are those of the events, and one more for the end.
    """
    if len(blocks) <= most:
        return blocks, 0.0
    by_events = (blocks.gone - blocks.birth) / max(len(times) - 1, 1)
    by_time = (times[blocks.gone] - times[blocks.birth]) / max(int(times[-1] - times[0]), 1)
    area = blocks.requested * np.maximum(by_events, by_time)
    rows = np.sort(np.argpartition(-area, most)[:most])
    whole = float(area.sum())
    return blocks.take(rows), 1 - float(area[rows].sum()) / whole if whole else 0.0


@dataclass(frozen=True)
class Places:
    """Where blocks are on a map whose unused addresses are left out: `rows` are bytes from its lower edge."""

    rows: npt.NDArray[np.float64]
    """NaN for a block that was not placed."""
    starts: npt.NDArray[np.float64]
    """Rows at which a stretch of addresses begins."""
    addresses: npt.NDArray[np.uint64]
    """The first address of each stretch."""
    height: float


def places_of(addresses: npt.NDArray[np.uint64], sizes: npt.NDArray[np.uint64]) -> Places:
    """Return the places of blocks on one device; address 0 stands for a block that was not placed."""
    rows = np.full(len(addresses), np.nan)
    placed = np.flatnonzero(addresses != 0)
    if len(placed) == 0:
        return Places(rows, np.zeros(0), np.zeros(0, np.uint64), 0.0)
    order = placed[np.argsort(addresses[placed], kind="stable")]
    begin = addresses[order]
    reach = np.maximum.accumulate(begin + np.maximum(sizes[order], np.uint64(1)))
    # A stretch begins where none of the blocks below comes near.
    first = np.concatenate([[True], (begin[1:] > reach[:-1]) & (begin[1:] - np.minimum(reach[:-1], begin[1:]) > GAP)])
    heads = np.flatnonzero(first)
    lengths = (np.append(reach[heads[1:] - 1], reach[-1]) - begin[heads]).astype(np.float64)
    starts = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    stretch = np.cumsum(first) - 1
    rows[order] = starts[stretch] + (begin - begin[heads][stretch]).astype(np.float64)
    return Places(rows, starts, begin[heads], float(lengths.sum()))
