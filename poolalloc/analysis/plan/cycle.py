"""The part of a program that repeats itself exactly: what comes before it, how long it is, and how long blocks live.

Time is counted in requests: a block that the i-th request made and that is free when the j-th comes is alive in [i, j).
Requests are told apart by their sizes alone. A period is the distance at which most requests in a row ask for the same
as one period earlier; a *cycle* is one period, or a few where blocks outlive one, such as the batch of which the next
is made before it goes. Blocks of one cycle then never meet their own successors.

Not for the steps of programs that are only alike: poolalloc._internal.trace.steps finds those.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indexes = npt.NDArray[np.int64]

MOST_PERIODS = 4
"""A cycle has at most so many; blocks that live longer are not planned."""
ALIVE = np.iinfo(np.int64).max
"""The death of a block that is never freed."""

_CANDIDATES = 16  # distances that are tried for each width
_WIDEST = 1024  # requests in a row by which places are compared


@dataclass(frozen=True)
class Cycle:
    """Requests `first` to `first + length - 1`, which come again and again from there on."""

    first: int
    period: int
    length: int
    """A multiple of the period."""
    repeats: int
    """Periods that are there in all, from the first request that has an equal one a period later."""
    repeats_from: int
    """That request; at most one period before `first`."""
    repeats_until: int
    """The end of the last whole or partial period."""


def find(sizes: Indexes, deaths: Indexes, held: Indexes) -> Cycle | None:
    """Return the cycle of these requests; None where no two whole periods are equal.

    `held` are the bytes held just before each request: cycles begin where those are fewest.
    """
    best = max(((_longest_run(sizes, period), -period) for period in _periods(sizes)), default=None)
    if best is None:
        return None
    (equal, start), period = best[0], int(-best[1])
    if equal < period:
        return None
    until = start + equal + period
    earliest = _after_what_stays(deaths, start, until, period)
    # The whole of the first cycle must be there, and better what follows it: that shows how long its blocks live.
    latest = min(earliest + period, until - period)
    first = earliest + int(np.argmin(held[earliest : latest + 1]))
    ages = np.where(deaths == ALIVE, 0, deaths - np.arange(len(sizes)))[first:until]
    within = ages[ages <= MOST_PERIODS * period]
    wanted = max(1, -(-int(within.max(initial=1)) // period))
    periods = max(1, min(wanted, (until - first) // period))
    return Cycle(first, period, periods * period, (until - start) // period, start, until)


def _after_what_stays(deaths: Indexes, start: int, until: int, period: int) -> int:
    """What stays is of the beginning, although its size comes again a period later; unless each step has some."""
    stays = deaths[start:until] > np.arange(start, until) + MOST_PERIODS * period
    earliest = 0
    while (here := np.flatnonzero(stays[earliest : earliest + period])).size:
        earliest += int(here[-1]) + 1
        if earliest > len(stays) - 2 * period:
            return start
    return start + earliest


def _periods(sizes: Indexes) -> Indexes:
    """Distances worth trying: those between neighbouring places at which the same sizes are asked for in a row.

    How many in a row tells a step from the layers in it depends on the program, so all powers of two are tried.
    """
    likely = [np.zeros(0, np.int64)]
    runs = np.unique(sizes, return_inverse=True)[1].reshape(-1).astype(np.uint64)  # of `width` sizes, by number
    width = 1
    while width <= _WIDEST and len(runs) > 1:
        likely.append(_frequent_gaps(runs))
        pairs = runs[:-width] * np.uint64(len(runs) + 1) + runs[width:]
        runs = np.unique(pairs, return_inverse=True)[1].reshape(-1).astype(np.uint64)
        width *= 2
    return np.unique(np.concatenate(likely))


def _frequent_gaps(runs: npt.NDArray[np.uint64]) -> Indexes:
    """The most frequent distances between one place and the next that is alike; each counts as the place is rare."""
    order = np.argsort(runs, kind="stable")
    same = runs[order][1:] == runs[order][:-1]
    gaps = (order[1:] - order[:-1])[same]
    if len(gaps) == 0:
        return np.zeros(0, np.int64)
    weights = 1 / np.bincount(runs.astype(np.int64))[runs[order][1:][same].astype(np.int64)]
    distances, place = np.unique(gaps, return_inverse=True)
    return distances[np.argsort(-np.bincount(place, weights), kind="stable")[:_CANDIDATES]]


def _longest_run(sizes: Indexes, period: int) -> tuple[int, int]:
    """The most requests in a row that equal those one period later, and where they begin."""
    equal = np.concatenate(([False], sizes[period:] == sizes[:-period], [False]))
    edges = np.flatnonzero(equal[1:] != equal[:-1])
    if len(edges) == 0:
        return 0, 0
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    return int(ends[longest] - starts[longest]), int(starts[longest])


def lifetimes(cycle: Cycle, deaths: Indexes) -> Indexes:
    """Return how long the block of each request of the cycle lives: the longest that was seen; ALIVE if it stays.

    What the end of the trace cut short tells nothing, unless there is nothing else.
    """
    numbers = np.arange(cycle.first, cycle.repeats_until)
    ages = np.where(deaths[numbers] == ALIVE, -1, deaths[numbers] - numbers)
    longest = np.full(cycle.length, -1)
    np.maximum.at(longest, (numbers - cycle.first) % cycle.length, ages)
    return np.where(longest < 0, ALIVE, longest)
