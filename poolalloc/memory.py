"""What poolalloc knows about its memory: statistics, a summary for people, and where every reserved byte is.

Figures of memory are bytes. The words are the manual's: requested, rounded, live, pending, kept, resident, idle,
reserved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

from poolalloc import _core
from poolalloc._internal import price_lists
from poolalloc._internal.device import device_index
from poolalloc._internal.driver_work import DriverTime, DriverWork
from poolalloc._internal.installed import require_installed
from poolalloc._internal.moved import old_names
from poolalloc._internal.statistics import Amount, DeviceStats, HeapStats, MemoryStats
from poolalloc._internal.text import text_table

if TYPE_CHECKING:
    from torch.types import Device

__all__ = [
    "EVENTS",
    "QUANTITIES",
    "Fragmentation",
    "MemoryBreakdown",
    "SizeClassBreakdown",
    "driver_time",
    "empty_cache",
    "fragmentation",
    "fragmentation_of",
    "memory_stats",
    "memory_summary",
    "overhead_of",
    "reset_peak_stats",
    "summary_of",
]

QUANTITIES = ("requested", "live", "pending", "kept", "resident", "idle", "reserved")
"""What statistics count in bytes."""
EVENTS = {
    "allocations": "blocks handed out",
    "frees": "blocks given back",
    "pages_created": "pages taken from the driver",
    "pages_destroyed": "pages given back to the driver",
    "pages_aliased": "idle pages mapped at one more address",
    "pages_stolen": "idle pages taken from another stream",
    "plan_hits": "requests served where the plan says",
    "plan_misses": "requests of the sizes in the plan, served elsewhere",
    "plan_resyncs": "times the plan was followed again after the program had left it",
    "kept_hits": "requests served from blocks that exact bins kept",
    "kept_misses": "requests of the sizes of exact bins that found none kept",
    "kept_released": "kept blocks given up for other uses of their memory",
    "pending_completed": "frees that had waited for another stream",
    "waits": "times the allocator waited for a stream",
    "retries": "allocations that had to make room first",
    "after_unmapping": "of them, served once their own mappings were out of the way",
    "after_releasing": "of them, served once blocks that exact bins kept had been given up",
    "after_stealing": "of them, served from other streams' idle pages, without a wait",
    "after_callbacks": "of them, served once callbacks had freed memory",
    "after_waiting": "of them, served once streams or other threads had been waited for",
    "after_trimming": "of them, served once all that was idle had gone to the device",
    "after_lending": "of them, served from pools in use that lend",
    "callbacks": "times a callback was asked for memory",
    "out_of_memory": "allocations that failed",
}
"""What statistics count in numbers, and what each counts."""


def memory_stats(device: Device = None) -> MemoryStats:
    """Statistics of one device (None: the current one), as a nested dict.

    Each of requested, live, pending, kept, resident, idle and reserved is {"current", "peak", "total"}, in bytes; of
    idle, which is what reserved and resident leave, only the current figure is known and the others are 0. The
    events (allocations, frees, pages_created, ...) are counts. "heaps" has the same for every (stream, pool), with its
    size classes under "bins"; "driver_calls" counts the calls of this process by kind, "driver_work" the handles and
    pages that the driver charges for (poolalloc.driver_time prices them); "overhead" is peak reserved / peak requested,
    or None before the first request. "asleep" is what regions have given to the device until they wake (docs/sleep.md),
    and is in none of resident, idle and reserved; "asleep_host" and "asleep_file" are its contents that wait there.

    Raises:
        NotInstalledError: before install().
        UsageError: there is no such device.
    """
    require_installed()
    stats = _core.stats(device_index(device))
    return {**stats, "overhead": overhead_of(stats)}


def overhead_of(stats: DeviceStats) -> float | None:
    """Peak reserved / peak requested; None before the first request."""
    requested = stats["requested"]["peak"]
    return stats["reserved"]["peak"] / requested if requested else None


def driver_time(prices: str | None = None) -> DriverTime:
    """What the driver's work for this process would take by a price list: a name or a file .json, None is the default.

    A model, from handles and pages counted: .total.low and .total.high are seconds, .work.handles_mapped how many
    handles were mapped. A program that takes it before and after a step learns what the step costs.

    Raises:
        NotInstalledError: before install().
        CostError: there is no such price list.
    """
    require_installed()
    devices = _core.devices()
    work = _core.stats(devices[0])["driver_work"] if devices else {}  # one count for all devices
    return DriverWork(work).price(price_lists.find(prices))


def reset_peak_stats(device: Device = None) -> None:
    """Let the peaks of one device (None: the current one) start again from what is current."""
    require_installed()
    _core.reset_peak_stats(device_index(device))


def empty_cache() -> int:
    """Give idle memory of every device back to the driver, and return how many bytes that was.

    The same as torch.cuda.empty_cache(), which calls it. Waits for work that may still touch the memory.
    """
    require_installed()
    return _core.empty_cache()


def memory_summary(device: Device = None) -> str:
    """The statistics of one device (None: the current one) as a table of plain text."""
    return summary_of(memory_stats(device))


def summary_of(stats: DeviceStats) -> str:
    """The same from statistics that memory_stats() or an Engine gave."""
    lines = [
        f"poolalloc, GPU {stats['device']}: {_size(stats['reserved']['current'])} reserved "
        f"of {_size(stats['limit_bytes'])} allowed ({_size(stats['total_bytes'])} on the card)",
        f"memory comes in {_mode_of(stats)}",
        "",
    ]
    rows: list[tuple[str, ...]] = [("memory", "now", "peak", "ever added", "ever freed")]
    amounts = cast(Mapping[str, Mapping[str, int]], stats)
    for name in QUANTITIES:
        now, peak, total = (amounts[name][key] for key in ("current", "peak", "total"))
        # What is idle is what reserved and resident leave: it has no history of its own.
        history = ("-", "-", "-") if name == "idle" else (_size(peak), _size(total), _size(total - now))
        rows.append((name, _size(now), *history))
    lines += text_table(rows)
    overhead = overhead_of(stats)
    lines += ["", f"overhead (peak reserved / peak requested)  {'-' if overhead is None else f'{overhead:.4f}'}", ""]
    counts = cast(Mapping[str, int], stats)
    lines += text_table(
        [("events", "count", ""), *((name, f"{counts[name]:,}", text) for name, text in EVENTS.items())], "<><"
    )
    lines += [""]
    blocks = stats["live_blocks"]
    lines += text_table(
        [
            ("live blocks", f"{blocks:,}"),
            ("heaps (one per stream and pool)", f"{len(stats['heaps']):,}"),
            ("metadata on the host", _size(stats["metadata_bytes"])),
            *([("asleep, not reserved", _size(stats["asleep"]))] if stats["asleep"] else []),
        ],
        header=False,
    )
    if stats["driver_work"]:
        time = DriverWork(stats["driver_work"]).price(price_lists.find())
        lines += [
            "",
            *text_table(
                [
                    ("handles mapped by this process", f"{time.work.handles_mapped:,}"),
                    (f"driver time, {time.prices.label}", str(time.total)),
                ],
                header=False,
            ),
        ]
    if stats["driver_calls"]:
        lines += ["", *text_table([("driver calls of this process", "count"), *_counts(stats["driver_calls"])])]
    return "\n".join(lines)


def _mode_of(stats: DeviceStats) -> str:
    if stats["virtual_memory"]:
        return "pages, mapped where they are needed"
    return f"whole segments, {sum(heap['segments'] for heap in stats['heaps']):,} of them now"


@dataclass(frozen=True)
class MemoryBreakdown:
    """Where reserved bytes are. The parts add up to `reserved`, which leaves out memory that is asleep."""

    requested: int = 0  # asked by the program
    rounding: int = 0  # the rest of its blocks
    pending: int = 0  # freed, waiting for another stream
    kept: int = 0  # in blocks that exact bins hold ready for the next request of their size
    half_empty: int = 0  # free parts of pages on which something lives
    idle: int = 0  # pages on which nothing lives, kept for the next request
    idle_in_pools: int = 0  # the same in a private pool that a CUDA graph may touch, which alone may use them

    @property
    def reserved(self) -> int:
        """All physical memory of this share, in bytes."""
        return sum(getattr(self, name) for name in _PARTS)

    def __add__(self, other: MemoryBreakdown) -> MemoryBreakdown:
        return MemoryBreakdown(*(getattr(self, name) + getattr(other, name) for name in _PARTS))

    @classmethod
    def of(cls, stats: HeapStats) -> MemoryBreakdown:
        """The share of one heap, from its statistics."""
        if stats["asleep"]:
            return cls()
        amounts = cast(Mapping[str, Amount], stats)
        now = {name: int(amounts[name]["current"]) for name in QUANTITIES}
        return cls(
            requested=now["requested"],
            rounding=now["live"] - now["requested"],
            pending=now["pending"],
            kept=now["kept"],
            half_empty=now["resident"] - now["live"] - now["pending"] - now["kept"],
            idle=now["reserved"] - now["resident"] - stats["idle_in_pools"],
            idle_in_pools=stats["idle_in_pools"],
        )


_PARTS = ("requested", "rounding", "pending", "kept", "half_empty", "idle", "idle_in_pools")


@dataclass(frozen=True)
class SizeClassBreakdown:
    """Resident memory of one size class, or of the arena (block_bytes None), over all streams and pools."""

    block_bytes: int | None
    live_blocks: int  # pending ones included
    rounded: int  # in blocks, live and pending
    kept: int  # in blocks of exact bins, which lie in the arena
    half_empty: int  # the rest of their pages
    requested: int | None  # of `rounded`, asked by the program; not counted for the arena

    @property
    def resident(self) -> int:
        """Pages under the blocks, in bytes."""
        return self.rounded + self.kept + self.half_empty


@dataclass(frozen=True)
class Fragmentation:
    """Where every reserved byte of a device is: in all, by stream and pool, and by size class.

    print() shows it as tables. The parts of every share add up to its `reserved`; the shares of the heaps and
    `unmapped` (idle pages that belong to no stream now) add up to `total`; the bins and `uncut` (the part of their
    pages that no size class uses now) add up to the resident memory.
    """

    device: int
    total: MemoryBreakdown
    heaps: Mapping[tuple[int, tuple[int, int]], MemoryBreakdown]  # by (stream, pool)
    bins: tuple[SizeClassBreakdown, ...]
    uncut: int
    unmapped: int
    asleep: int = 0  # what regions have given to the device until they wake; not reserved
    regions: Mapping[tuple[int, int], str] = field(default_factory=dict)  # the tag of each pool that is in a region

    @property
    def streams(self) -> dict[int, MemoryBreakdown]:
        """The shares by stream, over all pools."""
        return _grouped((stream, share) for (stream, _), share in self.heaps.items())

    @property
    def pools(self) -> dict[tuple[int, int], MemoryBreakdown]:
        """The shares by pool, over all streams; (0, 0) is the ordinary pool."""
        return _grouped((pool, share) for (_, pool), share in self.heaps.items())

    def to_dict(self) -> dict[str, object]:
        """The same as plain dicts and lists, for JSON."""
        return {
            "device": self.device,
            "reserved": self.total.reserved,
            **asdict(self.total),
            "unmapped": self.unmapped,
            "asleep": self.asleep,
            "uncut": self.uncut,
            "heaps": [
                {
                    "stream": stream,
                    "pool": list(pool),
                    "region": self.regions.get(pool),
                    "reserved": share.reserved,
                    **asdict(share),
                }
                for (stream, pool), share in self.heaps.items()
            ],
            "streams": [{"stream": key, "reserved": s.reserved, **asdict(s)} for key, s in self.streams.items()],
            "pools": [{"pool": list(key), "reserved": s.reserved, **asdict(s)} for key, s in self.pools.items()],
            "bins": [{**asdict(row), "resident": row.resident} for row in self.bins],
        }

    def __str__(self) -> str:
        reserved = self.total.reserved
        asleep = f", {_size(self.asleep)} more asleep" if self.asleep else ""
        lines = [f"GPU {self.device}: {_size(reserved)} reserved{asleep}", ""]
        rows = []
        for name, text in _MEANING.items():
            part = getattr(self.total, name)
            rows.append((name.replace("_", "-"), _size(part), f"{part / reserved:.1%}" if reserved else "-", text))
        lines += text_table(rows, "<>><", header=False)
        head = tuple(name.replace("_", "-") for name in _PARTS)
        if self.heaps or self.unmapped:
            table = [("stream", "pool", *head, "reserved")]
            for (stream, pool), share in self.heaps.items():
                table.append((_stream(stream), self.regions.get(pool) or _pool(pool), *_sizes(share)))
            if self.unmapped:
                table.append(("none", "-", *_sizes(MemoryBreakdown(idle=self.unmapped))))
            lines += ["", *text_table(table, "<<")]
        if self.bins:
            table = [("blocks of", "blocks", "requested", "rounded", "kept", "half-empty", "resident")]
            for row in self.bins:
                table.append(
                    (
                        "arena" if row.block_bytes is None else _size(row.block_bytes),
                        f"{row.live_blocks:,}",
                        "-" if row.requested is None else _size(row.requested),
                        *(_size(part) for part in (row.rounded, row.kept, row.half_empty, row.resident)),
                    )
                )
            if self.uncut:
                table.append(("uncut", "-", "-", "-", "-", _size(self.uncut), _size(self.uncut)))
            lines += ["", *text_table(table, ">")]
        return "\n".join(lines)


_MEANING = {
    "requested": "asked by the program",
    "rounding": "lost inside its blocks",
    "pending": "freed, waiting for another stream",
    "kept": "in blocks that exact bins hold ready for their next request",
    "half_empty": "free parts of pages on which something lives",
    "idle": "pages on which nothing lives, kept for reuse",
    "idle_in_pools": "the same in pools that a CUDA graph may touch, which serves only them",
}


def fragmentation(device: Device = None) -> Fragmentation:
    """Where every reserved byte of a device (None: the current one) is. print() it, or take its to_dict().

    Raises:
        NotInstalledError: before install().
        UsageError: there is no such device.
    """
    return fragmentation_of(memory_stats(device))


def fragmentation_of(stats: DeviceStats) -> Fragmentation:
    """The same from statistics that memory_stats() or an Engine gave."""
    heaps = {(heap["stream"], heap["pool"]): MemoryBreakdown.of(heap) for heap in stats["heaps"]}
    total = sum(heaps.values(), MemoryBreakdown(idle=stats["unmapped"]))
    bins = tuple(_bins(stats["heaps"]))
    uncut = sum(heap["uncut"] for heap in stats["heaps"])
    regions = {heap["pool"]: heap["region"] for heap in stats["heaps"] if heap["region"]}
    return Fragmentation(stats["device"], total, heaps, bins, uncut, stats["unmapped"], stats["asleep"], regions)


def _bins(heaps: Iterable[HeapStats]) -> Iterable[SizeClassBreakdown]:
    sums: dict[int, list[int]] = {}
    arena = [0, 0, 0, 0]
    for heap in heaps:
        if heap["asleep"]:
            continue
        arena[0] += heap["live_blocks"] - sum(row["live_blocks"] for row in heap["bins"])
        arena[1] += heap["arena_rounded"]
        arena[2] += heap["arena_resident"]
        arena[3] += heap["kept"]["current"]
        for row in heap["bins"]:
            own = sums.setdefault(row["block_bytes"], [0, 0, 0, 0])
            figures = (row["live_blocks"], row["rounded"], row["resident"], row["requested"])
            for i, figure in enumerate(figures):
                own[i] += figure
    for block_bytes, (blocks, rounded, resident, requested) in sorted(sums.items()):
        yield SizeClassBreakdown(block_bytes, blocks, rounded, 0, resident - rounded, requested)
    if arena[2]:
        yield SizeClassBreakdown(None, arena[0], arena[1], arena[3], arena[2] - arena[1] - arena[3], None)


def _grouped(shares: Iterable[tuple[Any, MemoryBreakdown]]) -> dict[Any, MemoryBreakdown]:
    result: dict[Any, MemoryBreakdown] = {}
    for key, share in shares:
        result[key] = result.get(key, MemoryBreakdown()) + share
    return result


def _size(count: int) -> str:
    return _core.format_bytes(count)


def _sizes(share: MemoryBreakdown) -> tuple[str, ...]:
    return (*(_size(getattr(share, name)) for name in _PARTS), _size(share.reserved))


def _stream(stream: int) -> str:
    return "default" if stream == 0 else f"{stream:#x}"


def _pool(pool: tuple[int, int]) -> str:
    return "ordinary" if pool == (0, 0) else f"{pool[0]},{pool[1]}"


def _counts(calls: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    return ((name, f"{count:,}") for name, count in sorted(calls.items(), key=lambda item: -item[1]))


if not TYPE_CHECKING:  # names of before, which warn
    __getattr__ = old_names(
        __name__,
        {
            "Share": "MemoryBreakdown",
            "BinShare": "SizeClassBreakdown",
        },
    )
