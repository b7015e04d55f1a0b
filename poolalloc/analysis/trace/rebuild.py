"""Makes events out of another program's log of addresses: who lives where becomes allocations with ids.

Logs begin in mid-run, lose their oldest entries, and free blocks that nobody saw allocated. The rules:

- A block that is freed, or there at the end, but was never allocated is taken to have been there as long as it can have
  been: from the beginning, or from the moment its addresses were last known to hold something else.
- A block whose addresses are given to another was freed just before, by an entry that was lost.
- Whatever is added or changed is counted (report.py).

Not for reading files: torch_snapshot.py and rmm_csv.py do that and hand over Entry and Segment.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from poolalloc._internal.trace.format import EVENT, MAX_BYTES, Events, Op, TraceError
from poolalloc.analysis.trace.import_report import ImportReport

Pool = tuple[int, int]
ORDINARY: Pool = (0, 0)

SEGMENT_OPS = {
    "segment_alloc": Op.SEGMENT_ALLOC,
    "segment_free": Op.SEGMENT_FREE,
    "segment_map": Op.SEGMENT_MAP,
    "segment_unmap": Op.SEGMENT_UNMAP,
}
GAINED = ("segment_alloc", "segment_map")
OTHER_OPS = {"oom": Op.OUT_OF_MEMORY, "snapshot": Op.SNAPSHOT, "mark": Op.MARK}
FREES = ("free_requested", "free_completed", "free")

# Reasons, as they are counted and printed.
AT_START = "allocations before the recording began"
LATER = "allocations that the recording lost"
LOST_FREE = "frees that the recording lost"
LOST_COMPLETION = "completions of frees that the recording lost"
FREED_BEFORE = "frees before the recording began"
STILL_PENDING = "completions still to come when the recording ended: put at its end"
POOL_GONE = "releases of pools, when the last of their memory went back"
TOGETHER = "free_completed directly behind its free_requested: one event"
NO_BYTES = "requests of no bytes"
COMPLETED_FREE = "free_completed without free_requested: taken as the free itself"


class Entry(NamedTuple):
    """One entry of a log."""

    action: str
    address: int
    size: int
    stream: int
    time_ns: int
    stack: int = 0
    thread: int = 0
    pool: Pool | None = None
    extra: int = 0  # oom: bytes free on the device; mark: number of its text


class FinalBlock(NamedTuple):
    """A block that is there when the log ends; `pending` if it is freed but not complete. requested 0: not known."""

    address: int
    size: int
    requested: int
    pending: bool
    stack: int


class Segment(NamedTuple):
    """Memory the recorded allocator holds when the log ends."""

    address: int
    size: int
    stream: int
    pool: Pool
    expandable: bool
    blocks: tuple[FinalBlock, ...]


@dataclass
class DeviceLog:
    """One device's entries in their order. `segments` is None where the log does not say what is there at the end."""

    device: int
    entries: Sequence[Entry]
    segments: Sequence[Segment] | None = None
    rounding: Callable[[int], int] = lambda size: 0
    """What the recorded allocator sets aside for a request; 0 is not known."""


@dataclass(eq=False)
class _Block:
    address: int
    size: int
    stream: int
    pool: Pool
    stack: int = 0
    rounded: int = 0
    thread: int = 0
    known_birth: bool = True
    free_seen: bool = False
    pending: bool = False  # freed, not complete

    @property
    def end(self) -> int:
        return self.address + self.size


class _Emitted(NamedTuple):
    """An event on its way. Keys sort by entry, then before (0), at (1) and behind (2) it."""

    key: tuple[int, int]
    time_ns: int
    op: Op
    device: int
    block: _Block | None
    entry: Entry | None
    pool: Pool


class _Change(NamedTuple):
    """Addresses that changed hands: what was there before is not there after."""

    key: tuple[int, int]
    start: int
    end: int
    block: _Block | None  # that ended here; None for a change of segments


class _Spans:
    """Disjoint blocks by address."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._blocks: dict[int, _Block] = {}

    def at(self, address: int) -> _Block | None:
        return self._blocks.get(address)

    def add(self, block: _Block) -> None:
        insort(self._starts, block.address)
        self._blocks[block.address] = block

    def remove(self, block: _Block) -> None:
        del self._blocks[block.address]
        del self._starts[bisect_left(self._starts, block.address)]

    def overlapping(self, start: int, end: int) -> list[_Block]:
        """The blocks that have bytes in [start, end), by address."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._blocks[self._starts[first]].end <= start:
            first += 1
        last = first
        while last < len(self._starts) and self._starts[last] < end:
            last += 1
        return [self._blocks[address] for address in self._starts[first:last]]

    def all(self) -> list[_Block]:
        return [self._blocks[address] for address in self._starts]


class _DeviceRebuild:
    """The events of one device."""

    def __init__(self, log: DeviceLog, report: ImportReport) -> None:
        self.log = log
        self.report = report
        self.open = _Spans()
        self.emitted: list[_Emitted] = []
        self.changes: list[_Change] = []
        self.pools = _PoolGuess(log, report)
        self.times = _monotone([entry.time_ns for entry in log.entries], report)

    def run(self) -> list[_Emitted]:
        entries = self.log.entries
        skip = False
        for index, entry in enumerate(entries):
            if skip:
                skip = False
                self.report.merged[TOGETHER] += 1
                continue
            if entry.size == 0 and entry.action in ("alloc", *FREES):
                self.report.left_out[NO_BYTES] += 1
            elif entry.action == "alloc":
                self._alloc(index, entry)
            elif entry.action in ("free_requested", "free"):
                following = entries[index + 1] if index + 1 < len(entries) else None
                skip = (
                    entry.action == "free_requested"
                    and following is not None
                    and following.action == "free_completed"
                    and following.address == entry.address
                )
                self._free(index, entry, completed=skip or entry.action == "free")
            elif entry.action == "free_completed":
                self._complete(index, entry)
            elif entry.action in SEGMENT_OPS:
                self._segment(index, entry)
            else:
                self._emit((index, 1), OTHER_OPS[entry.action], None, entry)
        self._compare_with_end(len(entries))
        self._find_births()
        for block in self.open.all():
            if block.pending:
                self.report.inferred[STILL_PENDING] += 1
                self._emit((len(entries), 1), Op.FREE_COMPLETED, block, None)
        self.pools.release_events(self._release)
        for one in self.emitted:
            if one.block is not None and one.block.rounded == 0:
                one.block.rounded = self.log.rounding(one.block.size)
        self.emitted.sort(key=attrgetter("key"))
        return self.emitted

    # --- entry by entry ---------------------------------------------------------------------------------------------

    def _alloc(self, index: int, entry: Entry) -> None:
        self._clear(index, entry.address, entry.address + entry.size)
        block = self._block_of(index, entry)
        self.open.add(block)
        self._emit((index, 1), Op.ALLOC, block, entry)

    def _free(self, index: int, entry: Entry, completed: bool) -> None:
        block = self._freed_block(index, entry, pending=False)
        self._emit((index, 1), Op.FREE, block, entry)
        block.pending = True
        if completed:
            self._end((index, 1), block)

    def _complete(self, index: int, entry: Entry) -> None:
        block = self.open.at(entry.address)
        if block is not None and not block.pending and self._same(block, entry):
            self.report.assumed[COMPLETED_FREE] += 1
            self._emit((index, 1), Op.FREE, block, entry)
        else:
            block = self._freed_block(index, entry, pending=True)
            self._emit((index, 1), Op.FREE_COMPLETED, block, entry)
        self._end((index, 1), block)

    def _freed_block(self, index: int, entry: Entry, pending: bool) -> _Block:
        """The block that the entry is about: a known one, or one whose allocation was never seen."""
        block = self.open.at(entry.address)
        if block is not None and block.pending == pending and self._same(block, entry):
            return block
        self._clear(index, entry.address, entry.address + entry.size)
        block = self._block_of(index, entry)
        block.known_birth = False
        block.pending = pending
        self.open.add(block)
        return block

    def _segment(self, index: int, entry: Entry) -> None:
        self._clear(index, entry.address, entry.address + entry.size)
        self.changes.append(_Change((index, 1), entry.address, entry.address + entry.size, None))
        pool = self.pools.of_segment(index, entry)
        self.emitted.append(
            _Emitted((index, 1), self.times[index], SEGMENT_OPS[entry.action], self.log.device, None, entry, pool)
        )

    def _same(self, block: _Block, entry: Entry) -> bool:
        return block.size == entry.size or -(-block.size // 512) * 512 == entry.size

    def _block_of(self, index: int, entry: Entry) -> _Block:
        pool = self.pools.of_block(index, entry)
        stack = entry.stack if entry.action == "alloc" else 0
        return _Block(entry.address, entry.size, entry.stream, pool, stack, thread=entry.thread)

    def _clear(self, index: int, start: int, end: int) -> None:
        """Something else is at these addresses now: whoever was there has been freed."""
        for block in self.open.overlapping(start, end):
            self._lose((index, 0), block)

    def _lose(self, key: tuple[int, int], block: _Block) -> None:
        op, reason = (Op.FREE_COMPLETED, LOST_COMPLETION) if block.pending else (Op.FREE, LOST_FREE)
        self.report.inferred[reason] += 1
        self._emit(key, op, block, None)
        self._end(key, block)

    def _end(self, key: tuple[int, int], block: _Block) -> None:
        self.open.remove(block)
        self.changes.append(_Change(key, block.address, block.end, block))

    def _emit(self, key: tuple[int, int], op: Op, block: _Block | None, entry: Entry | None) -> None:
        if op == Op.FREE and block is not None:
            block.free_seen = True
        pool = block.pool if block is not None else (entry.pool or ORDINARY) if entry is not None else ORDINARY
        self.emitted.append(_Emitted(key, self._time(key), op, self.log.device, block, entry, pool))

    def _time(self, key: tuple[int, int]) -> int:
        if not self.times:
            return 0
        return self.times[min(max(key[0], 0), len(self.times) - 1)]

    def _release(self, index: int, pool: Pool) -> None:
        self.report.inferred[POOL_GONE] += 1
        key = (index, 2)
        self.emitted.append(_Emitted(key, self._time(key), Op.RELEASE_POOL, self.log.device, None, None, pool))

    # --- what is there at the end -----------------------------------------------------------------------------------

    def _compare_with_end(self, count: int) -> None:
        """Blocks that are there at the end but were never seen; blocks that were seen but are gone."""
        if self.log.segments is None:
            return
        final: dict[int, tuple[FinalBlock, Segment]] = {}
        for segment in self.log.segments:
            for block_there in segment.blocks:
                if block_there.address in final:
                    raise TraceError(f"device {self.log.device} has two blocks at address {block_there.address:#x}")
                final[block_there.address] = (block_there, segment)
        for block in self.open.all():
            found = final.get(block.address)
            if found is None or not _may_be(found[0], block):
                self._lose((count, 0), block)
                continue
            block.rounded = max(found[0].size, block.size)
            if found[0].pending and not block.pending:
                self.report.inferred[LOST_FREE] += 1
                self._emit((count, 0), Op.FREE, block, None)
                block.pending = True
        for address in sorted(final):
            end, segment = final[address]
            if self.open.at(address) is not None:
                continue
            size = end.requested or end.size
            block = _Block(address, size, segment.stream, segment.pool, end.stack, max(end.size, size))
            block.known_birth = False
            if self.open.overlapping(address, block.end):
                raise TraceError(f"the blocks of device {self.log.device} at its end overlap at address {address:#x}")
            self.open.add(block)
            if end.pending:
                block.pending = True

    def _find_births(self) -> None:
        """Read backwards: a block never seen allocated is born where its addresses last held something else."""
        waiting = _Spans()
        for block in self.open.all():
            if not block.known_birth:
                waiting.add(block)
        for change in reversed(self.changes):
            for block in waiting.overlapping(change.start, change.end):
                waiting.remove(block)
                self._born((change.key[0], 2 if change.key[1] else 0), block, LATER)
            if change.block is not None and not change.block.known_birth:
                waiting.add(change.block)
        for block in waiting.all():
            self._born((-1, 0), block, AT_START)

    def _born(self, key: tuple[int, int], block: _Block, reason: str) -> None:
        self.report.inferred[reason] += 1
        self._emit(key, Op.ALLOC, block, None)
        if block.pending and not block.free_seen:
            self.report.inferred[FREED_BEFORE if key[0] < 0 else LOST_FREE] += 1
            self._emit(key, Op.FREE, block, None)


def _may_be(final: FinalBlock, block: _Block) -> bool:
    """Whether the block that is there at the end can be the one that was last seen at its address."""
    if block.pending and not final.pending:
        return False
    return final.requested == block.size if final.requested else final.size >= block.size


class _PoolGuess:
    """Which pool an entry is about: what it says itself, else the pool of the segment around its address at the end."""

    def __init__(self, log: DeviceLog, report: ImportReport) -> None:
        self._report = report
        self._entries = log.entries
        self._segments = sorted(log.segments or (), key=attrgetter("address"))
        self._starts = [segment.address for segment in self._segments]
        self._guess = log.segments is not None
        self._says = any(entry.pool is not None for entry in log.entries)
        self._made_at = {
            entry.address: index for index, entry in enumerate(log.entries) if entry.action == "segment_alloc"
        }

    def of_block(self, index: int, entry: Entry) -> Pool:
        if entry.pool is not None:
            return entry.pool
        return self._of_address(index, entry.address, "blocks")

    def of_segment(self, index: int, entry: Entry) -> Pool:
        if entry.pool is not None:
            return entry.pool
        return self._of_address(index, entry.address, "segments")

    def _of_address(self, index: int, address: int, what: str) -> Pool:
        if not self._guess:
            return ORDINARY
        at = bisect_right(self._starts, address) - 1
        segment = self._segments[at] if at >= 0 else None
        if (
            segment is None
            or address >= segment.address + segment.size
            or self._made_at.get(segment.address, -1) > index
        ):
            self._report.assumed[f"pool of {what} in memory that was gone at the end: the ordinary one"] += 1
            return ORDINARY
        self._report.assumed[f"pool of {what}: that of the segment around them at the end"] += 1
        return segment.pool

    def release_events(self, release: Callable[[int, Pool], None]) -> None:
        """Call release(index, pool) for each entry that takes the last memory of a private pool."""
        if not self._says:
            return
        held: dict[Pool, int] = {}
        for segment in self._segments:
            held[segment.pool] = held.get(segment.pool, 0) + segment.size
        for entry in self._entries:  # held at the end minus what came: held at the start
            if entry.action in SEGMENT_OPS and entry.pool is not None:
                held[entry.pool] = held.get(entry.pool, 0) - (entry.size if entry.action in GAINED else -entry.size)
        for index, entry in enumerate(self._entries):
            if entry.action not in SEGMENT_OPS or entry.pool is None:
                continue
            held[entry.pool] += entry.size if entry.action in GAINED else -entry.size
            if held[entry.pool] == 0 and entry.pool != ORDINARY and entry.action not in GAINED:
                release(index, entry.pool)


def reserved_at_start(log: DeviceLog) -> int | None:
    """Return what the recorded allocator held before the first entry; None if that cannot be known."""
    if log.segments is None:
        return None
    held = sum(segment.size for segment in log.segments)
    for entry in log.entries:
        if entry.action in SEGMENT_OPS:
            held += -entry.size if entry.action in GAINED else entry.size
    return held if 0 <= held < MAX_BYTES else None


def _monotone(times: list[int], report: ImportReport) -> list[int]:
    """Clocks of several threads differ by a little: no entry is earlier than the one before it."""
    latest, late = 0, 0
    result = []
    for time in times:
        late += time < latest
        latest = max(latest, time)
        result.append(latest)
    if late:
        report.assumed["times earlier than the entry before: the same as that"] += late
    return result


# --- all devices ----------------------------------------------------------------------------------------------------


class Rebuilt(NamedTuple):
    """Events and their tables, as Trace has them."""

    events: Events
    streams: tuple[int, ...]
    threads: tuple[int, ...]
    pools: tuple[Pool, ...]
    initial_events: int


class _Numbers:
    """Numbers for values, in the order in which they come."""

    def __init__(self, first: object) -> None:
        self._numbers = {first: 0}

    def of(self, value: object) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    def values(self) -> tuple[object, ...]:
        return tuple(self._numbers)


def rebuild(logs: Iterable[DeviceLog], marks: Iterable[tuple[int, Entry]], report: ImportReport) -> Rebuilt:
    """Return the events of several devices as one sequence in time. `marks` are (device, entry), in time.

    Raises:
        TraceError: the logs contradict themselves.
    """
    initial: list[_Emitted] = []
    sequences: list[list[_Emitted]] = []
    for log in logs:
        emitted = _DeviceRebuild(log, report).run()
        cut = next((i for i, one in enumerate(emitted) if one.key[0] >= 0), len(emitted))
        initial += emitted[:cut]
        sequences.append(emitted[cut:])
    sequences.append(
        [_Emitted((0, 0), entry.time_ns, Op.MARK, device, None, entry, ORDINARY) for device, entry in marks]
    )
    ordered = list(heapq.merge(*sequences, key=attrgetter("time_ns")))
    start = ordered[0].time_ns if ordered else 0
    initial = [one._replace(time_ns=start) for one in initial]
    return _to_arrays([*initial, *ordered], len(initial))


def _to_arrays(emitted: list[_Emitted], initial: int) -> Rebuilt:
    streams, threads, pools = _Numbers(0), _Numbers(0), _Numbers(ORDINARY)
    ids: dict[int, int] = {}
    rows = []
    for one in emitted:
        block, entry = one.block, one.entry
        number, requested, rounded, stack = 0, 0, 0, 0
        source: _Block | Entry | None = entry if entry is not None else block
        stream = source.stream if source is not None else 0
        thread = source.thread if source is not None else 0
        if block is not None:
            if one.op == Op.ALLOC:
                ids[id(block)] = len(ids) + 1
            number, requested, rounded = ids[id(block)], block.size, block.rounded
            stack = block.stack if one.op == Op.ALLOC or entry is None else entry.stack
        elif entry is not None:
            number, requested, stack = entry.extra, entry.size, entry.stack
            rounded = entry.size if entry.action in SEGMENT_OPS else 0
        if requested > MAX_BYTES and one.op != Op.OUT_OF_MEMORY:
            raise TraceError(f"an entry has an absurd size: {requested} bytes")
        rows.append(
            (
                one.time_ns,
                int(one.op),
                one.device,
                streams.of(stream),
                threads.of(thread),
                pools.of(one.pool),
                number,
                requested,
                rounded,
                stack,
            )
        )
    return Rebuilt(
        np.array(rows, EVENT),
        streams.values(),  # type: ignore[arg-type]
        threads.values(),  # type: ignore[arg-type]
        pools.values(),  # type: ignore[arg-type]
        initial,
    )
