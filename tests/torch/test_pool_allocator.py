"""Pools with an allocator of the user's own, pools that do not split, and torch's allocator switched off.

Each scenario holds on torch's allocator as well, and is tried there, but for those that say otherwise.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from scenarios import PRINT, RUN

pytestmark = pytest.mark.torch_interface

# What a communication library brings: memory by calls of its own, with account of them.
ALLOCATOR = """
#include <cstddef>
extern "C" {
int cudaMalloc(void** memory, std::size_t bytes);
int cudaFree(void* memory);
int asked, freed, last_device;
std::size_t last_bytes, most;
void* last_stream;
void* last_memory;
void* own_malloc(std::size_t bytes, int device, void* stream) {
  ++asked;
  last_bytes = bytes, last_device = device, last_stream = stream, last_memory = nullptr;
  if (most != 0 && bytes > most) return nullptr;
  return cudaMalloc(&last_memory, bytes) == 0 ? last_memory : nullptr;
}
void own_free(void* memory, std::size_t bytes, int device, void* stream) {
  ++freed;
  last_bytes = bytes, last_device = device, last_stream = stream;
  cudaFree(memory);
}
}
"""

PROGRAM = """
import ctypes, gc, json, os, sys, threading, traceback
import torch
if sys.argv[1] == "poolalloc":
    import poolalloc
    assert poolalloc.install(bridge=True).backend == "bridge"
MiB = 2**20
library = ctypes.CDLL(sys.argv[2])
counts = {name: ctypes.c_int.in_dll(library, name) for name in ("asked", "freed", "last_device")}
last_bytes, most = (ctypes.c_size_t.in_dll(library, name) for name in ("last_bytes", "most"))
last_stream, last_memory = (ctypes.c_void_p.in_dll(library, name) for name in ("last_stream", "last_memory"))
def own():
    for count in counts.values():
        count.value = 0
    most.value = 0
    return torch.cuda.memory.CUDAPluggableAllocator(sys.argv[2], "own_malloc", "own_free")
def called():
    return counts["asked"].value, counts["freed"].value
SCENARIOS, kept = {}, []
def scenario(function):
    SCENARIOS[function.__name__] = function
    return function
def only_on_poolalloc(function):
    return scenario(function) if sys.argv[1] == "poolalloc" else function
def block(mebibytes):
    return torch.empty(int(mebibytes * MiB), dtype=torch.uint8, device="cuda")

@scenario
def a_pools_segments_come_from_its_allocator():
    allocator = own()
    pool = torch.cuda.MemPool(allocator.allocator())
    assert pool.use_count() == 1 and called() == (0, 0)
    before = torch.cuda.memory_reserved()
    with torch.cuda.use_mem_pool(pool):
        first = block(1)
        assert called() == (1, 0) and last_bytes.value == 2 * MiB and counts["last_device"].value == 0
        assert first.data_ptr() == last_memory.value and not last_stream.value
        second = block(1)
        assert called() == (1, 0) and len(pool.snapshot()) == 1
        third = block(1)
        assert called() == (2, 0) and len(pool.snapshot()) == 2
        medium = block(6)
        assert called() == (3, 0) and last_bytes.value == 20 * MiB
        large = block(31)
        assert called() == (4, 0) and last_bytes.value == 32 * MiB
        assert large.data_ptr() == last_memory.value
    outside = block(40)
    assert called() == (4, 0)
    segments = {segment["address"]: segment for segment in pool.snapshot()}
    assert sorted(each["total_size"] for each in segments.values()) == [size * MiB for size in (2, 2, 20, 32)]
    assert segments[first.data_ptr()]["allocated_size"] == 2 * MiB
    assert {tuple(segment["segment_pool_id"]) for segment in segments.values()} == {pool.id}
    assert not any(segment["is_expandable"] for segment in segments.values())
    assert torch.cuda.memory_reserved() - before == (56 + 40) * MiB
    del large, medium
    torch.cuda.empty_cache()
    with torch.cuda.use_mem_pool(pool):
        large, medium = block(31), block(3)
    assert called() == (4, 0), "a pool in use keeps its memory"
    del first, second, third, large, medium, pool
    assert called() == (4, 4)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before == 40 * MiB
    del outside

@scenario
def the_allocator_is_asked_for_the_stream_that_asks():
    pool = torch.cuda.MemPool(own().allocator())
    side = torch.cuda.Stream()
    with torch.cuda.use_mem_pool(pool), torch.cuda.stream(side):
        tensor = block(3)
    assert last_stream.value == side.cuda_stream
    tensor.record_stream(torch.cuda.current_stream())
    del tensor
    torch.cuda.synchronize()
    del pool
    torch.cuda.empty_cache()
    assert called() == (1, 1) and last_stream.value == side.cuda_stream and last_bytes.value == 20 * MiB

@scenario
def tensors_may_outlive_the_pool_and_the_allocator():
    allocator = own()
    pool = torch.cuda.MemPool(allocator.allocator())
    with torch.cuda.use_mem_pool(pool):
        data, other = block(1), block(64)
    del allocator, pool, other
    gc.collect()
    torch.cuda.empty_cache()
    assert called() == (2, 1)
    data.zero_()
    del data
    torch.cuda.empty_cache()
    assert called() == (2, 2)

@scenario
def no_memory_is_an_out_of_memory_error():
    pool = torch.cuda.MemPool(own().allocator())
    most.value = 8 * MiB
    with torch.cuda.use_mem_pool(pool):
        kept = block(0.5)
        try:
            block(30)
        except torch.OutOfMemoryError:
            pass
        else:
            raise AssertionError("there was none")
        more = block(0.5)
    assert called()[1] == 0 and torch.cuda.memory_allocated() >= MiB
    del kept, more

@scenario
def a_pool_that_lends_serves_others_before_they_run_out():
    pool = torch.cuda.MemPool(own().allocator(), use_on_oom=True)
    with torch.cuda.use_mem_pool(pool):
        del (tensor := [block(6000)])[:]
    torch.cuda.empty_cache()
    assert called() == (1, 0)
    tensor = block(5000)
    del tensor, pool
    torch.cuda.empty_cache()
    assert called() == (1, 1)

@scenario
def a_graph_may_be_captured_in_such_a_pool():
    pool = torch.cuda.MemPool(own().allocator())
    x = torch.ones(MiB, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool.id):
        y = x * 2
        z = y + 1
    assert called() == (1, 0)
    graph.replay()
    torch.cuda.synchronize()
    del y, z, graph, pool
    gc.collect()
    torch.cuda.empty_cache()
    assert called() == (1, 1)

@scenario
def without_splitting_every_tensor_has_a_segment():
    pool = torch.cuda.MemPool(own().allocator(), no_split=True)
    with torch.cuda.use_mem_pool(pool):
        tensors = []
        for number, size in enumerate((0.5, 0.5, 1, 12, 31)):
            tensors.append(block(size))
            assert called() == (number + 1, 0) and tensors[-1].data_ptr() == last_memory.value
    segments = pool.snapshot()
    assert len(segments) == 5
    assert all(len(segment["blocks"]) == 1 for segment in segments)
    assert all(segment["allocated_size"] == segment["total_size"] for segment in segments)
    assert sum(segment["requested_size"] for segment in segments) == 45 * MiB
    tensors.clear()
    with torch.cuda.use_mem_pool(pool):
        again = block(31), block(12)
    assert called() == (5, 0)
    del again, pool
    assert called() == (5, 5)

@only_on_poolalloc  # torch's small blocks are in segments too, but of 2 MiB each
def without_splitting_no_page_is_shared():
    pool = torch.cuda.MemPool(no_split=True)
    with torch.cuda.use_mem_pool(pool):
        tensors = [block(size) for size in (0.001, 0.001, 1, 3)]
    pages = [range(t.data_ptr() // (2 * MiB), -(-(t.data_ptr() + t.nbytes) // (2 * MiB))) for t in tensors]
    assert len({page for each in pages for page in each}) == sum(map(len, pages)) == 5
    assert sum(segment["allocated_size"] for segment in pool.snapshot()) == 10 * MiB
    del tensors, pool

@only_on_poolalloc  # torch's calls it with its lock held, which Python waits for
def an_allocator_written_in_python_stops_nobody():
    blocks = {}
    runtime = ctypes.CDLL(None)
    def allocate(size, device, stream):
        memory = ctypes.c_void_p()
        if runtime.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(size)) != 0:
            return 0
        blocks[memory.value] = size
        torch.cuda.memory_stats()
        return memory.value
    def free(memory, size, device, stream):
        assert blocks.pop(memory) == size
        runtime.cudaFree(ctypes.c_void_p(memory))
        torch.cuda.memory_stats()
    functions = (ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)(allocate),
                 ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)(free))
    addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
    allocator = torch._C._cuda_customAllocator(*addresses)
    pools = [torch.cuda.MemPool(allocator) for _ in range(4)]
    failures = []
    def work(number):
        try:
            for step in range(40):
                with torch.cuda.stream(torch.cuda.Stream()), torch.cuda.use_mem_pool(pools[number]):
                    tensors = [block(1 + (step * 7 + number) % 25) for _ in range(3)]
                del tensors
                if step % 10 == number:
                    torch.cuda.empty_cache()
        except BaseException:
            failures.append(traceback.format_exc())
    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert blocks
    pools.clear()
    torch.cuda.empty_cache()
    assert not blocks

@scenario
def switched_off_memory_comes_from_cuda_and_goes_back():
    gc.collect()
    torch.cuda.empty_cache()
    cached = block(8)
    free, reserved = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
    torch.cuda.caching_allocator_enable(False)
    try:
        tensor = block(64)
        assert torch.cuda.memory_reserved() == reserved and torch.cuda.mem_get_info()[0] == free - 64 * MiB
        tensor.record_stream(torch.cuda.Stream())
        del tensor
        assert torch.cuda.mem_get_info()[0] == free
        empty = torch.empty(0, device="cuda")
        kept = block(1)
        del cached
        assert torch.cuda.memory_reserved() == reserved, "what was cached before stays that"
    finally:
        torch.cuda.caching_allocator_enable(True)
    del kept, empty
    assert torch.cuda.mem_get_info()[0] == free
    cached = block(8)
    assert torch.cuda.memory_reserved() == reserved

@only_on_poolalloc  # torch's has nothing it could give back, and raises AcceleratorError
def switched_off_it_runs_out_of_memory_only_when_nothing_is_idle():
    del (idle := [block(5000)])[:]
    torch.cuda.caching_allocator_enable(False)
    try:
        del (tensor := [block(6000)])[:]
        try:
            block(9000)
        except torch.OutOfMemoryError as error:
            assert "switched off" in str(error)
        else:
            raise AssertionError("there was none")
    finally:
        torch.cuda.caching_allocator_enable(True)

@scenario
def a_tensor_of_such_a_pool_has_a_handle_for_other_processes():
    pool = torch.cuda.MemPool(own().allocator())
    with torch.cuda.use_mem_pool(pool):
        before, tensor = block(2), block(3)
    _, handle, size, *_ = tensor.untyped_storage()._share_cuda_()
    assert handle and size == 3 * MiB
    assert before.untyped_storage()._share_cuda_()[1] == handle, "they lie in one segment"
    kept.append((before, tensor, pool))  # whoever sent them waits for those that never come
"""


@pytest.fixture(scope="session")
def own_allocator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with an allocator as a communication library has one."""
    folder = tmp_path_factory.mktemp("own_allocator")
    source, library = folder / "own_allocator.cpp", folder / "libown_allocator.so"
    source.write_text(ALLOCATOR)
    subprocess.run([os.environ.get("CXX", "g++"), "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.mark.parametrize("allocator", ["torch", "poolalloc"])
def test_own_allocators(on_sim: Callable, own_allocator: Path, allocator: str) -> None:
    outcome = on_sim(PROGRAM + RUN + PRINT, arguments=(allocator, str(own_allocator)))
    assert outcome.report["violations"] == {}
    failed = {name: text for name, text in outcome.value.items() if text is not None}
    assert not failed, "\n".join(failed.values())
    assert len(outcome.value) == (12 if allocator == "poolalloc" else 9)
