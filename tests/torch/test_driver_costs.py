"""Measuring what driver calls take: that it works, on a simulated GPU; its figures are of no device, and say so."""

import subprocess
import sys
from pathlib import Path

from poolalloc.analysis import costs
from poolalloc.sim import run_simulated

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "driver_costs.py"


def test_every_call_is_timed_and_the_list_says_what_it_is(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    output = tmp_path / "costs.json"
    command = [sys.executable, str(SCRIPT), "-o", str(output), "--rounds", "3"]
    done = run_simulated(command, gpu="l4", timeout=120, base=clean_environment)
    assert done.returncode == 0, done.stderr
    prices = costs.read(output)
    assert prices.source == "simulated"
    assert "tests only" in prices.label
    assert "L4" in prices.device
    assert set(prices.microseconds) == set(costs.PRICED)
    assert all(0 < low <= high for low, high in prices.microseconds.values())
    assert all(share >= 0 for share in prices.further_page.values())
    assert done.report is not None
    assert not any(done.report["violations"].values())
    assert done.report["devices"][0]["used_bytes"] == 0


def test_without_a_device_one_line_says_so(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    command = [sys.executable, str(SCRIPT), "-o", str(tmp_path / "costs.json"), "--device", "63"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment)
    assert done.returncode == 2
    assert done.stderr.startswith("driver_costs: ")
    assert done.stderr.count("\n") == 1
