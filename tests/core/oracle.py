"""A naive account of what an allocator may and may not do, in lists, compared with the engine after every step.

It knows nothing of bins, holes or frames: only which blocks the program holds, when the device's work on the freed ones
is done, and what physical memory the modelled device says lies under an address.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from poolalloc import _core, errors

PAGE = _core.PAGE_BYTES
GRANULARITY = _core.GRANULARITY
# How far a heap's share of a device-wide peak may lag behind when a device has several heaps.
PEAK_ERROR = 64 << 10

Pool = tuple[int, int]
ORDINARY: Pool = (0, 0)
Piece = tuple[int, int, int]  # physical handle, first byte in it, end


class RefusedError(Exception):
    """The engine had no memory, or the driver refused a call: the request left nothing behind."""


@dataclass
class Block:
    address: int
    requested: int
    size: int
    device: int
    stream: int
    pool: Pool
    uses: set[int] = field(default_factory=set)  # other streams that use it
    pieces: tuple[Piece, ...] = ()  # the physical memory under it
    done_at: int | None = 0  # when freed: no earlier than this is its work done; None: not known before a capture ends

    @property
    def heap(self) -> tuple[int, int, Pool]:
        return (self.device, self.stream, self.pool)

    @property
    def end(self) -> int:
        return self.address + self.size

    def pages(self) -> range:
        """Start addresses of the pages it overlaps."""
        return range(self.address // PAGE * PAGE, self.end, PAGE)

    def physical_pages(self) -> set[tuple[int, int]]:
        """The pages of physical memory under it: handle, and which page of that."""
        return {(handle, first // PAGE) for handle, first, _ in self.pieces}


@dataclass
class PrivatePool:
    device: int
    id: Pool
    users: int = 1
    routing: bool = False
    streams: tuple[int, ...] = ()
    captured: int | None = None  # the stream that is being captured


def rounded(size: int, bin_limit: int) -> int:
    if size <= bin_limit:
        return _core.bin_bytes(_core.bin_of(size))
    return -(-size // GRANULARITY) * GRANULARITY


class Oracle:
    """Drives an engine and checks it. `lag`: an event completes so many ticks after it was recorded.

    A `plan` has no requests that the configuration serves from slabs.
    """

    def __init__(
        self,
        conf: str = "",
        *,
        devices: int = 1,
        memory: int = 1 << 30,
        lag: int = 0,
        plan: dict[str, Any] | None = None,
    ) -> None:
        self.engine = _core.Engine(conf, {"devices": devices, "memory_bytes": memory, "event_lag": lag}, plan)
        self.options = self.engine.options()
        self.by_page = self.options["growth"] == "tight"  # each page comes and goes by itself
        self.devices = devices
        self.memory = memory
        self.lag = lag
        self.fraction = dict.fromkeys(range(devices), float(self.options["memory_fraction"]))
        self.live: list[Block] = []
        self.pending: list[Block] = []
        self.pools: list[PrivatePool] = []
        self.allocations = [0] * devices
        self.frees = [0] * devices
        self.peak_requested = [0] * devices
        self.peak_live = [0] * devices
        self.heaps_used: list[set[tuple[int, Pool]]] = [set() for _ in range(devices)]
        # When work of a stream on a physical page is done: (device, handle, page of it) -> stream -> time.
        self.page_busy: dict[tuple[int, int, int], dict[int, int]] = {}
        # Mappings that running work may still go through: device, address of a page, handle, until.
        self.in_use: list[tuple[int, int, int, int]] = []
        self.refusals_seen = 0  # injected failures that came true

    # --- what a program does --------------------------------------------------------------------------------------

    def allocate(self, size: int, device: int = 0, stream: int = 0) -> Block | None:
        """Raises RefusedError if there was no room or the driver was told to refuse; fails if neither."""
        pool = self.routed_pool(device, stream)
        if size > 0:
            self.heaps_used[device].add((stream, pool))
        fits = self.must_fit(size, device, stream, pool)
        used, waiting = self.engine.used_bytes(device), self.engine.failures_waiting()
        refusal: Exception | None = None
        try:
            address = self.engine.allocate(size, device, stream)
        except (errors.OutOfMemoryError, errors.DriverError) as error:
            refusal = error
        injected = waiting - self.engine.failures_waiting()
        self.refusals_seen += injected
        if refusal is not None:
            assert injected or not fits, f"refused although it fits: {refusal}"
            assert injected or isinstance(refusal, errors.OutOfMemoryError), refusal
            assert injected or self.engine.used_bytes(device) <= used, "a refused request leaves no page behind"
            raise RefusedError from refusal
        if size == 0:
            assert address == 0
            return None
        assert self.engine.used_bytes(device) <= max(self.limit(device), used), "the limit holds"
        block = Block(address, size, rounded(size, int(self.options["bin_limit"])), device, stream, pool)
        block.pieces = self.pieces(block)
        self.check_new(block)
        self.live.append(block)
        self.allocations[device] += 1
        mine = [one for one in self.live if one.device == device]
        self.peak_requested[device] = max(self.peak_requested[device], sum(one.requested for one in mine))
        self.peak_live[device] = max(self.peak_live[device], sum(one.size for one in mine))
        return block

    def free(self, block: Block) -> None:
        now = self.engine.now(block.device)
        self.engine.free(block.address)
        self.live.remove(block)
        self.frees[block.device] += 1
        for page, (handle, first, _) in zip(block.pages(), block.pieces, strict=True):
            self.page_busy.setdefault((block.device, handle, first // PAGE), {})[block.stream] = now + self.lag
            self.in_use.append((block.device, page, handle, now + self.lag))
        if block.uses:
            block.done_at = None if self.captured_uses(block) else now + self.lag
            self.pending.append(block)

    def record_stream(self, block: Block, stream: int) -> None:
        self.engine.record_stream(block.address, stream)
        if stream != block.stream:
            block.uses.add(stream)

    def refuses(self, address: int) -> None:
        """`address` is not the start of a live block: neither free nor record_stream takes it."""
        with pytest.raises(errors.UsageError, match=hex(address)):
            self.engine.free(address)
        with pytest.raises(errors.UsageError, match=hex(address)):
            self.engine.record_stream(address, 5)

    def empty_cache(self) -> None:
        used = sum(self.engine.used_bytes(device) for device in range(self.devices))
        waiting = self.engine.failures_waiting()
        returned = self.engine.empty_cache()
        self.refusals_seen += waiting - self.engine.failures_waiting()
        assert used - sum(self.engine.used_bytes(device) for device in range(self.devices)) == returned
        if self.refusals_seen:
            return
        for device in self.engine.devices():
            stats = self.engine.stats(device)
            if self.capturing():
                continue  # no mapping may end, so what is on loan stays
            assert stats["unmapped"] == 0
            if self.by_page:
                kept = [heap["idle"]["current"] for heap in stats["heaps"] if not self.in_used_pool(device, heap)]
                assert sum(kept) == 0, "nothing idle is kept, but for pools in use"

    def set_memory_fraction(self, fraction: float, device: int = 0) -> None:
        self.engine.set_memory_fraction(fraction, device)
        self.fraction[device] = fraction

    def begin_pool(self, device: int, pool_id: Pool, streams: tuple[int, ...], *, capture: bool) -> None:
        self.engine.begin_allocate_to_pool(device, pool_id, streams)
        pool = self.pool(device, pool_id)
        if pool is None:
            pool = PrivatePool(device, pool_id)
            self.pools.append(pool)
        else:
            pool.users += 1
            self.pools.append(self.pools.pop(self.pools.index(pool)))  # the latest decides first
        self.heaps_used[device].add((streams[0], pool_id))
        pool.routing, pool.streams = True, streams
        if capture:
            pool.captured = streams[0]
            self.engine.begin_capture(streams[0], device)

    def end_pool(self, pool: PrivatePool) -> None:
        if pool.captured is not None:
            self.engine.end_capture(pool.captured, pool.device)
        self.engine.end_allocate_to_pool(pool.device, pool.id)
        pool.routing, pool.captured = False, None
        for block in self.pending:
            if block.done_at is None and not self.captured_uses(block):
                block.done_at = self.engine.now(block.device) + self.lag

    def release_pool(self, pool: PrivatePool) -> None:
        self.engine.release_pool(pool.device, pool.id)
        pool.users -= 1

    # --- what it knows --------------------------------------------------------------------------------------------

    def limit(self, device: int) -> int:
        limit = math.floor(self.fraction[device] * self.memory + 0.5)
        return min(limit, int(self.options["memory_limit"])) if self.options["memory_limit"] else limit

    def pool(self, device: int, pool_id: Pool) -> PrivatePool | None:
        """The pool by that name, if it still has users, routes requests, or holds blocks."""
        for pool in list(self.pools):
            held = any(block.pool == pool.id and block.device == pool.device for block in self.live + self.pending)
            if pool.users == 0 and not pool.routing and not held:
                self.pools.remove(pool)
            elif (pool.device, pool.id) == (device, pool_id):
                return pool
        return None

    def capturing(self) -> bool:
        """Whether a graph is captured, on whichever device: all of the program is one thread, so it may not ask."""
        return any(pool.captured is not None for pool in self.pools)

    def captured_uses(self, block: Block) -> bool:
        """Whether a stream that uses the block is being captured: its work comes when the graph is launched."""
        return any(pool.captured in block.uses for pool in self.pools if pool.device == block.device)

    def routed_pool(self, device: int, stream: int) -> Pool:
        for pool in reversed(self.pools):
            if pool.device == device and pool.routing and stream in pool.streams:
                return pool.id
        return ORDINARY

    def in_used_pool(self, device: int, heap: dict[str, Any]) -> bool:
        return any(pool.device == device and pool.id == heap["pool"] and pool.users > 0 for pool in self.pools)

    def must_fit(self, size: int, device: int, stream: int, pool: Pool) -> bool:
        """Whether the request has to succeed, for all that the ladder can gain."""
        if self.engine.failures_waiting():
            return False
        need = 1 if size <= int(self.options["bin_limit"]) else -(-size // PAGE) + 1
        if not self.by_page:  # idle pages may lie in spans that are live in part: only new memory is certain
            return bool(need * PAGE <= self.limit(device) - self.engine.used_bytes(device))
        stats = self.engine.stats(device)
        own = [heap for heap in stats["heaps"] if (heap["stream"], heap["pool"]) == (stream, pool)]
        if self.capturing():  # no wait, no unmapping: only what is idle here, spare, or new
            idle = sum(heap["idle"]["current"] for heap in own)
            room = max(0, self.limit(device) - self.engine.used_bytes(device))
            return bool(need * PAGE <= idle + stats["unmapped"] + room) and not self.refusals_seen
        pinned = sum(
            heap["reserved"]["current"]
            for heap in stats["heaps"]
            if self.in_used_pool(device, heap) and heap not in own
        )
        under_live = {
            page
            for block in self.live
            if block.device == device
            and (block.heap == (device, stream, pool) or not self.in_used_pool(device, {"pool": block.pool}))
            for page in block.physical_pages()
        }
        return bool(need * PAGE <= self.limit(device) - pinned - len(under_live) * PAGE)

    def pieces(self, block: Block) -> tuple[Piece, ...]:
        found = []
        for page in block.pages():
            first, end = max(page, block.address), min(page + PAGE, block.end)
            under = self.engine.physical(first, block.device)
            assert under is not None, "every page of a block is mapped and accessible"
            found.append((under[0], under[1], under[1] + end - first))
        return tuple(found)

    # --- what must hold -------------------------------------------------------------------------------------------

    def check_new(self, block: Block) -> None:
        """A block handed out just now disturbs no one's data, and no work still running."""
        assert block.address % GRANULARITY == 0
        assert block.size >= block.requested
        assert self.engine.base_allocation(block.address) == (block.address, block.size)
        assert self.engine.base_allocation(block.end - 1) == (block.address, block.size)
        now = self.engine.now(block.device)
        for page in block.physical_pages():
            for stream, done_at in self.page_busy.get((block.device, *page), {}).items():
                assert stream == block.stream or done_at <= now, "another stream's page, its work not done"

    def check(self) -> None:
        """Everything that holds between any two steps."""
        # Asking notices which frees have completed, and each time an event that was refused is tried again: ask once.
        figures = {device: self.engine.stats(device) for device in self.engine.devices()}
        self.check_pending()
        self.check_overlap()
        self.check_mappings()
        for device, stats in figures.items():
            self.check_figures(device, stats)
        self.engine.validate()
        assert self.engine.violations() == 0, self.engine.first_violation()

    def check_pending(self) -> None:
        """Blocks whose work is not done are still there; of the others, the engine says which it has noticed."""
        starts = {block.address for block in self.live}
        waiting = []
        for block in self.pending:
            if (
                self.engine.base_allocation(block.address) == (block.address, block.size)
                and block.address not in starts
            ):
                waiting.append(block)
            else:
                assert block.done_at is not None, "freed in a capture, reused in it"
                assert block.done_at <= self.engine.now(block.device), "handed on before its work was done"
        self.pending = waiting

    def check_overlap(self) -> None:
        blocks = sorted(self.live + self.pending, key=lambda block: block.address)
        for before, after in pairwise(blocks):
            assert before.end <= after.address, "blocks overlap in addresses"
        physical = sorted((block.device, *piece) for block in blocks for piece in block.pieces)
        for (device, handle, _, end), (next_device, next_handle, first, _) in pairwise(physical):
            assert (device, handle) != (next_device, next_handle) or end <= first, "blocks overlap in physical memory"

    def check_mappings(self) -> None:
        for block in self.live + self.pending:
            assert block.pieces == self.pieces(block), "the memory under a block changed"
        self.in_use = [use for use in self.in_use if use[3] > self.engine.now(use[0])]
        for device, page, handle, _ in self.in_use:
            under = self.engine.physical(page, device)
            assert under is not None, "unmapped under running work"
            assert under[0] == handle, "mapped anew under running work"

    def check_figures(self, device: int, stats: dict[str, Any]) -> None:
        live = [block for block in self.live if block.device == device]
        pending = [block for block in self.pending if block.device == device]
        self.check_sums(stats, live, pending)
        assert stats["allocations"] == self.allocations[device]
        assert stats["frees"] == self.frees[device]
        assert stats["total_bytes"] == self.memory
        assert stats["limit_bytes"] == self.limit(device)
        reserved = stats["reserved"]
        assert reserved["current"] == self.engine.used_bytes(device)
        assert reserved["peak"] == self.engine.peak_used_bytes(device)
        assert reserved["current"] == stats["resident"]["current"] + stats["idle"]["current"]
        assert reserved["current"] == sum(heap["reserved"]["current"] for heap in stats["heaps"]) + stats["unmapped"]
        heaps = self.heaps_used[device]
        error = PEAK_ERROR * len(heaps) if len(heaps) > 1 or any(pool != ORDINARY for _, pool in heaps) else 0
        assert abs(stats["requested"]["peak"] - self.peak_requested[device]) <= error
        assert abs(stats["live"]["peak"] - self.peak_live[device]) <= error
        for heap in stats["heaps"]:
            key = (device, heap["stream"], heap["pool"])
            self.check_sums(heap, [b for b in live if b.heap == key], [b for b in pending if b.heap == key])
            most = sum(
                -(-each["size"] // GRANULARITY) * GRANULARITY * each["keep"] for each in self.options["exact_bins"]
            )
            assert heap["kept"]["current"] <= (most if heap["pool"] == ORDINARY else 0)
            self.check_bins(heap, [b for b in live + pending if b.heap == key])
        for name in ("requested", "live", "pending", "kept", "resident", "reserved"):
            assert stats[name]["peak"] >= stats[name]["current"] >= 0
            assert stats[name]["total"] >= stats[name]["current"]

    def check_sums(self, stats: dict[str, Any], live: list[Block], pending: list[Block]) -> None:
        assert stats["requested"]["current"] == sum(block.requested for block in live)
        assert stats["live"]["current"] == sum(block.size for block in live)
        assert stats["pending"]["current"] == sum(block.size for block in pending)
        assert stats["live_blocks"] == len(live) + len(pending)
        self.check_kinds(stats, live, pending)
        resident = PAGE * len(set().union(*(block.physical_pages() for block in live + pending)))
        kept = stats["kept"]["current"]
        outer = sum(2 * PAGE * (kept // each["size"]) for each in self.options["exact_bins"])
        assert resident <= stats["resident"]["current"] <= resident + kept + outer
        assert stats["resident"]["current"] >= kept + stats["all"]["held"]["current"]

    def check_kinds(self, stats: dict[str, Any], live: list[Block], pending: list[Block]) -> None:
        """Blocks of size classes, which torch's statistics call small, and all others apart."""
        limit = int(self.options["bin_limit"])

        def kind_of(block: Block) -> str:
            return "small" if block.requested <= limit else "large"

        for kind in ("all", "small", "large"):
            mine = [[b for b in blocks if kind in ("all", kind_of(b))] for blocks in (live, pending)]
            expected = {
                "blocks": len(mine[0]),
                "requested": sum(block.requested for block in mine[0]),
                "live": sum(block.size for block in mine[0]),
                "held_blocks": len(mine[0]) + len(mine[1]),
                "held": sum(block.size for block in mine[0] + mine[1]),
            }
            assert {name: stats[kind][name]["current"] for name in expected} == expected
        for kind in ("small", "large"):
            assert stats[kind]["held"]["current"] <= stats[kind]["reserved"]["current"], "blocks lie in their own pages"
        in_blocks = stats["all"]["held"]["current"] + stats["kept"]["current"]
        assert stats["all"]["unused"]["current"] == stats["resident"]["current"] - in_blocks

    def check_bins(self, heap: dict[str, Any], blocks: list[Block]) -> None:
        small = [block for block in blocks if block.requested <= int(self.options["bin_limit"])]
        held = {bin_["block_bytes"]: bin_ for bin_ in heap["bins"]}
        assert len(held) == len(heap["bins"])
        assert {block.size for block in small} <= held.keys()
        for size, bin_ in held.items():
            of_bin = [block for block in small if block.size == size]
            assert bin_["live_blocks"] == len(of_bin)
            assert bin_["requested"] == sum(block.requested for block in of_bin)
            assert bin_["rounded"] == size * len(of_bin)
            assert bin_["allocations"] >= len(of_bin)
        assert heap["arena_rounded"] == sum(block.size for block in blocks) - sum(block.size for block in small)
