"""Records memory over time inside a cell: a thread that reads the allocator's figures, and a sample at every step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from poolalloc.bench.results import Timeline

# Current requested, live and reserved bytes.
Figures = tuple[int, int, int]


class Sampler:
    """Samples `read` every `interval` seconds while it is entered; at `limit` samples it halves them and slows down.

    The samples are for pictures. Peaks come from the allocator's statistics, which miss nothing.
    """

    def __init__(self, read: Callable[[], Figures], interval: float = 0.004, limit: int = 20_000) -> None:
        self._read = read
        self._interval = interval
        self._limit = limit
        self._timeline = Timeline()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poolalloc-bench-sampler", daemon=True)
        self._start = 0.0

    def __enter__(self) -> Sampler:
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.sample()

    def sample(self) -> None:
        """Take one sample now."""
        with self._lock:
            requested, live, reserved = self._read()
            timeline = self._timeline
            timeline.seconds.append(time.perf_counter() - self._start)
            timeline.requested.append(requested)
            timeline.live.append(live)
            timeline.reserved.append(reserved)
            if len(timeline.seconds) >= self._limit:
                self._timeline = timeline.thinned(self._limit // 2)
                self._interval *= 2

    def step(self) -> None:
        """Take a sample and note that a step of the workload ended."""
        self.sample()
        with self._lock:
            self._timeline.steps.append(time.perf_counter() - self._start)

    def timeline(self, points: int) -> Timeline:
        """Return at most `points` samples of what was recorded."""
        with self._lock:
            return self._timeline.thinned(points)

    def _run(self) -> None:
        while not self._done.wait(self._interval):
            self.sample()
