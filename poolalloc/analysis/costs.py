"""What drivers charge: price lists by device, and measuring one. What a price list says of work is always a model.

    from poolalloc.analysis import costs

    prices = costs.find("published-a100")
    prices.price({"create": 100, "create_pages": 1000, "map": 2000, "map_pages": 2000})  # Modelled(low=..., high=...)

The lists themselves are poolalloc._internal.price_lists, which the runtime reads too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from poolalloc._internal.driver_work import DriverTime, DriverWork
from poolalloc._internal.price_lists import DEFAULT, PAGES, PRICED, CostError, Modelled, PriceList, find, known, read
from poolalloc.sizes import parse_size

__all__ = [
    "DEFAULT",
    "PAGES",
    "PRICED",
    "CostError",
    "DriverTime",
    "DriverWork",
    "Measured",
    "Modelled",
    "PriceList",
    "find",
    "known",
    "measure",
    "read",
]

PAGE = 2 << 20


@dataclass(frozen=True)
class Measured:
    """What calls took on a device of this machine: the price list, and every kind of call by what it was about."""

    prices: PriceList
    cases: Mapping[str, Mapping[str, tuple[float, float, float]]]
    """`cases[kind][what]`: the 10th percentile, the median and the 90th, in microseconds. Kinds without a price too."""


def measure(device: int = 0, rounds: int = 40) -> Measured:
    """Time every call on a device of this machine: the 10th and the 90th percentile of `rounds` with many calls each.

    On a simulated device the list says so.

    Raises:
        UsageError: there is no such device.
        DriverError: its driver refuses.
    """
    from poolalloc import _core
    from poolalloc.sim import is_simulated

    timed = _core.time_driver_calls(device, rounds)
    taken: dict[str, dict[str, list[float]]] = timed["microseconds"]
    prices, further = {}, {}
    for kind in PRICED:
        if kind in taken:
            prices[kind], further[kind] = _price_of(taken[kind], by_size=kind not in ("reserve", "release"))
    about = (
        f"The 10th and the 90th percentile of {rounds} rounds with no other work: handles of 2 and 20 MiB, segments of "
        "4 and 128 MiB, ranges of 128 MiB and of 8 times the device; access granted by handle and for a whole range, "
        "as time for each handle. What a further page adds is from the medians of the two sizes."
    )
    source = "simulated" if is_simulated() else "measured"
    name = re.sub(r"[^a-z0-9]+", "-", timed["device"].lower()).strip("-")
    cases = {kind: {what: _percentiles(times) for what, times in of.items()} for kind, of in taken.items()}
    return Measured(PriceList(f"{source}-{name}", timed["device"], source, about, prices, further), cases)


def _price_of(cases: Mapping[str, list[float]], *, by_size: bool) -> tuple[tuple[float, float], float]:
    """The price of a handle of one page, and the share for each further one; names of cases begin with a size."""
    by_pages: dict[int, list[float]] = {}
    for what, times in cases.items():
        pages = parse_size(what.partition(",")[0]) // PAGE if by_size else 1
        by_pages.setdefault(max(pages, 1), []).extend(times)
    fewest, most = min(by_pages), max(by_pages)
    low, middle, high = _percentiles(by_pages[fewest])
    if fewest == most or not middle:
        return (low, high), 0.0
    each = max((_percentiles(by_pages[most])[1] - middle) / (most - fewest), 0.0)
    one = middle - each * (fewest - 1)
    if one <= 0:  # the time is all in the pages
        one = middle / fewest
        each = one
    return (round(low * one / middle, 3), round(high * one / middle, 3)), round(each / one, 4)


def _percentiles(times: list[float]) -> tuple[float, float, float]:
    ordered = sorted(times)
    low, middle, high = (round(ordered[len(ordered) * tenths // 10], 3) for tenths in (1, 5, 9))
    return low, middle, high
