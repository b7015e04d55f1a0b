"""Finds options that suit recorded programs: Optuna over poolalloc's option table and exact bins, each trial a replay.

    from poolalloc.analysis.trace import read
    from poolalloc.analysis.tune import tune

    found = tune([read("a.npz"), read("b.npz")], objective="balanced", trials=40)
    found.config, found.before.held_out.overhead, found.after.held_out.overhead

The first three quarters of each trace are tuned on; the rest is held out and only reported, so a configuration that
fits the recording and not the program shows. Needs the extra `tune`: pip install 'poolalloc[tune]'.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from poolalloc._internal.exact_bins import ExactBin
from poolalloc._internal.options import OPTIONS
from poolalloc._internal.trace import steps
from poolalloc._internal.trace.format import Trace, TraceError
from poolalloc._internal.version import __version__
from poolalloc.analysis import costs
from poolalloc.analysis.block_reuse import BlockReuse
from poolalloc.analysis.costs import PriceList
from poolalloc.analysis.replay import Replayer
from poolalloc.analysis.trace.parts import split
from poolalloc.config import Config, words_of
from poolalloc.errors import PoolallocError

__all__ = ["OBJECTIVES", "TRIALS", "Objective", "Score", "Scores", "TuneError", "Tuned", "tune"]

Objective = Literal["memory", "time", "balanced"]
"""What is to be least: reserved memory, the driver's modelled time, or both in balance."""
OBJECTIVES: tuple[Objective, ...] = ("memory", "time", "balanced")
"""Every objective."""
TUNED_ON = 0.75
"""Of each trace's events."""
TIME_WEIGHT = 0.01
"""Of `balanced`: a millisecond of the driver's time in each step costs as much as this share more memory."""
SEED = 1
TRIALS = 40
_FORBIDDEN = 1e9  # the value of what is never chosen: databases have no infinity
_GROWTH = ("tight", "balanced", "fast")  # each may hold more than the one before, however long the program runs
assert set(_GROWTH) == set(next(words_of(option) for option in OPTIONS if option.name == "growth"))


class TuneError(PoolallocError, ValueError):
    """There is nothing to tune on, or Optuna is missing or refuses its storage."""


@dataclass(frozen=True)
class Score:
    """What a configuration did on the same part of all traces."""

    overhead: float
    """Geometric mean, over traces and devices, of peak reserved / peak requested; infinite if one ran out of memory."""
    milliseconds: float
    """Modelled time of the driver's work, start-up included, for each step; of the whole where no steps are known."""
    reserved: int = 0
    """Bytes: the sum of the peaks of all traces and devices."""

    def value(self, objective: Objective, most_overhead: float = math.inf) -> float:
        """Return what is minimized. Time breaks ties of `memory`, memory those of `time`."""
        if not math.isfinite(self.overhead) or self.overhead > most_overhead:
            return math.inf
        if objective == "memory":
            return self.overhead + 1e-6 * self.milliseconds
        if objective == "time":
            return self.milliseconds + 1e-3 * self.overhead
        return self.overhead * (1 + TIME_WEIGHT * self.milliseconds)

    def to_json(self) -> dict[str, float]:
        """Return the figures by the names that profiles give them."""
        return {
            "overhead": round(self.overhead, 6),
            "reserved_bytes": self.reserved,
            "milliseconds_a_step": round(self.milliseconds, 6),
        }


@dataclass(frozen=True)
class Scores:
    """On the parts of the traces that were tuned on, and on those held out."""

    tuned_on: Score
    held_out: Score


@dataclass(frozen=True)
class Tuned:
    """What was found. Where nothing was better, `config` is what tuning began with."""

    config: Config
    objective: Objective
    trials: int
    """That were finished, those of other workers on the same storage included."""
    before: Scores
    after: Scores
    provenance: dict[str, object]

    def to_toml(self) -> str:
        """Return a profile: the options, and where they come from. install() and Config.load read it."""
        return profile(self.config, self.provenance)

    def to_json(self) -> dict[str, object]:
        """Return it as plain values: the options that differ from the defaults, and where they come from."""
        return {"schema": 1, "config": self.config.to_conf(), "provenance": self.provenance}


def profile(config: Config, provenance: Mapping[str, Any], *, every_option: bool = True) -> str:
    """Return the text of a profile; `every_option`: also options that are as by default."""
    lines = [config.to_toml(every_option=every_option).rstrip("\n"), "", "[provenance]"]
    lines += [f"{key} = {_toml(value)}" for key, value in provenance.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        escaped = "".join(
            f"\\u{ord(c):04x}" if ord(c) < 0x20 or ord(c) == 0x7F else f"\\{c}" if c in '"\\' else c for c in value
        )
        return f'"{escaped}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


# --- what can be chosen ---------------------------------------------------------------------------------------------


_BIN_LIMITS = [1 << power for power in range(14, 21)]
_MOST_CANDIDATES = 64
_OPTIONS = ("bin_limit", "placement_candidates", "growth")
_KEPT_SHARES = [0.0, 0.001, 0.003, 0.01, 0.03]  # of the peak, in exact bins


class _Choices:
    """What a trial chooses: options that change what is reserved or called, and if asked for exact bins.

    What bounds memory or only observes is left alone. Bins are faster than the arena, which replays do not count: the
    smallest limit leaves them most requests.

    A recording is short, and a program may run for ever. So no `growth` is tried that could hold more than the
    objective allows once the program has run for longer, however good it looks on the recording: for `memory` none that
    may hold more than what tuning begins with; `fast`, which may take the whole device, only for `time` alone.
    """

    def __init__(
        self,
        optuna: Any,
        base: Config,
        traces: Sequence[Trace],
        objective: Objective,
        *,
        bounded: bool,
        exact_bins: bool,
    ) -> None:
        self._base = base
        categories = optuna.distributions.CategoricalDistribution
        self.space: dict[str, Any] = {
            "bin_limit": categories(_BIN_LIMITS),
            "placement_candidates": optuna.distributions.IntDistribution(1, _MOST_CANDIDATES, log=True),
            "growth": categories(_growths(base, objective, bounded=bounded)),
        }
        if exact_bins:
            self.space |= {"kept_share": categories(_KEPT_SHARES), "kept_held": categories([False, True])}
        self._reuse = BlockReuse(traces, above=_BIN_LIMITS[0]) if exact_bins else None
        self._proposed: dict[tuple[Any, ...], tuple[ExactBin, ...]] = {}

    def suggest(self, trial: Any) -> Config:
        drawn = {name: _draw(trial, name, values) for name, values in self.space.items()}
        config = replace(self._base, **{name: drawn[name] for name in _OPTIONS})
        if self._reuse is None:
            return config
        chosen = (drawn["kept_share"], drawn["bin_limit"], drawn["kept_held"])
        if chosen not in self._proposed:
            share, above, held = chosen
            self._proposed[chosen] = self._reuse.bins(share, above, held=held)
        return replace(config, exact_bins=self._proposed[chosen])

    def first_guess(self) -> dict[str, Any]:
        """Return what tuning begins with; nothing if that is not among what is tried."""
        guess = {name: getattr(self._base, name) for name in _OPTIONS}
        if self._reuse is not None:
            guess |= {"kept_share": 0.0, "kept_held": False}
        tried = guess["bin_limit"] in _BIN_LIMITS and guess["placement_candidates"] <= _MOST_CANDIDATES
        return guess if tried and guess["growth"] in self.space["growth"].choices else {}


def _growths(base: Config, objective: Objective, *, bounded: bool) -> list[str]:
    if objective == "time" and not bounded:
        return list(_GROWTH)
    most = _GROWTH.index(base.growth) if objective == "memory" else _GROWTH.index("balanced")
    return list(_GROWTH[: min(most, _GROWTH.index("balanced")) + 1])


def _draw(trial: Any, name: str, values: Any) -> Any:
    if hasattr(values, "choices"):
        return trial.suggest_categorical(name, values.choices)
    return trial.suggest_int(name, values.low, values.high, log=values.log)


# --- judging --------------------------------------------------------------------------------------------------------


class _Judge:
    """Replays the same part of every trace; from several threads at once."""

    def __init__(self, parts: Iterable[Trace], memory: int | str | None, prices: PriceList) -> None:
        self._replayers = [Replayer(part) for part in parts]
        self._memory = memory
        self._prices = prices
        self._steps = sum(max(len(steps.beginnings(replayer.trace)), 1) for replayer in self._replayers)

    def score(self, config: Config) -> Score:
        logs, seconds, reserved = [], 0.0, 0
        for replayer in self._replayers:
            result = replayer.run(config, self._memory)
            if result.out_of_memory is not None:
                return Score(math.inf, math.inf)
            logs += [math.log(device.overhead) for device in result.devices if device.overhead]
            seconds += self._prices.price(result.driver_work.total).middle
            reserved += sum(device.peak_reserved for device in result.devices)
        return Score(math.exp(sum(logs) / len(logs)), seconds * 1e3 / self._steps, reserved)


def _parts(traces: Sequence[Trace]) -> tuple[list[Trace], list[Trace]]:
    first, rest = [], []
    for number, trace in enumerate(traces, 1):
        at = trace.initial_events + int((len(trace) - trace.initial_events) * TUNED_ON)
        before, after = split(trace, at)
        if not before.used_devices() or not after.used_devices():
            raise TraceError(f"trace {number} has too few allocations to tune on")
        first.append(before)
        rest.append(after)
    return first, rest


# --- tuning ---------------------------------------------------------------------------------------------------------


def tune(
    traces: Sequence[Trace],
    *,
    objective: Objective = "memory",
    trials: int | None = None,
    seconds: float | None = None,
    base: Config | None = None,
    memory: int | str | None = None,
    most_overhead: float = math.inf,
    exact_bins: bool = False,
    prices: PriceList | None = None,
    storage: str | None = None,
    study: str | None = None,
    workers: int | None = None,
    watch: Callable[[int, Score | None], None] = lambda done, best: None,
) -> Tuned:
    """Look for the options under which traces reserve least, or take least of the driver's time, or both in balance.

    Args:
        traces: recordings; each counts the same.
        objective: `memory`, `time` (modelled) or `balanced` (overhead * (1 + TIME_WEIGHT * milliseconds a step)).
        trials: how many configurations are tried in all; None is TRIALS, or with `seconds` as many as they allow.
        seconds: when to stop in any case.
        base: what tuning begins with, and keeps for every option it does not choose; None is the defaults.
        memory: of each device, as for Replayer.run. A configuration under which memory runs out is never chosen.
        most_overhead: a configuration with a greater overhead on what is tuned on is never chosen.
        exact_bins: propose some, too: how much of the peak they may keep, and whether a stream that grows takes it, is
            chosen with the rest. Not with `memory`, since they keep memory, nor on top of those that `base` has.
        prices: with which the driver's work is priced; None is the default list.
        storage: shared by several workers: the path of a journal file (*.log), or a database URL that Optuna knows.
        study: the name in that storage; by default made of the traces and the objective.
        workers: threads; None is one for each processor.
        watch: called after each trial with how many are done and the best score yet. KeyboardInterrupt ends the search
            and keeps the best so far.

    Raises:
        TuneError: no traces, exact bins where they cannot be proposed, Optuna missing, or a storage it cannot open.
        TraceError: a trace too short to be split.
    """
    if not traces:
        raise TuneError("give at least one trace to tune on")
    start = base or Config()
    if exact_bins:
        _require_room_for_bins(start, objective)
    most = trials if trials is not None else TRIALS if seconds is None else math.inf
    optuna = _optuna()
    tuned_on, held_out = _parts(traces)
    prices = prices or costs.find()
    judge = _Judge(tuned_on, memory, prices)
    hashes = [hashlib.sha256(np.ascontiguousarray(trace.events).tobytes()).hexdigest() for trace in traces]
    name = study or _name_of(hashes, objective, start, prices, most_overhead, exact_bins=exact_bins)
    search = _study(optuna, storage, name)
    scores: dict[Config, Score] = {start: judge.score(start)}
    finished = optuna.trial.TrialState.COMPLETE
    choices = _Choices(optuna, start, tuned_on, objective, bounded=math.isfinite(most_overhead), exact_bins=exact_bins)

    def noted(score: Score) -> dict[str, float]:
        return {"overhead": score.overhead, "milliseconds": score.milliseconds}

    def value(score: Score) -> float:
        return min(score.value(objective, most_overhead), _FORBIDDEN)

    # What tuning begins with is the first trial, as one that has ended: a trial that waits in a database without locks
    # of rows, such as SQLite, would be taken by several threads.
    guess = choices.first_guess()
    if guess and not search.get_trials(deepcopy=False):
        first = scores[start]
        search.add_trial(
            optuna.trial.create_trial(
                params=guess, distributions=choices.space, value=value(first), user_attrs=noted(first)
            )
        )

    def attempt(trial: Any) -> float:
        config = choices.suggest(trial)
        score = scores.get(config)
        if score is None:
            score = scores[config] = judge.score(config)
        for name, figure in noted(score).items():
            trial.set_user_attr(name, figure)
        return value(score)

    def after_trial(search: Any, trial: Any) -> None:
        done = len(search.get_trials(deepcopy=False, states=(finished,)))
        best = search.best_trial.user_attrs
        watch(done, Score(best["overhead"], best["milliseconds"]))
        if done >= most:
            search.stop()

    trials = None if math.isinf(most) else max(int(most) - len(search.get_trials(states=(finished,))), 0)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # what was found by then is kept
            search.optimize(
                attempt,
                n_trials=trials,
                timeout=seconds,
                n_jobs=workers or os.cpu_count() or 1,
                callbacks=[after_trial],
            )
    except optuna.exceptions.StorageInternalError as error:
        raise _refused(storage, error) from None
    done = search.get_trials(deepcopy=False, states=(finished,))
    best = start
    if done and search.best_value < value(scores[start]):
        best = choices.suggest(optuna.trial.FixedTrial(search.best_params))
    rest = _Judge(held_out, memory, prices)
    before = Scores(scores[start], rest.score(start))
    after = Scores(scores.get(best) or judge.score(best), rest.score(best))
    provenance = {
        "tool": f"poolalloc {__version__} tune",
        "objective": objective,
        "prices": f"{prices.name}: {prices.label}",
        **({"most_overhead": most_overhead} if math.isfinite(most_overhead) else {}),
        "trials": len(done),
        "events": [len(trace) for trace in traces],
        "events_sha256": hashes,
    }
    return Tuned(best, objective, len(done), before, after, provenance | _gains(before, after))


def _name_of(
    hashes: Sequence[str],
    objective: Objective,
    start: Config,
    prices: PriceList,
    most_overhead: float,
    *,
    exact_bins: bool,
) -> str:
    """The name of the search that workers share: all that its values depend on."""
    parts = [objective, *([str(most_overhead)] if math.isfinite(most_overhead) else [])]
    parts += ["exact-bins"] if exact_bins else []
    parts += [start.growth] if objective == "memory" else []  # it bounds what is tried
    parts += [] if prices.name == costs.DEFAULT else [prices.name]
    return "-".join(["poolalloc", *parts, hashlib.sha256("".join(hashes).encode()).hexdigest()[:12]])


def _require_room_for_bins(start: Config, objective: Objective) -> None:
    if objective == "memory":
        raise TuneError("exact bins keep memory: propose them with the objective time or balanced, not memory")
    if start.exact_bins:
        raise TuneError("what tuning begins with has exact bins of its own: leave them out to have others proposed")


def _gains(before: Scores, after: Scores) -> dict[str, float]:
    """What a profile says it gains, first of all on what was held out, and the figures behind that."""
    was, now = before.held_out, after.held_out
    found: dict[str, float] = {
        "gains_held_out_milliseconds_a_step": round(was.milliseconds - now.milliseconds, 6),
        "gains_held_out_bytes": was.reserved - now.reserved,
    }
    for when, scores in (("before", before), ("after", after)):
        for part, score in (("tuned_on", scores.tuned_on), ("held_out", scores.held_out)):
            found |= {f"{when}_{part}_{name}": value for name, value in score.to_json().items()}
    return found


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise TuneError("tuning needs Optuna: pip install 'poolalloc[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(optuna: Any, storage: str | None, name: str) -> Any:
    """Open the search, or join it.

    Workers that open a new database at one time are in each other's way while Optuna makes its tables: whoever comes
    second tries again.
    """
    for patience in (1.0, 1.0, 1.0, 0.0):
        try:
            return optuna.create_study(
                storage=_storage(optuna, storage),
                study_name=name,
                load_if_exists=storage is not None,
                sampler=optuna.samplers.TPESampler(seed=SEED, constant_liar=True),
            )
        except Exception as error:  # whatever the database behind the URL raises
            known = ("already exists", "unique constraint", "duplicate key", "locked")
            if not patience or not any(words in str(error).lower() for words in known):
                raise _refused(storage, error) from None
        time.sleep(patience)
    raise AssertionError


def _storage(optuna: Any, storage: str | None) -> Any:
    if storage is None or "://" in storage:
        return storage
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))


def _refused(storage: str | None, error: Exception) -> TuneError:
    return TuneError(f"storage {storage}: {' '.join(str(error).split())[:200]}")
