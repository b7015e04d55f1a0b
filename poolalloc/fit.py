"""Whether a recorded program fits a device, how much it needs at least, and what it holds when it holds most.

Rests on poolalloc.replay: the smallest memory is found by replaying with less and less of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from poolalloc import _core
from poolalloc.config import Config
from poolalloc.replay import OutOfMemory, Recorded, Replayer, recorded_figures, require_memory
from poolalloc.trace.format import Frame, Op, Trace, requested_over_time

PAGE = 2 << 20
BEFORE = "before the recording began"
BEFORE_MARKS = "before the first mark"
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
    smallest_memory: int
    """The replay succeeds with this much and fails with one page of 2 MiB less."""
    peak_requested: int
    peak_reserved: int
    """Without a limit: less memory makes the engine hold less."""
    out_of_memory: OutOfMemory | None
    recorded: Recorded | None
    live_set: LiveSet

    def spare(self, memory: int) -> int:
        """Return how much more memory there is than needed; negative: how much is missing."""
        return memory - self.smallest_memory


@dataclass(frozen=True)
class Fit:
    """Whether a trace fits devices of `memory_bytes` each under a configuration."""

    memory_bytes: int
    config: str
    replays: int
    devices: tuple[DeviceFit, ...]

    @property
    def fits(self) -> bool:
        """Whether it fits on every device."""
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


def fit(
    trace: Trace, memory: int, config: Config | None = None, *, progress: Callable[[int, int], None] = lambda a, b: None
) -> Fit:
    """Return whether a trace fits devices of `memory` bytes each, and the smallest that it fits.

    Devices are judged one by one: none has any use for another's memory. `progress` is called with the replays done and
    expected. Raises ConfigError.
    """
    devices = trace.used_devices()
    done = 0
    results = []
    for number, device in enumerate(devices):
        alone = trace.of_device(device)
        replayer = Replayer(alone)

        def step(left: int, number: int = number) -> None:
            nonlocal done
            done += 1
            others = len(devices) - number - 1
            progress(done, done + left + others * (left + 2))

        free = replayer.run(config)
        step(8)
        given = replayer.run(config, memory)
        smallest = _smallest(
            replayer, config, free.device(device).peak_requested, free.device(device).peak_reserved, step
        )
        lost = given.out_of_memory
        if lost is not None:  # in numbers of the whole trace
            lost = OutOfMemory(
                **{**vars(lost), "event": int(np.flatnonzero(trace.events["device"] == device)[lost.event])}
            )
        results.append(
            DeviceFit(
                device=device,
                fits=lost is None,
                smallest_memory=smallest,
                peak_requested=free.device(device).peak_requested,
                peak_reserved=free.device(device).peak_reserved,
                out_of_memory=lost,
                recorded=recorded_figures(trace, device),
                live_set=largest_live_set(trace, device),
            )
        )
    return Fit(memory, "" if config is None else config.to_conf(), done, tuple(results))


def _smallest(
    replayer: Replayer, config: Config | None, requested: int, reserved: int, step: Callable[[int], None]
) -> int:
    """The memory, in whole pages, with which it fits and with a page less of which it does not."""

    def fits(pages: int) -> bool:
        fitted = replayer.run(config, pages * PAGE).out_of_memory is None
        step(max(high - low, 1).bit_length())
        return fitted

    low, high = max(-(-requested // PAGE) - 1, 0), max(-(-reserved // PAGE), 1)
    while not fits(high):  # an engine that runs into a limit may place blocks less well than without one
        low, high = high, high + max(high // 64, 1)
        require_memory(high * PAGE)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
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
    """The mark in force when each block was allocated."""
    marks = np.flatnonzero(trace.events["op"] == Op.MARK)
    texts = [BEFORE_MARKS if len(marks) else DURING]
    texts += [trace.marks[number] for number in trace.events["id"][marks].tolist()]
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
    """The innermost line of the program's own code, if there is one; else the innermost line of Python, or of all."""
    if not frames:
        return "(no stack recorded)"
    python = [frame for frame in frames if frame.file.endswith(".py")]
    own = [frame for frame in python if not any(part in frame.file for part in _OWN_CODE_AFTER)]
    return str((own or python or list(frames))[0])
