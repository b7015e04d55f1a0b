"""What a recorded program holds at one event, and what of it goes together: by size, phase, line, scope.

    live = peak_live_blocks(trace, device=0)
    for share in live.by_line:
        print(share.label, share.requested)

Bytes are requested ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from poolalloc import _core
from poolalloc._internal.moved import old_names
from poolalloc._internal.text import printable
from poolalloc._internal.trace import steps
from poolalloc._internal.trace.format import SCOPE_FILE, Events, Frame, Op, Trace, frames_to_json, requested_over_time

__all__ = ["BlockGroup", "LiveBlocks", "Phases", "live_blocks", "peak_live_blocks", "phases_of"]

BEFORE = "before the recording began"
BEFORE_MARKS = "before the first mark"
BEFORE_STEPS = "before the first step found"
DURING = "while it was recorded"
NO_STACK = "(no stack of Python, as in backward passes)"
NO_SCOPE = "(in no scope)"
_OWN_CODE_AFTER = ("/site-packages/", "/dist-packages/", "/lib/python")

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BlockGroup:
    """Blocks of a live set that have something in common."""

    label: str
    blocks: int
    requested: int
    smallest: int
    largest: int
    frames: tuple[Frame, ...] = ()
    """Of the stack that they have in common."""

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values."""
        return {**vars(self), "frames": frames_to_json(self.frames)}


@dataclass(frozen=True)
class LiveBlocks:
    """What the program holds after an event on a device; each list, largest first."""

    event: int
    seconds: float
    """Since the first event."""
    blocks: int
    requested: int
    by_size: tuple[BlockGroup, ...]
    by_phase: tuple[BlockGroup, ...]
    by_lifetime: tuple[BlockGroup, ...]
    by_stack: tuple[BlockGroup, ...]
    """Empty where no stacks were recorded, as by_line."""
    by_line: tuple[BlockGroup, ...]
    by_scope: tuple[BlockGroup, ...]
    """Empty where no scopes were recorded."""

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values; bytes and seconds."""
        return {
            name: [share.to_json() for share in value] if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }


class Phases(NamedTuple):
    """Where the phases of a trace begin, and what each is called; the first name is that of what comes before."""

    starts: Indexes
    names: tuple[str, ...]


def phases_of(trace: Trace) -> Phases:
    """Return the phases that the program's marks begin; without marks, the steps found."""
    marks = np.flatnonzero(trace.events["op"] == Op.MARK)
    if len(marks):
        return Phases(marks, (BEFORE_MARKS, *(trace.marks[each] for each in trace.events["id"][marks].tolist())))
    starts = steps.find(trace)
    before = BEFORE_STEPS if len(starts) else DURING
    return Phases(starts, (before, *(steps.name(number) for number in range(1, len(starts) + 1))))


def peak_live_blocks(trace: Trace, device: int, phases: Phases | None = None) -> LiveBlocks:
    """Return what the program held on a device when it held most. `phases`: phases_of(trace), where it is known."""
    ours = np.flatnonzero(trace.events["device"] == device)
    return live_blocks(trace, device, int(ours[int(requested_over_time(trace.events[ours]).argmax())]), phases)


def live_blocks(trace: Trace, device: int, event: int, phases: Phases | None = None) -> LiveBlocks:
    """Return what the program held on a device after an event. `phases`: phases_of(trace), where it is known."""
    events = trace.events
    live = live_after(trace, device, event)
    blocks = events[live]
    requested = blocks["requested"]
    freed_later = np.isin(blocks["id"], events["id"][events["op"] == Op.FREE])
    lifetimes = np.where(freed_later, "freed later", "kept to the end of the recording")
    by_line = _by_label(trace, blocks, stack_label, NO_STACK)
    return LiveBlocks(
        event=event,
        seconds=(int(events["time_ns"][event]) - int(events["time_ns"][0])) / 1e9,
        blocks=len(live),
        requested=int(requested.sum()),
        by_size=_group(requested, size_classes(requested)),
        by_phase=_group(requested, _phase_of(trace, live, phases_of(trace) if phases is None else phases)),
        by_lifetime=_group(requested, lifetimes),
        by_stack=_by_stack(trace, blocks) if by_line else (),
        by_line=by_line,
        by_scope=_by_label(trace, blocks, lambda frames: scope_of(frames) or NO_SCOPE, NO_SCOPE),
    )


def live_after(trace: Trace, device: int, event: int) -> Indexes:
    """Return the allocations on a device that are not freed by the end of an event, as places in the events."""
    events = trace.events[: event + 1]
    ours = events["device"] == device
    births = np.flatnonzero(ours & (events["op"] == Op.ALLOC))
    freed = events["id"][ours & (events["op"] == Op.FREE)]
    return births[~np.isin(events["id"][births], freed)]


def _group(requested: npt.NDArray[np.uint64], labels: npt.NDArray[Any]) -> tuple[BlockGroup, ...]:
    names, of = np.unique(labels, return_inverse=True)
    shares = []
    for number, name in enumerate(names.tolist()):
        sizes = requested[of == number]
        shares.append(BlockGroup(str(name), len(sizes), int(sizes.sum()), int(sizes.min()), int(sizes.max())))
    return tuple(sorted(shares, key=lambda share: (-share.requested, share.label)))


def size_classes(requested: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """The size class of each block, in bytes: what its request is rounded to below the bin limit."""
    sizes, of = np.unique(requested, return_inverse=True)
    classes = [_core.bin_bytes(_core.bin_of(size)) if 0 < size <= 1 << 40 else size for size in sizes.tolist()]
    return np.array([str(size) for size in classes])[of]


def _phase_of(trace: Trace, live: Indexes, phases: Phases) -> npt.NDArray[Any]:
    """The name of the phase in which each block was allocated."""
    labels = np.array(phases.names, dtype=object)[np.searchsorted(phases.starts, live, side="right")]
    labels[live < trace.initial_events] = BEFORE
    return labels.astype(str)


# --- stacks -----------------------------------------------------------------------------------------------------------


def _by_stack(trace: Trace, blocks: Events) -> tuple[BlockGroup, ...]:
    shares = []
    for share in _group(blocks["requested"], blocks["stack"]):
        frames = trace.stacks[int(share.label)]
        shares.append(
            BlockGroup(stack_label(frames), share.blocks, share.requested, share.smallest, share.largest, frames)
        )
    return tuple(shares)


def _by_label(
    trace: Trace, blocks: Events, label: Callable[[tuple[Frame, ...]], str], unknown: str
) -> tuple[BlockGroup, ...]:
    """Blocks by what is said of their stacks; none where that is `unknown` of all."""
    labels = labels_of(trace, blocks["stack"], label)
    return _group(blocks["requested"], labels) if (labels != unknown).any() else ()


def labels_of(
    trace: Trace, stacks: npt.NDArray[np.uint32], label: Callable[[tuple[Frame, ...]], str]
) -> npt.NDArray[Any]:
    """Return what `label` says of each stack; it is asked once for each that differs."""
    numbers, of = np.unique(stacks, return_inverse=True)
    return np.array([label(trace.stacks[number]) for number in numbers.tolist()], dtype=str)[of]


def shown(label: str) -> str:
    """Return a label as people are shown it: files are told from the current folder on, nothing moves the cursor."""
    return printable(label.replace(f"({os.getcwd()}{os.sep}", "("))


def in_files(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """Return the lines of a stack, without the scope around them."""
    return frames[:-1] if scope_of(frames) else frames


def scope_of(frames: tuple[Frame, ...]) -> str:
    """Return the scope that a stack is in; "" for none."""
    return frames[-1].function if frames and frames[-1].file == SCOPE_FILE else ""


def stack_label(frames: tuple[Frame, ...]) -> str:
    """Return the innermost line of the program's own code, and what it called; else that of Python, or of all."""
    lines = in_files(frames)
    if not lines:
        return NO_STACK
    python = [frame for frame in lines if frame.file.endswith(".py")]
    own = [frame for frame in python if not any(part in frame.file for part in _OWN_CODE_AFTER)]
    line = (own or python or list(lines))[0]
    return str(line) if line is lines[0] else f"{line}: {lines[0].function}"


if not TYPE_CHECKING:  # names of before, which warn
    __getattr__ = old_names(
        __name__,
        {
            "LiveSet": "LiveBlocks",
            "Share": "BlockGroup",
            "live_set": "live_blocks",
            "largest_live_set": "peak_live_blocks",
        },
    )
