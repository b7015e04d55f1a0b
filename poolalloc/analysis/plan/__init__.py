"""Plan mode: the blocks of a program whose steps repeat are placed beforehand, better than while it runs.

    poolalloc plan run.npz -o plan.npz       # from a recording (docs/plan.md)
    poolalloc.install(plan="plan.npz")       # and the next run is served from it

`make` is what the command does. `place` is the placement alone, for any sizes and lifetimes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolalloc._internal.moved import old_names
from poolalloc._internal.plan_file import Part, Plan, PlanError, read, write
from poolalloc.analysis.plan.making import ABOVE, StreamFindings, make
from poolalloc.analysis.plan.placement import Placement, place
from poolalloc.analysis.plan.worth import Worth, judge

__all__ = [
    "ABOVE",
    "Part",
    "Placement",
    "Plan",
    "PlanError",
    "StreamFindings",
    "Worth",
    "judge",
    "make",
    "place",
    "read",
    "write",
]


if not TYPE_CHECKING:  # names of before, which warn
    __getattr__ = old_names(__name__, {"Found": "StreamFindings"})
