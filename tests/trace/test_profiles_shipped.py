"""What a shipped profile says of itself: where it is from, and that its figures bear out what it is for."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest

from poolalloc.cli import run
from poolalloc.config import Config, describe_profiles, profiles, tomllib


def provenance(name: str) -> dict[str, Any]:
    text = (resources.files("poolalloc") / "profiles" / f"{name}.toml").read_text(encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(text)["provenance"]
    return found


TUNED = [name for name in profiles() if "objective" in provenance(name)]


def test_the_four_are_there_and_say_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"training", "finetuning", "serving", "constrained", "default"} == set(profiles())
    assert {"training", "finetuning", "serving"} == set(TUNED)
    assert all(len(about) > 20 for about in describe_profiles().values())
    run(["run", "--help"])
    assert "constrained" in capsys.readouterr().out


@pytest.mark.parametrize("name", TUNED)
def test_a_tuned_profile_is_no_worse_by_its_own_objective(name: str) -> None:
    said = provenance(name)
    assert said["command"].startswith("poolalloc tune ")
    assert f"--objective {said['objective']}" in said["command"]
    assert len(said["events_sha256"]) == len(said["events"]) == len(said["workloads"])
    before, after = (
        {
            part: (said[f"{when}_{part}_overhead"], said[f"{when}_{part}_calls_per_event"])
            for part in ("tuned_on", "held_out")
        }
        for when in ("before", "after")
    )
    overhead, calls = after["tuned_on"]
    if said["objective"] == "reserved":
        assert overhead <= before["tuned_on"][0]
    elif said["objective"] == "calls":
        assert calls <= before["tuned_on"][1]
        assert overhead <= said["most_overhead"]
    else:
        assert overhead * (1 + 0.1 * calls) <= before["tuned_on"][0] * (1 + 0.1 * before["tuned_on"][1])
    # Held out, no more than a little is lost of what the objective is about.
    assert after["held_out"][0] <= max(before["held_out"][0], said.get("most_overhead", 0)) + 0.005


@pytest.mark.parametrize("name", [name for name in profiles() if name != "default"])
def test_a_profile_differs_from_the_defaults(name: str) -> None:
    assert Config.load(name) != Config()


def test_constrained_gives_back_what_lies_idle_and_keeps_off_a_part() -> None:
    config = Config.load("constrained")
    assert config.memory_fraction < 1
    assert 0 < config.trim_low < config.trim_high
    assert config.trim_after > 0
