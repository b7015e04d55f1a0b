"""Regions under torch: memory that sleeps by tag, on a simulated GPU that keeps the contents of copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

from poolalloc.analysis.replay import replay
from poolalloc.analysis.trace import read

START = """
    import gc
    import json
    import os
    import threading

    import torch
    import poolalloc

    poolalloc.install()
    MiB = 1 << 20

    def numbers(count, seed):
        return torch.randint(0, 1 << 30, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)

    def held():
        free, total = torch.cuda.mem_get_info()
        return total - free

    def of(tag):
        return [one for one in poolalloc.regions() if one.tag == tag][0]

    def refused(call, error, *words):
        try:
            call()
        except error as problem:
            assert all(word in str(problem) for word in words), str(problem)
        else:
            raise AssertionError("nothing was raised")
"""


def run(on_sim: Callable, program: str, **settings: Any) -> Any:
    whole = {"POOLALLOC_SIM_COPY_BYTES": str(1 << 30), "POOLALLOC_SIM_KEEP_CONTENTS": "1"}
    environment = {**whole, **settings.pop("environment", {})}
    return on_sim(dedent(START) + dedent(program), environment=environment, **settings)


def test_contents_come_back_bit_by_bit_at_the_same_addresses(on_sim: Callable, tmp_path: Path) -> None:
    program = f"""
    folder = {str(tmp_path)!r}
    awake = held()
    with poolalloc.region("weights"):
        tensors = [numbers(count, count).cuda() for count in (7, 1000, 300_000, 9_000_001)]
    with poolalloc.region("cache"):
        cache = torch.zeros(20 * MiB, dtype=torch.uint8, device="cuda")
    plain = numbers(500_000, 1).cuda()
    before = held()
    addresses = [tensor.data_ptr() for tensor in tensors]
    weights = of("weights")
    for keep in ("host", "file"):
        poolalloc.sleep("weights", keep=keep, folder=folder)
        assert held() == before - weights.reserved, (held(), before, weights)
        one = of("weights")
        assert one.is_asleep and one.reserved == one.resident == 0 and one.asleep == weights.reserved
        assert one.contents >= 36 * 1000 * 1000 and one.contents_in == keep
        assert not [name for name in os.listdir(folder) if "sleep" in name]
        stats = poolalloc.memory_stats()
        assert stats["asleep"] == weights.reserved and stats["reserved"]["current"] == torch.cuda.memory_reserved()
        assert stats["asleep_" + keep] == one.contents
        parts = poolalloc.fragmentation()
        assert parts.total.reserved == torch.cuda.memory_reserved() and parts.asleep == weights.reserved
        segments = torch.cuda.memory_snapshot()
        assert sum(segment["total_size"] for segment in segments) == torch.cuda.memory_reserved()
        assert torch.equal(plain.cpu(), numbers(500_000, 1))
        poolalloc.wake("weights")
        assert held() == before and [tensor.data_ptr() for tensor in tensors] == addresses
        for tensor in tensors:
            assert torch.equal(tensor.cpu(), numbers(len(tensor), len(tensor)))
    poolalloc.sleep("cache", keep="nothing")
    assert of("cache").contents == 0 and of("cache").is_asleep
    del cache
    poolalloc.wake()
    assert of("cache").reserved == 0
    """
    run(on_sim, program)


def test_autograd_pools_threads_and_nesting_belong_to_the_region(on_sim: Callable) -> None:
    program = """
    with poolalloc.region("model"):
        model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(3))).cuda()
    parameters = of("model").requested
    with poolalloc.region("training"):
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
        model(torch.ones(64, 1024, device="cuda")).sum().backward()
        optimizer.step()
        trained = of("training").requested
        with poolalloc.region("inner"):
            inner = torch.empty(5 * MiB, device="cuda")
        with poolalloc.region(None):
            outside = torch.empty(3 * MiB, device="cuda")
        other = []
        thread = threading.Thread(target=lambda: other.append(torch.empty(2 * MiB, device="cuda")))
        thread.start()
        thread.join()
        pool = torch.cuda.MemPool()
    # Gradients come from autograd's thread, momentum from this one; another thread of the program is in no region.
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters())
    assert of("model").requested == parameters
    assert of("training").requested >= 2 * gradients, (of("training"), gradients)
    assert of("training").requested == trained
    assert of("inner").requested == 20 * MiB
    before = of("training").requested
    with torch.cuda.use_mem_pool(pool):
        pooled = torch.empty(7 * MiB, device="cuda")
    assert of("training").requested == before + 28 * MiB
    assert torch.cuda.memory_allocated() >= parameters + before + 28 * MiB + 20 * MiB + 12 * MiB + 8 * MiB
    del pooled, pool
    gc.collect()
    torch.cuda.empty_cache()
    assert of("training").requested == before
    poolalloc.sleep()
    assert all(one.is_asleep for one in poolalloc.regions())
    poolalloc.wake()
    """
    run(on_sim, program)


def test_a_graph_replays_after_it_slept(on_sim: Callable) -> None:
    program = """
    with poolalloc.region("graph"):
        static = numbers(1 << 20, 1).cuda()
        out = torch.empty_like(static)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            between = torch.empty_like(static)
            between.copy_(static)
            out.copy_(between)
            del between
    with poolalloc.region("other"):
        other = torch.zeros(4 * MiB, dtype=torch.uint8, device="cuda")
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out.cpu(), numbers(1 << 20, 1))
    reserved = of("graph").reserved
    assert of("graph").idle_for_graphs > 0
    for seed in (2, 3):
        poolalloc.sleep("graph", keep="host")
        assert of("graph").reserved == 0 and of("graph").asleep == reserved
        poolalloc.wake("graph")
        assert of("graph").reserved == reserved
        static.copy_(numbers(1 << 20, seed).cuda())
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out.cpu(), numbers(1 << 20, seed))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        capture = torch.cuda.CUDAGraph()
        capture.capture_begin()
        refused(lambda: poolalloc.sleep("other"), poolalloc.UsageError, "captured")
        capture.capture_end()
    poolalloc.sleep("other")
    """
    run(on_sim, program)


def test_what_people_report(on_sim: Callable) -> None:
    """Freed while asleep, refused or waking allocations, sleeping and waking twice, short devices, unknown tags."""
    program = """
    refused(lambda: poolalloc.sleep("weights"), poolalloc.UsageError, "none yet")
    refused(lambda: poolalloc.region("").__enter__(), poolalloc.UsageError, "tag")
    with poolalloc.region("weights"):
        one, two = torch.empty(3 << 30, dtype=torch.uint8, device="cuda"), numbers(100_000, 5).cuda()
    refused(lambda: poolalloc.wake("wieghts"), poolalloc.UsageError, "weights")
    refused(lambda: poolalloc.sleep("weights", keep="file", folder="/no/such"), poolalloc.UsageError, "/no/such")
    refused(lambda: poolalloc.sleep("weights", keep="disk"), poolalloc.UsageError, "nothing")
    refused(lambda: poolalloc.sleep(["weights"]), poolalloc.UsageError, "text")
    refused(lambda: poolalloc.region(5), poolalloc.UsageError, "text")
    refused(lambda: poolalloc.region("\\ud800"), poolalloc.UsageError, "text")
    poolalloc.sleep("weights", keep="nothing")
    poolalloc.sleep("weights", keep="host")
    del one
    with poolalloc.region("weights"):
        refused(lambda: torch.empty(10, device="cuda"), RuntimeError, "weights", "asleep", "wake_on_allocate")
    poolalloc.wake("weights")
    poolalloc.wake("weights")
    assert of("weights").reserved <= 258 * MiB  # the piece of memory that the small one lies in
    with poolalloc.region("weights"):
        one = torch.empty(6 << 30, dtype=torch.uint8, device="cuda")

    poolalloc.sleep("weights", keep="nothing")
    blocker = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
    refused(lambda: poolalloc.wake(), torch.OutOfMemoryError, 'to wake "weights"', "GiB")
    assert of("weights").is_asleep
    del blocker
    poolalloc.wake()
    assert not of("weights").is_asleep and one.numel() == 6 << 30

    # A callback makes room for one region by putting another to sleep.
    poolalloc.sleep("weights", keep="nothing")
    with poolalloc.region("cache"):
        cache = torch.empty(5 << 30, dtype=torch.uint8, device="cuda")
    with poolalloc.on_oom(lambda device, size: poolalloc.sleep("cache", keep="nothing")):
        poolalloc.wake("weights")
    assert of("cache").is_asleep and not of("weights").is_asleep
    poolalloc.sleep("weights", keep="nothing")
    poolalloc.wake("cache")
    with poolalloc.region("cache"):
        with poolalloc.on_oom(lambda device, size: None):
            refused(lambda: torch.empty(7 << 30, dtype=torch.uint8, device="cuda"), torch.OutOfMemoryError, "asleep")
    poolalloc._core.validate()
    """
    run(on_sim, program)


def test_two_devices_a_recording_a_fork_and_an_exit_while_asleep(on_sim: Callable, tmp_path: Path) -> None:
    program = f"""
    path = {str(tmp_path / "run.npz")!r}
    with poolalloc.record(path):
        with poolalloc.region("both"):
            first = numbers(1 << 20, 1).cuda()
            second = numbers(1 << 20, 2).to("cuda:1")
        poolalloc.sleep("both")
        assert [one.is_asleep for one in poolalloc.regions()] == [True, True]
        assert [one.device for one in poolalloc.regions(1)] == [1]
        poolalloc.wake("both")
        assert torch.equal(first.cpu(), numbers(1 << 20, 1)) and torch.equal(second.cpu(), numbers(1 << 20, 2))
    poolalloc.sleep("both", keep="file", folder={str(tmp_path)!r})
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print(json.dumps([one.tag for one in poolalloc.regions()]))
    """
    outcome = run(on_sim, program, devices=2)
    assert outcome.value == ["both", "both"]
    (device, _) = replay(read(tmp_path / "run.npz")).devices
    assert device.peak("requested") >= 4 << 20
    assert sorted(path.name for path in tmp_path.iterdir() if "sleep" in path.name) == []


def test_an_allocation_may_wake_its_region(on_sim: Callable) -> None:
    program = """
    with poolalloc.region("r"):
        kept = numbers(50_000, 3).cuda()
    poolalloc.sleep("r")
    with poolalloc.region("r"):
        more = torch.empty(10 * MiB, device="cuda")
    assert not of("r").is_asleep and torch.equal(kept.cpu(), numbers(50_000, 3))
    poolalloc.sleep("r", keep="nothing")
    refused(lambda: poolalloc.wake("x"), poolalloc.UsageError, "x")
    """
    run(on_sim, program, environment={"POOLALLOC_CONF": "wake_on_allocate:true,sleep_host_limit:1GiB"})


def test_a_pool_that_no_graph_uses_gives_its_idle_memory_back(on_sim: Callable) -> None:
    program = """
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        large, small = torch.empty(5 << 30, dtype=torch.uint8, device="cuda"), torch.empty(9, device="cuda")
    del large
    whole = torch.empty(6 << 30, dtype=torch.uint8, device="cuda")  # the ladder takes what the pool has idle
    del whole
    with torch.cuda.use_mem_pool(pool):
        large = torch.empty(5 << 30, dtype=torch.uint8, device="cuda")
    del large
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= 256 * MiB, torch.cuda.memory_reserved()
    """
    run(on_sim, program)


def test_torch_memory_savers_names_work(on_sim: Callable) -> None:
    """The scenarios of that library: one tag, several tags, a backup, a graph, a part that stays."""
    program = """
    from poolalloc.compat.torch_memory_saver import configure_subprocess, torch_memory_saver as saver

    with configure_subprocess():
        saver.hook_mode = "preload"
    with saver.region():
        plain = torch.full((100 * MiB,), 7, dtype=torch.uint8, device="cuda")
    with saver.region(tag="kept", enable_cpu_backup=True):
        kept = numbers(1 << 20, 4).cuda()
        with saver.disable():
            stays = torch.zeros(30 * MiB, dtype=torch.uint8, device="cuda")
    with saver.region(tag="kept"):
        dropped = torch.empty(60 * MiB, dtype=torch.uint8, device="cuda")
    address, full = plain.data_ptr(), held()
    saver.pause("kept")
    assert full - held() >= 64 * MiB
    saver.pause()
    assert full - held() >= 164 * MiB and torch.cuda.memory_reserved() >= 30 * MiB
    saver.resume("default")
    assert plain.data_ptr() == address and held() <= full - 60 * MiB
    saver.resume()
    assert held() == full and torch.equal(kept.cpu(), numbers(1 << 20, 4))

    static, graph = numbers(1000, 1).cuda(), torch.cuda.CUDAGraph()
    with saver.cuda_graph(graph, tag="graph"):
        out = static.clone()
    saver.pause("graph")
    assert [one.is_asleep for one in poolalloc.regions() if one.tag.startswith("graph")] == [True]
    saver.resume("graph")
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out.cpu(), numbers(1000, 1))
    refused(lambda: saver.get_cpu_backup(kept), NotImplementedError, "resume")
    assert saver.enabled
    for _ in range(50):
        saver.pause()
        saver.resume()
    """
    run(on_sim, program)


def test_vllms_names_work(on_sim: Callable) -> None:
    """The scenarios of its sleep mode: level 1 keeps weights and drops caches, tags wake one by one."""
    program = """
    import sys
    from poolalloc.compat import vllm_cumem

    vllm_cumem.replace()
    assert sys.modules["vllm.device_allocator.cumem"].cumem_available
    allocator = vllm_cumem.CuMemAllocator.get_instance()
    assert allocator is vllm_cumem.CuMemAllocator.get_instance()
    with allocator.use_memory_pool():
        default = numbers(9, 9).cuda()
    with allocator.use_memory_pool(tag="weights"):
        weights = numbers(1 << 20, 6).cuda()
        with torch.no_grad():
            quantized = weights.to(torch.int8)
    with allocator.use_memory_pool(tag="kv_cache"):
        cache = torch.zeros(64 * MiB, dtype=torch.uint8, device="cuda")
    usage, full = allocator.get_current_usage(), held()
    assert usage >= 69 * MiB
    allocator.sleep(offload_tags=("weights",))
    assert full - held() == usage == allocator.get_current_usage() and torch.cuda.memory_reserved() < 4 * MiB
    allocator.wake_up(["weights"])
    assert torch.equal(weights.cpu(), numbers(1 << 20, 6)) and held() <= full - 64 * MiB
    allocator.wake_up(["kv_cache"])
    allocator.wake_up()
    assert held() == full
    default.copy_(numbers(9, 9))
    allocator.sleep("default")
    allocator.wake_up()
    assert torch.equal(default.cpu(), numbers(9, 9))
    """
    run(on_sim, program)


def test_a_profiler_may_start_and_stop_across_the_border_of_a_region(on_sim: Callable) -> None:
    program = """
    from torch.profiler import ProfilerActivity, profile

    def profiler():
        return profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    inside = profiler()
    with poolalloc.region("r"):
        inside.start()
        kept = torch.empty(MiB, device="cuda")
    outside = torch.empty(MiB, device="cuda")
    inside.stop()
    before = profiler()
    before.start()
    entered = poolalloc.region("r")
    with entered:
        before.stop()
    with entered:
        more = torch.empty(MiB, device="cuda")
    assert of("r").requested == 8 * MiB
    """
    run(on_sim, program)


def test_many_regions_cost_statistics_little(on_sim: Callable) -> None:
    program = """
    kept = []
    for number in range(300):
        with poolalloc.region(f"r{number}"):
            kept.append(torch.empty(10, device="cuda"))
    stats = torch.cuda.memory_stats()
    assert stats["allocated_bytes.all.current"] == 300 * 512
    poolalloc.sleep(keep="nothing")
    assert torch.cuda.memory_reserved() == 0
    del kept
    assert sum(one.asleep for one in poolalloc.regions()) == 0
    """
    run(on_sim, program)


def test_workspaces_that_torch_keeps_do_not_sleep_with_a_region(on_sim: Callable) -> None:
    program = """
    with poolalloc.region("r"):
        a = torch.ones(512, 512, device="cuda")
        b = a @ a  # some versions of torch keep a workspace of cuBLAS from here on
    poolalloc.sleep("r", keep="nothing")
    assert of("r").requested == 2 * MiB
    c = torch.ones(512, 512, device="cuda")
    c @ c
    assert of("r").requested == 2 * MiB
    """
    run(on_sim, program)
