"""Each hook of torch's handle does what torch's call promises, as far as the device can see it."""

from collections.abc import Callable

import pytest

pytestmark = pytest.mark.torch_interface

PRELUDE = """
import ctypes, json
import poolalloc, torch
poolalloc.install()
from poolalloc import _core
MiB = 2**20
sim = ctypes.CDLL(None)
sim.simgpu_used_bytes.restype = ctypes.c_uint64
used = lambda: sim.simgpu_used_bytes(0)
calls = lambda hook: _core.plugin_state()["hook_calls"][hook]
def block(megabytes):
    return torch.empty(megabytes * MiB, dtype=torch.uint8, device="cuda")
"""


def test_init_is_called_when_torch_initialises_cuda_and_not_before(on_sim: Callable) -> None:
    on_sim(
        PRELUDE
        + """
assert calls("set_init_fn") == 0 and not _core.plugin_state()["used"]
assert not torch.cuda.is_initialized()
torch.cuda.init()
assert calls("set_init_fn") == 1 and _core.plugin_state()["used"]
"""
    )


def test_empty_cache_gives_memory_back_to_the_device(on_sim: Callable) -> None:
    on_sim(
        PRELUDE
        + """
a, b = block(64), block(32)
assert used() == poolalloc.memory_stats()["reserved"]["current"] >= 96 * MiB
del a
assert used() >= 96 * MiB, "freed memory is kept"
torch.cuda.empty_cache()
assert calls("set_reset_fn") == 1
assert 32 * MiB <= used() < 64 * MiB
assert used() == poolalloc.memory_stats()["reserved"]["current"]
del b
assert poolalloc.empty_cache() > 0
assert used() == 0
_core.validate()
"""
    )


def test_the_memory_fraction_limits_what_is_held(on_sim: Callable) -> None:
    on_sim(
        PRELUDE
        + """
torch.cuda.set_per_process_memory_fraction(0.25)  # of 1 GiB
assert calls("set_memory_fraction_fn") == 1
assert _core.memory_fraction(0) == 0.25
assert poolalloc.memory_stats()["limit_bytes"] == 256 * MiB
kept = block(200)
try:
    block(100)
except RuntimeError as error:
    assert "256 MiB" in str(error) and "memory_fraction" in str(error), error
else:
    raise AssertionError("the limit did not hold")
torch.cuda.set_per_process_memory_fraction(0.5)
more = block(100)
assert used() <= 512 * MiB
""",
        memory="1 GiB",
    )


def test_the_base_of_an_address_is_its_block(on_sim: Callable) -> None:
    # torch asks through this hook only from C++ extensions: sharing memory between processes goes another way.
    on_sim(
        PRELUDE
        + """
tensor = block(3)
inside = tensor[MiB:]
library = ctypes.CDLL(_core.library_path())
base_of = library.poolalloc_base_allocation
base_of.restype, base_of.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t))
size = ctypes.c_size_t()
assert base_of(inside.data_ptr(), ctypes.byref(size)) == tensor.data_ptr()
assert size.value == 3 * MiB
assert base_of(inside.data_ptr(), None) == tensor.data_ptr()
assert calls("set_base_alloc_fn") == 2
"""
    )


def test_record_stream_delays_reuse_until_the_other_stream_is_done(on_sim: Callable) -> None:
    program = (
        PRELUDE
        + """
side = torch.cuda.Stream()
tensor = block(64)
address = tensor.data_ptr()
with torch.cuda.stream(side):
    tensor.add_(1)
tensor.record_stream(side)
del tensor
pending = poolalloc.memory_stats()["pending"]["current"]
reused_at_once = block(64).data_ptr() == address
side.synchronize()
a = block(64)
b = block(64)
print(json.dumps([pending, reused_at_once, address in (a.data_ptr(), b.data_ptr())]))
stats = poolalloc.memory_stats()
_core.validate()
poolalloc.empty_cache()
assert poolalloc.memory_stats()["pending"]["current"] == 0
assert poolalloc.memory_stats()["pending_completed"] == 1
"""
    )
    pending, reused_at_once, _ = on_sim(program, lag=1000).value
    assert pending == 64 * 2**20
    assert not reused_at_once


def test_without_record_stream_reuse_is_immediate(on_sim: Callable) -> None:
    on_sim(
        PRELUDE
        + """
tensor = block(64)
address = tensor.data_ptr()
del tensor
assert poolalloc.memory_stats()["pending"]["current"] == 0
assert block(64).data_ptr() == address
""",
        lag=1000,
    )


def test_record_stream_ignores_memory_that_is_not_poolallocs(on_sim: Callable) -> None:
    on_sim(
        PRELUDE
        + """
import torch.utils.dlpack
side = torch.cuda.Stream()
view = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(block(4)[MiB:]))
view.record_stream(side)
torch.empty(0, device="cuda").record_stream(side)
assert _core.plugin_state()["failures"] == 0
del view
_core.validate()
"""
    )


def test_nothing_asked_is_a_null_block(on_sim: Callable) -> None:
    on_sim(
        PRELUDE
        + """
before = poolalloc.memory_stats()["allocations"]
nothing = [torch.empty(0, device="cuda"), torch.empty(3, 0, 5, device="cuda"), torch.empty(0, device="cuda")]
assert [tensor.data_ptr() for tensor in nothing] == [0, 0, 0]
assert poolalloc.memory_stats()["allocations"] == before
del nothing
malloc = ctypes.CDLL(_core.library_path()).poolalloc_malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
assert malloc(0, 0, None) is None
assert _core.plugin_state()["failures"] == 0
"""
    )


def test_freeing_an_unknown_pointer_is_reported_once_and_counted(on_sim: Callable) -> None:
    outcome = on_sim(
        PRELUDE
        + """
kept = block(1)
free = ctypes.CDLL(_core.library_path()).poolalloc_free
free.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
for pointer in (0x1234, kept.data_ptr() + 512, 0x5678):
    free(pointer, 1, 0, None)
free(None, 0, 0, None)
state = _core.plugin_state()
assert state["failures"] == 3 and "0x5678" in state["last_failure"], state
_core.validate()
"""
    )
    assert outcome.err.count("\n") == 1
    assert "poolalloc: free: 0x1234 is not the start of a live block" in outcome.err


def test_a_graph_allocates_from_a_pool_of_its_own(on_sim: Callable) -> None:
    on_sim(
        PRELUDE
        + """
torch.cuda.init()
x = block(4)
side = torch.cuda.Stream()
side.wait_stream(torch.cuda.current_stream())
graphs, outputs = [], []
for shared in (None, 0):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, pool=None if shared is None else graphs[shared].pool()):
        y = x + 1
        z = y * 2
        del y
    graphs.append(graph)
    outputs.append(z)
pools = poolalloc.fragmentation().pools
assert len(pools) == 2, pools
(private,) = [share for pool, share in pools.items() if pool != (0, 0)]
assert private.requested == 8 * MiB
for graph in graphs:
    graph.replay()
_core.validate()
graphs[0].reset()
assert calls("set_release_pool") == 1
assert len(poolalloc.fragmentation().pools) == 2, "the other graph still uses the pool"
held = used()
torch.cuda.empty_cache()
graphs[1].replay()
del outputs, z
graphs[1].reset()
assert calls("set_release_pool") == 2
torch.cuda.synchronize()
torch.cuda.empty_cache()
assert len(poolalloc.fragmentation().pools) == 1
assert used() <= 6 * MiB < held
_core.validate()
assert _core.plugin_state()["failures"] == 0, _core.plugin_state()
"""
    )
