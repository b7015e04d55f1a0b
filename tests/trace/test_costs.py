"""Modelled driver time: arithmetic on counted work, and price lists that are refused unless they are one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_kit import trace_of

from poolalloc._internal import price_lists
from poolalloc._internal.driver_work import DriverWork, Part
from poolalloc._internal.trace import steps
from poolalloc.analysis import costs
from poolalloc.analysis.costs import CostError, Modelled, PriceList
from poolalloc.analysis.trace import Op

PRICES = PriceList(
    "a", "A", "measured", "", {"create": (10, 200), "map": (1, 3), "allow_access": (20, 70)}, {"create": 0.5}
)
GOOD = {
    "schema": 2,
    "device": "A",
    "source": "measured",
    "about": "",
    "microseconds": {"map": [1, 2.5]},
    "further_page": {"map": 0.1},
}


def test_work_is_priced_by_its_kind() -> None:
    modelled = PRICES.price({"create": 2, "map": 3, "query_event": 99})
    assert modelled.low == pytest.approx(23e-6)
    assert modelled.high == pytest.approx(409e-6)
    assert modelled.unpriced == {}
    assert str(modelled) == "0.023 to 0.41 ms"


def test_a_handle_costs_more_by_its_further_pages() -> None:
    one = PRICES.price({"create": 4, "create_pages": 4})
    assert one == PRICES.price({"create": 4})
    large = PRICES.price({"create": 1, "create_pages": 5})
    assert (large.low, large.high) == pytest.approx((30e-6, 600e-6))
    assert PRICES.price({"map": 2, "map_pages": 64}) == PRICES.price({"map": 2})


def test_the_default_list_is_that_of_the_manual() -> None:
    prices = costs.find()
    assert (prices.name, prices.source) == ("default", "assumed")
    work = {"create": 1, "map": 1, "allow_access": 1, "unmap": 1}
    for pages in (1, 10, 32):
        priced = prices.price(work | {f"{kind}_pages": pages for kind in work})
        assert priced.low == priced.high == pytest.approx((30 + 1.5 + 40 + 28) * (1 + 0.03 * (pages - 1)) / 1e6)
    assert prices.price({"allocate_segment": 1, "allocate_segment_pages": 99, "free_segment": 1}).low == 2e-4


def test_what_has_no_price_is_said() -> None:
    assert PRICES.price({"allocate_segment": 3, "unmap": 0}) == Modelled(0.0, 0.0, {"allocate_segment": 3})


@given(st.dictionaries(st.sampled_from(["create", "map", "allow_access", "create_pages"]), st.integers(0, 10**9)))
def test_more_work_never_costs_less(work: dict[str, int]) -> None:
    less = {kind: count // 2 for kind, count in work.items()}
    modelled, half = PRICES.price(work), PRICES.price(less)
    assert 0 <= half.low <= modelled.low <= modelled.high


@pytest.mark.parametrize("name", sorted(costs.known()))
def test_every_shipped_list_prices_all_that_the_default_one_does(name: str) -> None:
    prices = costs.find(name)
    assert prices.source in ("assumed", "published")
    assert set(costs.find().microseconds) <= set(prices.microseconds) <= set(costs.PRICED)
    assert all(kind in prices.label for kind in prices.filled_in)
    assert prices.source == "assumed" or "not measured" in prices.label
    text = prices.to_file()
    assert json.loads(text)["microseconds"].keys().isdisjoint(prices.filled_in)
    for entry in prices.to_sim().split(","):
        kind, _, numbers = entry.partition("=")
        assert [float(number) for number in numbers.split(":")] == pytest.approx(
            [sum(prices.microseconds[kind]) / 2, prices.further_page.get(kind, 0)]
        )


def test_a_list_survives_its_file_and_its_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(PRICES.to_file())
    assert costs.read(tmp_path / "a.json") == PRICES
    assert PriceList.from_json(json.loads(json.dumps(PRICES.to_json()))) == PRICES


def test_a_measured_device_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD))
    shipped = costs.known()
    monkeypatch.setattr(price_lists, "known", lambda: {**shipped, "a": path})
    assert costs.find(device="A").source == "measured"
    assert costs.find(device="another").name == "default"
    assert costs.find("a").microseconds == {"map": (1, 2.5)}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": 1}, "no list of driver costs"),
        ({"extra": 1}, "no list of driver costs"),
        ({"device": 5}, "device and about are texts"),
        ({"source": "guessed"}, "source is one of"),
        ({"microseconds": {}}, "a table of prices"),
        ({"microseconds": {"launch": [1, 2]}}, "'launch' is no work with a price"),
        ({"microseconds": {"map": [2, 1]}}, "[lowest, highest]"),
        ({"microseconds": {"map": [-1, 1]}}, "[lowest, highest]"),
        ({"microseconds": {"map": [True, 1]}}, "[lowest, highest]"),
        ({"microseconds": {"map": 3}}, "[lowest, highest]"),
        ({"microseconds": {"map": [float("nan"), 1]}}, "[lowest, highest]"),
        ({"further_page": {"map": -1}}, "a share of the price"),
        ({"further_page": {"map": [1, 2]}}, "a share of the price"),
        ({"further_page": {"launch": 1}}, "'launch' is no work with a price"),
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
    with pytest.raises(CostError, match="there are default, published-25gb-gpu, published-a100"):
        costs.find("b")
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(CostError, match="not JSON"):
        costs.find(str(tmp_path / "c.json"))
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(CostError, match="not JSON"):
        costs.find(str(tmp_path / "c.json"))


# --- measured times as prices -----------------------------------------------------------------------------------------


def test_what_a_further_page_adds_is_found_from_two_sizes() -> None:
    small, large = [20.0] * 10, [38.0] * 10  # of 1 and of 10 pages: 2 us for each further page
    price, share = costs._price_of(
        {"2 MiB": small, "2 MiB, 32 handles in a call": small, "20 MiB": large}, by_size=True
    )
    assert (price, share) == ((20.0, 20.0), 0.1)
    price, share = costs._price_of({"4 MiB": [50.0] * 10, "128 MiB": [360.0] * 10}, by_size=True)
    assert (price, share) == ((45.0, 45.0), pytest.approx(1 / 9, abs=1e-4))
    assert costs._price_of({"2 MiB": small, "20 MiB": [5.0] * 10}, by_size=True) == ((20.0, 20.0), 0.0)
    assert costs._price_of({"128 MiB": small, "640 GiB": large}, by_size=False) == ((20.0, 38.0), 0.0)


# --- by phases --------------------------------------------------------------------------------------------------------


def test_steps_are_divided_into_start_up_and_halves() -> None:
    after = [{"map": count} for count in (10, 14, 18, 20, 21, 22, 22)]
    work = DriverWork.of_steps({"map": 23, "unmap": 1}, after)
    assert work.start_up == {"map": 10}
    assert work.first_half == Part(2, {"map": 8})
    assert work.second_half == Part(4, {"map": 4})
    assert DriverWork.from_json(json.loads(json.dumps(work.to_json()))) == work
    time = work.price(PriceList("a", "A", "measured", "", {"map": (1000, 1000)}, {}))
    assert time.cells() == ("23", "23.0", "10.0", "4.00", "1.00")
    assert time.to_json()["unpriced"] == {"unmap": 1}


def test_programs_of_few_steps_have_few_parts() -> None:
    assert DriverWork.of_steps({"map": 3}, []) == DriverWork({"map": 3})
    assert DriverWork.of_steps({"map": 3}, [{"map": 2}]) == DriverWork({"map": 3}, {"map": 2})
    two = DriverWork.of_steps({"map": 3}, [{"map": 2}, {"map": 3}])
    assert (two.first_half, two.second_half) == (None, Part(1, {"map": 1}))
    assert DriverWork({"map": 3}).price(PRICES).cells() == ("3", "0.003 to 0.009", "-", "-", "-")


@pytest.mark.parametrize(("others", "known"), [(0, True), (400, False)])
def test_start_up_is_known_where_the_first_steps_are(others: int, known: bool) -> None:
    """Requests of sizes that never come again are not the first step, whatever repeats itself behind them."""
    sizes = [3000 + 512 * n for n in range(others)] + [(n + 1) << 20 for n in range(10)] * 20
    rows = [row for n, size in enumerate(sizes, 1) for row in ((Op.ALLOC, n, size), (Op.FREE, n, size))]
    phases = steps.phases(trace_of(rows))
    assert phases is not None
    assert phases.second_steps is not None
    assert (phases.start_up is not None) is (phases.first_steps is not None) is known
    count = {"map": np.arange(1, len(rows) + 1)}  # one in each event
    work = phases.work({"map": len(rows)}, np.arange(len(rows)), count)
    assert work.second_half == Part(phases.second_steps, {"map": 20 * phases.second_steps})
    if known:
        assert work.start_up == {"map": phases.start_up}
        assert work.first_half == Part(phases.first_steps, {"map": 20 * (phases.first_steps or 0)})
    else:
        assert work.start_up is None
        assert work.first_half is None
