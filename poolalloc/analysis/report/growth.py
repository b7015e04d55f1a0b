"""What a program leaves behind, step after step: the memory that a leak holds.

A block is left behind by the step that allocated it if it is still held when the last step begins, at least two steps
later: by then a program has let go of what one step hands to the next. Blocks of one line and scope are growth if steps
left some from the beginning to the end, in each third of the steps looked at: what a program makes once, such as an
optimizer's state, or until a cache is full, is none. The first step is not looked at, nor are the last two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poolalloc._internal.trace.format import Events, Frame, Trace, frames_to_json
from poolalloc._internal.trace.steps import Indexes
from poolalloc.analysis.live_blocks import NO_STACK, live_after, scope_of, stack_label
from poolalloc.sizes import format_size

FEWEST = 8
"""Steps, without which nothing is said."""
_PARTS = 20  # of a recording in which no steps are known


@dataclass(frozen=True)
class LeftBehind:
    """Blocks of one line and scope that steps left behind. Bytes are requested ones."""

    label: str
    """The line; the size where no stacks were recorded."""
    scope: str
    steps: int
    """How many of those looked at left some."""
    blocks: int
    requested: int
    frames: tuple[Frame, ...]
    """A stack that left some."""


@dataclass(frozen=True)
class Growth:
    """What steps left behind, most bytes first."""

    steps: int
    """How many were looked at; 0 if the recording has too few."""
    found: bool
    """Whether steps are the program's. If not, they are equal parts of the recording."""
    left_behind: tuple[LeftBehind, ...]

    @property
    def per_step(self) -> float:
        """Bytes that a step leaves behind, on average."""
        return sum(each.requested for each in self.left_behind) / self.steps if self.steps else 0.0

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values; bytes."""
        return {
            "steps": self.steps,
            "steps_are_the_programs": self.found,
            "bytes_per_step": self.per_step,
            "left_behind": [{**vars(each), "frames": frames_to_json(each.frames)} for each in self.left_behind],
        }


def growth(trace: Trace, device: int, starts: Indexes) -> Growth:
    """Return what is left behind on a device by the steps that begin at these events."""
    found = len(starts) >= FEWEST
    if not found:
        starts = np.linspace(trace.initial_events, len(trace), _PARTS, endpoint=False).astype(np.int64)
    looked_at = len(starts) - 3
    if len(np.unique(starts)) < len(starts):
        return Growth(0, found, ())
    held = live_after(trace, device, int(starts[-1]) - 1)
    step = np.searchsorted(starts, held, side="right") - 2  # of those looked at, from 0 on
    held, step = (values[(step >= 0) & (step < looked_at)] for values in (held, step))
    blocks = trace.events[held]
    keys, of = _keys(trace, blocks)
    order = np.argsort(of, kind="stable")
    groups = []
    for members in np.split(order, np.flatnonzero(np.diff(of[order])) + 1) if len(order) else ():
        left = np.unique(step[members])
        if len(np.unique(left * 3 // looked_at)) < 3:
            continue
        label, scope = keys[int(of[members[0]])]
        groups.append(
            LeftBehind(
                label=label,
                scope=scope,
                steps=len(left),
                blocks=len(members),
                requested=int(blocks["requested"][members].sum()),
                frames=trace.stacks[int(blocks["stack"][members[0]])],
            )
        )
    return Growth(looked_at, found, tuple(sorted(groups, key=lambda each: (-each.requested, each.label))))


def _keys(trace: Trace, blocks: Events) -> tuple[list[tuple[str, str]], Indexes]:
    """The line, or where there is none the size, with the scope: all there are, and the number of each block's."""
    known: dict[tuple[str, str], int] = {}
    of_stack = {}
    for number in np.unique(blocks["stack"]).tolist():
        frames = trace.stacks[number]
        of_stack[number] = (stack_label(frames), scope_of(frames))
    of = []
    for stack, requested in zip(blocks["stack"].tolist(), blocks["requested"].tolist(), strict=True):
        label, scope = of_stack[stack]
        key = (f"blocks of {format_size(requested)}" if label == NO_STACK else label, scope)
        of.append(known.setdefault(key, len(known)))
    return list(known), np.array(of, np.int64)
