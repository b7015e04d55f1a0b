"""Logs of RMM: lines become events; what they do not say is noted; what is no log is refused in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_kit import summary

from poolalloc._internal.trace.format import check
from poolalloc.analysis.replay import replay
from poolalloc.analysis.trace import Op, Trace, TraceError
from poolalloc.analysis.trace.import_report import ImportReport
from poolalloc.analysis.trace.rmm_csv import import_log

HEADER = "Thread,Time,Action,Pointer,Size,Stream\n"


def imported(text: str) -> tuple[Trace, ImportReport]:
    trace, report = import_log(text.encode(), "log.csv")
    check(trace)
    left, right = report.balance()
    assert left == right
    return trace, report


def log(*lines: str) -> str:
    return HEADER + "".join(f"{line}\n" for line in lines)


def test_lines_become_events() -> None:
    trace, report = imported(
        log(
            "1401,11:27:33.000001,allocate,0x7f0000000000,1024,0x0",
            "1402,11:27:33.000003,allocate,0x7f0000000400,2048,0x55d0",
            "1401,11:27:33.000004,allocate failure,(nil),99999999999,0x0",
            "1402,11:27:33.000009,free,0x7f0000000000,1024,0x55d0",
            "1401,11:27:34.5,deallocate,0x7f0000000400,2048,0x55d0",
        )
    )
    assert summary(trace) == [
        ("ALLOC", 1024, 0, 0, (0, 0)),
        ("ALLOC", 2048, 0, 0x55D0, (0, 0)),
        ("OUT_OF_MEMORY", 99999999999, 0, 0, (0, 0)),
        ("FREE", 1024, 0, 0x55D0, (0, 0)),
        ("FREE", 2048, 0, 0x55D0, (0, 0)),
    ]
    assert [trace.threads[number] for number in trace.events["thread"]] == [1401, 1402, 1401, 1402, 1401]
    times = trace.events["time_ns"].astype(int)
    assert (times - times[0]).tolist() == [0, 2000, 3000, 8000, 1_499_999_000]
    assert trace.clock == "monotonic"
    assert report.found == {"allocate": 2, "free": 1, "deallocate": 1, "allocate failure": 1}
    assert replay(trace).devices[0].peak_requested == 3072


@pytest.mark.parametrize(
    ("times", "gap"),
    [
        (("23:59:59.999999", "00:00:00.000001"), 2000),
        (("11:27:33:123456", "11:27:33:123457"), 1000),
        (("1634567890.123456", "1634567890.234567"), 111_111_000),
        (("10:00:00.5", "09:59:59.9"), 0),
    ],
)
def test_times_of_every_form(times: tuple[str, str], gap: int) -> None:
    lines = [f"1,{time},allocate,0x{number}000,10,0x0" for number, time in enumerate(times, 1)]
    trace, _ = imported(log(*lines))
    first, second = trace.events["time_ns"].astype(int)
    assert second - first == gap


def test_a_log_that_begins_in_mid_run() -> None:
    trace, report = imported(
        log(
            "1,10:00:00.1,free,0x5000,700,0x0",
            "1,10:00:00.2,allocate,0x9000,100,0x0",
            "1,10:00:00.3,free,0x2000,50,0x7",
        )
    )
    assert trace.initial_events == 2
    assert sorted(trace.events["requested"][:2].tolist()) == [50, 700]
    assert [name for name, *_ in summary(trace)] == ["FREE", "ALLOC", "FREE"]
    assert dict(report.inferred) == {"allocations before the recording began": 2}


def test_lines_that_are_no_events_are_counted() -> None:
    trace, report = imported(
        log(
            "1,10:00:00.1,allocate,0x5000,700,0x0",
            "1,10:00:00.1,resize,0x5000,700,0x0",
            "1,10:00:00.1,allocate,(nil),0,0x0",
        )
    )
    assert len(trace) == 1
    assert report.left_out == {'lines of the unknown action "resize"': 1, "requests of no bytes": 1}


def test_a_log_that_was_cut_off_ends_before_its_last_line() -> None:
    whole = log(
        "1401,11:27:33.000001,allocate,0x7f0000000000,1024,0x0",
        "1401,11:27:33.000002,allocate,0x7f0000000400,2048,0x0",
        "1401,11:27:33.000003,free,0x7f0000000000,1024,0x0",
    )
    expected = summary(imported(whole)[0])
    last = whole.splitlines(keepends=True)[-1]
    for cut in range(1, len(last)):
        trace, report = imported(whole[:-cut])
        assert summary(trace) == expected[:2]
        assert any("cut off" in what for what in report.left_out)
    assert not imported(whole)[1].left_out
    with pytest.raises(TraceError, match="first line"):
        imported("Thread,Time,Acti")


def test_columns_in_another_order_with_more_of_them() -> None:
    text = "Action,Size,Pointer,Stream,Time,Thread,More\nallocate,5,0x10,0x0,10:00:00.1,7,x\n"
    trace, _ = imported("\ufeff" + text.replace("\n", "\r\n"))
    assert trace.events["requested"].tolist() == [5]


GOOD = "1,10:00:00.1,allocate,0x5000,700,0x0"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "first line is not Thread,Time"),
        ("a,b,c\n", "first line is not Thread,Time"),
        (HEADER, "no line that is an event"),
        (log(GOOD, "1,2,3"), "line 3 has 3 values for 6 columns"),
        (log(GOOD.replace("700", "-700")), "line 2 has an absurd Size: -700"),
        (log(GOOD.replace("700", "9" * 19)), "line 2 has an absurd Size"),
        (log(GOOD.replace("700", "many")), "line 2 has the Size 'many'"),
        (log(GOOD.replace("0x5000", "here")), "line 2 has the Pointer 'here'"),
        (log(GOOD.replace("0x5000", "0x0")), "line 2 has 700 bytes at no address"),
        (log(GOOD.replace("10:00:00.1", "noon")), "line 2 has the Time 'noon'"),
        (log("x" + GOOD), "line 2 has the Thread 'x1'"),
        (log(GOOD + 'a"b'), "line 2 has the Stream"),
        (log('"' + GOOD), "line 2 is no line of a CSV file"),
    ],
)
def test_what_is_no_log_is_refused(text: str, problem: str) -> None:
    with pytest.raises(TraceError) as caught:
        import_log(text.encode(), "log.csv")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


FIELD = st.one_of(
    st.sampled_from(
        ["1", "0x10", "0x20", "allocate", "free", "allocate failure", "10:00:00.1", "23:59:59:9", "(nil)", "512"]
    ),
    st.text(max_size=6),
    st.integers().map(str),
)


@given(st.lists(st.lists(FIELD, min_size=5, max_size=7), max_size=6))
def test_any_lines_are_imported_or_refused(rows: list[list[str]]) -> None:
    problem = ""
    try:
        imported(HEADER + "\n".join(",".join(row) for row in rows))
    except TraceError as error:
        problem = str(error)
    assert "\n" not in problem


LINES = st.lists(
    st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 10**6), st.sampled_from([0, 0x77])), max_size=40
)


@given(LINES)
def test_a_generated_program_comes_back(steps: list[tuple[bool, int, int, int]]) -> None:
    live: dict[int, int] = {}
    lines, expected = [], []
    for number, (allocate, slot, size, stream) in enumerate(steps):
        address = (slot + 1) << 24
        if allocate != (slot in live):
            action = "allocate" if allocate else "free"
            if not allocate and slot not in live:
                continue
            bytes_ = size if allocate else live.pop(slot)
            if allocate:
                live[slot] = size
            lines.append(f"1,00:00:{number // 10:02}.{number % 10},{action},{address:#x},{bytes_},{stream:#x}")
            expected.append((Op.ALLOC.name if allocate else Op.FREE.name, bytes_, 0, stream, (0, 0)))
    if not lines:
        return
    trace, report = imported(log(*lines))
    assert summary(trace) == expected
    assert not report.inferred
