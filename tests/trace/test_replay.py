"""Replay: the figures are those of the engine driven call by call, and late frees, pools and devices are honoured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_kit import MiB, ToyAllocator, pickled, snapshot_of, toys, trace_of

from poolalloc import Config, _core
from poolalloc.analysis.replay import DEFAULT_MEMORY, Replayer, recorded_figures, replay, sample_points
from poolalloc.analysis.trace import DeviceInfo, Op, Trace
from poolalloc.analysis.trace.torch_snapshot import import_snapshot
from poolalloc.errors import ConfigError, UsageError

QUANTITIES = ("requested", "live", "pending", "resident", "reserved")
PUBLISHED_LATE = 64 << 10  # the engine's own peak of pending memory may lag by this for each of several heaps


def imported(*devices: ToyAllocator, cut: int = 0) -> Trace:
    return import_snapshot(pickled(snapshot_of(*devices, cut=cut)), "toy")[0]


class Oracle:
    """The engine driven through Python, one call for each event, and asked for its figures after each."""

    def __init__(self, trace: Trace, memory: int, conf: str = "") -> None:
        self.trace = trace
        self.count = int(trace.events["device"].max()) + 1
        self.engine = _core.Engine(conf, {"memory_bytes": memory, "devices": self.count})
        self.peaks = [dict.fromkeys(QUANTITIES, 0) for _ in range(self.count)]
        self.now = [dict.fromkeys(QUANTITIES, 0) for _ in range(self.count)]
        self.addresses: dict[int, int] = {}
        self.users: set[tuple[int, tuple[int, int]]] = set()
        self.ends = {
            int(event["id"]): number + 1
            for number, event in enumerate(trace.events[trace.events["op"] == Op.FREE_COMPLETED])
        }
        self.ticks = 0

    def run(self) -> Oracle:
        for event in self.trace.events:
            self.step(event)
            for device in range(self.count):
                stats = self.engine.stats(device)
                self.now[device] = {name: stats[name]["current"] for name in QUANTITIES}
                for name in QUANTITIES:
                    self.peaks[device][name] = max(self.peaks[device][name], stats[name]["current"])
        self.engine.validate()
        assert self.engine.violations() == 0, self.engine.first_violation()
        return self

    def step(self, event: Any) -> None:
        op, ident, device = Op(event["op"]), int(event["id"]), int(event["device"])
        pool = self.trace.pools[event["pool"]]
        if op == Op.ALLOC:
            if pool != (0, 0):
                self.engine.begin_allocate_to_pool(device, pool)
                self.engine.expect_graphs(device, pool)
            place = (device, self.trace.streams[event["stream"]])
            self.addresses[ident] = self.engine.allocate(int(event["requested"]), *place)
            if pool != (0, 0):
                self.engine.end_allocate_to_pool(device, pool)
                if (device, pool) in self.users:
                    self.engine.release_pool(device, pool)
                self.users.add((device, pool))
        elif op == Op.FREE:
            address = self.addresses.pop(ident)
            if ident in self.ends:
                own = 1 << 60 | ident  # a stream of its own, so that nothing else delays it
                self.engine.set_stream_lag(own, self.ends[ident] - self.ticks, device)
                self.engine.record_stream(address, own)
            self.engine.free(address)
        elif op == Op.FREE_COMPLETED:
            self.engine.advance(1)
            self.ticks += 1
        elif op == Op.RELEASE_POOL and (device, pool) in self.users:
            self.users.remove((device, pool))
            self.engine.release_pool(device, pool)


def assert_same_as_oracle(trace: Trace, memory: int, conf: str = "") -> None:
    oracle = Oracle(trace, memory, conf).run()
    result = replay(trace, Config.from_conf(conf), memory, samples=len(trace) * 4)
    assert result.out_of_memory is None
    assert result.events == len(trace)
    # Whoever asks for figures has blocks that wait for other streams looked at, so the oracle, which asks after every
    # event, may hold less and query more events where there are any.
    waited = bool((trace.events["op"] == Op.FREE_COMPLETED).any())
    for device in result.devices:
        # From the heap of a private pool on, totals are published late too; heaps that ended count as well.
        several = len(device.stats["heaps"]) > 1 or any(tuple(pool) != (0, 0) for pool in trace.pools)
        heaps = max(len(device.stats["heaps"]), len(trace.pools) * len(trace.streams))
        for name in QUANTITIES:
            slack = PUBLISHED_LATE * heaps if several and name == "pending" else 0
            more = device.peak(name) - oracle.peaks[device.device][name]
            assert -slack <= more, name
            if waited and name not in ("requested", "live"):
                continue
            assert more <= slack, name
            assert device.stats[name]["current"] == oracle.now[device.device][name], name
            assert device.curve is not None
            assert device.curve.values[name][-1] == oracle.now[device.device][name]
        if not waited:
            assert device.stats["driver_calls"] == oracle.engine.stats(device.device)["driver_calls"]


# --- exactness --------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(150))
@given(toys(), st.sampled_from(["", "bin_limit:0", "bin_limit:1MiB"]))
def test_figures_are_those_of_the_engine_call_by_call(toy: ToyAllocator, conf: str) -> None:
    if toy.born:
        assert_same_as_oracle(imported(toy), 4 << 30, conf)


@given(toys(most=30), st.floats(0, 1))
def test_also_for_what_begins_in_mid_run(toy: ToyAllocator, part: float) -> None:
    cut = int(part * len(toy.log))
    trace = imported(toy, cut=cut) if cut < len(toy.log) else None
    if trace is not None and trace.used_devices():
        assert_same_as_oracle(trace, 4 << 30)


@given(toys(device=0, most=25), toys(device=1, most=25))
def test_also_for_several_devices(first: ToyAllocator, second: ToyAllocator) -> None:
    if first.born and second.born:
        assert_same_as_oracle(imported(first, second), 4 << 30)


@settings(max_examples=examples(60))
@given(toys(most=80), st.integers(0, 12))
def test_also_where_memory_is_short(toy: ToyAllocator, spare_pages: int) -> None:
    """The out-of-memory ladder waits for late frees: time passes early, and both must agree on what follows."""
    if not toy.born:
        return
    trace = imported(toy)
    memory = replay(trace).devices[0].peak_reserved // (2 * MiB) * 2 * MiB - spare_pages * 2 * MiB
    if memory < 2 * MiB:
        return
    result = replay(trace, memory=memory)
    if result.out_of_memory is None:
        assert_same_as_oracle(trace, memory)
    else:
        oracle = Oracle(trace, memory)
        for event in trace.events[: result.out_of_memory.event]:
            oracle.step(event)
        with pytest.raises(Exception, match="out of memory"):
            oracle.step(trace.events[result.out_of_memory.event])


def test_a_replay_is_the_same_every_time() -> None:
    toy = ToyAllocator()
    for i in range(200):
        toy.allocate(1 + (i * 7919) % (3 * MiB), i % 2, (0, 0))
        if i % 3 == 0:
            toy.free(i * 31, late=i % 2 == 0)
    replayer = Replayer(imported(toy))
    first, second = (replayer.run(memory=4 << 30).to_json() for _ in range(2))
    for result in (first, second):
        for name in ("core_seconds", "events_per_second"):
            assert result.pop(name) > 0
    assert first == second


# --- late frees -------------------------------------------------------------------------------------------------------


def late(*order: str) -> int:
    """Peak reserved of: a block of 20 MiB, freed; its completion; another such block, in the order given."""
    steps = {
        "alloc": (Op.ALLOC, 1, 20 * MiB),
        "free": (Op.FREE, 1, 20 * MiB),
        "complete": (Op.FREE_COMPLETED, 1, 20 * MiB),
        "again": (Op.ALLOC, 2, 20 * MiB),
    }
    return replay(trace_of(steps[name] for name in order)).devices[0].peak_reserved


def test_a_late_free_is_reused_only_after_its_completion() -> None:
    assert late("alloc", "free", "again") == 20 * MiB
    assert late("alloc", "free", "complete", "again") == 20 * MiB
    assert late("alloc", "free", "again", "complete") == 40 * MiB


def test_late_frees_complete_in_any_order() -> None:
    """The second free completes first: only its memory may be had again then."""
    rows = [
        (Op.ALLOC, 1, 20 * MiB),
        (Op.ALLOC, 2, 30 * MiB),
        (Op.FREE, 1, 20 * MiB),
        (Op.FREE, 2, 30 * MiB),
        (Op.FREE_COMPLETED, 2, 30 * MiB),
        (Op.ALLOC, 3, 30 * MiB),
        (Op.FREE_COMPLETED, 1, 20 * MiB),
        (Op.ALLOC, 4, 20 * MiB),
    ]
    assert replay(trace_of(rows)).devices[0].peak_reserved == 50 * MiB
    assert replay(trace_of([*rows[:5], (Op.ALLOC, 3, 50 * MiB), *rows[6:7]])).devices[0].peak_reserved > 50 * MiB


def test_a_free_after_a_use_by_another_stream_never_completes_by_itself() -> None:
    rows = [(Op.ALLOC, 1, 20 * MiB), (Op.RECORD_STREAM, 1, 20 * MiB, {"stream": 1}), (Op.FREE, 1, 20 * MiB)]
    again = [*rows, (Op.ALLOC, 2, 20 * MiB)]
    assert replay(trace_of(again, streams=(0, 7))).devices[0].peak_reserved == 40 * MiB
    device = replay(trace_of(again, streams=(0, 7)), memory=24 * MiB).devices[0]  # unless memory is waited for
    assert device.peak_reserved <= 24 * MiB
    assert device.stats["pending_completed"] == 1


def test_memory_that_is_short_waits_for_late_frees() -> None:
    rows = [(Op.ALLOC, 1, 20 * MiB), (Op.FREE, 1, 20 * MiB), (Op.ALLOC, 2, 20 * MiB), (Op.FREE_COMPLETED, 1, 20 * MiB)]
    result = replay(trace_of(rows), memory=24 * MiB)
    assert result.out_of_memory is None
    assert result.devices[0].stats["retries"] == 1


# --- pools, devices, memory -------------------------------------------------------------------------------------------

TWO_POOLS = ((0, 0), (0, 1))


def test_a_pool_keeps_its_memory_until_it_is_released() -> None:
    rows = [(Op.ALLOC, 1, 20 * MiB, {"pool": 1}), (Op.FREE, 1, 20 * MiB, {"pool": 1}), (Op.ALLOC, 2, 20 * MiB)]
    kept = replay(trace_of(rows, pools=TWO_POOLS)).devices[0]
    released = replay(trace_of([*rows[:2], (Op.RELEASE_POOL, 0, 0, {"pool": 1}), *rows[2:]], pools=TWO_POOLS)).devices[
        0
    ]
    assert kept.peak_reserved == 40 * MiB
    assert released.peak_reserved == 20 * MiB


def test_a_released_pool_can_be_used_again() -> None:
    once = [
        (Op.ALLOC, 1, 20 * MiB),
        (Op.ALLOC, 2, MiB),
        (Op.FREE, 1, 20 * MiB),
        (Op.FREE, 2, MiB),
        (Op.RELEASE_POOL, 0, 0),
    ]
    rows = [(op, ident and ident + 2 * i, size, {"pool": 1}) for i in range(3) for op, ident, size in once]
    device = replay(trace_of(rows, pools=TWO_POOLS), Config(growth="tight")).devices[0]
    assert device.peak_reserved == 22 * MiB
    assert device.stats["reserved"]["current"] == 0 or device.stats["resident"]["current"] == 0


def test_a_device_without_allocations_has_no_figures() -> None:
    trace = trace_of([(Op.ALLOC, 1, MiB, {"device": 2}), (Op.SEGMENT_ALLOC, 0, MiB, {"device": 1})])
    result = replay(trace)
    assert [device.device for device in result.devices] == [2]
    assert result.device(2).peak_requested == MiB
    with pytest.raises(KeyError, match="device 1"):
        result.device(1)


def test_where_memory_runs_out_is_said_exactly() -> None:
    rows = [(Op.ALLOC, i + 1, 10 * MiB, {"time_ns": i * 10**9}) for i in range(5)]
    result = replay(trace_of(rows), memory="30 MiB")
    lost = result.out_of_memory
    assert lost is not None
    assert (lost.event, lost.seconds, lost.device, lost.requested) == (3, 3.0, 0, 10 * MiB)
    assert result.events == 3
    assert result.devices[0].peak_reserved == 30 * MiB
    assert "asked for 10 MiB" in lost.message


def test_memory_is_as_given_as_recorded_or_enough() -> None:
    trace = trace_of([(Op.ALLOC, 1, MiB)])
    assert replay(trace).memory_bytes == DEFAULT_MEMORY
    recorded = trace_of([(Op.ALLOC, 1, MiB)], devices=(DeviceInfo(0, "card", 48 << 30, None),))
    assert (replay(recorded).memory_bytes, replay(recorded).memory_source) == (48 << 30, "recorded")
    assert (replay(recorded, memory="1 GiB").memory_bytes, replay(recorded, memory=5).memory_source) == (
        1 << 30,
        "given",
    )
    large = replay(trace_of([(Op.ALLOC, 1, 70 << 30)]))
    assert large.memory_bytes == 140 << 30
    assert large.out_of_memory is None


def test_options_reach_the_engine() -> None:
    trace = trace_of([(Op.ALLOC, i + 1, 600) for i in range(10)])
    assert replay(trace).devices[0].stats["heaps"][0]["bins"]
    in_arena = replay(trace, Config(bin_limit=0))
    assert not in_arena.devices[0].stats["heaps"][0]["bins"]
    assert in_arena.config == "bin_limit:0"
    with pytest.raises(ConfigError):
        _core.Replay(trace.events, trace.streams, trace.pools).run("bin_limt:1")


def test_requests_of_no_bytes_change_nothing() -> None:
    device = replay(trace_of([(Op.ALLOC, 1, 0), (Op.FREE, 1, 0), (Op.FREE_COMPLETED, 1, 0)])).devices[0]
    assert (device.peak_requested, device.peak_reserved, device.overhead) == (0, 0, None)


# --- the recorded allocator beside it ---------------------------------------------------------------------------------


def test_the_recorded_allocators_figures_stand_beside_ours() -> None:
    rows = [
        (Op.SEGMENT_ALLOC, 0, 20 * MiB),
        (Op.ALLOC, 1, 12 * MiB),
        (Op.OUT_OF_MEMORY, 0, 1 << 50),
        (Op.SEGMENT_FREE, 0, 20 * MiB),
    ]
    trace = trace_of(rows, devices=(DeviceInfo(0, None, None, 7 * MiB),), provenance={"allocator": "torch"})
    recorded = replay(trace).devices[0].recorded
    assert recorded is not None
    assert (recorded.peak_reserved, recorded.reserved_at_start, recorded.reserved_at_end) == (
        27 * MiB,
        7 * MiB,
        7 * MiB,
    )
    assert recorded.out_of_memory == 1
    assert recorded.source == "torch, as recorded"
    assert recorded_figures(trace_of(rows), 0) is None


# --- over time --------------------------------------------------------------------------------------------------------


@given(toys(), st.integers(1, 100))
def test_curves_have_the_highest_request_of_every_stretch(toy: ToyAllocator, count: int) -> None:
    if not toy.born:
        return
    trace = imported(toy)
    points = sample_points(trace, count)
    assert points == sorted(set(points))
    assert points[-1] == len(trace) - 1
    replayer = Replayer(trace)
    curve = replayer.run(samples=count).devices[0].curve
    assert curve is not None
    phases = replayer.phases  # the driver's work is counted between their ends
    assert curve.events.tolist() == sorted({*points, *(() if phases is None else phases.points)})
    assert curve.values["requested"].max() == replay(trace).devices[0].peak_requested
    assert np.all(curve.values["requested"] <= curve.values["live"])
    assert np.all(curve.values["live"] + curve.values["pending"] <= curve.values["resident"])
    assert np.all(curve.values["resident"] <= curve.values["reserved"])


# --- the native part trusts nobody ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([(Op.ALLOC, 1, 1), (Op.ALLOC, 1, 1)], "event 1 of the trace allocates an id a second time"),
        ([(Op.FREE, 1, 1)], "event 0 of the trace frees a block that is not live"),
        ([(Op.ALLOC, 1, 1), (Op.FREE, 1, 1), (Op.FREE, 1, 1)], "event 2 of the trace frees"),
        ([(Op.FREE_COMPLETED, 1, 1)], "completes a free that was not asked for"),
        ([(Op.RECORD_STREAM, 1, 1)], "uses a block that is not live"),
        ([(Op.ALLOC, 1, 1, {"stream": 9})], "on a stream or pool not in its table"),
        ([(Op.ALLOC, 1, 1, {"device": 64})], "on a device that cannot be"),
        ([(Op.ALLOC, 1, 1, {"device": -1})], "on a device that cannot be"),
        ([(99, 1, 1)], "is of an unknown kind"),
    ],
)
def test_events_that_break_the_rules_are_refused_natively(rows: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Replayer(trace_of(rows))


def test_only_arrays_of_events_are_taken() -> None:
    events = trace_of([(Op.ALLOC, 1, 1), (Op.ALLOC, 2, 1), (Op.ALLOC, 3, 1)]).events
    for wrong in (np.zeros(3), events[::2], events.reshape(3, 1)):
        with pytest.raises(UsageError, match="one contiguous array"):
            _core.Replay(wrong, [0], [(0, 0)])


def test_ids_may_be_anything_unique() -> None:
    ids = [1 << 63, 5, (1 << 64) - 1, 1 << 40]
    rows = [(Op.ALLOC, ident, MiB) for ident in ids] + [(Op.FREE, ident, MiB) for ident in ids]
    assert replay(trace_of(rows)).devices[0].peak_requested == 4 * MiB
