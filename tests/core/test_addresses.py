"""Addresses: thousands of streams find some."""

from engines import GIB

from poolalloc import _core

TIB = 1 << 40


def test_three_thousand_streams_leave_half_of_the_address_space_to_others() -> None:
    engine = _core.Engine("", {"memory_bytes": 80 * GIB})
    blocks = [engine.allocate(1000, stream=stream) for stream in range(3000)]
    # The modelled driver hands addresses out from below; of 47 bits half is free.
    assert max(blocks) < 64 * TIB
    for block in blocks:
        engine.free(block)
    engine.empty_cache()
    assert engine.allocate(2 * GIB, stream=2999)
    engine.validate()
