"""Plan files: what is written is read back, and whatever else is in a file is refused in one line."""

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

from poolalloc._internal.plan_file import KEPT, REQUEST, UNPLANNED, check
from poolalloc.analysis.plan import Part, Plan, PlanError, read, write

MIB = 1 << 20


def part_of(rows: list[tuple[int, int, int]], first: int = 0, period: int | None = None, **changes: Any) -> Part:
    requests = np.array(rows, REQUEST)
    placed = [row for row in rows if row[1] != UNPLANNED]
    height = max((size + offset for size, offset, _ in placed), default=0)
    return replace(Part(0, 0, requests, first, len(rows) - first if period is None else period, height), **changes)


# Two that stay, then a cycle in which the last block lives on into the next.
GOOD = part_of(
    [
        (4 * MIB, 0, KEPT),
        (2 * MIB, 4 * MIB, KEPT),
        (MIB, 6 * MIB, 4),
        (3 * MIB, 7 * MIB, 5),
        (MIB, 10 * MIB, 6),
    ],
    first=2,
)


def plan_of(*parts: Part, above: int = 0) -> Plan:
    return Plan(parts, above, {"made": "by hand"})


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of(GOOD, replace(GOOD, stream=1), replace(GOOD, device=3), above=512)
    write(plan, tmp_path / "plan.npz")
    again = read(tmp_path / "plan.npz")
    assert (again.above, again.provenance, len(again.parts)) == (512, {"made": "by hand"}, 3)
    for before, after in zip(plan.parts, again.parts, strict=True):
        assert (before.requests == after.requests).all()
        assert replace(before, requests=after.requests) == after
    write(again, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "plan.npz").read_bytes()


def changed(row: int, name: str, value: int) -> Part:
    requests = GOOD.requests.copy()
    requests[name][row] = value
    return replace(GOOD, requests=requests)


BAD = {
    "no parts": (Plan((), 0), "no parts"),
    "twice the same": (plan_of(GOOD, GOOD), "as one before it"),
    "no size": (plan_of(changed(0, "size", 0)), "request 0 has an absurd size: 0 bytes"),
    "a negative size": (plan_of(changed(0, "size", (1 << 64) - 512)), "absurd size: -512 bytes"),
    "an odd size": (plan_of(changed(0, "size", 1000)), "no multiple of 512"),
    "a small size": (plan_of(GOOD, above=2 * MIB), "the plan begins above 2097152"),
    "an odd offset": (plan_of(changed(1, "offset", 100)), "no multiple of 512"),
    "too high": (plan_of(changed(1, "offset", 10 * MIB)), "ends beyond the height"),
    "far too high": (plan_of(changed(1, "offset", (1 << 64) - 512)), "ends beyond the height"),
    "freed before": (plan_of(changed(3, "until", 3)), "freed before request 3"),
    "outlives the cycle": (plan_of(changed(3, "until", 7)), "outlives the cycle"),
    "kept in the cycle": (plan_of(changed(3, "until", KEPT)), "outlives the cycle"),
    "over a kept one": (plan_of(changed(3, "offset", 2 * MIB)), "where the block of request 0 lives"),
    "over the last": (
        plan_of(changed(2, "offset", 10 * MIB)),
        "request 2 gets a place where the block of request 4 lives",
    ),
    "no cycle": (plan_of(replace(GOOD, first=5)), "not whole periods"),
    "half a period": (plan_of(replace(GOOD, period=2)), "not whole periods"),
    "different periods": (plan_of(replace(GOOD, period=1)), "another size than the one a period before"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_plan_that_breaks_a_rule_is_refused(case: str, tmp_path: Path) -> None:
    plan, problem = BAD[case]
    with pytest.raises(PlanError, match=problem):
        write(plan, tmp_path / "plan.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_lives_into_the_next_cycle_may_meet_what_is_gone_by_then() -> None:
    # The last block of a cycle is freed before the second request of the next, whose place it has.
    rows = [(MIB, 0, 1), (MIB, MIB, 2), (MIB, MIB, 4)]
    check(plan_of(part_of(rows)))
    with pytest.raises(PlanError, match="request 1 gets a place where the block of request 2 lives"):
        check(plan_of(part_of([*rows[:2], (MIB, MIB, 5)])))


def repacked(path: Path, **members: bytes | None) -> bytes:
    """The file with some members replaced, or left out."""
    with zipfile.ZipFile(path) as archive:
        contents: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    contents |= {f"{name}.npy": data for name, data in members.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in contents.items():
            if data is not None:
                archive.writestr(name, data)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, (1, 0))
    return out.getvalue()


def header(**changes: Any) -> bytes:
    row = {"device": 0, "stream": 0, "requests": 5, "first": 2, "period": 3, "height": 11 * MIB}
    whole = {"format": "poolalloc plan", "version": 1, "above": 0, "parts": [row], "provenance": {}} | changes
    return npy(np.frombuffer(json.dumps(whole).encode(), np.uint8))


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"header": header(version=2)}, "of version 2; this poolalloc reads version 1"),
        ({"header": header(format="poolalloc trace")}, "no plan file"),
        ({"header": header(color="red")}, "header is not that of version 1: 'color'"),
        ({"header": header(above=-1)}, "header is not what"),
        ({"header": header(parts=[{"device": 0}])}, "parts in its header"),
        ({"header": header(parts=[])}, "more requests than its header"),
        ({"header": npy(np.frombuffer(b"{", np.uint8))}, "no JSON"),
        ({"header": None}, "arrays are not those"),
        ({"events": npy(np.zeros(3, np.uint8))}, "arrays are not those"),
        ({"requests": npy(GOOD.requests[:3])}, "more requests than there are"),
        ({"requests": npy(np.zeros(5, np.uint64))}, "is of the kind uint64"),
        ({"requests": npy(GOOD.requests)[:-10]}, "entries need"),
        ({"requests": b"junk"}, "no header of numpy's"),
    ],
)
def test_a_file_that_is_something_else_is_refused(members: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.npz"
    write(plan_of(GOOD), path)
    path.write_bytes(repacked(path, **members))
    with pytest.raises(PlanError, match=problem) as refused:
        read(path)
    assert str(refused.value).startswith("plan.npz: ")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_missing_or_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="No such file"):
        read(tmp_path / "plan.npz")
    (tmp_path / "plan.npz").write_bytes(b"hello")
    with pytest.raises(PlanError, match="no plan file"):
        read(tmp_path / "plan.npz")


@given(data=st.data())
@settings(max_examples=examples(200), deadline=None)
def test_a_damaged_file_is_refused_or_still_a_plan(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "plan.npz"
    write(plan_of(GOOD), path)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        del raw[data.draw(st.integers(0, len(raw) - 1), label="at") :]
    else:
        for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4), label="places"):
            raw[place] = data.draw(st.integers(0, 255), label="byte")
    path.write_bytes(raw)
    problem = ""
    try:
        check(read(path))
    except PlanError as error:
        problem = str(error)
    assert "\n" not in problem
