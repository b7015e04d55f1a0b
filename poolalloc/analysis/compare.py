"""What ways of doing the same thing cost in GPU memory, measured side by side.

    from poolalloc.analysis.compare import compare

    print(compare({"copy": lambda: torch.relu(x), "in place": lambda: torch.relu_(x)}))

Works under poolalloc and under torch's own allocator, on a real or a simulated GPU.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from poolalloc._internal.device import device_index
from poolalloc._internal.text import text_table
from poolalloc.errors import UnknownNameError, UsageError
from poolalloc.sizes import format_size

if TYPE_CHECKING:
    from torch.types import Device

__all__ = ["Comparison", "Cost", "compare"]


@dataclass(frozen=True)
class Cost:
    """What one way costs. Bytes on top of what was there before it; of several runs, the medians."""

    name: str
    peak: int
    """Most that it held at one time, as requested."""
    peak_reserved: int
    """Most that the allocator held more than before; what it had cached was given back first."""
    allocated: int
    """Everything it requested, one after the other."""
    allocations: int
    kept: int
    """Held through what it returned, and what it left elsewhere."""
    left: int
    """Still held once what it returned is gone."""
    seconds: float
    """Until the device had done its work. On a simulated GPU that is what Python takes; kernels take nothing."""
    out_of_memory: bool
    """It did not come to its end. Bytes are those until then."""


@dataclass(frozen=True)
class Comparison:
    """Ways of doing the same thing, in the order in which they were given. str() is a table."""

    costs: tuple[Cost, ...]

    def __getitem__(self, name: str) -> Cost:
        for cost in self.costs:
            if cost.name == name:
                return cost
        raise UnknownNameError(f"there is no way {name!r} in this comparison")

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values; bytes and seconds."""
        return {"schema": 1, "costs": [vars(cost).copy() for cost in self.costs]}

    def __str__(self) -> str:
        first = self.costs[0]
        rows = [("", "peak", "to the first", "peak reserved", "allocated", "allocations", "kept", "left", "seconds")]
        for cost in self.costs:
            ratio = f"{cost.peak / first.peak:.3f}" if first.peak else "-"
            rows.append(
                (
                    cost.name,
                    format_size(cost.peak),
                    "out of memory" if cost.out_of_memory else ratio,
                    format_size(cost.peak_reserved),
                    format_size(cost.allocated),
                    f"{cost.allocations:,}",
                    _signed(cost.kept),
                    _signed(cost.left),
                    f"{cost.seconds:.4f}",
                )
            )
        return "\n".join(text_table(rows))


def compare(
    ways: Mapping[str, Callable[[], object]], *, device: Device = None, repeat: int = 3, warm_up: int = 1
) -> Comparison:
    """Run each way by itself, and return what it costs in memory of one device.

    Before each run garbage is collected and what the allocator has cached is given back, so that a way does not live on
    what another left. Nothing else may use the device meanwhile.

    Args:
        ways: functions without arguments, by name. What one returns counts as kept, and is dropped once it was counted.
        device: whose memory; None is the current device.
        repeat: how often each is measured.
        warm_up: how often each runs before that: libraries make workspaces when they are first used, and optimizers
            their state.

    Raises:
        UsageError: there is nothing to run.
        Exception: whatever a way raises, but for torch.OutOfMemoryError, which ends its measurement.
    """
    if not ways or repeat < 1 or warm_up < 0:
        raise UsageError("compare() takes at least one way and one measurement of it")
    index = device_index(device)
    return Comparison(tuple(_cost(name, way, index, repeat, warm_up) for name, way in ways.items()))


def _cost(name: str, way: Callable[[], object], device: int, repeat: int, warm_up: int) -> Cost:
    runs = []
    for _ in range(warm_up + repeat):
        runs.append(_run(name, way, device))
        if runs[-1].out_of_memory:
            return runs[-1]
    runs = runs[warm_up:]
    fields = ("peak", "peak_reserved", "allocated", "allocations", "kept", "left")
    medians = {field: int(median(getattr(run, field) for run in runs)) for field in fields}
    return Cost(name=name, **medians, seconds=median(run.seconds for run in runs), out_of_memory=False)


def _run(name: str, way: Callable[[], object], device: int) -> Cost:
    import torch

    _clear(device)
    before = torch.cuda.memory_stats(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    result: object = None
    failed = False
    try:
        result = way()
    except torch.OutOfMemoryError:
        failed = True
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    gc.collect()  # what only garbage holds is not kept
    after = torch.cuda.memory_stats(device)
    del result
    gc.collect()
    left = torch.cuda.memory_stats(device)

    def more(stats: Mapping[str, int], key: str, base: str | None = None) -> int:
        return int(stats[key] - before[key if base is None else base])

    return Cost(
        name=name,
        peak=more(after, "requested_bytes.all.peak", "requested_bytes.all.current"),
        peak_reserved=more(after, "reserved_bytes.all.peak", "reserved_bytes.all.current"),
        allocated=more(after, "requested_bytes.all.allocated"),
        allocations=more(after, "allocation.all.allocated"),
        kept=more(after, "requested_bytes.all.current"),
        left=more(left, "requested_bytes.all.current"),
        seconds=seconds,
        out_of_memory=failed,
    )


def _clear(device: int) -> None:
    import torch

    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()


def _signed(count: int) -> str:
    return f"-{format_size(-count)}" if count < 0 else format_size(count)
