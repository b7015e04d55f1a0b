"""What drivers charge: price lists by device, and the time that counted work comes to. Always a model.

    from poolalloc.analysis import costs

    prices = costs.find("published-a100")
    prices.price({"create": 100, "create_pages": 1000, "map": 2000, "map_pages": 2000})  # Modelled(low=..., high=...)

Drivers charge for handles, not for calls: an access grant over forty handles costs forty times one. A handle costs a
little more for each further page of 2 MiB in it, so work of one kind takes

    microseconds * (handles + further_page * (pages - handles))

A price list is a JSON file: published figures, what benchmarks/driver_costs.py measured on a device, or `default`, in
the middle of what is published. A price is a range, in microseconds. Work has the names of poolalloc's driver
contract (csrc/driver/driver_work.h), and is counted in the same way for every allocator (driver_work.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from poolalloc.errors import PoolallocError

SCHEMA = 2
DEFAULT = "default"
PRICED = (
    "reserve",
    "release",
    "create",
    "destroy",
    "map",
    "allow_access",
    "unmap",
    "allocate_segment",
    "free_segment",
)
"""What a driver does that takes, gives or maps memory, by the names of poolalloc's driver contract."""
PAGES = "_pages"
"""Behind a kind of work: the pages in its handles."""

_KEYS = {"schema", "device", "source", "about", "microseconds", "further_page"}
_SOURCES = ("assumed", "published", "measured", "simulated")


class CostError(PoolallocError, ValueError):
    """A file is no price list, or there is none of that name. One line."""


@dataclass(frozen=True)
class Modelled:
    """Seconds that work would take, by the lowest and the highest prices; `unpriced` is work without one."""

    low: float
    high: float
    unpriced: Mapping[str, int]

    def to_json(self) -> dict[str, object]:
        """Return it as plain values."""
        return {"seconds_low": self.low, "seconds_high": self.high, "unpriced": dict(self.unpriced)}

    def __truediv__(self, steps: int) -> Modelled:
        return Modelled(self.low / steps, self.high / steps, {})

    @property
    def middle(self) -> float:
        """Half way between the lowest and the highest, in seconds."""
        return (self.low + self.high) / 2

    @property
    def milliseconds(self) -> str:
        """The number of milliseconds as text, without the unit."""
        low, high = _milliseconds(self.low), _milliseconds(self.high)
        return high if low == high else f"{low} to {high}"

    def __str__(self) -> str:
        return f"{self.milliseconds} ms"


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.095 or not value else f"{value:.2g}"


@dataclass(frozen=True)
class PriceList:
    """What work takes on a device; `microseconds[kind]` is the lowest and the highest price of a handle of one page."""

    name: str
    device: str
    source: str
    """`assumed`, `published`, `measured`, or `simulated` (which says nothing about a device)."""
    about: str
    microseconds: Mapping[str, tuple[float, float]]
    further_page: Mapping[str, float]
    """What each page of a handle beyond its first adds, as a share of the price of one page; 0 where it is missing."""
    filled_in: tuple[str, ...] = ()
    """Kinds that the list itself does not price, and that are priced as in the default list."""

    @property
    def label(self) -> str:
        """What to write beside every figure that is made with it."""
        if self.source == "assumed":
            return f"modelled with the {self.name} price list"
        how = {"published": "published figures, not measured", "measured": "measured there"}
        text = f"modelled for {self.device} ({how.get(self.source, 'prices of a simulated device: for tests only')})"
        return f"{text}; by the default list: {', '.join(self.filled_in)}" if self.filled_in else text

    def price(self, work: Mapping[str, int]) -> Modelled:
        """Return what this work comes to. `work[kind]` are handles, `work[kind + "_pages"]` the pages in them.

        Where the pages are missing, each handle counts as one page. Kinds that do not concern memory are left aside.
        """
        low = high = 0.0
        unpriced = {}
        for kind in PRICED:
            handles = work.get(kind, 0)
            if not handles:
                continue
            if kind not in self.microseconds:
                unpriced[kind] = handles
                continue
            further = max(work.get(kind + PAGES, handles) - handles, 0)
            amount = handles + self.further_page.get(kind, 0.0) * further
            low += self.microseconds[kind][0] * amount
            high += self.microseconds[kind][1] * amount
        return Modelled(low / 1e6, high / 1e6, unpriced)

    def to_file(self) -> str:
        """Return the list as the text of a file that read() reads."""
        prices = {kind: list(price) for kind, price in self.microseconds.items() if kind not in self.filled_in}
        further = {kind: share for kind, share in self.further_page.items() if kind not in self.filled_in}
        texts = {"device": self.device, "source": self.source, "about": self.about}
        return json.dumps({"schema": SCHEMA, **texts, "microseconds": prices, "further_page": further}, indent=1) + "\n"

    def to_json(self) -> dict[str, object]:
        """Return what says where figures come from."""
        return {
            "name": self.name,
            "device": self.device,
            "source": self.source,
            "label": self.label,
            "microseconds": {kind: list(price) for kind, price in self.microseconds.items()},
            "further_page": dict(self.further_page),
            "filled_in": list(self.filled_in),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PriceList:
        """Return what to_json wrote, without what it is about."""
        prices = {kind: (low, high) for kind, (low, high) in data["microseconds"].items()}
        filled_in = tuple(data["filled_in"])
        return cls(data["name"], data["device"], data["source"], "", prices, data["further_page"], filled_in)

    def to_sim(self) -> str:
        """Return the prices as the simulated GPU reads them (csrc/simgpu/driver_work.h); of a range the middle."""
        prices = ((kind, (low + high) / 2) for kind, (low, high) in self.microseconds.items())
        return ",".join(f"{kind}={price:.6g}:{self.further_page.get(kind, 0.0):.6g}" for kind, price in prices)


def known() -> dict[str, Path]:
    """Return the price lists that can be named: those shipped, and those of a checkout."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "driver_costs", package.parent / "benchmarks" / "results" / "driver-costs")
    return {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))}


def find(name: str | None = None, device: str | None = None) -> PriceList:
    """Return a price list by name or path; without one, what was measured on `device`, else the default list.

    Raises:
        CostError: there is none, or the file is no price list.
    """
    if name is None and device is None:
        return _default()
    lists = known()
    if name is None:
        measured = (found for found in map(read, lists.values()) if found.source == "measured")
        return next((found for found in measured if found.device == device), None) or _default()
    if name in lists:
        return read(lists[name])
    if not name.endswith(".json"):
        raise CostError(f"there are no driver costs {name!r}; there are {', '.join(sorted(lists))}, or a file .json")
    return read(Path(name))


def read(path: Path) -> PriceList:
    """Return the price list in a file. What a published one does not price is priced as in the default list.

    Raises:
        CostError: there is none, or the file is no price list.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CostError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CostError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or set(data) != _KEYS:
        raise CostError(
            f"{path}: no list of driver costs; one has schema {SCHEMA} and the keys {', '.join(sorted(_KEYS))}"
        )
    texts = {key: data[key] for key in ("device", "source", "about")}
    if not all(isinstance(text, str) for text in texts.values()) or data["source"] not in _SOURCES:
        raise CostError(f"{path}: device and about are texts, and source is one of {', '.join(_SOURCES)}")
    prices, further = data["microseconds"], data["further_page"]
    if not isinstance(prices, dict) or not prices or not isinstance(further, dict):
        raise CostError(f"{path}: microseconds is a table of prices, and further_page a table of shares")
    for kind in (*prices, *further):
        if kind not in PRICED:
            raise CostError(f"{path}: {kind!r} is no work with a price; there are {', '.join(PRICED)}")
    for kind, price in prices.items():
        numbers = isinstance(price, list) and len(price) == 2 and all(type(end) in (int, float) for end in price)
        if not numbers or not 0 <= price[0] <= price[1] < 1e9:
            raise CostError(f"{path}: {kind}: a price is [lowest, highest], in microseconds")
    for kind, share in further.items():
        if type(share) not in (int, float) or not 0 <= share < 1e3:
            raise CostError(f"{path}: further_page: {kind}: a share of the price, such as 0.03")
    shipped = {kind: (price[0], price[1]) for kind, price in prices.items()}
    filled_in: tuple[str, ...] = ()
    if data["source"] == "published":
        default = _default()
        filled_in = tuple(kind for kind in default.microseconds if kind not in shipped)
        shipped |= {kind: default.microseconds[kind] for kind in filled_in}
        further = {**further, **{kind: default.further_page.get(kind, 0.0) for kind in filled_in}}
    return PriceList(path.stem, **texts, microseconds=shipped, further_page=further, filled_in=filled_in)


@cache
def _default() -> PriceList:
    return read(known()[DEFAULT])
