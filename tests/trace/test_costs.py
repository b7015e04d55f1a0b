"""Modelled driver time: arithmetic on counted calls, and tables that are refused unless they are one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolalloc import costs
from poolalloc.costs import CostError, CostTable, Modelled

TABLE = CostTable("a", "A", "published", "", {"create": (10, 200), "map": (1, 3), "allow_access": (20, 70)})
GOOD = {"schema": 1, "device": "A", "source": "measured", "about": "", "microseconds": {"map": [1, 2.5]}}


def test_calls_are_priced_by_their_kind() -> None:
    modelled = TABLE.price({"create": 2, "map": 3, "query_event": 99})
    assert modelled.low == pytest.approx(23e-6)
    assert modelled.high == pytest.approx(409e-6)
    assert modelled.unpriced == {}
    assert str(modelled) == "23 us to 409 us"


def test_access_costs_by_mapping_whatever_the_range_of_a_call() -> None:
    assert TABLE.price({"map": 10, "allow_access": 1}).low == pytest.approx((10 + 200) * 1e-6)


def test_calls_of_cuda_are_the_same_calls() -> None:
    ours = TABLE.price({"create": 1, "map": 2, "allow_access": 2})
    theirs = TABLE.price({"cuMemCreate": 1, "cuMemMap": 2, "cuMemSetAccess": 2, "cudaEventRecord": 5})
    assert ours == theirs


def test_what_has_no_cost_is_said() -> None:
    assert TABLE.price({"cudaMalloc": 3, "cuMemAlloc": 1, "unmap": 0}) == Modelled(0.0, 0.0, {"allocate_segment": 4})


@given(st.dictionaries(st.sampled_from(["create", "map", "allow_access"]), st.integers(0, 10**9)))
def test_more_calls_never_cost_less(calls: dict[str, int]) -> None:
    fewer = {kind: count // 2 for kind, count in calls.items()}
    modelled, half = TABLE.price(calls), TABLE.price(fewer)
    assert 0 <= half.low <= modelled.low <= modelled.high


def test_the_shipped_table_says_that_it_was_not_measured() -> None:
    table = costs.find()
    assert table.source == "published"
    assert "not measured" in table.label
    assert set(table.microseconds) <= set(costs.PRICED)


def test_a_measured_device_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD))
    shipped = costs.known()
    monkeypatch.setattr(costs, "known", lambda: {**shipped, "a": path})
    assert costs.find(device="A").source == "measured"
    assert costs.find(device="another").source == "published"
    assert costs.find("a").microseconds == {"map": (1, 2.5)}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": 2}, "no table of driver costs"),
        ({"extra": 1}, "no table of driver costs"),
        ({"device": 5}, "device and about are texts"),
        ({"source": "guessed"}, "source is one of"),
        ({"microseconds": {}}, "a table of calls"),
        ({"microseconds": {"launch": [1, 2]}}, "'launch' is no call with a cost"),
        ({"microseconds": {"map": [2, 1]}}, "[lowest, highest]"),
        ({"microseconds": {"map": [-1, 1]}}, "[lowest, highest]"),
        ({"microseconds": {"map": [True, 1]}}, "[lowest, highest]"),
        ({"microseconds": {"map": 3}}, "[lowest, highest]"),
        ({"microseconds": {"map": [float("nan"), 1]}}, "[lowest, highest]"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(CostError, match=problem.replace("[", r"\[")):
        costs.find(str(path))


def test_a_missing_file_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CostError, match="No such file"):
        costs.find(str(tmp_path / "b.json"))
    with pytest.raises(CostError, match="there are published-a100"):
        costs.find("b")
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(CostError, match="not JSON"):
        costs.find(str(tmp_path / "c.json"))
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(CostError, match="not JSON"):
        costs.find(str(tmp_path / "c.json"))
