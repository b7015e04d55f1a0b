"""Small traces written by hand, and a toy allocator that writes logs in the forms PyTorch does."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from poolalloc._internal.trace.format import EVENT
from poolalloc.analysis.trace import Op, Trace

MiB = 1 << 20
ORDINARY = (0, 0)


def trace_of(rows: Iterable[Sequence[Any]], **tables: Any) -> Trace:
    """A trace of (op, id, requested), each with a table of further fields where given: (op, id, 0, {"stream": 1})."""
    events = []
    for number, (op, ident, requested, *more) in enumerate(rows):
        fields = {"time_ns": number * 1000, "op": int(op), "id": ident, "requested": requested} | (
            more[0] if more else {}
        )
        events.append(tuple(fields.get(name, 0) for name in EVENT.names or ()))
    return Trace(np.array(events, EVENT), **tables)


def summary(trace: Trace) -> list[tuple[str, int, int, int, tuple[int, int]]]:
    """The events after the initial state, without ids and times: kind, bytes, device, stream, pool."""
    return [
        (
            Op(event["op"]).name,
            int(event["requested"]),
            int(event["device"]),
            trace.streams[event["stream"]],
            trace.pools[event["pool"]],
        )
        for event in trace.events[trace.initial_events :]
    ]


def live_at(trace: Trace, end: int) -> list[int]:
    """The requested sizes of the blocks that are not freed after the first `end` events."""
    live: dict[int, int] = {}
    for event in trace.events[:end]:
        if event["op"] == Op.ALLOC:
            live[int(event["id"])] = int(event["requested"])
        elif event["op"] == Op.FREE:
            del live[int(event["id"])]
    return sorted(live.values())


# --- a toy allocator that keeps a log ------------------------------------------------------------------------------

SEGMENT = 4 * MiB


@dataclass
class ToyBlock:
    address: int
    size: int
    rounded: int
    stream: int
    pool: tuple[int, int]
    pending: bool = False


@dataclass
class ToySegment:
    address: int
    size: int
    stream: int
    pool: tuple[int, int]
    blocks: list[ToyBlock] = field(default_factory=list)

    def room(self, bytes_: int) -> int | None:
        """The first address with so many free bytes."""
        at = self.address
        for block in sorted(self.blocks, key=lambda block: block.address):
            if block.address - at >= bytes_:
                return at
            at = block.address + block.rounded
        return at if self.address + self.size - at >= bytes_ else None


class ToyAllocator:
    """One device's memory by first fit, its log in the schema of a snapshot, and what a trace of it has to be."""

    def __init__(self, device: int = 0) -> None:
        self.device = device
        self.segments: list[ToySegment] = []
        self.blocks: list[ToyBlock] = []  # that the program holds
        self.pending: list[ToyBlock] = []
        self.born: list[ToyBlock] = []  # all that ever were
        self.log: list[dict[str, Any]] = []
        self.expected: list[tuple[int, tuple[str, int, int, int, tuple[int, int]]]] = []  # entry it is from, event
        self.history: list[tuple[list[int], list[int]]] = []  # live and pending sizes before each entry
        self._next = 0x7F00_0000_0000

    def note(self, action: str, op: str, *place: Any) -> None:
        address, size, stream, pool = place
        live, pending = (sorted(block.size for block in blocks) for blocks in (self.blocks, self.pending))
        self.history.append((live, pending))
        self.expected.append((len(self.log), (op, size, self.device, stream, pool)))
        self.log.append(
            {
                "action": action,
                "addr": address,
                "size": size,
                "stream": stream,
                "pool_id": pool,
                "time_us": len(self.log),
            }
        )

    def allocate(self, size: int, stream: int, pool: tuple[int, int]) -> None:
        rounded = -(-size // 512) * 512
        fitting = [s for s in self.segments if (s.stream, s.pool) == (stream, pool) and s.room(rounded) is not None]
        if not fitting:
            bytes_ = max(SEGMENT, rounded)
            fitting = [ToySegment(self._next, bytes_, stream, pool)]
            self._next += bytes_
            self.note("segment_alloc", "SEGMENT_ALLOC", fitting[0].address, bytes_, stream, pool)
            self.segments.append(fitting[0])
        address = fitting[0].room(rounded)
        assert address is not None
        block = ToyBlock(address, size, rounded, stream, pool)
        self.note("alloc", "ALLOC", address, size, stream, pool)
        fitting[0].blocks.append(block)
        self.blocks.append(block)
        self.born.append(block)

    def free(self, number: int, late: bool) -> None:
        if not self.blocks:
            return
        block = self.blocks[number % len(self.blocks)]
        self.note("free_requested", "FREE", block.address, block.size, block.stream, block.pool)
        self.blocks.remove(block)
        block.pending = True
        self.pending.append(block)
        if not late:
            self.complete(len(self.pending) - 1)

    def complete(self, number: int) -> None:
        if not self.pending:
            return
        block = self.pending[number % len(self.pending)]
        at_once = self.log[-1]["action"] == "free_requested" and self.log[-1]["addr"] == block.address
        self.note("free_completed", "FREE_COMPLETED", block.address, block.size, block.stream, block.pool)
        if at_once:
            self.expected.pop()
        self.pending.remove(block)
        for segment in self.segments:
            segment.blocks = [other for other in segment.blocks if other is not block]

    def empty_cache(self) -> None:
        for segment in [segment for segment in self.segments if not segment.blocks]:
            place = (segment.address, segment.size, segment.stream, segment.pool)
            self.note("segment_free", "SEGMENT_FREE", *place)
            self.segments.remove(segment)
            if segment.pool != ORDINARY and all(other.pool != segment.pool for other in self.segments):
                self.expected.append((len(self.log) - 1, ("RELEASE_POOL", 0, self.device, 0, segment.pool)))

    def events_from(self, cut: int) -> list[tuple[str, int, int, int, tuple[int, int]]]:
        """What the entries from number `cut` on are as events, with the completions that are still to come."""
        found = [event for entry, event in self.expected if entry >= cut]
        if cut > 0 and self.log and cut < len(self.log):
            first, before = self.log[cut], self.log[cut - 1]
            if first["action"] == "free_completed" and (before["action"], before["addr"]) == (
                "free_requested",
                first["addr"],
            ):
                event = ("FREE_COMPLETED", first["size"], self.device, first["stream"], first["pool_id"])
                found.insert(0, event)  # the entry it was one event with is lost
        for block in sorted(self.pending, key=lambda block: block.address):
            found.append(("FREE_COMPLETED", block.size, self.device, block.stream, block.pool))
        return found

    def segment_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "device": self.device,
                "address": segment.address,
                "total_size": segment.size,
                "allocated_size": sum(block.rounded for block in segment.blocks if not block.pending),
                "active_size": sum(block.rounded for block in segment.blocks),
                "requested_size": sum(block.size for block in segment.blocks),
                "stream": segment.stream,
                "segment_type": "large",
                "segment_pool_id": segment.pool,
                "is_expandable": False,
                "frames": [],
                "blocks": self._block_rows(segment),
            }
            for segment in self.segments
        ]

    def _block_rows(self, segment: ToySegment) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        at = segment.address

        def add(address: int, size: int, requested: int, state: str) -> None:
            row = {"address": address, "size": size, "requested_size": requested, "state": state, "frames": []}
            rows.append(row)

        for block in sorted(segment.blocks, key=lambda block: block.address):
            if block.address > at:
                add(at, block.address - at, 12345, "inactive")
            add(
                block.address, block.rounded, block.size, "active_pending_free" if block.pending else "active_allocated"
            )
            at = block.address + block.rounded
        if at < segment.address + segment.size:
            add(at, segment.address + segment.size - at, 0, "inactive")
        return rows


def snapshot_of(*toys: ToyAllocator, cut: int = 0, keep: Sequence[bool] | None = None) -> dict[str, Any]:
    """A snapshot of the newest schema: entries from `cut` on, or only those that `keep` names."""
    traces: list[list[dict[str, Any]]] = [[] for _ in range(max(toy.device for toy in toys) + 1)]
    for toy in toys:
        log = toy.log[cut:] if keep is None else [entry for entry, kept in zip(toy.log, keep, strict=False) if kept]
        traces[toy.device] = [dict(entry) for entry in log]
    return {
        "segments": [row for toy in toys for row in toy.segment_rows()],
        "device_traces": traces,
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": "", "expandable_segments": False},
        "external_annotations": [],
    }


def pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=4)


@st.composite
def toys(draw: st.DrawFn, device: int = 0, most: int = 60) -> ToyAllocator:
    """A device after a random program."""
    toy = ToyAllocator(device)
    actions = st.tuples(
        st.sampled_from(["alloc", "alloc", "alloc", "free", "late", "complete", "empty"]),
        st.integers(0, 1000),
        st.one_of(st.integers(1, 5000), st.integers(1, 6 * MiB)),
        st.sampled_from([0, 0xA0]),
        st.sampled_from([ORDINARY, ORDINARY, (0, 1), (1, 0)]),
    )
    for action, number, size, stream, pool in draw(st.lists(actions, max_size=most)):
        if action == "alloc":
            toy.allocate(size, stream, pool)
        elif action == "empty":
            toy.empty_cache()
        elif action == "complete":
            toy.complete(number)
        else:
            toy.free(number, late=action == "late")
    return toy
