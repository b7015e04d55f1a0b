"""What must agree between allocator and driver: each rule is broken once, by one byte where it is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolalloc.bench.check import REAL_EXCESS, REAL_SHORTFALL, DeviceFigures, compare_real, compare_simulated
from poolalloc.bench.harness import check_report

GOOD = DeviceFigures(
    device=0,
    requested_peak=700,
    live_peak=800,
    reserved_peak=1000,
    reserved_current=600,
    retries=0,
    out_of_memory=0,
    driver_current=600,
    driver_peak=1000,
    capacity=5000,
)


def test_figures_that_agree_give_no_complaint() -> None:
    assert compare_simulated(GOOD) == []


@pytest.mark.parametrize(
    ("change", "both"),
    [
        ({"driver_current": 601}, ("600", "601")),
        ({"driver_current": 599}, ("600", "599")),
        ({"driver_peak": 1001}, ("1000", "1001")),
        ({"driver_peak": 999}, ("1000", "999")),
        ({"driver_peak": 999, "retries": 1}, ("1000", "999")),
        ({"driver_peak": 5001, "out_of_memory": 1}, ("5000", "5001")),
        ({"requested_peak": 801}, ("801", "800")),
        ({"live_peak": 1001}, ("1001", "1000")),
    ],
)
def test_every_disagreement_is_told_with_both_figures(change: dict[str, int], both: tuple[str, str]) -> None:
    (complaint,) = compare_simulated(replace(GOOD, **change))
    assert all(figure in complaint for figure in both)


@pytest.mark.parametrize("change", [{"retries": 1}, {"out_of_memory": 1}])
@pytest.mark.parametrize("driver_peak", [1000, 1001, 5000])
def test_after_a_retry_the_driver_may_have_seen_more_up_to_its_capacity(
    change: dict[str, int], driver_peak: int
) -> None:
    assert compare_simulated(replace(GOOD, driver_peak=driver_peak, **change)) == []


@pytest.mark.parametrize(
    ("growth", "agrees"),
    [
        (600 - REAL_SHORTFALL, True),
        (600 - REAL_SHORTFALL - 1, False),
        (600, True),
        (600 + REAL_EXCESS, True),
        (600 + REAL_EXCESS + 1, False),
    ],
)
def test_a_real_gpu_is_compared_by_growth_within_a_tolerance(growth: int, agrees: bool) -> None:
    figures = replace(GOOD, driver_current=10_000 + growth, driver_peak=None)
    assert (compare_real(figures, used_before=10_000) == []) is agrees


def report(peak: int, **violations: int) -> dict[str, object]:
    return {"devices": [{"device": 0, "peak_used_bytes": peak}], "violations": violations}


def test_the_report_at_exit_must_have_the_same_peak_and_no_broken_rule() -> None:
    result = {"devices": [{"device": 0, "driver_peak": 1000}]}
    assert check_report(result, report(1000, double_free=0)) == []
    assert "1000" in check_report(result, report(1001))[0]
    assert "1001" in check_report(result, report(1001))[0]
    assert "double_free 2" in check_report(result, report(1000, double_free=2))[0]
    assert check_report(result, None) == ["the simulated GPU left no report"]
