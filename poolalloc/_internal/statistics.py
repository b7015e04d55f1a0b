"""The types of the statistics that the native module gives. A test compares them with what it really gives."""

from __future__ import annotations

from typing import TypedDict


class Amount(TypedDict):
    """One quantity: now, at most so far, and all that was ever added; bytes, or blocks."""

    current: int
    peak: int
    total: int


class SizeKind(TypedDict):
    """Small blocks, large ones, or all: the figures that torch's statistics tell apart."""

    blocks: Amount
    held_blocks: Amount
    requested: Amount
    live: Amount
    held: Amount
    reserved: Amount
    unused: Amount
    gaps: int


class _Figures(TypedDict):
    """What a device and a heap both have. Bytes, and counts of events."""

    requested: Amount
    live: Amount
    pending: Amount
    kept: Amount
    resident: Amount
    idle: Amount
    reserved: Amount
    idle_in_pools: int
    asleep: int
    live_blocks: int
    metadata_bytes: int
    small: SizeKind
    large: SizeKind
    all: SizeKind
    allocations: int
    frees: int
    pages_created: int
    pages_destroyed: int
    pages_aliased: int
    pages_stolen: int
    plan_hits: int
    plan_misses: int
    plan_resyncs: int
    kept_hits: int
    kept_misses: int
    kept_released: int
    pending_completed: int
    waits: int
    retries: int
    after_unmapping: int
    after_releasing: int
    after_stealing: int
    after_callbacks: int
    after_waiting: int
    after_trimming: int
    after_lending: int
    callbacks: int
    out_of_memory: int


class BinStats(TypedDict):
    """One size class of a heap. Bytes and counts."""

    block_bytes: int
    live_blocks: int
    allocations: int
    requested: int
    rounded: int
    resident: int


class HeapStats(_Figures):
    """The figures of one stream and pool."""

    stream: int
    pool: tuple[int, int]
    region: str | None
    bins: list[BinStats]
    arena_rounded: int
    arena_resident: int
    uncut: int
    segments: int
    mappings: int
    address_space: int


class DeviceStats(_Figures):
    """The figures of one device, as the engine counts them."""

    device: int
    total_bytes: int
    limit_bytes: int
    unmapped: int
    asleep_host: int
    asleep_file: int
    virtual_memory: bool
    heaps: list[HeapStats]
    driver_calls: dict[str, int]
    driver_work: dict[str, int]


class MemoryStats(DeviceStats):
    """The figures of one device, with peak reserved / peak requested: None before the first request."""

    overhead: float | None
