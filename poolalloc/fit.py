"""Whether a recorded program fits a device, how much it needs at least, and what it holds when it holds most.

    from poolalloc.fit import fit

    found = fit(read("run.npz"), 24 << 30, against=["expandable"])
    for verdict in found.verdicts:
        print(verdict.allocator, verdict.config, verdict.fits, verdict.smallest_memory)

Rests on poolalloc.replay, and for torch's own allocators on poolalloc.against: the smallest memory is found by trying
with less and less of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from poolalloc import _core
from poolalloc.config import Config
from poolalloc.replay import MOST_MEMORY, OutOfMemory, Recorded, Replayer, recorded_figures, require_memory
from poolalloc.trace import files, steps
from poolalloc.trace.format import Frame, Op, Trace, requested_over_time

PAGE = 2 << 20
BEFORE = "before the recording began"
BEFORE_MARKS = "before the first mark"
BEFORE_STEPS = "before the first step found"
DURING = "while it was recorded"
_OWN_CODE_AFTER = ("/site-packages/", "/dist-packages/", "/lib/python")


@dataclass(frozen=True)
class Share:
    """Blocks of the largest live set that have something in common. Bytes are requested ones."""

    label: str
    blocks: int
    requested: int
    smallest: int
    largest: int
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True)
class LiveSet:
    """What the program holds at the event after which it holds most on a device; each list, largest first."""

    event: int
    seconds: float
    blocks: int
    requested: int
    by_size: tuple[Share, ...]
    by_phase: tuple[Share, ...]
    by_lifetime: tuple[Share, ...]
    by_stack: tuple[Share, ...]
    """Empty where no stacks were recorded."""


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
    recorded: Recorded | None
    live_set: LiveSet

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

    @property
    def fits(self) -> bool:
        """Whether it fits on every device under poolalloc as it was configured first."""
        return all(device.fits for device in self.devices)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; bytes and seconds."""
        return {
            "schema": 1,
            "source": "poolalloc, replayed on modelled devices",
            "memory_bytes": self.memory_bytes,
            "config": self.config,
            "fits": self.fits,
            "replays": self.replays,
            "verdicts": [{**vars(verdict), "spare": verdict.spare(self.memory_bytes)} for verdict in self.verdicts],
            "devices": [
                {
                    **vars(device),
                    "spare": device.spare(self.memory_bytes),
                    "out_of_memory": None if device.out_of_memory is None else vars(device.out_of_memory).copy(),
                    "recorded": None if device.recorded is None else vars(device.recorded).copy(),
                    "live_set": _live_set_json(device.live_set),
                }
                for device in self.devices
            ],
        }


def _live_set_json(live: LiveSet) -> dict[str, Any]:
    groups = ("by_size", "by_phase", "by_lifetime", "by_stack")
    return {
        **{name: value for name, value in vars(live).items() if name not in groups},
        **{
            name: [
                {**vars(share), "frames": [frame._asdict() for frame in share.frames]} for share in getattr(live, name)
            ]
            for name in groups
        },
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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fit:
    """Return whether a trace fits devices of `memory` bytes each, and the smallest that it fits.

    Args:
        trace: what the program asked for.
        memory: of each device. They are judged one by one: none has any use for another's memory.
        config: of poolalloc; None is the defaults.
        also: other configurations of poolalloc to judge, by name.
        against: allocators of torch's to judge (poolalloc.against), on simulated GPUs; some ten performances for each.
        progress: called with the replays done and expected.

    Raises:
        ConfigError: wrong options.
        AgainstError: an allocator that cannot be performed here.
    """
    if against:
        from poolalloc import against as performing

        performing.require(against)
    others = dict(also or {})
    devices = trace.used_devices()
    counted = _Progress(len(devices) * (1 + len(others) + len(against)), progress)
    results, verdicts = [], []
    for device in devices:
        alone = trace.of_device(device)
        replayer = Replayer(alone)
        mine = _judge(replayer, "", config, memory, counted)
        verdicts += [mine, *(_judge(replayer, name, other, memory, counted) for name, other in others.items())]
        verdicts += [_perform(alone, name, mine, memory, counted) for name in against]
        lost = None if mine.fits else replayer.run(config, memory).out_of_memory
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
                recorded=recorded_figures(trace, device),
                live_set=largest_live_set(trace, device),
            )
        )
    return Fit(memory, "" if config is None else config.to_conf(), counted.done, tuple(results), tuple(verdicts))


def _judge(replayer: Replayer, name: str, config: Config | None, memory: int, counted: _Progress) -> Verdict:
    """Judge poolalloc on the only device of a trace."""
    counted.candidate()

    def fits(given: int) -> bool:
        return replayer.run(config, given).out_of_memory is None

    (free,) = replayer.run(config).devices
    counted.step(9)
    fitted = fits(memory)
    counted.step(8)
    smallest = _smallest(fits, free.peak_requested, free.peak_reserved, counted.step)
    return Verdict(free.device, "poolalloc", name, fitted, smallest, free.peak_reserved)


def _perform(alone: Trace, allocator: str, mine: Verdict, memory: int, counted: _Progress) -> Verdict:
    """Judge an allocator of torch's on the only device of a trace; `mine` is what poolalloc does there."""
    from poolalloc import against

    counted.candidate()
    requested = int(requested_over_time(alone.events).max())
    with tempfile.TemporaryDirectory(prefix="poolalloc-fit-") as folder:
        path = Path(folder, "device.npz")
        files.write(alone, path)

        def peak(given: int) -> int | None:
            """What is reserved at the peak; None where memory runs out."""
            row = against.perform(path, alone, allocator, given).row
            if row.error is not None:
                raise against.AgainstError(f"{allocator}: {row.error.splitlines()[0]}")
            return None if row.out_of_memory else row.peak_reserved_bytes

        room = max(mine.peak_reserved, requested) * 4
        reserved = peak(room)
        while reserved is None:
            room = require_memory(room * 2)
            reserved = peak(room)
        counted.step(9)
        fitted = peak(memory) is not None
        counted.step(8)
        smallest = _smallest(lambda given: peak(given) is not None, requested, reserved, counted.step)
    return Verdict(mine.device, allocator, "", fitted, smallest, reserved)


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


# --- the largest live set -------------------------------------------------------------------------------------------


def largest_live_set(trace: Trace, device: int) -> LiveSet:
    """Return what the program held on a device when it held most."""
    events = trace.events
    ours = np.flatnonzero(events["device"] == device)
    held = requested_over_time(events[ours])
    at = int(ours[int(held.argmax())])
    allocs = np.flatnonzero((events["op"] == Op.ALLOC) & (events["device"] == device))
    frees = np.flatnonzero((events["op"] == Op.FREE) & (events["device"] == device))
    freed_before = events["id"][frees[frees <= at]]
    before = allocs[allocs <= at]
    live = before[~np.isin(events["id"][before], freed_before)]
    blocks = events[live]
    freed_later = np.isin(blocks["id"], events["id"][frees])
    lifetimes = np.where(freed_later, "freed later", "kept to the end of the recording")
    return LiveSet(
        event=at,
        seconds=(int(events["time_ns"][at]) - int(events["time_ns"][0])) / 1e9,
        blocks=len(live),
        requested=int(blocks["requested"].sum()),
        by_size=_group(blocks["requested"], _size_classes(blocks["requested"])),
        by_phase=_group(blocks["requested"], _phases(trace, live)),
        by_lifetime=_group(blocks["requested"], lifetimes),
        by_stack=_by_stack(trace, blocks),
    )


def _group(requested: npt.NDArray[np.uint64], labels: npt.NDArray[Any]) -> tuple[Share, ...]:
    names, of = np.unique(labels, return_inverse=True)
    shares = []
    for number, name in enumerate(names.tolist()):
        sizes = requested[of == number]
        shares.append(Share(str(name), len(sizes), int(sizes.sum()), int(sizes.min()), int(sizes.max())))
    return tuple(sorted(shares, key=lambda share: (-share.requested, share.label)))


def _size_classes(requested: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """The size class of each block, in bytes: what its request is rounded to below the bin limit."""
    sizes, of = np.unique(requested, return_inverse=True)
    classes = [_core.bin_bytes(_core.bin_of(size)) if 0 < size <= 1 << 40 else size for size in sizes.tolist()]
    return np.array([str(size) for size in classes])[of]


def _phases(trace: Trace, live: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The mark in force when each block was allocated; without marks, the step found."""
    marks = np.flatnonzero(trace.events["op"] == Op.MARK)
    if len(marks):
        texts = [BEFORE_MARKS, *(trace.marks[number] for number in trace.events["id"][marks].tolist())]
    else:
        marks = steps.find(trace)
        texts = [BEFORE_STEPS if len(marks) else DURING, *(steps.name(number) for number in range(1, len(marks) + 1))]
    labels = np.array(texts, dtype=object)[np.searchsorted(marks, live, side="right")]
    labels[live < trace.initial_events] = BEFORE
    return labels.astype(str)


def _by_stack(trace: Trace, blocks: npt.NDArray[np.void]) -> tuple[Share, ...]:
    if not blocks["stack"].any():
        return ()
    shares = []
    for share in _group(blocks["requested"], blocks["stack"]):
        frames = trace.stacks[int(share.label)]
        shares.append(Share(stack_label(frames), share.blocks, share.requested, share.smallest, share.largest, frames))
    return tuple(shares)


def stack_label(frames: tuple[Frame, ...]) -> str:
    """The innermost line of the program's own code, and what it called; else that of Python, or of all."""
    if not frames:
        return "(no stack recorded)"
    python = [frame for frame in frames if frame.file.endswith(".py")]
    own = [frame for frame in python if not any(part in frame.file for part in _OWN_CODE_AFTER)]
    line = (own or python or list(frames))[0]
    return str(line) if line is frames[0] else f"{line}: {frames[0].function}"
