"""Trace files: what is written is read back, and what a reader does not know or cannot trust is refused in one line."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_kit import MiB, pickled, snapshot_of, toys, trace_of

from poolalloc._internal.trace.files import _ARRAYS
from poolalloc._internal.trace.format import EVENT, check
from poolalloc.analysis.trace import DeviceInfo, Frame, Op, StackTable, Trace, TraceError, read, write
from poolalloc.analysis.trace.torch_snapshot import import_snapshot


def small() -> Trace:
    stacks = StackTable()
    stack = stacks.add([Frame("train.py", "step", 7), Frame("<unknown>", "main", 0)])
    return trace_of(
        [
            (Op.ALLOC, 1, 100, {"rounded": 512, "stack": stack}),
            (Op.MARK, 0, 0),
            (Op.ALLOC, 2, 3 * MiB, {"stream": 1, "pool": 1, "thread": 1, "device": 3}),
            (Op.RECORD_STREAM, 2, 3 * MiB, {"stream": 0, "device": 3}),
            (Op.FREE, 2, 3 * MiB, {"device": 3}),
            (Op.FREE, 1, 100),
            (Op.FREE_COMPLETED, 2, 3 * MiB, {"device": 3}),
            (Op.OUT_OF_MEMORY, 500, 1 << 60),
        ],
        streams=(0, 0xFFFF_FFFF_FFFF_FFF0),
        threads=(0, 140_000),
        pools=((0, 0), (0, 7)),
        stacks=stacks.table(),
        marks=("step 1 – größer",),
        devices=(DeviceInfo(3, "NVIDIA H100", 80 << 30, 5 * MiB),),
        initial_events=1,
        clock="unix",
        provenance={"kind": "test", "nested": {"a": [1, None, "b"]}},
    )


def assert_same(one: Trace, other: Trace) -> None:
    assert one.events.dtype == other.events.dtype
    assert one.events.tobytes() == other.events.tobytes()
    assert [one.stacks[i] for i in range(len(one.stacks))] == [other.stacks[i] for i in range(len(other.stacks))]
    empty = np.zeros(0, EVENT)
    assert replace(one, events=empty, stacks=StackTable().table()).__dict__.keys() == other.__dict__.keys()
    for name in ("streams", "threads", "pools", "marks", "devices", "initial_events", "clock", "provenance"):
        assert getattr(one, name) == getattr(other, name), name


# --- round trips -----------------------------------------------------------------------------------------------------


def test_a_trace_comes_back_as_it_was(tmp_path: Path) -> None:
    write(small(), tmp_path / "a.npz")
    assert_same(read(tmp_path / "a.npz"), small())


def test_the_same_trace_makes_the_same_file(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write(small(), tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_numpy_alone_reads_it(tmp_path: Path) -> None:
    write(small(), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["events"]["requested"].tolist() == small().events["requested"].tolist()
        assert json.loads(archive["header"].tobytes())["version"] == 1


@given(toys(), st.lists(st.lists(st.tuples(st.text(), st.text(), st.integers(0, 2**32 - 1)))))
def test_any_import_comes_back(tmp_path: Path, toy: Any, stacks: list[list[tuple[str, str, int]]]) -> None:
    if not toy.log:
        return
    snapshot = snapshot_of(toy)
    for entry, frames in zip(snapshot["device_traces"][0], stacks, strict=False):
        entry["frames"] = [{"filename": file, "name": name, "line": line} for file, name, line in frames]
    trace, _ = import_snapshot(pickled(snapshot), "x")
    write(trace, tmp_path / "a.npz")
    assert_same(read(tmp_path / "a.npz"), trace)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("precious")
    bad = trace_of([(Op.FREE, 1, 100)])
    with pytest.raises(TraceError):
        write(bad, tmp_path / "a.npz")
    unwritable = replace(small(), provenance={"a": object()})
    with pytest.raises(TypeError):
        write(unwritable, tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert (tmp_path / "a.npz").read_text() == "precious"


def test_stack_0_is_no_stack() -> None:
    assert small().stacks[0] == ()
    with pytest.raises(IndexError):
        small().stacks[2]


# --- the rules -------------------------------------------------------------------------------------------------------

ALLOC = (Op.ALLOC, 1, 100)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "has no events"),
        ([(0, 1, 100)], "event 0 is of the unknown kind 0"),
        ([ALLOC, (13, 1, 100)], "event 1 is of the unknown kind 13"),
        ([(Op.ALLOC, 0, 100)], "event 0 allocates the id 0"),
        ([ALLOC, ALLOC], "event 1 allocates id 1 a second time"),
        ([ALLOC, (Op.FREE, 1, 100), ALLOC], "event 2 allocates id 1 a second time"),
        ([(Op.FREE, 1, 100)], "event 0 frees id 1, which was not allocated before"),
        ([(Op.FREE, 1, 100), ALLOC], "event 0 frees id 1, which was not allocated before"),
        ([ALLOC, (Op.FREE, 1, 100), (Op.FREE, 1, 100)], "event 2 frees id 1 a second time"),
        ([ALLOC, (Op.FREE, 1, 99)], "event 1 frees id 1 with another requested"),
        ([ALLOC, (Op.FREE, 1, 100, {"device": 1})], "event 1 frees id 1 with another device"),
        ([ALLOC, (Op.FREE_COMPLETED, 1, 100)], "event 1 completes the free of id 1, which was not freed before"),
        ([ALLOC, (Op.FREE_COMPLETED, 1, 100), (Op.FREE, 1, 100)], "event 1 completes the free of id 1"),
        (
            [ALLOC, (Op.FREE, 1, 100), (Op.FREE_COMPLETED, 1, 100), (Op.FREE_COMPLETED, 1, 100)],
            "event 3 completes the free of id 1 a second time",
        ),
        ([ALLOC, (Op.FREE, 1, 100), (Op.RECORD_STREAM, 1, 100)], "event 2 uses id 1, which was freed before"),
        ([(Op.RECORD_STREAM, 1, 100)], "event 0 uses id 1, which was not allocated before"),
        ([(Op.ALLOC, 1, (1 << 64) - 5)], "event 0 has an absurd size: -5 bytes"),
        ([(Op.ALLOC, 1, 5, {"rounded": (1 << 48) + 1})], "event 0 has an absurd size"),
        ([(Op.SEGMENT_MAP, 0, 1 << 60)], "event 0 has an absurd size"),
        ([(Op.ALLOC, 1, 600, {"rounded": 512})], "event 0 has 512 bytes rounded for 600 requested"),
        (
            [ALLOC, (Op.ALLOC, 2, 1, {"time_ns": 3}), (Op.ALLOC, 3, 1, {"time_ns": 2})],
            "event 1 is followed by an earlier",
        ),
        ([(Op.ALLOC, 1, 1, {"device": -1})], "event 0 is on device -1"),
        ([(Op.ALLOC, 1, 1, {"device": 64})], "event 0 is on device 64"),
        ([(Op.ALLOC, 1, 1, {"stream": 1})], "event 0 has stream 1"),
        ([(Op.ALLOC, 1, 1, {"thread": 1})], "event 0 has thread 1"),
        ([(Op.ALLOC, 1, 1, {"pool": 1})], "event 0 has pool 1"),
        ([(Op.ALLOC, 1, 1, {"stack": 1})], "event 0 has stack 1"),
        ([ALLOC, (Op.MARK, 0, 0)], "event 1 has no text for its mark 0"),
    ],
)
def test_events_that_break_the_rules_are_refused(tmp_path: Path, rows: Any, text: str) -> None:
    trace = trace_of(rows)
    with pytest.raises(TraceError) as caught:
        check(trace)
    assert text in str(caught.value)
    with pytest.raises(TraceError):
        write(trace, tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_what_is_allowed() -> None:
    check(trace_of([(Op.ALLOC, 7, 0), (Op.OUT_OF_MEMORY, 0, 1 << 63), (Op.ALLOC, 3, 1 << 48), (Op.FREE, 7, 0)]))
    with pytest.raises(TraceError, match="initial state"):
        check(replace(small(), initial_events=2))
    with pytest.raises(TraceError, match="initial state"):
        check(replace(small(), initial_events=99))


# --- files that are not what they seem -------------------------------------------------------------------------------


def members(trace: Trace, tmp_path: Path) -> dict[str, bytes]:
    write(trace, tmp_path / "whole.npz")
    with zipfile.ZipFile(tmp_path / "whole.npz") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def npy(array: np.ndarray[Any, Any], version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version, allow_pickle=True)
    return stream.getvalue()


def with_header(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    header = json.loads(np.lib.format.read_array(io.BytesIO(files["header.npy"])).tobytes())
    for key, value in changes.items():
        if value is ...:
            del header[key]
        else:
            header[key] = value
    return files | {"header.npy": npy(np.frombuffer(json.dumps(header).encode(), np.uint8))}


def resized(data: bytes) -> bytes:
    """The array's header asks for a million times the events there are."""
    return data.replace(b"'shape': (8,)", b"'shape': (8000000,)").replace(b" " * 6 + b"\n", b"\n")


CHANGES: list[tuple[Any, str]] = [
    (lambda f: with_header(f, version=2), "is of version 2; this poolalloc reads version 1"),
    (lambda f: with_header(f, version=2) | {"more.npy": b""}, "is of version 2"),
    (lambda f: with_header(f, version="1"), "is of version '1'"),
    (lambda f: with_header(f, format="x"), "its header does not say so"),
    (lambda f: with_header(f, more=1), "its header is not that of version 1: 'more'"),
    (lambda f: with_header(f, marks=...), "its header is not that of version 1: 'marks'"),
    (lambda f: with_header(f, clock="sun"), "its clock is 'sun'"),
    (lambda f: with_header(f, marks=[1]), "marks in its header"),
    (lambda f: with_header(f, marks=[]), "event 1 has no text for its mark 0"),
    (lambda f: with_header(f, provenance=[]), "provenance"),
    (lambda f: with_header(f, devices=[{}]), "the devices in its header"),
    (lambda f: with_header(f, initial_events=-1), "has -1 initial events"),
    (lambda f: f | {"header.npy": npy(np.frombuffer(b"[", np.uint8))}, "its header is no JSON"),
    (lambda f: {k: v for k, v in f.items() if k != "header.npy"}, "it has no header"),
    (lambda f: {k: v for k, v in f.items() if k != "frames.npy"}, "its arrays are not those of version 1: frames.npy"),
    (lambda f: f | {"more.npy": b"x"}, "its arrays are not those of version 1: more.npy"),
    (lambda f: f | {"events.npy": npy(np.zeros(3, np.uint8))}, "array events is of the kind uint8"),
    (lambda f: f | {"events.npy": npy(np.zeros(3, EVENT.newbyteorder(">")))}, "array events is of the kind"),
    (lambda f: f | {"events.npy": npy(np.zeros((2, 2), EVENT))}, "array events is of the kind"),
    (lambda f: f | {"events.npy": npy(np.array([{}], object))}, "array events is of the kind object"),
    (lambda f: f | {"events.npy": npy(np.zeros(3, EVENT), (2, 0))}, "numpy's format 2.0"),
    (lambda f: f | {"events.npy": f["events.npy"][:-1]}, "entries need"),
    (lambda f: f | {"events.npy": resized(f["events.npy"])}, "entries need"),
    (lambda f: f | {"events.npy": b"\x93NUMPY\x01\x00\x10\x00__import__('os')"}, "no header of numpy's"),
    (lambda f: f | {"events.npy": b""}, "no header of numpy's"),
    (lambda f: f | {"pools.npy": npy(np.ones((1, 2), "<u8"))}, "pool 0 is the ordinary one"),
    (lambda f: f | {"streams.npy": npy(np.zeros(0, "<u8"))}, "must not be empty"),
    (lambda f: f | {"stack_ends.npy": npy(np.array([0, 9], "<u8"))}, "the ends of its stacks"),
    (lambda f: f | {"stack_ends.npy": npy(np.array([0, 9, 2], "<u8"))}, "the ends of its stacks"),
    (lambda f: f | {"stack_frames.npy": npy(np.array([0, 9], "<u4"))}, "a frame that is not in the table"),
    (lambda f: f | {"texts.npy": npy(np.full(len(f["texts.npy"]) - 128, 255, np.uint8))}, "is not UTF-8"),
]


@pytest.mark.parametrize(("change", "text"), CHANGES)
def test_files_it_does_not_know_are_refused(tmp_path: Path, change: Any, text: str) -> None:
    files = change(members(small(), tmp_path))
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(TraceError) as caught:
        read(path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("bad.npz: ")


def test_a_file_with_a_member_twice_is_refused(tmp_path: Path) -> None:
    files = members(small(), tmp_path)
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("events.npy", files["events.npy"])
    with pytest.raises(TraceError, match="there twice"):
        read(path)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    write(small(), tmp_path / "a.npz")
    data = (tmp_path / "a.npz").read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "cut.npz").write_bytes(data[:length])
        with pytest.raises(TraceError):
            read(tmp_path / "cut.npz")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, text in ((tmp_path / "none.npz", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(TraceError, match=text):
            read(path)


@settings(max_examples=examples(300))
@given(st.data())
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    write(small(), tmp_path / "a.npz")
    damaged = bytearray((tmp_path / "a.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert_read_or_refused(tmp_path, bytes(damaged))


@settings(max_examples=examples(200))
@given(st.data())
def test_damaged_arrays_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """The same inside the archive, where its checksums do not see it."""
    files = members(small(), tmp_path)
    name = f"{data.draw(st.sampled_from(sorted(_ARRAYS)))}.npy"
    damaged = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for member, content in (files | {name: bytes(damaged)}).items():
            archive.writestr(member, content)
    assert_read_or_refused(tmp_path, stream.getvalue())


def assert_read_or_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "damaged.npz").write_bytes(data)
    problem = ""
    try:
        check(read(tmp_path / "damaged.npz"))
    except TraceError as error:
        problem = str(error)
    assert "\n" not in problem
