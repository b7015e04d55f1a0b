"""What a plan is worth to the program it was made of: a replay with it beside one without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolalloc import _core
from poolalloc._internal.plan_file import Plan
from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from poolalloc.analysis.replay import Replayer, Result

MOST_COST = 0.01
"""Of the memory without it: a plan that costs more does not pay, whatever else it saves."""
SOME_PAGES = 4 * _core.PAGE_BYTES
"""What any plan may cost: in a small program one page is more than that part."""


@dataclass(frozen=True)
class Worth:
    """What a replay takes with a plan and without it: bytes at the peak, all devices together, and driver calls."""

    reserved: int
    reserved_without: int
    driver_calls: int
    driver_calls_without: int

    @property
    def cost(self) -> float:
        """What the plan adds to the memory reserved, as a part of that without it; negative: it saves memory."""
        return self.reserved / self.reserved_without - 1 if self.reserved_without else 0.0

    @property
    def pays(self) -> bool:
        """Whether it costs next to no memory, and saves some or makes no more driver calls: it still saves time."""
        worth = self.reserved < self.reserved_without or self.driver_calls <= self.driver_calls_without
        return worth and self.reserved <= (1 + MOST_COST) * self.reserved_without + SOME_PAGES

    def __str__(self) -> str:
        verb = "costs" if self.cost > 0 else "saves"
        return (
            f"{format_size(self.reserved)} reserved and {self.driver_calls:,} driver calls with the plan, "
            f"{format_size(self.reserved_without)} and {self.driver_calls_without:,} without it: "
            f"it {verb} {abs(self.cost):.2%} of memory"
        )

    @classmethod
    def of(cls, planned: Result, without: Result) -> Worth:
        """Compare two replays of one trace."""
        return cls(
            sum(device.peak_reserved for device in planned.devices),
            sum(device.peak_reserved for device in without.devices),
            sum(planned.driver_calls.values()),
            sum(without.driver_calls.values()),
        )


def judge(replayer: Replayer, plan: Plan) -> Worth:
    """Replay a trace with a plan and without it, on devices with room for either."""
    from poolalloc.analysis.replay import MOST_MEMORY

    return Worth.of(replayer.run(None, MOST_MEMORY, plan=plan), replayer.run(None, MOST_MEMORY))
