"""Whether a recorded program fits a device, how much it needs at least, and what it holds when it holds most.

    from poolalloc.analysis.fit import fit

    found = fit(read("run.npz"), 24 << 30, against=["expandable"])
    for verdict in found.verdicts:
        print(verdict.allocator, verdict.config, verdict.fits, verdict.smallest_memory)

Rests on replay.py, and for torch's own allocators on baselines.py: the smallest memory is found by trying with less and
less of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from poolalloc._internal.driver_work import DriverWork
from poolalloc._internal.trace import files
from poolalloc._internal.trace.format import Trace, requested_over_time
from poolalloc.analysis import costs
from poolalloc.analysis.costs import PriceList
from poolalloc.analysis.live_blocks import LiveBlocks, peak_live_blocks, phases_of
from poolalloc.analysis.replay import MOST_MEMORY, OutOfMemory, Recorded, Replayer, recorded_figures, require_memory
from poolalloc.config import Config

__all__ = ["DeviceFit", "Fit", "Verdict", "fit"]

PAGE = 2 << 20


@dataclass(frozen=True)
class DeviceFit:
    """One device: whether it fits, and what it needs. Bytes."""

    device: int
    fits: bool
    smallest_memory: int | None
    """The replay succeeds with it and fails with a page of 2 MiB less. None: the options forbid what it takes."""
    peak_requested: int
    peak_reserved: int
    """Without a limit: less memory makes the engine hold less."""
    out_of_memory: OutOfMemory | None
    idle_in_pools: int
    """Idle memory of private pools that a CUDA graph may touch, which serves only them, where it ran out."""
    recorded: Recorded | None
    peak_blocks: LiveBlocks

    def spare(self, memory: int) -> int | None:
        """Return how much more memory there is than needed; negative: how much is missing. None: none is enough."""
        return None if self.smallest_memory is None else memory - self.smallest_memory


@dataclass(frozen=True)
class Verdict:
    """One allocator with one configuration on one device. Bytes."""

    device: int
    allocator: str
    """`poolalloc`, or one of torch's as `poolalloc bench` names them."""
    config: str
    """What poolalloc's configuration was called by who asked for it; empty for torch's."""
    fits: bool
    smallest_memory: int | None
    """It succeeds with this much and fails with a page of 2 MiB less. None: the options forbid what it takes."""
    peak_reserved: int
    """Without a limit."""
    overhead: float | None
    """That over the peak requested; None if nothing was requested."""
    driver_work: DriverWork
    """What the driver did for it, without a limit."""

    def spare(self, memory: int) -> int | None:
        """Return how much more memory there is than needed; negative: how much is missing. None: none is enough."""
        return None if self.smallest_memory is None else memory - self.smallest_memory


@dataclass(frozen=True)
class Fit:
    """Whether a trace fits devices of `memory_bytes` each."""

    memory_bytes: int
    config: str
    """Options of poolalloc that `devices` are judged with, as far as they differ from the defaults."""
    replays: int
    devices: tuple[DeviceFit, ...]
    verdicts: tuple[Verdict, ...]
    """Every allocator and configuration asked for, by device; that of `devices` first."""
    prices: PriceList
    """With which the driver's work is priced."""

    @property
    def fits(self) -> bool:
        """Whether it fits on every device under poolalloc as it was configured first."""
        return all(device.fits for device in self.devices)

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values; bytes and seconds."""
        return {
            "schema": 1,
            "source": "poolalloc, replayed on modelled devices",
            "memory_bytes": self.memory_bytes,
            "config": self.config,
            "fits": self.fits,
            "replays": self.replays,
            "prices": self.prices.to_json(),
            "verdicts": [
                {
                    **vars(verdict),
                    "driver_work": verdict.driver_work.to_json(),
                    "driver_time": verdict.driver_work.price(self.prices).to_json(),
                    "spare": verdict.spare(self.memory_bytes),
                }
                for verdict in self.verdicts
            ],
            "devices": [
                {
                    **{name: value for name, value in vars(device).items() if name != "peak_blocks"},
                    "spare": device.spare(self.memory_bytes),
                    "out_of_memory": None if device.out_of_memory is None else vars(device.out_of_memory).copy(),
                    "recorded": None if device.recorded is None else vars(device.recorded).copy(),
                    "live_set": device.peak_blocks.to_json(),
                }
                for device in self.devices
            ],
        }


class _Progress:
    """Counts replays; how many there will be is known better and better."""

    def __init__(self, candidates: int, tell: Callable[[int, int], None]) -> None:
        self.done = 0
        self._candidates = candidates
        self._tell = tell

    def step(self, left: int) -> None:
        """Another replay is done; `left` of the same candidate remain, at most."""
        self.done += 1
        self._tell(self.done, self.done + left + self._candidates * 10)

    def candidate(self) -> None:
        """The next candidate's turn."""
        self._candidates -= 1


def fit(
    trace: Trace,
    memory: int,
    config: Config | None = None,
    *,
    also: Mapping[str, Config] | None = None,
    against: Sequence[str] = (),
    prices: PriceList | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fit:
    """Return whether a trace fits devices of `memory` bytes each, and the smallest that it fits.

    Args:
        trace: what the program asked for.
        memory: of each device. They are judged one by one: none has any use for another's memory.
        config: of poolalloc; None is the defaults.
        also: other configurations of poolalloc to judge, by name.
        against: allocators of torch's to judge (baselines.py), on simulated GPUs; some ten performances for each.
        prices: with which the driver's work is priced; None is the default list.
        progress: called with the replays done and expected.

    Raises:
        ConfigError: wrong options.
        BaselineError: an allocator that cannot be performed here.
    """
    if against:
        from poolalloc.analysis import baselines as performing

        performing.require(against)
    others = dict(also or {})
    devices = trace.used_devices()
    counted = _Progress(len(devices) * (1 + len(others) + len(against)), progress)
    phases = phases_of(trace)
    results, verdicts = [], []
    for device in devices:
        alone = trace.of_device(device)
        replayer = Replayer(alone)
        mine = _judge(replayer, "", config, memory, counted)
        verdicts += [mine, *(_judge(replayer, name, other, memory, counted) for name, other in others.items())]
        verdicts += [_perform(replayer, name, mine, memory, counted) for name in against]
        lost, idle_in_pools = None, 0
        if not mine.fits:
            failed = replayer.run(config, memory)
            lost, idle_in_pools = failed.out_of_memory, int(failed.devices[0].stats["idle_in_pools"])
        if lost is not None:  # in numbers of the whole trace
            lost = OutOfMemory(
                **{**vars(lost), "event": int(np.flatnonzero(trace.events["device"] == device)[lost.event])}
            )
        results.append(
            DeviceFit(
                device=device,
                fits=mine.fits,
                smallest_memory=mine.smallest_memory,
                peak_requested=int(requested_over_time(alone.events).max()),
                peak_reserved=mine.peak_reserved,
                out_of_memory=lost,
                idle_in_pools=idle_in_pools,
                recorded=recorded_figures(trace, device),
                peak_blocks=peak_live_blocks(trace, device, phases),
            )
        )
    conf = "" if config is None else config.to_conf()
    return Fit(memory, conf, counted.done, tuple(results), tuple(verdicts), prices or costs.find())


def _judge(replayer: Replayer, name: str, config: Config | None, memory: int, counted: _Progress) -> Verdict:
    """Judge poolalloc on the only device of a trace."""
    counted.candidate()

    def fits(given: int) -> bool:
        return replayer.run(config, given).out_of_memory is None

    result = replayer.run(config, samples=1)
    (free,) = result.devices
    counted.step(9)
    fitted = fits(memory)
    counted.step(8)
    smallest = _smallest(fits, free.peak_requested, free.peak_reserved, counted.step)
    return Verdict(
        free.device, "poolalloc", name, fitted, smallest, free.peak_reserved, free.overhead, result.driver_work
    )


def _perform(replayer: Replayer, allocator: str, mine: Verdict, memory: int, counted: _Progress) -> Verdict:
    """Judge an allocator of torch's on the only device of a trace; `mine` is what poolalloc does there."""
    from poolalloc.analysis import baselines

    counted.candidate()
    alone = replayer.trace
    requested = int(requested_over_time(alone.events).max())
    with tempfile.TemporaryDirectory(prefix="poolalloc-fit-") as folder:
        path = Path(folder, "device.npz")
        files.write(alone, path)

        def perform(given: int, points: Sequence[int] = ()) -> baselines.Performed:
            done = baselines.perform(path, alone, allocator, given, points=points)
            if done.row.error is not None:
                raise baselines.BaselineError(f"{allocator}: {done.row.error.splitlines()[0]}")
            return done

        def peak(given: int) -> int | None:
            """What is reserved at the peak; None where memory runs out."""
            row = perform(given).row
            return None if row.out_of_memory else row.peak_reserved_bytes

        room = max(mine.peak_reserved, requested) * 4
        free = perform(room, replayer.points(1))
        while free.row.out_of_memory:
            room = require_memory(room * 2)
            free = perform(room, replayer.points(1))
        work = free.work(replayer.phases)
        reserved = free.row.peak_reserved_bytes or 0
        counted.step(9)
        fitted = peak(memory) is not None
        counted.step(8)
        smallest = _smallest(lambda given: peak(given) is not None, requested, reserved, counted.step)
    overhead = reserved / requested if requested else None
    return Verdict(mine.device, allocator, "", fitted, smallest, reserved, overhead, work)


def _smallest(fits: Callable[[int], bool], requested: int, reserved: int, step: Callable[[int], None]) -> int | None:
    """The memory, in whole pages, with which it fits and with a page less does not; None where none is enough."""

    def tried(pages: int) -> bool:
        fitted = fits(pages * PAGE)
        step(max(high - low, 1).bit_length())
        return fitted

    low, high = max(-(-requested // PAGE) - 1, 0), max(-(-reserved // PAGE), 1)
    fitted = tried(high)
    if not fitted and not tried(MOST_MEMORY // PAGE):
        return None
    while not fitted:  # an allocator that runs into a limit may place blocks less well than without one
        low, high = high, min(high + max(high // 64, 1), MOST_MEMORY // PAGE)
        fitted = tried(high)
    while high - low > 1:
        middle = (low + high) // 2
        if tried(middle):
            high = middle
        else:
            low = middle
    return high * PAGE
