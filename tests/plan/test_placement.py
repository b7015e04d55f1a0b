"""Offline placement: no two blocks alive together overlap, and the height is close to what is known to be possible."""

import csv
from pathlib import Path

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from poolalloc.analysis import plan
from poolalloc.errors import UsageError

INSTANCES = Path(__file__).parents[1] / "data" / "minimalloc"
CAPACITY = 1048576

blocks = st.lists(
    st.tuples(st.integers(-50, 50), st.integers(1, 30), st.integers(1, 4096)).map(
        lambda block: (block[0], block[0] + block[1], block[2])
    ),
    max_size=40,
)


def instance(name: str) -> tuple[np.ndarray, np.ndarray]:
    with (INSTANCES / f"{name}.{CAPACITY}.csv").open() as file:
        rows = np.array([[int(row[key]) for key in ("lower", "upper", "size")] for row in csv.DictReader(file)])
    return rows[:, :2], rows[:, 2]


def assert_sound(lifetimes: np.ndarray, sizes: np.ndarray, placed: plan.Placement) -> None:
    first, end = lifetimes[:, 0], lifetimes[:, 1]
    low = placed.offsets.astype(np.int64)
    high = low + sizes
    together = (first[:, None] < end[None, :]) & (first[None, :] < end[:, None])
    overlap = (low[:, None] < high[None, :]) & (low[None, :] < high[:, None])
    np.fill_diagonal(together, False)
    assert not (together & overlap).any()
    assert placed.height >= high.max()
    assert placed.height >= placed.load


def load_of(lifetimes: np.ndarray, sizes: np.ndarray) -> int:
    return max(int(sizes[(lifetimes[:, 0] <= t) & (t < lifetimes[:, 1])].sum()) for t in lifetimes[:, 0])


@given(blocks)
@settings(max_examples=examples(150), deadline=None)
def test_blocks_alive_together_do_not_overlap(given_blocks: list[tuple[int, int, int]]) -> None:
    lifetimes = np.array([block[:2] for block in given_blocks]).reshape(-1, 2)
    sizes = np.array([block[2] for block in given_blocks], dtype=np.int64)
    placed = plan.place(lifetimes, sizes, seconds=0.01)
    if not given_blocks:
        assert (placed.height, placed.load, placed.overhead) == (0, 0, 1.0)
        return
    assert_sound(lifetimes, sizes, placed)
    assert placed.load == load_of(lifetimes, sizes)
    assert placed.height == (placed.offsets.astype(np.int64) + sizes).max()


@given(blocks, st.integers(1, 5))
@settings(max_examples=examples(100), deadline=None)
def test_lifetimes_of_a_group_are_one_block(given_blocks: list[tuple[int, int, int]], apart: int) -> None:
    """Each block lives again after all have gone: one offset for both of its lives, and nothing overlaps in either."""
    if not given_blocks:
        return
    once = np.array([block[:2] for block in given_blocks])
    lifetimes = np.concatenate((once, once + 200 + apart))
    sizes = np.array([block[2] for block in given_blocks] * 2)
    placed = plan.place(lifetimes, sizes, groups=list(range(len(once))) * 2, seconds=0.01)
    assert (placed.offsets[: len(once)] == placed.offsets[len(once) :]).all()
    assert_sound(lifetimes, sizes, placed)
    assert placed.load == load_of(lifetimes, sizes)


def test_a_block_that_lives_across_the_end_of_a_cycle_keeps_clear_of_both_sides() -> None:
    # Alive at the start and at the end; the other two are alive with one part of it each.
    spans, sizes = [(0, 2), (8, 10), (1, 4), (7, 9)], [5, 5, 7, 3]
    placed = plan.place(spans, sizes, groups=[0, 0, -1, -1])
    assert placed.offsets[0] == placed.offsets[1]
    assert (placed.height, placed.load) == (12, 12)
    with pytest.raises(UsageError, match="one size"):
        plan.place(spans, [5, 6, 7, 3], groups=[0, 0, -1, -1])
    with pytest.raises(ValueError, match="groups must be"):
        plan.place(spans, sizes, groups=[0, 0])


@pytest.mark.parametrize("name", ["B", "C", "D", "F"])
def test_known_capacity_is_reached(name: str) -> None:
    lifetimes, sizes = instance(name)
    placed = plan.place(lifetimes, sizes, seconds=24, enough=CAPACITY)
    assert_sound(lifetimes, sizes, placed)
    assert placed.height <= CAPACITY
    assert placed.method == "search"


@pytest.mark.parametrize("name", ["A", "E"])
def test_the_hardest_are_placed_better_than_by_first_fit(name: str) -> None:
    lifetimes, sizes = instance(name)
    simple = plan.place(lifetimes, sizes, seconds=0)
    assert simple.method == "first fit"
    placed = plan.place(lifetimes, sizes, seconds=3, enough=CAPACITY)
    assert_sound(lifetimes, sizes, placed)
    assert placed.height < simple.height


def test_alignment_holds_for_every_offset() -> None:
    lifetimes = [(0, 4), (1, 5), (2, 6), (5, 7)]
    placed = plan.place(lifetimes, [513, 100, 1, 512], alignment=512, seconds=0.01)
    assert all(offset % 512 == 0 for offset in placed.offsets.tolist())
    assert placed.load == 1024 + 512 + 512
    assert placed.height == placed.load


def test_height_that_is_enough_ends_the_search() -> None:
    lifetimes, sizes = instance("E")
    simple = plan.place(lifetimes, sizes, seconds=0)
    placed = plan.place(lifetimes, sizes, seconds=1000, enough=simple.height)  # returns at once, or the test times out
    assert placed.height <= simple.height


def test_many_blocks_are_placed_by_first_fit() -> None:
    chance = np.random.default_rng(1)
    first = np.sort(chance.integers(0, 100_000, 5_000))
    lifetimes = np.stack([first, first + chance.integers(1, 2_000, first.size)], axis=1)
    sizes = chance.integers(1, 1 << 20, first.size)
    placed = plan.place(lifetimes, sizes, seconds=0.1)
    assert placed.overhead < 1.5
    assert placed.load == load_of(lifetimes, sizes)


@pytest.mark.parametrize(
    ("lifetimes", "sizes", "words"),
    [
        ([(0, 1)], [1, 2], "shape"),
        ([(0, 1, 2)], [1], "shape"),
        ([(1, 1)], [1], "end after it begins"),
        ([(0, 1)], [0], "0 bytes"),
        ([(0, 1)], [-1], "-1 bytes"),
        ([(0.5, 1.0)], [1], "whole numbers"),
    ],
)
def test_bad_input_is_one_clear_error(lifetimes: list, sizes: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan.place(lifetimes, sizes)
