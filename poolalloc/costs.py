"""What driver calls take: tables of costs by device, and the time that a count of calls comes to. Always a model.

    from poolalloc import costs

    table = costs.find("NVIDIA A100")
    table.price({"create": 100, "map": 2000})  # Modelled(low=0.043..., high=0.166..., unpriced={})

A table is a JSON file: published figures, or what benchmarks/driver_costs.py measured on a device. A cost is a range,
in microseconds a call. Calls have the names of poolalloc's driver contract; those of CUDA are translated. Only calls
that take, give or map memory are priced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poolalloc.errors import PoolallocError

SCHEMA = 1
DEFAULT = "published-a100"
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
"""The calls of poolalloc's driver contract (csrc/driver/driver.h) that take, give or map memory."""
_OF_CUDA = {
    "cuMemAddressReserve": "reserve",
    "cuMemAddressFree": "release",
    "cuMemCreate": "create",
    "cuMemRelease": "destroy",
    "cuMemMap": "map",
    "cuMemSetAccess": "allow_access",
    "cuMemUnmap": "unmap",
    "cudaMalloc": "allocate_segment",
    "cuMemAlloc": "allocate_segment",
    "cudaFree": "free_segment",
    "cuMemFree": "free_segment",
}


def kind_of(call: str) -> str:
    """Return the name of a CUDA call in poolalloc's driver contract; any other name as it is."""
    return _OF_CUDA.get(call, call)


_KEYS = {"schema", "device", "source", "about", "microseconds"}
_SOURCES = ("published", "measured", "simulated")


class CostError(PoolallocError, ValueError):
    """A file is no table of costs, or there is none of that name. One line."""


@dataclass(frozen=True)
class Modelled:
    """Seconds that calls would take, by the lowest and the highest cost; `unpriced` are calls without one."""

    low: float
    high: float
    unpriced: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"seconds_low": self.low, "seconds_high": self.high, "unpriced": dict(self.unpriced)}

    def __str__(self) -> str:
        low, high = _seconds(self.low), _seconds(self.high)
        return high if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class CostTable:
    """What calls take on a device; `microseconds[kind]` is the lowest and the highest cost of one."""

    name: str
    device: str
    source: str
    """`published`, `measured` or `simulated` (which says nothing about a device)."""
    about: str
    microseconds: Mapping[str, tuple[float, float]]

    @property
    def label(self) -> str:
        """What to write beside every figure that is made with it."""
        how = {"published": "published figures, not measured", "measured": "measured there"}
        return f"modelled for {self.device} ({how.get(self.source, 'costs of a simulated device: for tests only')})"

    def price(self, calls: Mapping[str, int]) -> Modelled:
        """Return what these calls come to. Kinds that do not concern memory are left aside.

        Access is granted by handle, whatever the range of a call: `allow_access` is charged for each mapping made.
        """
        counts: dict[str, int] = {}
        for name, count in calls.items():
            kind = kind_of(name)
            if kind in PRICED and count:
                counts[kind] = counts.get(kind, 0) + count
        if "allow_access" in counts:
            counts["allow_access"] = max(counts["allow_access"], counts.get("map", 0))
        low, high = (
            sum(self.microseconds[kind][end] * count for kind, count in counts.items() if kind in self.microseconds)
            / 1e6
            for end in (0, 1)
        )
        return Modelled(low, high, {kind: count for kind, count in counts.items() if kind not in self.microseconds})

    def to_file(self) -> str:
        """Return the table as the text of a file that read() reads."""
        costs = {kind: list(cost) for kind, cost in self.microseconds.items()}
        texts = {"device": self.device, "source": self.source, "about": self.about}
        return json.dumps({"schema": SCHEMA, **texts, "microseconds": costs}, indent=1) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return what says where figures come from."""
        return {
            "name": self.name,
            "device": self.device,
            "source": self.source,
            "label": self.label,
            "microseconds": {kind: list(cost) for kind, cost in self.microseconds.items()},
        }


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * scale >= 1 or unit == "us":
            return f"{value * scale:.3g} {unit}" if value else "0 s"
    raise AssertionError


def known() -> dict[str, Path]:
    """Return the tables that can be named: those shipped, and those of a checkout."""
    package = Path(__file__).resolve().parent
    folders = (package / "driver_costs", package.parent / "benchmarks" / "results" / "driver-costs")
    return {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))}


def find(name: str | None = None, device: str | None = None) -> CostTable:
    """Return a table by name or path; without one, what was measured on `device`, else the published figures.

    Raises CostError.
    """
    tables = known()
    if name is None:
        measured = [table for table in map(read, tables.values()) if table.source == "measured"]
        return next((table for table in measured if table.device == device), None) or read(tables[DEFAULT])
    if name in tables:
        return read(tables[name])
    if not name.endswith(".json"):
        raise CostError(f"there are no driver costs {name!r}; there are {', '.join(sorted(tables))}, or a file .json")
    return read(Path(name))


def read(path: Path) -> CostTable:
    """Return the table in a file. Raises CostError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CostError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CostError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or set(data) != _KEYS:
        raise CostError(
            f"{path}: no table of driver costs; one has schema {SCHEMA} and the keys {', '.join(sorted(_KEYS))}"
        )
    texts = {key: data[key] for key in ("device", "source", "about")}
    if not all(isinstance(text, str) for text in texts.values()) or data["source"] not in _SOURCES:
        raise CostError(f"{path}: device and about are texts, and source is one of {', '.join(_SOURCES)}")
    costs = data["microseconds"]
    if not isinstance(costs, dict) or not costs:
        raise CostError(f"{path}: microseconds is a table of calls")
    for kind, cost in costs.items():
        if kind not in PRICED:
            raise CostError(f"{path}: {kind!r} is no call with a cost; there are {', '.join(PRICED)}")
        numbers = isinstance(cost, list) and len(cost) == 2 and all(type(end) in (int, float) for end in cost)
        if not numbers or not 0 <= cost[0] <= cost[1] < 1e9:
            raise CostError(f"{path}: {kind}: a cost is [lowest, highest], in microseconds")
    return CostTable(path.stem, **texts, microseconds={kind: (cost[0], cost[1]) for kind, cost in costs.items()})


@dataclass(frozen=True)
class Measured:
    """What calls took on a device of this machine: the table, and every kind of call by what it was about."""

    table: CostTable
    cases: Mapping[str, Mapping[str, tuple[float, float, float]]]
    """`cases[kind][what]`: the 10th percentile, the median and the 90th, in microseconds. Kinds without a price too."""


def measure(device: int = 0, rounds: int = 40) -> Measured:
    """Time every call on a device of this machine: the 10th and the 90th percentile of `rounds` with many calls each.

    On a simulated device the table says so. Raises UsageError without a device, RuntimeError where its driver refuses.
    """
    from poolalloc import _core
    from poolalloc.sim import is_simulated

    timed = _core.time_driver_calls(device, rounds)
    taken: dict[str, dict[str, list[float]]] = timed["microseconds"]
    costs = {}
    for kind in PRICED:
        if kind in taken:
            low, _, high = _percentiles([each for case in taken[kind].values() for each in case])
            costs[kind] = (low, high)
    about = (
        f"The 10th and the 90th percentile of {rounds} rounds with no other work: handles of 2 and 20 MiB, segments of "
        "4 and 128 MiB, ranges of 128 MiB and of 8 times the device; access granted by handle and for a whole range, "
        "as time for each handle."
    )
    source = "simulated" if is_simulated() else "measured"
    name = re.sub(r"[^a-z0-9]+", "-", timed["device"].lower()).strip("-")
    cases = {kind: {what: _percentiles(times) for what, times in of.items()} for kind, of in taken.items()}
    return Measured(CostTable(f"{source}-{name}", timed["device"], source, about, costs), cases)


def _percentiles(times: list[float]) -> tuple[float, float, float]:
    ordered = sorted(times)
    low, middle, high = (round(ordered[len(ordered) * tenths // 10], 3) for tenths in (1, 5, 9))
    return low, middle, high
