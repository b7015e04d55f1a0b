"""Records memory over time inside a cell: a thread that reads the allocator's figures, and a sample at every step."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from poolalloc.bench.results import Timeline

# Requested, live and reserved bytes.
Bytes3 = tuple[int, int, int]
# What they are now, and their peaks since the last reset of the statistics.
Figures = tuple[Bytes3, Bytes3]


class Sampler:
    """Samples `read` every `interval` seconds while it is entered; at `limit` samples it halves them and slows down.

    A program can need a lot for an instant between two samples. Where a statistic's peak has grown since the last
    sample, the sample shows that peak; `reset_peaks` is called at the end of every step, so that each shows its own.
    """

    def __init__(
        self,
        read: Callable[[], Figures],
        reset_peaks: Callable[[], None],
        interval: float = 0.001,
        limit: int = 20_000,
    ) -> None:
        self._read = read
        self._reset_peaks = reset_peaks
        self._peaks: Bytes3 = (0, 0, 0)  # of the last sample
        self._interval = interval
        self._limit = limit
        self._timeline = Timeline()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poolalloc-bench-sampler", daemon=True)
        self._start = 0.0
        self._switch = 0.0

    def __enter__(self) -> Sampler:
        # A thread that computes keeps Python's lock for this long before another may run: less than the interval.
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(self._interval / 2)
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        sys.setswitchinterval(self._switch)
        self.sample()

    def sample(self) -> None:
        """Take one sample now."""
        with self._lock:
            self._sample()

    def step(self) -> None:
        """Take a sample and note that a step of the workload ended. Nothing may be allocated meanwhile."""
        with self._lock:
            self._sample()
            self._timeline.steps.append(time.perf_counter() - self._start)
            self._reset_peaks()
            _, self._peaks = self._read()

    def _sample(self) -> None:
        now, peaks = self._read()
        shown = [peak if peak > seen else value for value, peak, seen in zip(now, peaks, self._peaks, strict=True)]
        self._peaks = peaks
        timeline = self._timeline
        if len(timeline.reserved) == 1 and not timeline.reserved[0] and not shown[2]:
            timeline.seconds[0] = (
                time.perf_counter() - self._start
            )  # of the time before the first use one sample is enough
            return
        timeline.seconds.append(time.perf_counter() - self._start)
        timeline.requested.append(shown[0])
        timeline.live.append(shown[1])
        timeline.reserved.append(shown[2])
        if len(timeline.seconds) >= self._limit:
            self._timeline = timeline.thinned(self._limit // 2)
            self._interval *= 2

    def timeline(self, points: int) -> Timeline:
        """Return at most `points` samples of what was recorded."""
        with self._lock:
            return self._timeline.thinned(points)

    def _run(self) -> None:
        while not self._done.wait(self._interval):
            self.sample()
