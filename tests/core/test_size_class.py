"""Size classes, from Python: size -> bin -> size for any size, and blocks of the size that the class promises.

tests/native/size_class_test.cpp checks every edge there is; here hypothesis draws sizes, and the engine agrees.
"""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poolalloc import _core

LARGEST = 1 << 40
sizes = st.one_of(st.integers(1, LARGEST), st.integers(0, 40).map(lambda power: 1 << power), st.integers(1, 1 << 20))


@given(sizes)
@example(LARGEST)
def test_a_size_has_the_smallest_class_that_holds_it(size: int) -> None:
    index = _core.bin_of(size)
    assert _core.bin_bytes(index) >= size
    assert index == 0 or _core.bin_bytes(index - 1) < size


@given(st.integers(0, _core.BINS - 1))
@example(_core.BINS - 1)
def test_a_class_is_the_class_of_its_own_size(index: int) -> None:
    assert _core.bin_of(_core.bin_bytes(index)) == index


@given(sizes, sizes)
def test_a_larger_size_never_has_a_smaller_class(one: int, other: int) -> None:
    assert _core.bin_of(min(one, other)) <= _core.bin_of(max(one, other))


@given(sizes)
def test_rounding_wastes_a_granule_or_an_eighth_at_most(size: int) -> None:
    waste = _core.bin_bytes(_core.bin_of(size)) - size
    assert waste < _core.GRANULARITY or waste * 8 <= size


def test_the_classes_are_multiples_of_512_then_eight_steps_to_each_doubling() -> None:
    edges = [_core.bin_bytes(index) for index in range(_core.BINS)]
    assert edges[:16] == [512 * step for step in range(1, 17)]
    for power in range(13, 40):
        within = [edge for edge in edges if 1 << power < edge <= 1 << power + 1]
        assert within == [(1 << power) + (1 << power - 3) * step for step in range(1, 9)]
    assert edges[-1] == LARGEST


@pytest.mark.parametrize("limit", [0, 512, 5000, 256 << 10, 1 << 20])
def test_blocks_have_their_class_size_up_to_the_bin_limit_and_multiples_of_512_beyond(limit: int) -> None:
    engine = _core.Engine(f"bin_limit:{limit}", {"memory_bytes": 1 << 30})
    for size in sorted(
        {1, 511, 512, 513, 4999, 5000, 5001, limit, limit + 1, 70_000, 1 << 20, (1 << 20) + 1, 3_000_001}
    ):
        if size == 0:
            continue
        _, block_bytes = engine.base_allocation(engine.allocate(size))
        expected = _core.bin_bytes(_core.bin_of(size)) if size <= limit else -(-size // 512) * 512
        assert block_bytes == expected, size
