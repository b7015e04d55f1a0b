"""Makes a plan of a trace: finds what repeats on each device and stream, and places its blocks.

Blocks of what comes before the first cycle and stay are put at the bottom, one above the other. Everything else is one
offline placement over the beginning and one cycle, whose end is followed by its start: a block that outlives the end is
alive at the start too. Requests just before the first cycle that already repeat get the places of those that repeat
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from poolalloc import _core
from poolalloc._internal.plan_file import GRANULARITY, KEPT, REQUEST, UNPLANNED, Part, Plan, PlanError
from poolalloc._internal.trace.format import Op, Trace
from poolalloc._internal.version import __version__
from poolalloc.analysis.plan import cycle as cycles
from poolalloc.analysis.plan.cycle import ALIVE, Cycle
from poolalloc.analysis.plan.placement import Placement, place

ABOVE = 128 << 10
"""Smaller requests hardly gain by a plan, and slabs serve them faster."""

_SHORT = 32  # requests: how long blocks live that share a place with others of their size
_CLOSE = 64  # requests between them
_MOST_MEETINGS = 50_000_000  # of blocks that are alive together: what comparing each with each may cost
_LEAST_SHARE = 0.5  # of the requests from the first that repeats on: less is a loop inside steps that differ
_LEAST_OF_ALL = 0.2  # of all requests: less is a loop behind such steps

Indexes = npt.NDArray[np.int64]
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class StreamFindings:
    """What a plan was made of on one device and stream, or why there is none."""

    device: int
    stream: int
    """0 is the default stream, 1 the first other one that allocates, and so on."""
    requests: int
    """Larger than the plan's `above`; the others are not planned."""
    smaller: int
    initial: int
    """Blocks that were there when the recording began: not planned, since when they were asked for is not known."""
    cycle: Cycle | None = None
    part: Part | None = None
    outliving: int = 0
    """Requests whose blocks outlive the cycle that would come back to their place: not planned."""
    bytes: int = 0
    """Of the requests, all together."""
    covered: int = 0
    """Requests of the recording that the plan has a place for."""
    covered_bytes: int = 0
    load: int = 0
    """The most bytes of planned blocks alive at one time; no placement has a smaller height."""
    method: str = ""
    problem: str = ""
    """Why there is no part."""


class _Place(NamedTuple):
    device: int
    stream: int
    column: int  # in the trace


@dataclass(frozen=True)
class _Requests:
    sizes: Indexes
    deaths: Indexes
    held: Indexes  # bytes held just before each request, of requests of this kind


def make(
    trace: Trace, *, above: int = ABOVE, seconds: float = 10.0, progress: Progress | None = None
) -> tuple[Plan, list[StreamFindings]]:
    """Plan everything in a trace that repeats: each device and stream by itself.

    Args:
        trace: with at least two whole steps that ask for the same sizes; three show more.
        above: requests of at most so many bytes are not planned.
        seconds: for placing, all together. The first-fit orders are tried in any case.
        progress: called with the seconds spent and the seconds there are.

    Returns the plan, and what it was made of on each device and stream.

    Raises:
        PlanError: nothing repeats; one line says why.
    """
    places = _places(trace)
    found = []
    for number, where in enumerate(places):
        if progress is not None:
            progress(seconds * number / len(places), seconds)
        found.append(_plan_one(trace, where, above, seconds / len(places)))
    parts = tuple(one.part for one in found if one.part is not None)
    if not parts:
        reasons = "; ".join(dict.fromkeys(one.problem for one in found)) or "nothing is allocated in it"
        raise PlanError(f"there is nothing to plan: {reasons}")
    return Plan(parts, above, {"poolalloc": __version__, "trace": trace.provenance}), found


def _places(trace: Trace) -> list[_Place]:
    """Each device and stream with requests in the ordinary pool. Streams count in the order in which they come."""
    events = trace.events
    places = []
    ordinary = (events["op"] == Op.ALLOC) & (events["pool"] == 0)
    for device in trace.used_devices():
        columns, firsts = np.unique(events["stream"][ordinary & (events["device"] == device)], return_index=True)
        others = 0
        for column in columns[np.argsort(firsts)].tolist():
            default = trace.streams[column] == 0
            others += not default
            places.append(_Place(device, 0 if default else others, column))
    return places


def _plan_one(trace: Trace, where: _Place, above: int, seconds: float) -> StreamFindings:
    events = trace.events
    ours = (events["op"] == Op.ALLOC) & (events["device"] == where.device) & (events["stream"] == where.column)
    ours &= events["pool"] == 0
    initial = int(np.count_nonzero(ours[: trace.initial_events]))
    ours[: trace.initial_events] = False
    large = np.flatnonzero(ours & (events["requested"] > above))
    found = StreamFindings(where.device, where.stream, len(large), int(np.count_nonzero(ours)) - len(large), initial)
    if len(large) == 0:
        return replace(found, problem=f"no request is larger than {_core.format_bytes(above)}")
    requests = _requests(trace, large)
    cycle = cycles.find(requests.sizes, requests.deaths, requests.held)
    if cycle is None:
        return replace(found, problem="no two whole steps in it ask for the same sizes")
    repeating = cycle.repeats_until - cycle.repeats_from
    if repeating < _LEAST_SHARE * (len(large) - cycle.repeats_from) or repeating < _LEAST_OF_ALL * len(large):
        problem = f"its steps do not repeat; the longest part that does is {repeating / len(large):.0%} of the requests"
        return replace(found, cycle=cycle, problem=problem)
    table, placed, bottom = _place(requests, cycle, seconds)
    outliving = int(np.count_nonzero(table["offset"] == UNPLANNED))
    if outliving == len(table):
        return replace(found, cycle=cycle, problem="its blocks outlive the steps that would come back to their places")
    covered = _covered(cycle, table["offset"] != UNPLANNED, len(large))
    return replace(
        found,
        cycle=cycle,
        bytes=int(requests.sizes.sum()),
        covered=int(np.count_nonzero(covered)),
        covered_bytes=int(requests.sizes[covered].sum()),
        part=Part(where.device, where.stream, table, cycle.first, cycle.period, bottom + placed.height),
        outliving=outliving,
        load=bottom + placed.load,
        method=placed.method,
    )


def _covered(cycle: Cycle, planned: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.bool_]:
    """Of `count` requests, those that the plan has a place for: of its beginning, and of each cycle."""
    numbers = np.arange(count)
    known = np.where(numbers < len(planned), numbers, cycle.first + (numbers - cycle.first) % cycle.length)
    return planned[known] & (numbers < max(cycle.repeats_until, len(planned)))


def _requests(trace: Trace, large: Indexes) -> _Requests:
    """A block dies with the completion of its free where the trace has one: then its memory can be had again."""
    events = trace.events
    ids = events["id"][large]
    deaths = np.full(len(large), ALIVE)
    order = np.argsort(ids, kind="stable")
    known = ids[order]
    for kind in (Op.FREE, Op.FREE_COMPLETED):
        at = np.flatnonzero(events["op"] == kind)
        row = np.minimum(np.searchsorted(known, events["id"][at]), len(known) - 1)
        ours = known[row] == events["id"][at]
        deaths[order[row[ours]]] = np.searchsorted(large, at[ours])
    sizes = -(-events["requested"][large].astype(np.int64) // GRANULARITY) * GRANULARITY
    change = np.zeros(len(large) + 1, np.int64)
    change[1:] = sizes
    freed = deaths != ALIVE
    np.subtract.at(change, deaths[freed], sizes[freed])
    return _Requests(sizes, deaths, np.cumsum(change)[:-1])


def _place(requests: _Requests, cycle: Cycle, seconds: float) -> tuple[npt.NDArray[np.void], Placement, int]:
    """The plan's requests; the placement of those that come and go; and the bytes of those that stay, below them."""
    first, length = cycle.first, cycle.length
    end = first + length
    numbers = np.arange(end)
    lives = cycles.lifetimes(cycle, requests.deaths)
    # A request that already repeats before the first cycle is one of an earlier cycle, if its block goes as early as
    # theirs do: the state that an optimizer makes in its first step may look like what later steps need for a while.
    position = (numbers - first) % length
    until = requests.deaths[:end].copy()
    repeated = numbers >= first
    alike = (lives[position] <= length) & (until - numbers <= lives[position])
    repeated |= (numbers >= cycle.repeats_from) & alike
    twin = np.where(repeated, first + position, numbers)
    life = lives[position[repeated]]
    until[repeated] = np.where(life <= length, numbers[repeated] + np.minimum(life, length), ALIVE)
    kept = (until > end) & ~repeated
    planned = kept | (until != ALIVE)
    until[kept] = ALIVE

    sizes = requests.sizes[:end]
    offsets = np.full(end, UNPLANNED, np.uint64)
    offsets[kept] = (np.cumsum(sizes[kept]) - sizes[kept]).astype(np.uint64)
    bottom = int(sizes[kept].sum())
    moving = np.flatnonzero(planned & ~kept)
    wraps = moving[(moving >= first) & (until[moving] > end)]
    before = np.minimum(until[moving], np.where(repeated[moving] & (moving < first), first, end))
    spans = np.concatenate(
        (np.stack((moving, before), axis=1), np.stack((np.full(len(wraps), first), until[wraps] - length), axis=1))
    )
    whose = np.concatenate((moving, wraps))
    placed = _best(spans, sizes[whose], twin[whose], seconds)
    offsets[moving] = placed.offsets[: len(moving)] + np.uint64(bottom)
    table = np.zeros(end, REQUEST)
    table["size"], table["offset"] = sizes, offsets
    table["until"] = np.where(until == ALIVE, KEPT, until.astype(np.uint64))
    return table, placed, bottom


def _best(spans: Indexes, sizes: Indexes, groups: Indexes, seconds: float) -> Placement:
    """First fit of the blocks as they are, and of those that share places; then what the time allows, of the better."""
    ways = [_united(spans, sizes, groups)]
    if int((spans[:, 1] - spans[:, 0]).sum()) <= _MOST_MEETINGS:
        ways.insert(0, groups)
    tried: list[Placement] = []
    for way in ways:
        tried.append(place(spans, sizes, groups=way, alignment=GRANULARITY, seconds=0))
        if tried[-1].height == tried[-1].load:
            return tried[-1]
    better = min(range(len(tried)), key=lambda number: tried[number].height)
    placed = place(spans, sizes, groups=ways[better], alignment=GRANULARITY, seconds=seconds)
    return min(placed, tried[better], key=lambda placement: placement.height)


def _united(spans: Indexes, sizes: Indexes, groups: Indexes) -> Indexes:
    """Short-lived blocks of one size that follow each other closely get one place: thousands of them are few problems.

    That is what loops over samples, heads or layers make. It hardly costs height: where one fits, the next does.
    """
    groups = groups.copy()
    alone = np.bincount(groups)[groups] == 1
    short = np.flatnonzero(alone & (spans[:, 1] - spans[:, 0] <= _SHORT))
    order = short[np.argsort(spans[short, 0], kind="stable")]
    free: dict[int, list[tuple[int, int]]] = {}  # by size: when a place was left, and its group
    for row in order.tolist():
        birth, death = spans[row].tolist()
        places = free.setdefault(int(sizes[row]), [])
        places[:] = [place for place in places if birth - place[0] <= _CLOSE]
        left = [place for place in places if place[0] <= birth]
        if left:
            last = max(left)
            places.remove(last)
            groups[row] = last[1]
        places.append((death, int(groups[row])))
    return groups
