"""What torch's own tests expect of its allocator, in scenarios of our own, on poolalloc.

Each holds on torch's allocator as well, and is tried there, so nothing is asked that torch does not do.
What cannot hold by design is listed in docs/torch-graphs-and-processes.md.

POOLALLOC_TEST_PYTHON names another interpreter, with another torch, to try it on.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scenarios import PRINT, RUN

pytestmark = pytest.mark.torch_interface

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("POOLALLOC_TEST_PYTHON", sys.executable)

PROGRAM = """
import gc, json, os, random, sys, threading, traceback
import torch
if sys.argv[1] == "poolalloc":
    import poolalloc
    assert poolalloc.install(bridge=True).backend == "bridge"
MiB = 2**20
SCENARIOS = {}
def scenario(function):
    SCENARIOS[function.__name__] = function
    return function
def block(mebibytes):
    return torch.empty(int(mebibytes * MiB), dtype=torch.uint8, device="cuda")
def stat(name):
    return torch.cuda.memory_stats()[name]
def raises(error, call, text=""):
    try:
        call()
    except error as problem:
        assert text in str(problem), problem
    else:
        raise AssertionError(f"no {error}")

@scenario
def allocated_follows_what_lives_and_peaks_what_lived():
    torch.cuda.reset_peak_memory_stats()
    start, top, kept = torch.cuda.memory_allocated(), torch.cuda.memory_allocated(), []
    for step in range(20):
        kept.append(block(1 + step % 5))
        now = torch.cuda.memory_allocated()
        assert now >= start + sum(tensor.numel() for tensor in kept)
        top = max(top, now)
        assert torch.cuda.max_memory_allocated() == top
        assert torch.cuda.memory_reserved() >= now
        if step % 3 == 2:
            del kept[0]
            assert torch.cuda.memory_allocated() < now
    kept.clear()
    assert torch.cuda.memory_allocated() == start and torch.cuda.max_memory_allocated() == top
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == start

@scenario
def any_order_of_calls_adds_up():
    generator, live = random.Random(5), {}
    start, requested = stat("allocation.all.current"), stat("requested_bytes.all.current")
    streams = [torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    for step in range(3000):
        if live and generator.random() < 0.48:
            tensor, _ = live.pop(generator.choice(list(live)))
            if generator.random() < 0.3:
                tensor.record_stream(generator.choice(streams))
            del tensor
        else:
            size = int(2 ** generator.uniform(0, 24))
            with torch.cuda.stream(generator.choice(streams)):
                live[step] = torch.empty(size, dtype=torch.uint8, device="cuda"), size
        if step % 500 == 0:
            assert stat("allocation.all.current") - start == len(live)
    spans = sorted((tensor.data_ptr(), size) for tensor, size in live.values())
    assert all(a + size <= b for (a, size), (b, _) in zip(spans, spans[1:])), "no two live blocks overlap"
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what waited for other streams is finished
    assert stat("requested_bytes.all.current") - requested == sum(size for _, size in live.values())
    live.clear()
    assert stat("requested_bytes.all.current") == requested

@scenario
def running_out_is_an_error_that_passes():
    free, total = torch.cuda.mem_get_info()
    ooms = stat("num_ooms")
    raises(torch.OutOfMemoryError, lambda: block(2 * total / MiB), "CUDA out of memory")
    raises(torch.cuda.OutOfMemoryError, lambda: block(total // MiB + 1))
    assert stat("num_ooms") == ooms + 2
    held = [block(free // MiB // 4) for _ in range(3)]
    raises(torch.OutOfMemoryError, lambda: block(free // MiB // 3))
    del held[0]
    held.append(block(free // MiB // 4))

@scenario
def a_fraction_is_a_limit():
    _, total = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    raises(TypeError, lambda: torch.cuda.set_per_process_memory_fraction("1"))
    raises(ValueError, lambda: torch.cuda.set_per_process_memory_fraction(-0.1))
    raises(ValueError, lambda: torch.cuda.set_per_process_memory_fraction(2.0))
    torch.cuda.set_per_process_memory_fraction(0.5)
    try:
        raises(torch.OutOfMemoryError, lambda: block(total / MiB * 0.51))
        block(total / MiB * 0.45)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
    block(total / MiB * 0.51)
    torch.cuda.empty_cache()

@scenario
def memory_used_elsewhere_is_not_reused_there_yet():
    side, tensor = torch.cuda.Stream(), block(4)
    pointer = tensor.data_ptr()
    with torch.cuda.stream(side):
        for _ in range(5):
            tensor.add_(1)
    tensor.record_stream(side)
    del tensor
    # The simulated device lags: the side stream's work has not completed.
    assert block(4).data_ptr() != pointer
    torch.cuda.synchronize()

@scenario
def raw_memory_has_a_stream_and_an_owner():
    start = torch.cuda.memory_allocated()
    one = torch.cuda.caching_allocator_alloc(10 * MiB)
    two = torch.cuda.caching_allocator_alloc(1000, stream=torch.cuda.Stream())
    assert torch.cuda.memory_allocated() >= start + 10 * MiB + 1000
    for pointer in (one, two):
        torch.cuda.caching_allocator_delete(pointer)
    assert torch.cuda.memory_allocated() == start
    storage = torch._C._construct_storage_from_data_pointer(one, torch.device("cuda", 0), 100)
    assert not torch._C._has_Standard_Deleter(storage._cdata)
    assert torch._C._has_Standard_Deleter(block(1).untyped_storage()._cdata)

@scenario
def a_pool_is_apart_and_counted():
    pool, other = torch.cuda.MemPool(), torch.cuda.MemPool()
    assert pool.id != other.id and pool.use_count() == 1
    outside = block(8)
    freed = outside.data_ptr()
    del outside
    with torch.cuda.use_mem_pool(pool):
        assert pool.use_count() == 2
        inside = block(8)
        assert inside.data_ptr() != freed, "idle memory of others is not a pool's"
        where = inside.data_ptr()
        del inside
    assert pool.use_count() == 1 and block(8).data_ptr() != where, "idle memory of a pool is not others'"
    with torch.cuda.use_mem_pool(pool):
        assert block(8).data_ptr() == where

@scenario
def a_tensor_may_outlive_its_pool():
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        tensor = block(6)
    start = torch.cuda.memory_allocated()
    del pool
    gc.collect()
    torch.cuda.empty_cache()
    tensor.add_(1)
    del tensor
    assert torch.cuda.memory_allocated() == start - 6 * MiB
    torch.cuda.empty_cache()

@scenario
def a_graph_may_be_captured_inside_a_pool():
    pool, graph, x = torch.cuda.MemPool(), torch.cuda.CUDAGraph(), block(1)
    with torch.cuda.graph(graph, pool=pool.id):
        y = x + 1
    assert pool.use_count() == 2
    graph.replay()
    torch.cuda.synchronize()
    del graph, y
    gc.collect()
    assert pool.use_count() == 1

@scenario
def a_capture_that_runs_out_leaves_things_usable():
    graph = torch.cuda.CUDAGraph()
    def capture():
        with torch.cuda.graph(graph):
            block(2**20)
    raises(torch.OutOfMemoryError, capture)
    del graph
    gc.collect()
    x, graph = block(1), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * 2
    graph.replay()
    torch.cuda.synchronize()

@scenario
def memory_of_a_graph_returns_when_it_is_reset():
    x = block(2)
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = [x + number for number in range(20)]
    during = torch.cuda.memory_reserved()
    assert during >= before + 40 * MiB
    del y
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() >= before + 40 * MiB, "a graph that can replay keeps it"
    graph.replay()
    torch.cuda.synchronize()
    graph.reset()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2 * MiB  # torch 2.11 keeps a graph's random state, outside its pool

@scenario
def many_threads_allocate_and_free_each_others():
    failures, shelf, lock = [], [], threading.Lock()
    def work(number):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for step in range(150):
                    tensor = block((1 + (number * 7919 + step * 104729) % (3 * MiB)) / MiB)
                    with lock:
                        shelf.append(tensor)
                        gone = shelf.pop(0) if len(shelf) > 20 else None
                    del gone
        except BaseException:
            failures.append(traceback.format_exc())
    start = torch.cuda.memory_allocated()
    threads = [threading.Thread(target=work, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shelf.clear()
    assert not failures, failures[0]
    assert torch.cuda.memory_allocated() == start

@scenario
def callbacks_in_python_stop_nobody():
    # Python runs inside allocations of autograd's threads while other threads allocate: nothing may hold a lock then.
    from torch.cuda import _gpu_trace
    seen = {"new": 0, "gone": 0}
    def count(kind):
        def called(pointer):
            seen[kind] += 1
            torch.cuda.memory_allocated()  # asks the allocator from inside the callback
        return called
    _gpu_trace.register_callback_for_memory_allocation(count("new"))
    _gpu_trace.register_callback_for_memory_deallocation(count("gone"))
    torch._C._activate_gpu_trace()
    def train():
        weight = torch.ones(64, 64, device="cuda", requires_grad=True)
        for _ in range(30):
            (weight @ weight).relu().sum().backward()
            torch.cuda.empty_cache()
    threads = [threading.Thread(target=train) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert seen["new"] > 100 and seen["gone"] > 100, seen
"""

NOT_EXCHANGED = """\
    try:  # as torch's own allocator, ours cannot be exchanged once it is in use
        torch.cuda.memory.change_current_allocator(
            torch.cuda.memory.CUDAPluggableAllocator(_core.library_path(), "poolalloc_malloc", "poolalloc_free"))
    except RuntimeError:
        outcomes["the_allocator_cannot_be_changed"] = None
    else:
        outcomes["the_allocator_cannot_be_changed"] = "it was"
"""


@pytest.mark.parametrize("allocator", ["torch", "poolalloc"])
def test_scenarios(on_sim: Callable, allocator: str) -> None:
    outcome = on_sim(
        PROGRAM + RUN + NOT_EXCHANGED + PRINT,
        command=(PYTHON,),
        arguments=(allocator,),
        lag=1000,
        environment={"PYTHONPATH": str(ROOT)},
    )
    assert outcome.report["violations"] == {}
    failed = {name: text for name, text in outcome.value.items() if text is not None}
    assert not failed, "\n".join(failed.values())
    assert len(outcome.value) >= 13
