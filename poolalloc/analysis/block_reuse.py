"""Which exact bins suit recorded programs: sizes that come and go often, and how many blocks of each are worth keeping.

    from poolalloc.analysis.block_reuse import BlockReuse
    from poolalloc.analysis.trace import read

    BlockReuse([read("monday.npz"), read("tuesday.npz")]).bins(share=0.01)

A freed block serves the next request of its size if it is still kept by then. How many of its size a stream must keep
for that follows from the recording: as many as were freed and not asked for again in between, itself included. So each
further block that is kept serves a known number of requests and costs its size. Those that serve most for their size
are proposed, as many as fit a share of the program's peak. What they gain is for a replay to say (tune.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from poolalloc._internal.exact_bins import GRANULARITY, MOST_BINS, MOST_BYTES, MOST_KEPT, ExactBin
from poolalloc._internal.moved import old_names
from poolalloc._internal.trace.format import Op, Trace, requested_over_time

__all__ = ["LEAST_SERVED", "BlockReuse"]

LEAST_SERVED = 16
"""Requests that a kept block must serve to be proposed."""

Counts = npt.NDArray[np.int64]


def _sum(one: Counts, other: Counts) -> Counts:
    """Of counts of which either may go further."""
    longer = max(len(one), len(other))
    return np.pad(one, (0, longer - len(one))) + np.pad(other, (0, longer - len(other)))


@dataclass
class _Size:
    """Blocks of one size."""

    served: Counts = field(default_factory=lambda: np.zeros(1, np.int64))
    """By how many must be kept for it: requests that a kept block serves. None takes 0."""
    streams: int = 1
    """That use the size in one trace: each keeps its own."""

    def add(self, served: Counts, streams: int) -> None:
        self.served = _sum(self.served, served)
        self.streams = max(self.streams, streams)


class BlockReuse:
    """How the blocks of each size above `above` bytes come back, in one or several recordings that count the same."""

    def __init__(self, traces: Iterable[Trace], above: int = 0) -> None:
        self._sizes: dict[int, _Size] = {}
        peaks = []
        for trace in traces:
            peaks.append(int(requested_over_time(trace.events).max(initial=0)))
            for size, (served, streams) in _reuse(trace, above).items():
                self._sizes.setdefault(size, _Size()).add(served, streams)
        self.peak_requested = min(peaks, default=0)
        """Of the trace that requested least, in bytes."""

    def bins(self, share: float, above: int = 0, *, held: bool = False) -> tuple[ExactBin, ...]:
        """Return the bins for sizes above `above` bytes that serve most, the most useful first.

        What they keep is at most `share` of peak_requested. With `held` all of it is preallocated, so it stays when a
        stream needs new memory.
        """
        left = share * self.peak_requested
        chosen: dict[int, int] = {}
        steps = [step for size, one in self._sizes.items() if size > above and (step := _step(size, one, 0))]
        heapq.heapify(steps)
        while steps:
            _, size, keep = heapq.heappop(steps)
            cost = (keep - chosen.get(size, 0)) * size * self._sizes[size].streams
            if cost > left or (size not in chosen and len(chosen) == MOST_BINS):
                continue
            left -= cost
            chosen[size] = keep
            if step := _step(size, self._sizes[size], keep):
                heapq.heappush(steps, step)
        return tuple(ExactBin(size, keep if held else 0, keep=keep) for size, keep in chosen.items())


def _step(size: int, one: _Size, kept: int) -> tuple[float, int, int] | None:
    """From so many kept to how many, and what that serves for each byte, negated; None if it is not worth it."""
    gains = np.cumsum(one.served)[kept + 1 : MOST_KEPT + 1] - one.served[: kept + 1].sum()
    if not len(gains):
        return None
    each = gains / np.arange(1, len(gains) + 1)
    best = int(np.argmax(each))
    return (-float(each[best]) / size, size, kept + best + 1) if each[best] >= LEAST_SERVED else None


def _reuse(trace: Trace, above: int) -> dict[int, tuple[Counts, int]]:
    """Of the ordinary pool, by size: requests by how many must be kept to serve them, and the number of streams."""
    events = trace.events
    ops = events["op"]
    ids = events["id"].astype(np.int64)
    born = ops == Op.ALLOC
    late = np.zeros(int(ids.max(initial=0)) + 1, np.bool_)  # come back when that says so
    late[ids[ops == Op.FREE_COMPLETED]] = True
    back = (ops == Op.FREE_COMPLETED) | ((ops == Op.FREE) & ~late[ids])
    sizes, places = np.zeros((2, len(late)), np.int64)
    ordinary = np.array([pool == (0, 0) for pool in trace.pools])[events["pool"][born]]
    requested = events["requested"][born].astype(np.int64)
    sizes[ids[born]] = np.where(ordinary, -(-requested // GRANULARITY) * GRANULARITY, 0)
    places[ids[born]] = events["device"][born].astype(np.int64) << 32 | events["stream"][born]
    mine = (born | back) & (sizes[ids] > above) & (sizes[ids] <= MOST_BYTES)
    size, place, born = sizes[ids[mine]], places[ids[mine]], born[mine]
    order = np.lexsort((np.arange(len(size)), place, size))
    size, place, born = size[order], place[order], born[order]
    ends = np.append(np.flatnonzero((np.diff(size) != 0) | (np.diff(place) != 0)) + 1, len(size))
    found: dict[int, tuple[Counts, int]] = {}
    for first, end in zip(np.append(0, ends[:-1]).tolist(), ends.tolist(), strict=True):
        if end - first < LEAST_SERVED:
            continue
        served = _needed(born[first:end].tolist())
        before, streams = found.get(int(size[first]), (np.zeros(1, np.int64), 0))
        found[int(size[first])] = (_sum(before, served), streams + 1)
    return found


def _needed(births: list[bool]) -> Counts:
    """Of blocks of one size on one stream, in time: for each block asked for again, how many had to be kept for it."""
    kept: list[int] = []  # of each block that waits, how many did at one time from it on
    counts: list[int] = []
    for born in births:
        if not born:
            kept.append(1)
        elif kept:
            most = kept.pop()
            counts.append(most)
            if kept:
                kept[-1] = max(kept[-1], most + 1)
    return np.bincount(np.array(counts, np.int64), minlength=1).astype(np.int64)


if not TYPE_CHECKING:  # names of before, which warn
    __getattr__ = old_names(__name__, {"Reuse": "BlockReuse"})
