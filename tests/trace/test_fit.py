"""Fit: the smallest memory is the smallest, and the largest live set adds up."""

from __future__ import annotations

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_kit import MiB, ToyAllocator, pickled, snapshot_of, toys, trace_of

from poolalloc import Config
from poolalloc.analysis.fit import PAGE, fit
from poolalloc.analysis.live_blocks import peak_live_blocks
from poolalloc.analysis.replay import replay
from poolalloc.analysis.trace import Frame, Op, StackTable
from poolalloc.analysis.trace.torch_snapshot import import_snapshot
from poolalloc.errors import ConfigError


@settings(max_examples=examples(40))
@given(toys(most=40), st.sampled_from(["", "bin_limit:0"]))
def test_the_smallest_memory_fits_and_a_page_less_does_not(toy: ToyAllocator, conf: str) -> None:
    if not toy.born:
        return
    trace = import_snapshot(pickled(snapshot_of(toy)), "toy")[0]
    config = Config.from_conf(conf)
    found = fit(trace, 1 << 30, config).devices[0]
    assert replay(trace, config, found.smallest_memory).out_of_memory is None
    if found.smallest_memory > PAGE:
        assert replay(trace, config, found.smallest_memory - PAGE).out_of_memory is not None
    assert found.peak_requested <= found.smallest_memory


def test_by_how_much_it_fits_or_not() -> None:
    trace = trace_of([(Op.ALLOC, i + 1, 10 * MiB) for i in range(4)])
    found = fit(trace, 50 * MiB)
    assert found.fits
    assert found.devices[0].smallest_memory == 40 * MiB
    assert found.devices[0].spare(found.memory_bytes) == 10 * MiB
    short = fit(trace, 30 * MiB)
    assert not short.fits
    assert short.devices[0].spare(short.memory_bytes) == -10 * MiB
    lost = short.devices[0].out_of_memory
    assert lost is not None
    assert (lost.event, lost.requested) == (3, 10 * MiB)


def test_devices_are_judged_one_by_one_in_numbers_of_the_whole_trace() -> None:
    rows = [(Op.ALLOC, i + 1, (i % 2 + 1) * 10 * MiB, {"device": i % 2 * 3}) for i in range(8)]
    found = fit(trace_of(rows), 60 * MiB)
    first, second = found.devices
    assert (first.device, first.fits, first.smallest_memory) == (0, True, 40 * MiB)
    assert (second.device, second.fits, second.smallest_memory) == (3, False, 80 * MiB)
    assert second.out_of_memory is not None
    assert second.out_of_memory.event == 7
    assert second.peak_blocks.event == 7
    assert not found.fits


def test_progress_ends_where_it_said() -> None:
    seen: list[tuple[int, int]] = []
    found = fit(trace_of([(Op.ALLOC, 1, 10 * MiB)]), 50 * MiB, progress=lambda done, total: seen.append((done, total)))
    assert found.replays == len(seen) == seen[-1][0]
    assert all(done <= total for done, total in seen)


def test_bad_options_are_an_error() -> None:
    with pytest.raises(ConfigError):
        fit(trace_of([(Op.ALLOC, 1, 1)]), 50 * MiB, Config.from_conf("bin_limit:-1"))


# --- the largest live set ---------------------------------------------------------------------------------------------


@given(toys(device=0, most=40), toys(device=1, most=20))
def test_every_grouping_adds_up(first: ToyAllocator, second: ToyAllocator) -> None:
    trace = import_snapshot(pickled(snapshot_of(first, second)), "toy")[0] if first.born and second.born else None
    if trace is None:
        return
    for device in (0, 1):
        live = peak_live_blocks(trace, device)
        assert live.requested == replay(trace).device(device).peak_requested
        for shares in (live.by_size, live.by_phase, live.by_lifetime):
            assert sum(share.requested for share in shares) == live.requested
            assert sum(share.blocks for share in shares) == live.blocks
            assert all(share.smallest <= share.largest for share in shares)
            assert [share.requested for share in shares] == sorted((s.requested for s in shares), reverse=True)


def test_blocks_are_grouped_by_size_phase_lifetime_and_stack() -> None:
    stacks = StackTable()
    library = Frame("/usr/lib/python3.11/site-packages/torch/nn/linear.py", "forward", 5)
    mine, yours = (
        stacks.add([Frame("x.cpp", "malloc", 0), library, Frame(name, "step", 9)]) for name in ("a.py", "b.py")
    )
    rows = [
        (Op.ALLOC, 1, 900, {"stack": mine}),
        (Op.MARK, 0, 0),
        (Op.ALLOC, 2, 1000, {"stack": mine}),
        (Op.ALLOC, 3, MiB, {"stack": yours}),
        (Op.MARK, 1, 0),
        (Op.ALLOC, 4, 2 * MiB),
        (Op.FREE, 3, MiB),
        (Op.ALLOC, 5, 1),
    ]
    trace = trace_of(rows, stacks=stacks.table(), marks=("forward", "backward"), initial_events=1)
    live = peak_live_blocks(trace, 0)
    assert (live.event, live.blocks, live.requested) == (5, 4, 3 * MiB + 1900)
    assert [(share.label, share.blocks) for share in live.by_size] == [(str(2 * MiB), 1), (str(MiB), 1), ("1024", 2)]
    assert [(share.label, share.requested) for share in live.by_phase] == [
        ("backward", 2 * MiB),
        ("forward", MiB + 1000),
        ("before the recording began", 900),
    ]
    assert [(share.label, share.blocks) for share in live.by_lifetime] == [
        ("kept to the end of the recording", 3),
        ("freed later", 1),
    ]
    labels = [(share.label, share.requested) for share in live.by_stack]
    assert labels == [
        ("(no stack of Python, as in backward passes)", 2 * MiB),
        ("step (b.py:9): malloc", MiB),
        ("step (a.py:9): malloc", 1900),
    ]
    assert len(live.by_stack[1].frames) == 3


def test_every_configuration_is_judged_beside_the_first() -> None:
    trace = trace_of([(Op.ALLOC, i + 1, 10 * MiB, {"device": i % 2}) for i in range(8)])
    also = {"small bins": Config.from_conf("bin_limit:0"), "tighter": Config.from_conf("memory_limit:20MiB")}
    found = fit(trace, 50 * MiB, also=also)
    judged = [(verdict.device, verdict.allocator, verdict.config) for verdict in found.verdicts]
    assert judged == [(device, "poolalloc", name) for device in (0, 1) for name in ("", *also)]
    for verdict in found.verdicts:
        forbidden = verdict.config == "tighter"
        assert verdict.fits == (not forbidden)
        assert (verdict.smallest_memory is None) == forbidden
        assert (verdict.spare(50 * MiB) is None) == forbidden


def test_without_marks_phases_are_the_steps_found() -> None:
    rows: list[tuple[object, ...]] = [(Op.ALLOC, 1, 1000)]
    for step in range(9):
        rows += [(Op.ALLOC, 10 * step + k, k * MiB) for k in range(2, 8)]
        rows += [(Op.FREE, 10 * step + k, k * MiB) for k in range(2, 8)]
    live = peak_live_blocks(trace_of(rows), 0)
    assert [share.label for share in live.by_phase][-1] == "before the first step found"
    assert live.by_phase[0].label.endswith("(found)")
