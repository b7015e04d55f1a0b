"""Tuning: what is found is better where it was looked for, is said for the held-out part, and loads as a profile."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import started
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_kit import ToyAllocator, live_at, pickled, snapshot_of, toys, trace_of

from poolalloc import Config
from poolalloc._internal.trace.format import check, requested_over_time
from poolalloc.analysis import costs
from poolalloc.analysis import tune as tuning
from poolalloc.analysis.replay import replay
from poolalloc.analysis.trace import Op, Trace, write
from poolalloc.analysis.trace.parts import split
from poolalloc.analysis.trace.torch_snapshot import import_snapshot
from poolalloc.analysis.tune import TRIALS, Objective, Score, TuneError, _growths, tune

MIB = 1 << 20

pytest.importorskip("optuna", reason="Optuna, the extra `tune`, is not installed")


def mixed(seed: int = 1, blocks: int = 3000) -> Trace:
    """Blocks of a few KiB up to 1 MiB that live for different times: where the bins end matters."""
    chance = np.random.default_rng(seed)
    rows: list[tuple[Op, int, int]] = []
    live: dict[int, int] = {}
    for ident in range(1, blocks):
        size = int(512 * 2 ** (11 * chance.random()))
        rows.append((Op.ALLOC, ident, size))
        live[ident] = size
        while len(live) > 150 or (live and chance.random() < 0.45):
            freed = int(chance.choice(list(live)))
            rows.append((Op.FREE, freed, live.pop(freed)))
    return trace_of(rows)


def test_found_options_reserve_no_more_than_those_before() -> None:
    found = tune([mixed(1), mixed(2)], trials=12)
    assert found.after.tuned_on.overhead < found.before.tuned_on.overhead
    assert found.trials == 12
    again = [replay(split(mixed(seed), int(len(mixed(seed)) * 0.75))[0], found.config) for seed in (1, 2)]
    overheads = [result.devices[0].overhead or 0.0 for result in again]
    assert found.after.tuned_on.overhead == pytest.approx(np.exp(np.mean(np.log(overheads))))


def test_a_profile_says_where_it_is_from_and_loads(tmp_path: Path) -> None:
    found = tune([mixed()], trials=5, base=Config(memory_fraction=0.9))
    path = tmp_path / "service.toml"
    path.write_text(found.to_toml())
    assert Config.load(path) == found.config
    assert found.config.memory_fraction == 0.9
    assert found.provenance["before_held_out_overhead"] == pytest.approx(found.before.held_out.overhead, abs=1e-6)
    assert len(found.provenance["events_sha256"]) == 1


def test_where_nothing_is_better_the_base_stays() -> None:
    base = Config(growth="tight")
    found = tune([trace_of([(Op.ALLOC, n, 2 << 20) for n in range(1, 50)])], trials=3, base=base)
    assert found.config == base


def test_time_and_balance_are_other_objectives() -> None:
    score = Score(overhead=1.5, milliseconds=2.0)
    assert score.value("memory") == pytest.approx(1.5, abs=1e-3)
    assert score.value("time") == pytest.approx(2.0, abs=1e-2)
    assert score.value("balanced") == pytest.approx(1.5 * 1.02)
    found = tune([mixed()], objective="time", trials=8)
    assert found.after.tuned_on.milliseconds <= found.before.tuned_on.milliseconds


# A recording in which more memory never hurts says nothing about the run after it.
@pytest.mark.parametrize(
    ("objective", "base", "bound", "allowed"),
    [
        ("memory", "tight", math.inf, {"tight"}),
        ("memory", "fast", math.inf, {"tight", "balanced"}),
        ("balanced", "tight", math.inf, {"tight", "balanced"}),
        ("time", "tight", 1.1, {"tight", "balanced"}),
        ("time", "tight", math.inf, {"tight", "balanced", "fast"}),
    ],
)
def test_no_growth_is_tried_that_a_longer_run_could_make_worse(
    objective: Objective, base: str, bound: float, allowed: set[str]
) -> None:
    assert set(_growths(Config(growth=base), objective, bounded=math.isfinite(bound))) == allowed


def test_a_profile_says_what_it_gains_on_held_out_parts() -> None:
    found = tune([with_sizes()], objective="time", trials=6, workers=1, prices=costs.find("published-a100"))
    before, after = found.before.held_out, found.after.held_out
    said = found.provenance
    assert said["gains_held_out_milliseconds_a_step"] == pytest.approx(
        before.milliseconds - after.milliseconds, abs=1e-5
    )
    assert said["gains_held_out_bytes"] == before.reserved - after.reserved
    assert said["prices"].startswith("published-a100: modelled for")
    assert said["after_held_out_reserved_bytes"] == after.reserved > 0


@pytest.mark.parametrize(("objective", "most_overhead"), [("memory", math.inf), ("balanced", math.inf), ("time", 1.5)])
def test_nothing_is_tried_under_which_a_longer_run_would_hold_ever_more(
    objective: Objective, most_overhead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A recording so short that "fast" reserves no more than the others, and takes less of the driver's time.
    tried = set()
    judge = tuning._Judge.score

    def watched(self: Any, config: Config) -> Score:
        tried.add(config.growth)
        score = judge(self, config)
        return Score(1.0, 0.0) if config.growth == "fast" else score

    monkeypatch.setattr(tuning._Judge, "score", watched)
    found = tune([mixed(blocks=300)], objective=objective, trials=12, most_overhead=most_overhead)
    assert tried == {"tight", "balanced"}
    assert found.config.growth != "fast"
    tune([mixed(blocks=300)], objective="time", trials=12)
    assert "fast" in tried  # where memory does not count


def test_exact_bins_are_tried_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = with_sizes()
    assert tune([trace], objective="time", trials=6).config.exact_bins == ()
    tried = set()
    judge = tuning._Judge.score

    def watched(self: Any, config: Config) -> Score:
        tried.update(each.size for each in config.exact_bins)
        return judge(self, config)

    monkeypatch.setattr(tuning._Judge, "score", watched)
    found = tune([trace], objective="time", exact_bins=True, most_overhead=1.5, trials=25, workers=1)
    assert found.after.tuned_on.milliseconds <= found.before.tuned_on.milliseconds
    assert tried
    assert tried <= {MIB, 3 * MIB, 10 * MIB}
    path = tmp_path / "service.toml"
    path.write_text(found.to_toml())
    assert Config.load(path) == found.config
    own = Config(exact_bins="7MiB/0/3")
    assert tune([trace], objective="time", trials=4, base=own).config.exact_bins == own.exact_bins
    with pytest.raises(TuneError, match="of its own"):
        tune([trace], objective="time", exact_bins=True, base=own)
    with pytest.raises(TuneError, match="not memory"):
        tune([trace], exact_bins=True)


def with_sizes() -> Trace:
    """Blocks of a few sizes that come and go between others of every size."""
    chance = np.random.default_rng(5)
    rows: list[tuple[Op, int, int]] = []
    live: list[tuple[int, int]] = []
    for ident in range(1, 3000):
        often = int(chance.choice((MIB, 3 * MIB, 10 * MIB)))
        size = often if chance.random() < 0.5 else int(chance.integers(1, 20 * MIB))
        rows.append((Op.ALLOC, ident, size))
        live.append((ident, size))
        while len(live) > 40 or (live and chance.random() < 0.45):
            rows.append((Op.FREE, *live.pop(int(chance.integers(len(live))))))
    return trace_of(rows)


@pytest.mark.parametrize("attempt", range(3))
def test_threads_on_a_database_do_each_trial_once(tmp_path: Path, attempt: int) -> None:
    found = tune([mixed(blocks=300)], trials=4, workers=4, storage=f"sqlite:///{tmp_path / 'search.db'}")
    assert found.trials >= 4


def test_time_alone_bounds_the_trials() -> None:
    assert tune([mixed(blocks=300)], seconds=2.0, workers=1).trials > TRIALS


def test_an_interrupt_keeps_the_best_so_far() -> None:
    def watch(done: int, best: Score | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    found = tune([mixed()], trials=1000, workers=1, watch=watch)
    assert found.trials == 3
    assert found.after.tuned_on.overhead <= found.before.tuned_on.overhead


@pytest.mark.parametrize("where", ["shared.log", "sqlite:///shared.db"])
def test_two_workers_share_one_storage(tmp_path: Path, where: str) -> None:
    write(mixed(), tmp_path / "run.npz")
    command = [sys.executable, "-m", "poolalloc", "tune", "run.npz", "--trials", "12", "--storage", where]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        started([*command, "-o", "one.toml"], cwd=tmp_path, **pipes) as one,
        started([*command, "-o", "two.toml"], cwd=tmp_path, **pipes) as two,
    ):
        workers = [one, two]
        ends = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], ends
    import optuna

    path = str(tmp_path / "shared.log")
    storage = (
        f"sqlite:///{tmp_path / 'shared.db'}"
        if "://" in where
        else optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    )
    (summary,) = optuna.get_all_study_summaries(storage)
    assert 12 <= summary.n_trials < 12 + 2 * 64  # what was under way when the last was done counts too
    last = Config.load(tmp_path / "one.toml"), Config.load(tmp_path / "two.toml")
    assert summary.best_trial is not None
    assert summary.best_trial.params["bin_limit"] in {config.bin_limit for config in last}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objective", "speed"], "'speed' is not one of memory, time, balanced"),
        (["--time", "soon"], '"soon" is no time'),
        (["--storage", "nowhere://x"], "storage nowhere://x"),
        (["--exact-bins"], "not memory"),
        (["-o", "missing/profile.toml"], "missing/profile.toml: there is no folder"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    write(mixed(blocks=300), tmp_path / "run.npz")
    command = [sys.executable, "-m", "poolalloc", "tune", "run.npz", "-o", "profile.toml", "--trials", "1", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nothing_to_tune_on_is_said() -> None:
    with pytest.raises(TuneError, match="at least one"):
        tune([])


# --- parts of a trace -------------------------------------------------------------------------------------------------


@given(toys(), st.floats(0, 1))
@settings(max_examples=examples(100), deadline=None)
def test_the_second_part_begins_with_what_is_live(toy: ToyAllocator, share: float) -> None:
    if not toy.born:
        return
    trace = import_snapshot(pickled(snapshot_of(toy)), "toy")[0]
    at = trace.initial_events + int((len(trace) - trace.initial_events) * share)
    before, after = split(trace, at)
    assert len(before) == at
    if len(after):
        check(after)
        assert live_at(after, after.initial_events) == live_at(trace, at)
        assert live_at(after, len(after)) == live_at(trace, len(trace))
        assert requested_over_time(after.events)[-1] == requested_over_time(trace.events)[-1]
