"""Addresses: thousands of streams find some."""

from engines import GIB

from poolalloc import _core

TIB = 1 << 40
STREAMS = 3000


def test_three_thousand_streams_leave_half_of_the_address_space_to_others() -> None:
    engine = _core.Engine("", {"memory_bytes": 80 * GIB})
    blocks = [engine.allocate(1000, stream=stream) for stream in range(STREAMS)]
    # The modelled driver hands addresses out from below. CUDA's takes 4 GiB more for each heap, to align it; of the
    # 128 TiB of a process half is free then.
    assert max(blocks) + STREAMS * 4 * GIB < 64 * TIB
    for block in blocks:
        engine.free(block)
    engine.empty_cache()
    assert engine.allocate(2 * GIB, stream=STREAMS - 1)
    engine.validate()
