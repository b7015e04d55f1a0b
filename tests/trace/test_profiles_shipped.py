"""What a shipped profile says of itself: where it is from, and that its figures bear out what it is for."""

from __future__ import annotations

import math
from importlib import resources
from typing import Any

import pytest

from poolalloc.cli import run
from poolalloc.config import Config, describe_profiles, profiles, tomllib
from poolalloc.tune import Score


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
            part: Score(said[f"{when}_{part}_overhead"], said[f"{when}_{part}_milliseconds_a_step"])
            for part in ("tuned_on", "held_out")
        }
        for when in ("before", "after")
    )
    most = said.get("most_overhead", math.inf)
    objective = said["objective"]
    assert after["tuned_on"].value(objective, most) <= before["tuned_on"].value(objective, most) + 1e-6
    # Held out, no more than a little is lost of what the objective is about, and what is gained or lost is said.
    assert after["held_out"].overhead <= max(before["held_out"].overhead, said.get("most_overhead", 0)) + 0.005
    gained = before["held_out"].milliseconds - after["held_out"].milliseconds
    assert said["gains_held_out_milliseconds_a_step"] == pytest.approx(gained, abs=1e-5)
    assert (
        said["gains_held_out_bytes"] == said["before_held_out_reserved_bytes"] - said["after_held_out_reserved_bytes"]
    )


@pytest.mark.parametrize("name", [name for name in profiles() if name != "default"])
def test_a_profile_differs_from_the_defaults(name: str) -> None:
    assert Config.load(name) != Config()


def test_constrained_gives_back_what_lies_idle_and_keeps_off_a_part() -> None:
    config = Config.load("constrained")
    assert config.memory_fraction < 1
    assert 0 < config.trim_low < config.trim_high
    assert config.trim_after > 0
