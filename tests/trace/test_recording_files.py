"""What the engine writes while it records becomes a sound trace, whatever was lost; and steps are found."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_kit import trace_of as trace_by_hand

from poolalloc import _core
from poolalloc._internal.trace import log, steps
from poolalloc._internal.trace.format import check
from poolalloc.analysis.trace import Op, TraceError, read

INITIAL = 64


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack("<II", kind, len(payload)) + payload


def event(
    op: int, address: int, requested: int = 0, *, time: int = 0, stream: int = 0, pool: int = 0, stack: int = 0
) -> bytes:
    return struct.pack("<QQQQIIBB2xI", time, address, requested, stream, 7, pool, int(op), 0, stack)


def recording(*events: bytes, header: dict[str, Any] | None = None, between: bytes = b"") -> bytes:
    head = frame(1, json.dumps({"bin_limit": 1 << 18, "provenance": {}} if header is None else header).encode())
    return log.MAGIC + head + between + frame(2, b"".join(events))


def rows(data: bytes) -> list[tuple[str, int, int]]:
    trace = log.trace_of(data)
    check(trace)
    return [(Op(row["op"]).name, int(row["id"]), int(row["requested"])) for row in trace.events]


def test_blocks_get_ids_in_the_order_of_their_births() -> None:
    data = recording(
        event(Op.ALLOC, 0x1000, 100),
        event(Op.ALLOC, 0x2000, 200),
        event(Op.FREE, 0x1000),
        event(Op.ALLOC, 0x1000, 300),
        event(Op.FREE, 0x1000),
        event(Op.FREE, 0x2000),
    )
    assert rows(data) == [
        ("ALLOC", 1, 100),
        ("ALLOC", 2, 200),
        ("FREE", 1, 100),
        ("ALLOC", 3, 300),
        ("FREE", 3, 300),
        ("FREE", 2, 200),
    ]


def test_rounded_sizes_are_those_of_the_engine() -> None:
    sizes = [1, 512, 513, 5000, 1 << 18, (1 << 18) + 1, 3 << 20]
    data = recording(*(event(Op.ALLOC, 0x1000 * (1 + i), size) for i, size in enumerate(sizes)))
    engine = _core.Engine()
    expected = []
    for size in sizes:
        before = engine.stats()["live"]["current"]
        engine.allocate(size)
        expected.append(engine.stats()["live"]["current"] - before)
    assert log.trace_of(data).events["rounded"].tolist() == expected


def test_what_was_there_before_stands_first() -> None:
    data = recording(
        event(Op.ALLOC, 0x9000, 50, time=10),  # by another thread, while the recording began
        event(INITIAL, 0x1000, 100, time=11),
        event(INITIAL, 0x2000, 200, time=12),
        event(Op.FREE, 0x2000, time=13),
    )
    trace = log.trace_of(data)
    check(trace)
    assert trace.initial_events == 2
    assert trace.events["requested"].tolist() == [100, 200, 50, 200]


def test_a_block_that_came_while_the_recording_began_counts_once() -> None:
    data = recording(event(INITIAL, 0x1000, 100), event(Op.ALLOC, 0x1000, 100), event(Op.FREE, 0x1000))
    assert rows(data) == [("ALLOC", 1, 100), ("FREE", 1, 100)]
    assert log.trace_of(data).initial_events == 0


def test_mistakes_of_the_program_are_left_out_and_counted() -> None:
    data = recording(
        event(Op.FREE, 0x5000),  # never allocated
        event(Op.ALLOC, 0x1000, 100),
        event(Op.FREE, 0x1000),
        event(Op.FREE, 0x1000),  # twice
        event(Op.RECORD_STREAM, 0x1000, stream=3),  # after its end
        event(Op.FREE_COMPLETED, 0x1000),
        event(Op.FREE_COMPLETED, 0x1000),
    )
    assert rows(data) == [("ALLOC", 1, 100), ("FREE", 1, 100), ("FREE_COMPLETED", 1, 100)]
    assert log.trace_of(data).provenance["events_left_out"] == 4


def test_pools_and_marks_are_numbered() -> None:
    tables = frame(4, struct.pack("<QQ", 3, 9)) + frame(3, b"step 1")
    data = recording(event(Op.ALLOC, 0x1000, 100, pool=1), event(Op.MARK, 0), between=tables)
    trace = log.trace_of(data)
    check(trace)
    assert trace.pools == ((0, 0), (3, 9))
    assert trace.events["pool"].tolist() == [1, 0]
    assert trace.marks == ("step 1",)


def test_stacks_are_numbered_once() -> None:
    inner, outer = ["net.py", "Net.forward", 7], ["train.py", "<module>", 3]
    texts = [json.dumps(frames).encode() for frames in ([inner, outer], [outer], [inner, outer])]
    data = recording(
        *(event(Op.ALLOC, 0x1000 * number, 100, stack=number) for number in (1, 2, 3)),
        event(Op.FREE, 0x1000),
        between=b"".join(frame(6, text) for text in texts),
    )
    trace = log.trace_of(data)
    check(trace)
    assert trace.events["stack"].tolist() == [1, 2, 1, 0]
    assert [str(line) for line in trace.stacks[1]] == ["Net.forward (net.py:7)", "<module> (train.py:3)"]
    assert [str(line) for line in trace.stacks[2]] == ["<module> (train.py:3)"]


def test_a_file_that_was_cut_off_is_read_up_to_its_last_whole_part() -> None:
    whole = recording(event(Op.ALLOC, 0x1000, 100))
    cut = whole + frame(2, event(Op.FREE, 0x1000))[:-1]
    assert rows(cut) == [("ALLOC", 1, 100)]
    assert log.trace_of(cut).provenance["bytes_cut_off"] == len(cut) - len(whole)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no recording"),
        (log.MAGIC, "before its header"),
        (log.MAGIC + frame(1, b"{"), "no JSON"),
        (log.MAGIC + frame(1, b"[]"), "no table"),
        (recording(), "no events"),
        (recording(event(Op.ALLOC, 1, 1, stack=1)), "names a stack"),
        (recording(event(Op.ALLOC, 1, 1), between=frame(6, b"{}")), "is no list"),
        (recording(event(Op.ALLOC, 1, 1), between=frame(6, b'[["a", "b", -1]]')), r"not \[file, function, line\]"),
        (recording(event(Op.ALLOC, 1, 1), between=frame(6, b"\xff")), "a stack is no JSON"),
        (recording(event(Op.ALLOC, 1, 1), header={"bin_limit": []}), "another kind"),
        (recording(event(77, 0x1000)), "unknown kind 77"),
        (recording(event(Op.ALLOC, 1, 1)) + frame(9, b"what"), "unknown kind 9"),
        (recording(event(Op.ALLOC, 1, 1)) + frame(2, b"short"), "unknown kind 2"),
    ],
)
def test_what_is_no_recording_is_one_clear_error(data: bytes, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        log.trace_of(data)


some_frames = st.lists(
    st.sampled_from([frame(6, b'[["a", "b", 1]]'), frame(6, b"[]"), frame(6, b"["), frame(3, b"mark")]), max_size=3
).map(b"".join)

some_events = st.lists(
    st.builds(
        event,
        st.sampled_from([INITIAL, *Op]),
        st.integers(1, 6).map(lambda place: place * 0x1000),
        st.integers(1, 1 << 30),
        stream=st.integers(0, 2),
        stack=st.integers(0, 3),
    ),
    min_size=1,
    max_size=30,
)


@given(some_events, some_frames, st.integers(0, 4000), st.binary(max_size=3))
@settings(max_examples=examples(300), deadline=None)
def test_any_recording_becomes_a_sound_trace_or_a_clear_error(
    tmp_path_factory: Any, events: list[bytes], between: bytes, keep: int, noise: bytes
) -> None:
    path = tmp_path_factory.mktemp("recording") / "run.npz"
    path.write_bytes(recording(*events, between=between)[: len(log.MAGIC) + keep] + noise)
    try:
        trace = read(path)
    except TraceError as error:
        complaint = str(error)
    else:
        complaint = ""
        check(trace)
    assert "\n" not in complaint


# --- steps ------------------------------------------------------------------------------------------------------------


def repeated(step: list[int], times: int, before: list[int], jitter: int = 0) -> Any:
    """Blocks of these sizes, those of a step freed at its end; `jitter` requests more in some."""
    events: list[tuple[Op, int, int]] = []
    for size in before:
        events.append((Op.ALLOC, len(events) + 1, size))
    ident = 10_000
    for number in range(times):
        sizes = step + [64] * (jitter * (0b0110010110 >> number & 1))
        events += [(Op.ALLOC, ident + i, size) for i, size in enumerate(sizes)]
        events += [(Op.FREE, ident + i, size) for i, size in enumerate(sizes)]
        ident += len(sizes)
    return trace_by_hand(events)


LAYERS = [4096, 8192, 4096, 512] * 6 + [1 << 20, 77 * 512, 3 << 20] + [4096, 8192] * 6


@pytest.mark.parametrize("jitter", [0, 1])
def test_steps_are_found_where_the_least_is_held(jitter: int) -> None:
    trace = repeated(LAYERS, 10, [1 << 16] * 5, jitter)
    starts = steps.find(trace)
    assert len(starts) in (9, 10)
    assert set(np.diff(starts).tolist()) <= {2 * len(LAYERS), 2 * (len(LAYERS) + 1)}
    assert all(trace.events["op"][start - 1] != Op.ALLOC or start == 5 for start in starts)


def test_what_does_not_repeat_has_no_steps() -> None:
    chance = np.random.default_rng(3)
    trace = repeated([], 1, chance.permutation(400).tolist())
    assert len(steps.find(trace)) == 0
    assert steps.with_marks(trace) is trace


def test_marks_of_the_program_stay_alone() -> None:
    trace = repeated(LAYERS, 5, [])
    marked = steps.with_marks(trace)
    assert len(marked.marks) >= 3
    check(marked)
    assert steps.with_marks(marked) is marked
