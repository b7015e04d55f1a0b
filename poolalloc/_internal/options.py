"""The options, written by tools/generate_options.py from options.def of csrc/core. Do not edit it here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from poolalloc._internal.exact_bins import ExactBin


class Option(NamedTuple):
    """One row of the table. Sizes are in bytes; the unit of a choice is its words, `a | b`."""

    name: str
    type: str
    default: int | float | bool | str | tuple[ExactBin, ...]
    minimum: int | float | bool
    maximum: int | float | bool
    unit: str
    help: str


OPTIONS = (
    Option(
        "bin_limit",
        "bytes",
        262144,
        0,
        1048576,
        "bytes",
        "Largest request served from size bins; larger ones are placed in the arena. 0 places everything in the arena.",
    ),
    Option(
        "exact_bins",
        "bins",
        (),
        0,
        0,
        "SIZE/PREALLOCATE/KEEP",
        (
            "Sizes above bin_limit whose blocks are kept when they are freed, at most KEEP of each on each stream, so "
            "that the next request of that size is served at once. The first request makes PREALLOCATE of them; so "
            "many stay until memory runs out or trim or empty_cache takes them, and the others until the stream would "
            "need new memory."
        ),
    ),
    Option(
        "memory_fraction",
        "number",
        1.0,
        0.0,
        1.0,
        "fraction of the device",
        "Most of a device's memory that poolalloc may hold.",
    ),
    Option(
        "memory_limit",
        "bytes",
        0,
        0,
        1152921504606846976,
        "bytes",
        "Most bytes poolalloc may hold on a device; 0 means no limit beyond memory_fraction.",
    ),
    Option(
        "address_space",
        "number",
        8.0,
        1.0,
        64.0,
        "times the device's memory",
        (
            "Addresses reserved for the arena of each stream. Costs no memory; more leaves more room to avoid "
            "unmapping. From some ten streams and private pools on, later ones get less."
        ),
    ),
    Option(
        "placement_candidates",
        "integer",
        8,
        1,
        1024,
        "holes",
        "How many holes a placement that needs new pages compares before it settles.",
    ),
    Option(
        "segments",
        "boolean",
        False,
        False,
        True,
        "",
        (
            "Take memory in whole allocations (cuMemAlloc) even where the device has virtual memory management; where "
            "it has none that is done anyway. Takes more memory, and needs no mapping."
        ),
    ),
    Option(
        "max_mappings",
        "integer",
        500000,
        1024,
        1099511627776,
        "mappings",
        (
            "Most mappings of a device's memory at one time; beyond, those unused for longest are removed. A context "
            "is said to take about 520,000."
        ),
    ),
    Option(
        "growth",
        "choice",
        "balanced",
        0,
        0,
        "tight | balanced | fast",
        (
            "Memory or driver time while shapes change. balanced: physical memory in pieces of up to 256 MiB, and "
            "whatever costs the driver least while little more is held than the peak of live data. tight: pieces of 2 "
            "MiB, the least memory and many times the driver time. fast: as balanced, but new memory first until the "
            "device or the limit is nearly full."
        ),
    ),
    Option(
        "prealloc",
        "bytes",
        0,
        0,
        1152921504606846976,
        "bytes",
        (
            "Physical memory created when a device is first used, so that a program does not wait for the driver "
            "while it grows. The background thread never goes below it."
        ),
    ),
    Option(
        "reserve_ahead",
        "bytes",
        0,
        0,
        1152921504606846976,
        "bytes",
        "Physical memory that a background thread keeps created beyond what is mapped; 0 means none.",
    ),
    Option(
        "trim_high",
        "bytes",
        0,
        0,
        1152921504606846976,
        "bytes",
        (
            "When more than this is idle, a background thread gives idle memory back until trim_low is left; 0 means "
            "never."
        ),
    ),
    Option(
        "trim_low",
        "bytes",
        0,
        0,
        1152921504606846976,
        "bytes",
        "What trim_high leaves idle; at most trim_high.",
    ),
    Option(
        "trim_after",
        "number",
        0.0,
        0.0,
        1000000.0,
        "seconds",
        "A background thread gives memory back that has been idle for so long, or a quarter longer; 0 means never.",
    ),
    Option(
        "sleep_host_limit",
        "bytes",
        0,
        0,
        1152921504606846976,
        "bytes",
        (
            "Most bytes of the host's memory that the contents of sleeping regions may take; 0 means no limit but "
            "what the host has free."
        ),
    ),
    Option(
        "wake_on_allocate",
        "boolean",
        False,
        False,
        True,
        "",
        "An allocation in a sleeping region wakes it first; otherwise it is an error.",
    ),
    Option(
        "record",
        "text",
        "",
        0,
        0,
        "a path",
        (
            "Record into this trace file from install() on, as poolalloc.record does; %p in it stands for the number "
            "of the process. Empty: no recording."
        ),
    ),
    Option(
        "record_stacks",
        "boolean",
        False,
        False,
        True,
        "",
        "With each recorded allocation, the lines of Python that led to it.",
    ),
)


@dataclass(frozen=True, init=False)
class Options:
    """The options as fields, with their defaults. Sizes are in bytes."""

    bin_limit: int = 262144
    """Largest request served from size bins; larger ones are placed in the arena. 0 places everything in the arena.
    Allowed: 0 B to 1 MiB.
    """
    exact_bins: tuple[ExactBin, ...] = ()
    """Sizes above bin_limit whose blocks are kept when they are freed, at most KEEP of each on each stream, so that the
    next request of that size is served at once. The first request makes PREALLOCATE of them; so many stay until memory
    runs out or trim or empty_cache takes them, and the others until the stream would need new memory. Allowed:
    SIZE/PREALLOCATE/KEEP, with + between.
    """
    memory_fraction: float = 1.0
    """Most of a device's memory that poolalloc may hold. Allowed: 0 to 1 (fraction of the device)."""
    memory_limit: int = 0
    """Most bytes poolalloc may hold on a device; 0 means no limit beyond memory_fraction. Allowed: 0 B to 1048576 TiB.
    """
    address_space: float = 8.0
    """Addresses reserved for the arena of each stream. Costs no memory; more leaves more room to avoid unmapping. From
    some ten streams and private pools on, later ones get less. Allowed: 1 to 64 (times the device's memory).
    """
    placement_candidates: int = 8
    """How many holes a placement that needs new pages compares before it settles. Allowed: 1 to 1024 (holes)."""
    segments: bool = False
    """Take memory in whole allocations (cuMemAlloc) even where the device has virtual memory management; where it has
    none that is done anyway. Takes more memory, and needs no mapping. Allowed: true or false.
    """
    max_mappings: int = 500000
    """Most mappings of a device's memory at one time; beyond, those unused for longest are removed. A context is said
    to take about 520,000. Allowed: 1024 to 1.09951e+12 (mappings).
    """
    growth: str = "balanced"
    """Memory or driver time while shapes change. balanced: physical memory in pieces of up to 256 MiB, and whatever
    costs the driver least while little more is held than the peak of live data. tight: pieces of 2 MiB, the least
    memory and many times the driver time. fast: as balanced, but new memory first until the device or the limit is
    nearly full. Allowed: tight, balanced or fast.
    """
    prealloc: int = 0
    """Physical memory created when a device is first used, so that a program does not wait for the driver while it
    grows. The background thread never goes below it. Allowed: 0 B to 1048576 TiB.
    """
    reserve_ahead: int = 0
    """Physical memory that a background thread keeps created beyond what is mapped; 0 means none. Allowed: 0 B to
    1048576 TiB.
    """
    trim_high: int = 0
    """When more than this is idle, a background thread gives idle memory back until trim_low is left; 0 means never.
    Allowed: 0 B to 1048576 TiB.
    """
    trim_low: int = 0
    """What trim_high leaves idle; at most trim_high. Allowed: 0 B to 1048576 TiB."""
    trim_after: float = 0.0
    """A background thread gives memory back that has been idle for so long, or a quarter longer; 0 means never.
    Allowed: 0 to 1e+06 (seconds).
    """
    sleep_host_limit: int = 0
    """Most bytes of the host's memory that the contents of sleeping regions may take; 0 means no limit but what the
    host has free. Allowed: 0 B to 1048576 TiB.
    """
    wake_on_allocate: bool = False
    """An allocation in a sleeping region wakes it first; otherwise it is an error. Allowed: true or false."""
    record: str = ""
    """Record into this trace file from install() on, as poolalloc.record does; %p in it stands for the number of the
    process. Empty: no recording. Allowed: a path without a comma.
    """
    record_stacks: bool = False
    """With each recorded allocation, the lines of Python that led to it. Allowed: true or false."""

    def __init__(
        self,
        *,
        bin_limit: int | str = 262144,
        exact_bins: Iterable[ExactBin | Mapping[str, Any]] | str = (),
        memory_fraction: float = 1.0,
        memory_limit: int | str = 0,
        address_space: float = 8.0,
        placement_candidates: int = 8,
        segments: bool = False,
        max_mappings: int = 500000,
        growth: str = "balanced",
        prealloc: int | str = 0,
        reserve_ahead: int | str = 0,
        trim_high: int | str = 0,
        trim_low: int | str = 0,
        trim_after: float = 0.0,
        sleep_host_limit: int | str = 0,
        wake_on_allocate: bool = False,
        record: str = "",
        record_stacks: bool = False,
    ) -> None:
        self._set(
            {
                "bin_limit": bin_limit,
                "exact_bins": exact_bins,
                "memory_fraction": memory_fraction,
                "memory_limit": memory_limit,
                "address_space": address_space,
                "placement_candidates": placement_candidates,
                "segments": segments,
                "max_mappings": max_mappings,
                "growth": growth,
                "prealloc": prealloc,
                "reserve_ahead": reserve_ahead,
                "trim_high": trim_high,
                "trim_low": trim_low,
                "trim_after": trim_after,
                "sleep_host_limit": sleep_host_limit,
                "wake_on_allocate": wake_on_allocate,
                "record": record,
                "record_stacks": record_stacks,
            }
        )

    def _set(self, values: Mapping[str, object]) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)
