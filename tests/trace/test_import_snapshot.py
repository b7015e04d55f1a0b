"""PyTorch's memory snapshots: what a log says becomes events, what it lost is inferred, and all of it is counted."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_kit import MiB, ToyAllocator, live_at, pickled, snapshot_of, summary, toys

from poolalloc._internal.trace.format import check, recorded_reserved_over_time
from poolalloc.analysis.trace import Frame, Op, Trace, TraceError
from poolalloc.analysis.trace.import_report import ImportReport
from poolalloc.analysis.trace.torch_snapshot import import_snapshot

SHIPPED = Path(__file__).parent.parent / "data" / "medium_512_training.pickle"


def refusal(data: bytes) -> str:
    """Why it is not imported; if it is, it must be sound, and this is empty."""
    try:
        trace, report = import_snapshot(data, "test.pickle")
    except TraceError as error:
        return str(error)
    check(trace)
    assert len(set(report.balance())) == 1
    return ""


def imported(snapshot: Any) -> tuple[Trace, ImportReport]:
    """The trace of a snapshot, which obeys the rules, and the account, which adds up."""
    trace, report = import_snapshot(pickled(snapshot), "test.pickle")
    check(trace)
    left, right = report.balance()
    assert left == right
    assert report.written.total() == len(trace)
    return trace, report


def toy_with(*actions: tuple[Any, ...]) -> ToyAllocator:
    toy = ToyAllocator()
    for action, *arguments in actions:
        getattr(toy, action)(*arguments)
    return toy


# --- logs that are whole -------------------------------------------------------------------------------------------


@given(toys())
def test_a_whole_log_is_reproduced_event_for_event(toy: ToyAllocator) -> None:
    if not toy.log:
        return
    trace, report = imported(snapshot_of(toy))
    assert summary(trace) == toy.events_from(0)
    assert trace.initial_events == 0
    assert set(report.inferred) <= {
        "releases of pools, when the last of their memory went back",
        "completions still to come when the recording ended: put at its end",
    }
    assert not report.left_out
    assert live_at(trace, len(trace)) == sorted(block.size for block in toy.blocks)


@given(toys(device=0, most=25), toys(device=2, most=25))
def test_devices_keep_their_own_order_in_one_sequence(first: ToyAllocator, second: ToyAllocator) -> None:
    if not first.log and not second.log:
        return
    trace, _ = imported(snapshot_of(first, second))
    for toy in (first, second):
        assert summary(trace.of_device(toy.device)) == toy.events_from(0)


def test_ids_are_unique_and_in_order() -> None:
    toy = toy_with(("allocate", 100, 0, (0, 0)), ("free", 0, False), ("allocate", 100, 0, (0, 0)))
    trace, _ = imported(snapshot_of(toy))
    allocs = trace.events[trace.events["op"] == Op.ALLOC]
    assert allocs["id"].tolist() == [1, 2]


def test_a_late_free_stays_two_events() -> None:
    toy = toy_with(("allocate", 100, 0, (0, 0)), ("free", 0, True), ("allocate", 100, 0, (0, 0)), ("complete", 0))
    trace, _ = imported(snapshot_of(toy))
    assert [name for name, *_ in summary(trace)] == ["SEGMENT_ALLOC", "ALLOC", "FREE", "ALLOC", "FREE_COMPLETED"]
    assert trace.events["id"][[1, 2, 4]].tolist() == [1, 1, 1]


# --- logs that begin in mid-run or lost entries --------------------------------------------------------------------


@given(toys(), st.floats(0, 1))
def test_a_ring_buffer_that_lost_its_oldest_entries(toy: ToyAllocator, part: float) -> None:
    cut = int(part * len(toy.log))
    if cut == len(toy.log):
        return
    trace, report = imported(snapshot_of(toy, cut=cut))
    live, pending = toy.history[cut]
    initial = trace.events[: trace.initial_events]
    allocated = sorted(initial["requested"][initial["op"] == Op.ALLOC].tolist())
    freed = sorted(initial["requested"][initial["op"] == Op.FREE].tolist())
    assert allocated == sorted(live + pending)
    assert freed == pending
    assert summary(trace) == toy.events_from(cut)
    assert report.inferred["allocations that the recording lost"] == 0


@given(toys(), st.data())
def test_entries_missing_in_the_middle_are_made_up_for(toy: ToyAllocator, data: st.DataObject) -> None:
    keep = data.draw(st.lists(st.booleans(), min_size=len(toy.log), max_size=len(toy.log)))
    if not any(keep) and not toy.segments:
        return
    snapshot = snapshot_of(toy, keep=keep)
    if not any(snapshot["device_traces"]) and not snapshot["segments"]:
        return
    if not any(block["state"] != "inactive" for row in snapshot["segments"] for block in row["blocks"]) and not any(
        keep
    ):
        return
    trace, report = imported(snapshot)
    assert report.found.total() == sum(keep)
    assert live_at(trace, len(trace)) == sorted(block.size for block in toy.blocks)


def test_a_block_at_addresses_known_to_hold_another_was_born_after_it() -> None:
    """A lives and dies at an address; B, never seen allocated, is freed there later: it is younger than A's end."""
    toy = toy_with(("allocate", 512, 0, (0, 0)), ("free", 0, False), ("allocate", 512, 0, (0, 0)), ("free", 0, False))
    keep = [True, True, True, True, False, True, True]
    trace, report = imported(snapshot_of(toy, keep=keep))
    assert [name for name, *_ in summary(trace)] == ["SEGMENT_ALLOC", "ALLOC", "FREE", "ALLOC", "FREE"]
    assert trace.initial_events == 0
    assert dict(report.inferred) == {"allocations that the recording lost": 1}


def test_a_block_whose_addresses_are_given_away_was_freed() -> None:
    toy = toy_with(("allocate", 512, 0, (0, 0)), ("free", 0, False), ("allocate", 1024, 0, (0, 0)))
    trace, report = imported(snapshot_of(toy, keep=[True, True, False, False, True]))
    assert [name for name, *_ in summary(trace)] == ["SEGMENT_ALLOC", "ALLOC", "FREE", "ALLOC"]
    assert dict(report.inferred) == {"frees that the recording lost": 1}


def test_a_block_is_no_older_than_its_segment() -> None:
    toy = toy_with(("allocate", 512, 0, (0, 0)), ("free", 0, False))
    trace, report = imported(snapshot_of(toy, keep=[True, False, True, True]))
    assert [name for name, *_ in summary(trace)] == ["SEGMENT_ALLOC", "ALLOC", "FREE"]
    assert trace.initial_events == 0
    assert dict(report.inferred) == {"allocations that the recording lost": 1}


def test_a_pool_is_not_taken_from_a_later_segment_at_the_same_address() -> None:
    at = {"stream": 0, "addr": 1 << 30}
    place = ("alloc", "free_requested", "free_completed", "segment_free", "segment_alloc", "alloc")
    log = [{"action": action, "size": 2 * MiB if "segment" in action else 512, **at} for action in place]
    block = {"address": 1 << 30, "size": 512, "requested_size": 512, "state": "active_allocated"}
    segment = {"address": 1 << 30, "total_size": 2 * MiB, "segment_pool_id": (0, 1), "stream": 0, "blocks": [block]}
    trace, report = imported({"segments": [segment], "device_traces": [log]})
    pools = [pool for name, *_, pool in summary(trace) if name == "ALLOC"]
    assert pools == [(0, 0), (0, 1)]
    assert report.assumed["pool of blocks in memory that was gone at the end: the ordinary one"] == 1


def test_a_late_free_whose_block_is_held_again_at_the_end_was_completed() -> None:
    toy = toy_with(("allocate", 512, 0, (0, 0)), ("free", 0, True), ("complete", 0), ("allocate", 512, 0, (0, 0)))
    trace, report = imported(snapshot_of(toy, keep=[True, True, True, False, False]))
    assert [name for name, *_ in summary(trace)] == ["SEGMENT_ALLOC", "ALLOC", "FREE", "FREE_COMPLETED", "ALLOC"]
    assert report.inferred["completions of frees that the recording lost"] == 1
    assert live_at(trace, len(trace)) == [512]


def test_a_block_in_a_segment_that_went_was_freed() -> None:
    toy = toy_with(("allocate", 512, 0, (0, 0)), ("free", 0, False), ("empty_cache",))
    trace, _ = imported(snapshot_of(toy, keep=[True, True, False, False, True]))
    assert [name for name, *_ in summary(trace)] == ["SEGMENT_ALLOC", "ALLOC", "FREE", "SEGMENT_FREE"]


def test_a_state_without_history_is_an_initial_state() -> None:
    toy = toy_with(("allocate", 512, 0, (0, 0)), ("allocate", 3 * MiB, 7, (0, 0)))
    trace, report = imported(snapshot_of(toy, cut=len(toy.log)))
    assert trace.initial_events == len(trace) == 2
    assert any("history was not recorded" in line and "_record_memory_history" in line for line in report.missing)


# --- schemas -------------------------------------------------------------------------------------------------------


def old_schema(
    snapshot: dict[str, Any], *, entries: tuple[str, ...] = (), blocks: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The snapshot as older versions wrote it: without some keys."""
    for trace in snapshot["device_traces"]:
        for entry in trace:
            for key in entries:
                del entry[key]
    for segment in snapshot["segments"]:
        for block in segment["blocks"]:
            for key in blocks:
                del block[key]
    return snapshot


@given(toys())
def test_without_times_the_order_is_kept(toy: ToyAllocator) -> None:
    if not toy.log:
        return
    trace, report = imported(old_schema(snapshot_of(toy), entries=("time_us",)))
    assert summary(trace) == toy.events_from(0)
    assert trace.clock == "order"
    assert any("times" in line for line in report.missing)


@given(toys(), st.floats(0, 1))
def test_without_block_addresses_and_requested_sizes(toy: ToyAllocator, part: float) -> None:
    """2.1: blocks have no address and tile their segment; without requested sizes the log's own are used."""
    cut = int(part * len(toy.log))
    if cut == len(toy.log):
        return
    whole, _ = imported(snapshot_of(toy, cut=cut))
    assert summary(imported(old_schema(snapshot_of(toy, cut=cut), blocks=("address",)))[0]) == summary(whole)
    trace, _ = imported(old_schema(snapshot_of(toy, cut=cut), blocks=("requested_size",)))
    assert [event[0] for event in summary(trace)] == [event[0] for event in summary(whole)]
    assert allocations(trace) == allocations(whole)  # those of the initial state have their rounded size


def allocations(trace: Trace) -> list[Any]:
    return [event for event in summary(trace) if event[0] == "ALLOC"]


@given(toys())
def test_without_pools_in_entries_they_come_from_the_segments(toy: ToyAllocator) -> None:
    if not toy.log:
        return
    trace, _ = imported(old_schema(snapshot_of(toy), entries=("pool_id",)))
    without = [event[:4] for event in toy.events_from(0) if event[0] != "RELEASE_POOL"]  # nothing says which pool went
    assert [event[:4] for event in summary(trace)] == without
    at_end = {id(block): block.pool for segment in toy.segments for block in segment.blocks}
    born = [trace.pools[event["pool"]] for event in trace.events if event["op"] == Op.ALLOC]
    for block, pool in zip(toy.born, born, strict=True):
        assert id(block) not in at_end or pool == block.pool


def test_every_event_of_the_allocator_is_kept() -> None:
    toy = toy_with(("allocate", 512, 0, (0, 0)))
    snapshot = snapshot_of(toy)
    more = {"stream": 0, "time_us": 10}
    snapshot["device_traces"][0] += [
        {"action": "segment_map", "addr": 1 << 45, "size": 20 * MiB, **more},
        {"action": "oom", "device_free": 77, "size": 1 << 50, **more},
        {"action": "snapshot", "addr": 0, "size": 0, **more},
        {"action": "annotate", "addr": 5, "size": 512, "user_metadata": "weights", **more},
        {"action": "segment_unmap", "addr": 1 << 45, "size": 20 * MiB, **more},
        {"action": "workspace_snapshot", "addr": 0, "size": 0, **more},
    ]
    trace, report = imported(snapshot)
    names = [name for name, *_ in summary(trace)]
    assert names[2:] == ["SEGMENT_MAP", "OUT_OF_MEMORY", "SNAPSHOT", "MARK", "SEGMENT_UNMAP"]
    failed = trace.events[3]
    assert (failed["requested"], failed["id"]) == (1 << 50, 77)
    assert trace.marks == ("annotate: weights",)
    assert report.left_out == {'entries of the unknown action "workspace_snapshot"': 1}


def test_annotations_become_marks_in_time() -> None:
    toy = toy_with(("allocate", 512, 0, (0, 0)), ("allocate", 512, 0, (0, 0)))
    snapshot = snapshot_of(toy)
    snapshot["external_annotations"] = [
        {"stage": "END", "name": "step", "device": 0, "time_us": 2},
        {"stage": "START", "name": "step", "device": 0, "time_us": 1},
    ]
    trace, _ = imported(snapshot)
    marks = [trace.marks[event["id"]] for event in trace.events if event["op"] == Op.MARK]
    assert marks == ["START step", "END step"]
    assert np.all(np.diff(trace.events["time_ns"].astype(np.int64)) >= 0)


def test_stacks_are_kept_once_with_what_torch_attaches() -> None:
    toy = toy_with(("allocate", 512, 0, (0, 0)), ("allocate", 512, 0, (0, 0)), ("allocate", 512, 0, (0, 0)))
    snapshot = snapshot_of(toy)
    stack = [{"filename": "a.py", "name": "f", "line": 3}, {"filename": "b.py", "name": "g", "line": 4}]
    for entry in snapshot["device_traces"][0]:
        entry["frames"] = stack
    snapshot["device_traces"][0][3] |= {"user_metadata": "block 7", "compile_context": "0/0"}
    trace, _ = imported(snapshot)
    assert len(trace.stacks) == 3
    first, last = (trace.stacks[trace.events["stack"][event]] for event in (1, 3))
    assert first == (Frame("a.py", "f", 3), Frame("b.py", "g", 4))
    assert [frame.function for frame in last] == ["compile_context: 0/0", "user_metadata: block 7", "f", "g"]


def test_what_the_recorded_allocator_held_follows_from_its_segments() -> None:
    toy = toy_with(("allocate", MiB, 0, (0, 0)), ("allocate", 6 * MiB, 0, (0, 0)), ("free", 1, False), ("empty_cache",))
    for cut, start in ((0, 0), (2, 4 * MiB), (len(toy.log) - 1, 10 * MiB)):
        trace, report = imported(snapshot_of(toy, cut=cut))
        held = recorded_reserved_over_time(trace, 0)
        assert held is not None
        assert held[-1] == 4 * MiB
        assert trace.device_info(0).reserved_at_start == start
        assert report.devices[0]["reserved_peak"] == 10 * MiB


@pytest.mark.parametrize(
    ("divisions", "size", "rounded"),
    [
        ({}, 100, 512),
        ({}, 1025, 1536),
        ({"1": 4, "2": 4, "1024": 8}, 1_100_000, 1_310_720),
        ({"1": 4}, 1 << 20, 1 << 20),
        ({"1": 4, "256": 2}, 300 * MiB, 384 * MiB),
        ({"1": 4, "256": 2}, 3 * MiB, 3 * MiB),
    ],
)
def test_rounding_is_torchs_own(divisions: dict[str, int], size: int, rounded: int) -> None:
    toy = toy_with(("allocate", size, 0, (0, 0)), ("free", 0, False))
    snapshot = snapshot_of(toy)
    snapshot["allocator_settings"]["roundup_power2_divisions"] = divisions
    trace, _ = imported(snapshot)
    assert trace.events["rounded"][1] == rounded


def test_negative_addresses_are_large_ones() -> None:
    toy = toy_with(("allocate", 512, 0, (0, 0)), ("free", 0, False))
    snapshot = snapshot_of(toy, cut=1)
    for entry in snapshot["device_traces"][0]:
        entry["stream"] = -16
    trace, _ = imported(snapshot)
    assert trace.streams[trace.events["stream"][-1]] == (1 << 64) - 16


def test_clocks_that_fall_back_are_counted() -> None:
    toy = toy_with(("allocate", 512, 0, (0, 0)), ("allocate", 512, 0, (0, 0)))
    snapshot = snapshot_of(toy)
    snapshot["device_traces"][0][2]["time_us"] = 0
    _, report = imported(snapshot)
    assert report.assumed["times earlier than the entry before: the same as that"] == 1


# --- what is refused -----------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run!",))


def broken(change: Any) -> bytes:
    snapshot = snapshot_of(toy_with(("allocate", 512, 0, (0, 0)), ("free", 0, False), ("allocate", 99, 0, (0, 0))))
    change(snapshot)
    return pickled(snapshot)


def shifted(segment: dict[str, Any], bytes_: int) -> dict[str, Any]:
    blocks = [block | {"address": block["address"] + bytes_} for block in segment["blocks"]]
    return segment | {"address": segment["address"] + bytes_, "blocks": blocks}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (pickled(Evil()), "asks for builtins.print"),
        (pickled({"segments": [], "device_traces": [[{"action": Evil()}]]}), "asks for builtins.print"),
        (pickle.dumps(np.zeros(3)), "asks for"),
        (b"\x80\x02cposix\nsystem\nU\x04true\x85R.", "asks for posix.system"),
        (b"", "cut off"),
        (b"\x80\x04", "cut off"),
        (pickled(snapshot_of(toy_with(("allocate", 512, 0, (0, 0)))))[:-40], "cut off"),
        (b"r\xff\xff\xff\x7f", "cut off"),
        (b"\x80\x05\x96\x64\0\0\0\0\0\0\0abc", "cut off"),
        (b"\x80\x05\x96\x64\0\0\0\0\0\0\x10abc", "more memory than its size explains"),
        (b"\x80\x04Nr\xff\xff\xff\x3f.", "more memory than its size explains"),
        (pickled([{"address": 1}]), "list of segments"),
        (pickled({"a": 1}), "no memory snapshot"),
        (pickled(7), "no memory snapshot"),
        (pickled({"segments": [], "device_traces": []}), "it is empty"),
        (pickled({"segments": 3, "device_traces": []}), "segments is no list"),
        (pickled({"segments": [], "device_traces": [[7]]}), "an entry is no table"),
        (broken(lambda s: s["device_traces"][0][1].pop("addr")), "entry 1 of device 0 has no addr"),
        (broken(lambda s: s["device_traces"][0][1].update(size=-5)), "absurd size: -5"),
        (broken(lambda s: s["device_traces"][0][1].update(size=1 << 60)), "absurd size"),
        (broken(lambda s: s["device_traces"][0][1].update(size=10**5000)), "more than 38 digits"),
        (broken(lambda s: s["device_traces"][0][1].update(time_us=-1)), "absurd time_us"),
        (broken(lambda s: s["device_traces"][0][1].update(action=None)), "has no action"),
        (broken(lambda s: s["device_traces"][0][1].update(pool_id=(1,))), "no pair of numbers"),
        (broken(lambda s: s["segments"][0].update(device=64)), "absurd device"),
        (broken(lambda s: s["segments"][0]["blocks"][0].update(state=["x"])), "unknown state"),
        (broken(lambda s: s["segments"][0]["blocks"][0].update(requested_size=1 << 30)), "for 1073741824 requested"),
        (broken(lambda s: s["segments"].append(s["segments"][0])), "has two blocks at address 0x7f0000000000"),
        (broken(lambda s: s["segments"].append(shifted(s["segments"][0], 50))), "overlap at address 0x7f0000000032"),
    ],
)
def test_what_is_no_snapshot_is_refused_in_one_line(data: bytes, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TraceError) as caught:
        import_snapshot(data, "x")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_values_that_contain_themselves_are_refused() -> None:
    snapshot = snapshot_of(toy_with(("allocate", 512, 0, (0, 0))))
    settings_: dict[str, Any] = snapshot["allocator_settings"]
    settings_["loop"] = settings_
    with pytest.raises(TraceError, match="contain themselves"):
        import_snapshot(pickled(snapshot), "x")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3) | st.tuples(inner, inner)
    ),
    max_leaves=5,
)


@given(toys(most=12), st.data())
def test_any_value_anywhere_is_imported_or_refused(toy: ToyAllocator, data: st.DataObject) -> None:
    snapshot = snapshot_of(toy)
    places: list[tuple[Any, Any]] = []

    def visit(value: Any) -> None:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            if isinstance(item, (dict, list)):
                visit(item)

    visit(snapshot)
    for _ in range(data.draw(st.integers(1, 3))):
        owner, key = data.draw(st.sampled_from(places))
        owner[key] = data.draw(PLAIN)
    assert "\n" not in refusal(pickled(snapshot))


@settings(max_examples=examples(300))
@given(st.data())
def test_damaged_bytes_are_imported_or_refused(data: st.DataObject) -> None:
    original = bytearray(broken(lambda snapshot: None))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(original) - 1))
        original[place] = data.draw(st.integers(0, 255))
    assert "\n" not in refusal(bytes(original))


# --- a real one ----------------------------------------------------------------------------------------------------


def test_the_shipped_snapshot_imports_with_nothing_dropped() -> None:
    trace, report = import_snapshot(SHIPPED.read_bytes(), SHIPPED.name)
    check(trace)
    found = {"alloc": 7591, "free_requested": 7370, "free_completed": 7370, "segment_alloc": 1}
    assert dict(report.found) == found
    assert report.merged.total() == 7370
    assert not report.left_out
    assert dict(report.inferred) == {"allocations before the recording began": 664}
    assert len(trace) == 15_626
    assert trace.initial_events == 664
    account = report.devices[0]
    assert account["reserved_peak"] == account["reserved_at_end"] == 12_660_506_624
    live = set(trace.events["id"][trace.events["op"] == Op.ALLOC]) - set(
        trace.events["id"][trace.events["op"] == Op.FREE]
    )
    ends = np.isin(trace.events["id"], list(live)) & (trace.events["op"] == Op.ALLOC)
    assert trace.events["requested"][ends].sum() == account["requested_at_end"]
    assert trace.events["rounded"][ends].sum() == account["allocated_at_end"]


def test_segments_in_which_nothing_is_held_are_no_trace() -> None:
    toy = ToyAllocator()
    toy.allocate(100, 0, (0, 0))
    toy.free(0, late=False)
    snapshot = snapshot_of(toy)
    snapshot["device_traces"] = []
    assert "nothing is held" in refusal(pickled(snapshot))
