"""Where the steps of a program begin that does the same again and again: found in its allocations alone.

The period is the distance, in allocations, at which most requests ask for the same size again, the rarer the size the
more it counts; the shortest of those that are about as good. Its steps begin where the program holds least, and are
followed from one to the next by what is asked there, so that a step with a few requests more or less loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from poolalloc._internal.driver_work import DriverWork, Part, Work, less
from poolalloc._internal.trace.format import EVENT, Events, Op, Trace, requested_over_time

_FEWEST = 3  # steps; two of anything may be chance
_AGREEMENT = 0.2  # of requests that have the size of the one a period later
_ABOUT_AS_GOOD = 0.9
_LATEST = 1 << 18  # requests in which the period is looked for
_WINDOW = 32  # requests by which the next beginning is known
_LATE_BEGINNING = 2  # steps: more than that before the first one found, and some were not found
_SLACK = 0.05  # of the period: how far from its place it may be

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Phases:
    """The start-up of a trace and the two halves of its other steps, by the events that they end before.

    Start-up is what comes before the second step. Where the first steps are not known neither is start-up; without any
    known steps the halves are those of the events. The last step is in neither half, since nothing says where it ends.
    """

    start_up: int | None
    middle: int
    end: int
    first_steps: int | None
    second_steps: int | None

    @property
    def points(self) -> tuple[int, ...]:
        """The events after which the driver's work must be known."""
        return tuple(end - 1 for end in (self.start_up, self.middle, self.end) if end is not None)

    def work(self, total: Work, events: Indexes, counts: Mapping[str, npt.NDArray[np.int64]]) -> DriverWork:
        """Return the driver's work by phases, from its counts after each of `events`.

        Phases to which the program did not come have none.
        """

        def until(end: int | None) -> dict[str, int] | None:
            place = len(events) if end is None else int(np.searchsorted(events, end - 1))
            if end is None or place == len(events) or events[place] != end - 1:
                return None
            return {kind: int(of[place]) for kind, of in counts.items()}

        start_up, middle, end = until(self.start_up), until(self.middle), until(self.end)
        first = second = None
        if start_up is not None and middle is not None and self.first_steps:
            first = Part(self.first_steps, less(middle, start_up))
        if middle is not None and end is not None:
            second = Part(self.second_steps, less(end, middle))
        return DriverWork(total, start_up, first, second)


def beginnings(trace: Trace) -> Indexes:
    """Return the events at which steps begin: those of the program's marks, or else what find() finds."""
    marks = np.flatnonzero(trace.events["op"] == Op.MARK)
    return marks if len(marks) >= _FEWEST else find(trace)


def phases(trace: Trace) -> Phases | None:
    """Return the start-up and the halves of a trace; None for a trace too short to have halves."""
    starts = beginnings(trace)
    middle = max(len(trace) // 2, 1)
    half = int(np.searchsorted(starts, middle))  # the step with which the second half begins
    if len(starts) - max(half, 1) < 2:
        return Phases(None, middle, len(trace), None, None) if len(trace) > middle else None
    if not _whole(trace, starts):
        return Phases(None, int(starts[half]), int(starts[-1]), None, len(starts) - 1 - half)
    half = max(half, 1)
    return Phases(int(starts[1]), int(starts[half]), int(starts[-1]), half - 1, len(starts) - 1 - half)


def _whole(trace: Trace, starts: Indexes) -> bool:
    """Whether the first step is among those known. Those found may leave out early ones that look different."""
    if trace.marks:
        return True
    return bool(starts[0] - trace.initial_events <= _LATE_BEGINNING * np.median(np.diff(starts)))


def name(number: int) -> str:
    """Return the text of a step that was found; the first is 1."""
    return f"step {number} (found)"


def find(trace: Trace) -> Indexes:
    """Return the events at which steps begin, in order; none where the program does not repeat itself."""
    events = trace.events
    births = np.flatnonzero(events["op"] == Op.ALLOC)
    births = births[births >= trace.initial_events]
    keys = _kinds(events[births])
    period = _period(keys)
    if period == 0:
        return np.zeros(0, np.int64)
    held = requested_over_time(events)[births]
    beginnings = _follow(keys, len(keys) - 2 * period + int(np.argmin(held[-2 * period : -period])), period)
    return births[beginnings] if len(beginnings) >= _FEWEST else np.zeros(0, np.int64)


def with_marks(trace: Trace) -> Trace:
    """Return the trace with a mark at the beginning of each step found; as it is where the program set marks itself."""
    if trace.marks:
        return trace
    starts = find(trace)
    if len(starts) == 0:
        return trace
    marks = np.zeros(len(starts), EVENT)
    for field in ("time_ns", "device", "thread"):
        marks[field] = trace.events[field][starts]
    marks["op"] = Op.MARK
    marks["id"] = np.arange(len(starts))
    texts = tuple(name(number) for number in range(1, len(starts) + 1))
    return replace(trace, events=np.insert(trace.events, starts, marks), marks=texts)


def _kinds(allocations: Events) -> Indexes:
    """A number for each: the same where device, stream and size are; as sorting by these three would give."""
    kinds = np.zeros(len(allocations), np.int64)
    for field in ("device", "stream", "requested"):
        values, of = np.unique(allocations[field], return_inverse=True)
        kinds = np.unique(kinds * len(values) + of.reshape(-1), return_inverse=True)[1].reshape(-1)
    return kinds


def _period(keys: Indexes) -> int:
    """The distance at which requests agree best, or 0; in the later half, since the beginning is something else."""
    late = keys[-min(len(keys) // 2, _LATEST) :]
    longest = len(late) // 2
    if longest < 2:
        return 0
    # Sizes count by how rare they are: what a layer asks comes again with the next layer, the loss once a step. What is
    # asked only for a while, as with one batch's length, does not count.
    counts = np.bincount(late)
    here = np.arange(len(late))
    first, last = np.full(len(counts), len(late)), np.full(len(counts), -1)
    np.minimum.at(first, late, here)
    np.maximum.at(last, late, here)
    throughout = last - first >= len(late) // 2
    weight = np.where(throughout, 1 / np.maximum(counts, 1), 0.0)[late]
    if not weight.any():
        return 0
    # The autocorrelation of random signs, one for each size, is about what agrees.
    chance = np.random.default_rng(0)
    agree = np.zeros(longest + 1)
    for _ in range(8):
        signs = chance.choice((-1.0, 1.0), len(counts))[late] * np.sqrt(weight)
        spectrum = np.fft.rfft(signs, 2 * len(late))
        agree += np.fft.irfft(spectrum * spectrum.conj())[: longest + 1]
    agree /= len(late) - np.arange(longest + 1)
    likely = 1 + np.argsort(-agree[1:], kind="stable")[:64]
    shares = {int(d): float(weight[d:][late[d:] == late[:-d]].sum() / weight[d:].sum()) for d in likely}
    best = max(shares.values())
    if best < _AGREEMENT:
        return 0
    return min(distance for distance, share in shares.items() if share >= _ABOUT_AS_GOOD * best)


def _follow(keys: Indexes, start: int, period: int) -> Indexes:
    """The beginnings of all steps, from one to its neighbours on both sides as long as they look alike."""
    window = min(period, _WINDOW)
    slack = int(period * _SLACK)
    found = [start]
    for direction in (-1, 1):
        at = start
        while True:
            places = at + direction * period + np.arange(-slack, slack + 1)
            places = places[(places >= 0) & (places + window <= len(keys))]
            if len(places) == 0:
                break
            alike = (keys[places[:, None] + np.arange(window)] == keys[at : at + window]).mean(axis=1)
            off = np.abs(places - (at + direction * period))
            best = int(np.lexsort((off, -alike))[0])
            if alike[best] < _AGREEMENT:
                break
            at = int(places[best])
            found.append(at)
    return np.unique(found)
