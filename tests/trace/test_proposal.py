"""Exact bins proposed from recordings: what they would serve is counted right, and within what they may keep."""

import numpy as np
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_kit import trace_of

from poolalloc import Config, ExactBin
from poolalloc.analysis.block_reuse import LEAST_SERVED, BlockReuse
from poolalloc.analysis.replay import Replayer
from poolalloc.analysis.trace import Op, Trace

MIB = 1 << 20
SIZES = (MIB, 3 * MIB, 3 * MIB + 512, 10 * MIB)


def churn(rounds: int, blocks: dict[int, int]) -> Trace:
    """In every round so many blocks of each size come, and go."""
    rows: list[tuple[Op, int, int]] = []
    ident = 0
    for _ in range(rounds):
        live = []
        for size, count in blocks.items():
            for _ in range(count):
                ident += 1
                rows.append((Op.ALLOC, ident, size))
                live.append((ident, size))
        rows += [(Op.FREE, number, size) for number, size in live]
    return trace_of(rows)


def test_what_comes_back_most_for_its_size_is_proposed_first() -> None:
    reuse = BlockReuse([churn(100, {MIB: 3, 10 * MIB: 1})])
    assert reuse.peak_requested == 13 * MIB
    assert reuse.bins(1.0) == (ExactBin(MIB, keep=3), ExactBin(10 * MIB, keep=1))
    assert reuse.bins(0.25) == (ExactBin(MIB, keep=3),)
    assert reuse.bins(0.25, held=True) == (ExactBin(MIB, 3, keep=3),)
    assert reuse.bins(1.0, above=MIB) == (ExactBin(10 * MIB, keep=1),)
    assert reuse.bins(0.0) == ()


def test_what_seldom_comes_back_is_not_proposed() -> None:
    assert BlockReuse([churn(LEAST_SERVED, {MIB: 1})]).bins(1.0) == ()
    assert BlockReuse([churn(LEAST_SERVED + 1, {MIB: 1})]).bins(1.0) == (ExactBin(MIB, keep=1),)
    assert BlockReuse([trace_of([(Op.ALLOC, n, MIB) for n in range(1, 99)])]).bins(1.0) == ()


def test_traces_count_together_and_the_smallest_bounds_what_is_kept() -> None:
    small, large = churn(50, {MIB: 1}), churn(50, {MIB: 8})
    assert BlockReuse([small, large]).bins(1.0) == (ExactBin(MIB, keep=1),)
    assert BlockReuse([large]).bins(1.0) == (ExactBin(MIB, keep=8),)


def test_every_stream_keeps_its_own() -> None:
    events = np.concatenate([churn(60, {MIB: 2}).events, churn(60, {MIB: 2}).events])
    half = len(events) // 2
    events["stream"][half:] = 1
    events["id"][half:] += events["id"][:half].max()
    events["time_ns"] = np.arange(len(events))
    trace = Trace(events=events, streams=(0, 7))
    reuse = BlockReuse([trace])
    assert reuse.peak_requested == 2 * MIB
    assert reuse.bins(1.0) == (ExactBin(MIB, keep=1),), "one on each of the two streams"


@st.composite
def programs(draw: st.DrawFn) -> Trace:
    chance = np.random.default_rng(draw(st.integers(0, 10**6)))
    rows: list[tuple[Op, int, int]] = []
    live: list[tuple[int, int]] = []
    for ident in range(1, draw(st.integers(50, 600))):
        size = int(chance.choice(SIZES)) - int(chance.integers(0, 512))
        rows.append((Op.ALLOC, ident, size))
        live.append((ident, size))
        while len(live) > 12 or (live and chance.random() < 0.48):
            rows.append((Op.FREE, *live.pop(int(chance.integers(len(live))))))
    return trace_of(rows)


@given(programs(), st.floats(0, 2))
@settings(max_examples=examples(60), deadline=None)
def test_a_replay_serves_just_what_was_foretold(trace: Trace, share: float) -> None:
    reuse = BlockReuse([trace])
    bins = reuse.bins(share, above=MIB // 2)
    assert sum(each.size * each.keep for each in bins) <= share * reuse.peak_requested
    if not bins:
        return
    # Nothing is taken from them where the heap may always grow.
    stats = Replayer(trace).run(Config(exact_bins=bins, growth="fast"), "8 GiB").devices[0].stats
    assert stats["kept_released"] == 0
    assert stats["kept_hits"] == sum(foretold(trace, each) for each in bins)


def foretold(trace: Trace, exact: ExactBin) -> int:
    """Requests that find a block, by counting."""
    births = trace.events[trace.events["op"] == Op.ALLOC]
    mine = births["id"][-(-births["requested"].astype(np.int64) // 512) * 512 == exact.size]
    hits = kept = 0
    for op in trace.events["op"][np.isin(trace.events["id"], mine)]:
        if op == Op.ALLOC:
            hits += kept > 0
            kept -= kept > 0
        else:
            kept = min(kept + 1, exact.keep)
    return hits
