"""Random programs with plans, against the oracle: whatever a plan says, no two live blocks overlap, figures are true,
and what fits is served. The plans here are mostly nonsense: places that overlap, or that no program would free in time.

`make check-long` runs many random programs of each kind instead of the same few every time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from oracle import PAGE, Oracle, RefusedError
from test_engine_properties import MIB, SETTINGS, STREAMS, Programs

KIB = 1 << 10
NOWHERE = (1 << 64) - 1
PAGES = 12  # of the plans' addresses


@st.composite
def parts(draw: st.DrawFn, device: int, stream: int, above: int) -> dict[str, Any]:
    """A beginning and a cycle of one or two periods. Few sizes, so that a program meets them by chance too."""
    few = draw(st.lists(st.integers(above // 512 + 1, 3 * PAGE // 512), min_size=1, max_size=4))
    sizes = draw(st.lists(st.sampled_from(few), min_size=1, max_size=12))
    first = draw(st.integers(0, len(sizes) - 1))
    period = len(sizes) - first
    sizes += sizes[first:] * draw(st.integers(0, 1))
    offsets = []
    for size in sizes:
        place = st.integers(0, PAGES * PAGE // 512 - size)
        near = st.integers(0, (PAGES * PAGE // 512 - size) * 512 // PAGE).map(lambda page: page * PAGE // 512)
        offsets.append(draw(st.one_of(place, near, st.none())))
    return {
        "device": device,
        "stream": stream,
        "first": first,
        "period": period,
        "height": PAGES * PAGE,
        "sizes": np.array(sizes, np.uint64) * np.uint64(512),
        "offsets": np.array([NOWHERE if offset is None else offset * 512 for offset in offsets], np.uint64),
    }


class PlannedPrograms(Programs):
    """What programs do, and runs of requests that follow the plan, with some left out, too many, or of another size."""

    @initialize(
        limit=st.sampled_from([0, 128 * KIB]),
        growth=st.sampled_from(["tight", "balanced", "fast"]),
        memory=st.sampled_from([32 * MIB, 100 * MIB, 512 * MIB]),
        lag=st.sampled_from([0, 3]),
        data=st.data(),
    )
    def start(self, limit: int, growth: str, memory: int, lag: int, data: st.DataObject) -> None:
        streams = [(0, 0), (0, 1)]
        self.parts = [data.draw(parts(device, stream, limit), label="part") for device, stream in streams]
        plan = {"above": limit, "parts": self.parts}
        self.oracle = Oracle(f"growth:{growth},bin_limit:{limit}", devices=1, memory=memory, lag=lag, plan=plan)
        self.freed = []
        self.at = [0, 0]

    @rule(
        number=st.integers(0, 1),
        count=st.integers(1, 12),
        odd=st.sampled_from(["no", "no", "no", "left out", "too many"]),
        keep=st.integers(0, 4),
    )
    def follow(self, number: int, count: int, odd: str, keep: int) -> None:
        """Follow the plan of a stream; of its blocks, all but the last few go in the order in which they came."""
        part, stream = self.parts[number], STREAMS[number]
        sizes = part["sizes"].tolist()
        mine = []
        try:
            for step in range(count):
                size = sizes[self.at[number]]
                if step == 1 and odd == "too many":
                    size += 512
                else:
                    self.at[number] += 1 + (step == 1 and odd == "left out")
                    if self.at[number] >= len(sizes):
                        self.at[number] = part["first"]
                block = self.oracle.allocate(size - 100, 0, stream)
                assert block is not None
                mine.append(block)
                if len(mine) > keep:
                    self.oracle.free(mine.pop(0))
        except RefusedError:
            return


class RefusedPlannedPrograms(PlannedPrograms):
    """The same, with a driver that refuses calls now and then."""

    may_be_refused = True


TestPlannedPrograms = PlannedPrograms.TestCase
TestPlannedPrograms.settings = SETTINGS
TestRefusedPlannedPrograms = RefusedPlannedPrograms.TestCase
TestRefusedPlannedPrograms.settings = SETTINGS
