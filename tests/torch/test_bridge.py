"""What torch's own calls do with poolalloc's bridge under them: the table of docs/install.md, tried row by row.

POOLALLOC_TEST_PYTHON names another interpreter, with another torch, to try it on.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fork_server import ForkServer

from poolalloc.installing import BRIDGE_MISSING

pytestmark = pytest.mark.torch_interface

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("POOLALLOC_TEST_PYTHON", sys.executable)

PRELUDE = """
import poolalloc, torch
assert poolalloc.install(bridge=True).backend == "bridge"
MiB = 2**20
def block(mebibytes):
    return torch.empty(int(mebibytes * MiB), dtype=torch.uint8, device="cuda")
"""

# Row of the manual -> a program that fails if the row is wrong.
WORKS = {
    "torch.cuda.memory_allocated, max_memory_allocated, reset_peak_memory_stats": """
        first = block(3)
        assert torch.cuda.memory_allocated() == 3 * MiB == torch.cuda.max_memory_allocated()
        second = block(5)
        del second
        assert torch.cuda.memory_allocated() == 3 * MiB and torch.cuda.max_memory_allocated() == 8 * MiB
        torch.cuda.reset_peak_memory_stats()
        assert torch.cuda.max_memory_allocated() == 3 * MiB
    """,
    "torch.cuda.memory_reserved, max_memory_reserved, empty_cache": """
        kept, gone = block(4), block(64)
        assert torch.cuda.memory_reserved() == 68 * MiB
        del gone
        assert torch.cuda.memory_reserved() == 68 * MiB
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() == 4 * MiB and torch.cuda.max_memory_reserved() == 68 * MiB
    """,
    "torch.cuda.memory_stats, reset_accumulated_memory_stats": """
        blocks = [block(1 / 1024) for _ in range(10)] + [block(2) for _ in range(3)]
        del blocks[:4]
        stats = torch.cuda.memory_stats()
        def figures(name):
            return [[stats[f"{name}.{pool}.{figure}"] for figure in ("current", "peak", "allocated", "freed")]
                    for pool in ("all", "small_pool", "large_pool")]
        assert figures("allocation") == [[9, 13, 13, 4], [6, 10, 10, 4], [3, 3, 3, 0]]
        assert figures("active") == figures("allocation")
        assert figures("allocated_bytes")[1] == [6 * 1024, 10 * 1024, 10 * 1024, 4 * 1024]
        assert figures("requested_bytes")[2] == [6 * MiB, 6 * MiB, 6 * MiB, 0]
        assert figures("reserved_bytes") == [[8 * MiB, 8 * MiB, 8 * MiB, 0], [2 * MiB, 2 * MiB, 2 * MiB, 0],
                                             [6 * MiB, 6 * MiB, 6 * MiB, 0]]
        assert figures("segment") == [[4, 4, 4, 0], [1, 1, 1, 0], [3, 3, 3, 0]]
        assert figures("inactive_split_bytes")[0][0] == 2 * MiB - 6 * 1024
        for name in ("allocation", "segment", "active", "allocated_bytes", "reserved_bytes", "active_bytes",
                     "requested_bytes", "inactive_split", "inactive_split_bytes"):
            both = figures(name)
            for figure in (0, 2, 3):
                assert both[0][figure] == both[1][figure] + both[2][figure], (name, both)
            assert all(current == allocated - freed for current, _, allocated, freed in both), (name, both)
        assert stats["num_device_alloc"] == 4 and stats["num_device_free"] == 0 and stats["num_ooms"] == 0
        torch.cuda.reset_accumulated_memory_stats()
        stats = torch.cuda.memory_stats()
        assert figures("allocation") == [[9, 13, 0, 0], [6, 10, 0, 0], [3, 3, 0, 0]]
        assert stats["num_device_alloc"] == 0
        blocks.append(block(2))
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == 1
    """,
    "every key of torch.cuda.memory_stats": """
        import json, sys
        block(1)
        assert sorted(torch.cuda.memory_stats()) == json.loads(sys.argv[1])
    """,
    "torch.cuda.memory_summary": """
        tensor = block(7)
        text = torch.cuda.memory_summary()
        assert "PyTorch CUDA memory summary" in text and "7168 KiB" in text
        assert torch.cuda.memory_summary(abbreviated=True)
    """,
    "torch.cuda.mem_get_info, list_gpu_processes": """
        free, total = torch.cuda.mem_get_info()
        tensor = block(64)
        assert torch.cuda.mem_get_info() == (free - 64 * MiB, total) and total == 8 * 2**30
    """,
    "torch.accelerator.memory_allocated and its like": """
        if hasattr(torch.accelerator, "memory_allocated"):
            tensor = block(3)
            assert torch.accelerator.memory_allocated() == 3 * MiB == torch.accelerator.max_memory_allocated()
            assert torch.accelerator.memory_reserved() == 4 * MiB == torch.accelerator.max_memory_reserved()
            assert torch.accelerator.memory_stats()["allocation.all.current"] == 1
            del tensor
            torch.accelerator.reset_peak_memory_stats()
            assert torch.accelerator.max_memory_allocated() == 0
            torch.accelerator.empty_cache()
            assert torch.accelerator.memory_reserved() == 0
    """,
    "torch.cuda.set_per_process_memory_fraction, get_per_process_memory_fraction": """
        torch.cuda.set_per_process_memory_fraction(0.25)
        assert torch.cuda.get_per_process_memory_fraction() == 0.25
        block(2000)
        try:
            block(2100)
        except torch.OutOfMemoryError:
            pass
        else:
            raise AssertionError("more than the fraction")
    """,
    "torch.OutOfMemoryError": """
        kept = block(1)
        try:
            block(2**20)
        except torch.cuda.OutOfMemoryError as error:
            text = str(error)
        assert text.startswith("CUDA out of memory. ") and "asked for 1 TiB" in text and "live" in text
        assert torch.cuda.memory_stats()["num_ooms"] == 1
        assert block(1).numel() == MiB
    """,
    "observers of out of memory": """
        seen = []
        torch._C._cuda_attach_out_of_memory_observer(lambda *figures: seen.append(figures))
        for _ in range(2):
            try:
                block(2**20)
            except torch.OutOfMemoryError:
                pass
        free, total = torch.cuda.mem_get_info()
        assert seen == [(0, 2**40, total, free)] * 2, seen
    """,
    "torch.cuda.caching_allocator_alloc, caching_allocator_delete": """
        pointer = torch.cuda.caching_allocator_alloc(3 * MiB)
        other = torch.cuda.caching_allocator_alloc(1000, stream=torch.cuda.Stream())
        assert torch.cuda.memory_allocated() == 3 * MiB + 1024
        torch.cuda.caching_allocator_delete(pointer)
        torch.cuda.caching_allocator_delete(other)
        assert torch.cuda.memory_allocated() == 0
        try:
            torch.cuda.caching_allocator_delete(pointer)
        except RuntimeError as error:
            assert "not the start of a live block" in str(error)
        else:
            raise AssertionError("a second free")
    """,
    "torch.cuda.caching_allocator_enable": """
        torch.cuda.init()  # before it, torch ignores the next line
        torch.cuda.caching_allocator_enable(False)
        free = torch.cuda.mem_get_info()[0]
        block(64)
        assert torch.cuda.mem_get_info()[0] == free
        torch.cuda.caching_allocator_enable(True)
    """,  # the rest of it: test_pool_allocator.py
    "tensors of no bytes": """
        empty = torch.empty(0, device="cuda")
        assert empty.data_ptr() == 0 and torch.cuda.memory_allocated() == 0
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == 0
    """,
    "Tensor.record_stream": """
        tensor, stream = block(8), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            tensor.add_(1)
        tensor.record_stream(stream)
        del tensor
        stats = torch.cuda.memory_stats()
        assert stats["allocated_bytes.all.current"] == 0 and stats["active_bytes.all.current"] == 8 * MiB
        assert stats["active.all.current"] == 1 and stats["active_bytes.large_pool.current"] == 8 * MiB
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        assert torch.cuda.memory_stats()["active_bytes.all.current"] == 0
    """,
    "memory in torch.profiler": """
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            tensor = torch.empty(3 * MiB, dtype=torch.uint8, device="cuda")
            other = torch.empty(5 * MiB, dtype=torch.uint8, device="cuda")
            del other
        events = {event.key: event for event in profile.key_averages()}
        assert events["aten::empty"].self_device_memory_usage == 8 * MiB
        assert sum(event.self_device_memory_usage for event in events.values()) == 3 * MiB
    """,
    "callbacks of torch.cuda._gpu_trace": """
        from torch.cuda import _gpu_trace
        seen = []
        _gpu_trace.register_callback_for_memory_allocation(lambda pointer: seen.append(("new", pointer)))
        _gpu_trace.register_callback_for_memory_deallocation(lambda pointer: seen.append(("gone", pointer)))
        torch._C._activate_gpu_trace()
        tensor = block(1)
        pointer = tensor.data_ptr()
        del tensor
        assert seen == [("new", pointer), ("gone", pointer)]
    """,
    "torch.backends.cudnn.benchmark": """
        torch.backends.cudnn.benchmark = True
        convolution = torch.nn.Conv2d(3, 8, 3).cuda()
        assert convolution(torch.ones(2, 3, 16, 16, device="cuda")).shape == (2, 8, 14, 14)
    """,
    "torch.cuda.MemPool, torch.cuda.use_mem_pool": """
        pool, other = torch.cuda.MemPool(), torch.cuda.MemPool(no_split=True)
        assert pool.use_count() == 1
        with torch.cuda.use_mem_pool(pool):
            assert pool.use_count() == 2
            inside = block(8)
            with torch.cuda.use_mem_pool(other):
                nested = block(2)
            again = block(4)
        outside = block(16)
        assert pool.use_count() == 1
        heaps = {heap["pool"]: heap["requested"]["current"] for heap in poolalloc.memory_stats()["heaps"]}
        assert heaps == {pool.id: 12 * MiB, other.id: 2 * MiB, (0, 0): 16 * MiB}, heaps
        by_pool = torch.cuda.memory_stats_as_nested_dict().get("reserved_bytes_by_private_pools")
        assert by_pool is None or by_pool[pool.id]["all"]["current"] == 12 * MiB
        del inside, again, nested
        assert torch.cuda.memory_reserved() == 30 * MiB, "a pool in use keeps its memory"
        del pool, other
        assert torch.cuda.memory_reserved() == 16 * MiB
    """,
    "torch.cuda.MemPool(no_split=True)": """
        pool = torch.cuda.MemPool(no_split=True)
        with torch.cuda.use_mem_pool(pool):
            tensors = [block(1 / 2) for _ in range(3)]
        assert len({tensor.data_ptr() // (2 * MiB) for tensor in tensors}) == 3
        assert torch.cuda.memory_allocated() == 6 * MiB
    """,
    "torch.cuda.MemPool(allocator=...)": """
        plain = torch.cuda.memory.CUDAPluggableAllocator(
            poolalloc._core.library_path(), "poolalloc_malloc", "poolalloc_free")
        pool = torch.cuda.MemPool(plain.allocator())
        try:
            with torch.cuda.use_mem_pool(pool):
                block(1)
        except RuntimeError as error:
            assert "poolalloc's own memory" in str(error)
        else:
            raise AssertionError("memory of poolalloc twice")
        assert torch.cuda.memory_allocated() == 0
    """,  # the rest of it: test_pool_allocator.py
    "torch.cuda.MemPool(use_on_oom=True)": """
        for lends in (True, False):
            pool, graph = torch.cuda.MemPool(use_on_oom=lends), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool.id):  # what no graph has used serves everybody anyway
                block(6000)
            try:
                block(4000)
            except torch.OutOfMemoryError:
                assert not lends
            else:
                assert lends
            del graph, pool
            torch.cuda.empty_cache()
    """,
    "torch.cuda.MemPool on several threads": """
        import threading
        pools = [torch.cuda.MemPool() for _ in range(3)]
        kept, barrier = [], threading.Barrier(4)
        def fill(pool):
            with torch.cuda.use_mem_pool(pool):
                barrier.wait()
                kept.append(block(8))
                barrier.wait()
        threads = [threading.Thread(target=fill, args=[pool]) for pool in pools]
        for thread in threads:
            thread.start()
        barrier.wait()
        kept.append(block(2))
        barrier.wait()
        for thread in threads:
            thread.join()
        heaps = {heap["pool"]: heap["requested"]["current"] for heap in poolalloc.memory_stats()["heaps"]}
        assert heaps == {**{pool.id: 8 * MiB for pool in pools}, (0, 0): 2 * MiB}, heaps
    """,
    "torch.cuda.graph, several graphs on one pool": """
        x = torch.ones(MiB, device="cuda")
        pool = torch.cuda.graph_pool_handle()
        graphs, results = [], []
        for _ in range(3):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                y = x * 2
                results.append((y + 1).sum())
                del y
            graphs.append(graph)
        for graph in graphs:
            graph.replay()
        torch.cuda.synchronize()
        private = [heap for heap in poolalloc.memory_stats()["heaps"] if heap["pool"] != (0, 0)]
        assert len(private) == 1 and private[0]["pool"] == tuple(pool)
        reserved = private[0]["reserved"]["current"]
        torch.cuda.empty_cache()
        private = [heap for heap in poolalloc.memory_stats()["heaps"] if heap["pool"] != (0, 0)]
        assert private[0]["reserved"]["current"] == reserved, "a graph that can replay keeps its memory"
        results.clear()
        graphs.clear()
        del graph
        torch.cuda.empty_cache()
        assert all(heap["pool"] == (0, 0) for heap in poolalloc.memory_stats()["heaps"])
    """,
    "record_stream during the capture of a graph": """
        x, side, graph = torch.ones(MiB, device="cuda"), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x * 2
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                z = y + 1
            y.record_stream(side)
            del y
            torch.cuda.current_stream().wait_stream(side)
        graph.replay()
        torch.cuda.synchronize()
    """,
    "torch._C._cuda_checkPoolLiveAllocations": """
        pool = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(pool):
            one, two, gone = block(1), block(3), block(5)
        del gone
        check = lambda *tensors: torch._C._cuda_checkPoolLiveAllocations(
            0, pool.id, {tensor.untyped_storage().data_ptr() for tensor in tensors})
        assert check(one, two) and not check(one) and not check(one, two, block(1))
    """,
    'torch.compile(mode="reduce-overhead"), backend="cudagraphs"': """
        @torch.compile(backend="cudagraphs")
        def double(x):
            return x * 2 + 1
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            result = double(torch.ones(512, 512, device="cuda"))
        assert any(heap["pool"] != (0, 0) for heap in poolalloc.memory_stats()["heaps"])
    """,  # the whole of it: test_graph_trees.py
    "sharing CUDA tensors between processes (IPC)": """
        storage = block(3).untyped_storage()
        _, handle, size, offset, *_ = storage._share_cuda_()
        assert size == 3 * MiB and offset % 512 == 0 and len(handle) < 200
        assert storage._share_cuda_()[1] == handle, "a block has one name"
    """,  # the whole of it: test_ipc.py
    "torch.cuda.memory._record_memory_history, _snapshot, _dump_snapshot, memory_snapshot": """
        memory = torch.cuda.memory
        memory._record_memory_history(stacks="python")
        kept = block(3)
        snapshot = memory._snapshot()
        (entry,) = [entry for entry in snapshot["device_traces"][0] if entry["action"] == "alloc"]
        assert entry["size"] == 3 * MiB and [frame["name"] for frame in entry["frames"]] == ["block", "<module>"]
        assert sum(segment["total_size"] for segment in memory.memory_snapshot()) == torch.cuda.memory_reserved()
        memory._record_memory_history(enabled=None)
        assert torch._C._cuda_isHistoryEnabled() is False
    """,
}


@pytest.fixture
def on_bridge(on_sim: Callable) -> Callable:
    """on_bridge(program) runs it after PRELUDE, with the torch under test."""

    def run(program: str, **settings: object) -> object:
        lines = program.splitlines()
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        text = "\n".join(line[indent:] for line in lines)
        environment = {"PYTHONPATH": str(ROOT), **settings.pop("environment", {})}
        return on_sim(PRELUDE + text, command=(PYTHON,), environment=environment, **settings)

    return run


@pytest.mark.parametrize("row", WORKS)
def test_it_works(on_bridge: Callable, on_sim: Callable, row: str) -> None:
    arguments = ()
    if row.startswith("every key"):
        program = "import json, torch; torch.cuda.init(); print(json.dumps(sorted(torch.cuda.memory_stats())))"
        arguments = (on_sim(program, command=(PYTHON,)).out.splitlines()[-1],)
    lag = 1000 if row in ("Tensor.record_stream",) else 0
    fresh = "_record_memory_history" in row  # a fork has the frames of its server beneath
    on_bridge(WORKS[row], arguments=arguments, lag=lag, fresh=fresh)


def test_the_manual_lists_what_works_and_what_does_not() -> None:
    manual = (ROOT / "docs" / "install.md").read_text().replace("`", "")
    works = re.findall(r"^\| (.+?) \|", manual.split("## What works")[1].split("## ")[0], re.MULTILINE)
    assert works[2:] == list(WORKS)
    missing = manual.split("## What does not work with the bridge")[1].split("## ")[0]
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", missing, re.MULTILINE))
    del rows["feature of torch"], rows["---"]
    assert rows == BRIDGE_MISSING


def test_peers_reach_each_others_memory(on_bridge: Callable) -> None:
    on_bridge(
        """
        before = torch.ones(MiB, device="cuda:0")
        copy = before.to("cuda:1")
        assert copy.device.index == 1 and torch.cuda.memory_allocated(1) == 4 * MiB
        assert torch.cuda.can_device_access_peer(0, 1)  # then torch lets device 0 write to device 1
        calls = lambda: poolalloc.memory_stats(0)["driver_calls"]["allow_access"]
        start = calls()
        new = torch.empty(64 * MiB, dtype=torch.uint8, device="cuda:1")
        assert calls() - start == 1, "one for the device and its peer"
        start = calls()
        new = torch.empty(64 * MiB, dtype=torch.uint8, device="cuda:0")
        assert calls() - start == 1, "nobody asked for this direction"
        copy[::2].copy_(before[::2])

        # Devices 1 and 2 are connected, 0 and 2 are not: what 0 and 1 are given concerns nobody else.
        assert not torch.cuda.can_device_access_peer(0, 2)
        there = copy.to("cuda:2").to("cuda:1").to("cuda:0").to("cuda:2")
        assert there.device.index == 2
        torch.empty(64 * MiB, dtype=torch.uint8, device="cuda:0").to("cuda:1").to("cuda:2")
        """,
        devices=3,
        peers="0-1,1-2",
    )


def test_the_figures_of_two_devices_are_apart(on_bridge: Callable) -> None:
    on_bridge(
        """
        first = torch.empty(3 * MiB, dtype=torch.uint8, device="cuda:0")
        second = torch.empty(5 * MiB, dtype=torch.uint8, device="cuda:1")
        assert [torch.cuda.memory_allocated(device) for device in (0, 1)] == [3 * MiB, 5 * MiB]
        torch.cuda.set_per_process_memory_fraction(0.5, 1)
        assert [torch.cuda.get_per_process_memory_fraction(device) for device in (0, 1)] == [1.0, 0.5]
        """,
        devices=2,
    )


def test_tensors_may_outlive_everything(on_bridge: Callable) -> None:
    outcome = on_bridge(
        """
        import builtins
        builtins.kept = [block(1), torch.cuda.MemPool(), torch.nn.Linear(8, 8).cuda()]
        """
    )
    assert not outcome.err.strip()


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """An environment whose compiler always fails, and where no bridge was built before."""
    compiler = tmp_path / "no-compiler"
    compiler.write_text("#!/bin/sh\necho 'torch.h:7: error: the sky is falling' >&2\necho second error >&2\nexit 1\n")
    compiler.chmod(0o755)
    return {"CXX": str(compiler), "POOLALLOC_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}


COUNT_WARNINGS = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import poolalloc
    installed = poolalloc.install()
texts = [str(warning.message) for warning in caught if "poolalloc" in str(warning.message)]
"""


def test_no_bridge_is_one_warning_that_says_what_is_lost(on_sim: Callable, broken: dict[str, str]) -> None:
    on_sim(
        COUNT_WARNINGS
        + """
assert installed.backend == "plugin" and len(texts) == 1, texts
assert "the sky is falling" in texts[0] and "second error" not in texts[0] and "memory_stats" in texts[0]
import torch
tensor = torch.ones(3, device="cuda")
assert poolalloc.memory_stats()["live_blocks"] == 1
""",
        command=(PYTHON,),
        environment=broken,
    )


@pytest.mark.parametrize("unwanted", ["argument", "variable"])
def test_a_bridge_that_is_not_wanted_is_no_warning(on_sim: Callable, broken: dict[str, str], unwanted: str) -> None:
    program = COUNT_WARNINGS + "\nassert installed.backend == 'plugin' and not texts, texts"
    if unwanted == "argument":
        program = program.replace("install()", "install(bridge=False)")
    else:
        broken = {**broken, "POOLALLOC_BRIDGE": "0"}
    on_sim(program, command=(PYTHON,), environment=broken)


def test_a_bridge_that_is_demanded_is_an_error(on_sim: Callable, broken: dict[str, str]) -> None:
    on_sim(
        """
import poolalloc
try:
    poolalloc.install(bridge=True)
except poolalloc.errors.TorchError as error:
    assert "the sky is falling" in str(error) and not poolalloc.is_installed()
else:
    raise AssertionError("no error")
assert poolalloc.install(bridge=False).backend == "plugin"
""",
        command=(PYTHON,),
        environment=broken,
    )


def test_a_wrong_word_for_the_bridge_is_named(without_gpu: Callable) -> None:
    without_gpu(
        """
        import poolalloc
        try:
            poolalloc.install()
        except poolalloc.ConfigError as error:
            assert 'POOLALLOC_BRIDGE is "maybe"' in str(error)
        else:
            raise AssertionError("no error")
        """,
        environment={"POOLALLOC_BRIDGE": "maybe"},
    )


@pytest.fixture
def run_command(fork_server: ForkServer) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        return fork_server.run(["-m", "poolalloc", "build-bridge", *arguments], {**os.environ, **environment}, 300)

    return run


def test_the_command_builds_once(tmp_path: Path, run_command: Callable) -> None:
    # A stand-in for the compiler, so that this is about the command: it writes what it was asked for.
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\ncat > /dev/null\nwhile [ $# -gt 1 ]; do shift; done\necho built >> "$1"\n')
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    settings = {"CXX": str(compiler), "POOLALLOC_CACHE_DIR": str(cache)}
    results = [json.loads(run_command("--json", *more, **settings)[1]) for more in ([], [], ["--force"])]
    assert [result["built"] for result in results] == [True, False, True]
    assert len({result["library"] for result in results}) == 1
    assert [file.name for file in cache.glob("*.so")] == [Path(results[0]["library"]).name]
    assert "was built before" in run_command(**settings)[1]


def test_the_command_says_what_is_missing_in_one_line(tmp_path: Path, run_command: Callable) -> None:
    code, _, said = run_command(CXX=str(tmp_path / "no-such-compiler"), POOLALLOC_CACHE_DIR=str(tmp_path))
    assert code == 1
    assert len(said.splitlines()) == 1
    assert "apt-get install g++" in said


def test_every_source_of_the_bridge_is_a_key_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from poolalloc._internal import bridge

    sources = tmp_path / "sources"
    for folder in ("bridge", *bridge.HEADERS):
        shutil.copytree(ROOT / "csrc" / folder, sources / folder)
    monkeypatch.setattr(bridge, "sources", lambda: sources)
    before = bridge.plan(torch).name
    assert bridge.plan(torch).name == before
    for file in ("bridge/pools.cpp", "bridge/torch_allocator.h"):
        with (sources / file).open("a") as stream:
            stream.write("// changed\n")
        after = bridge.plan(torch).name
        assert after != before, file
        before = after
    monkeypatch.setattr(bridge._core, "HEADERS_DIGEST", "of another build")
    monkeypatch.setattr(bridge, "_digest_of_headers", lambda folder: "of another build")
    assert bridge.plan(torch).name != before


@pytest.mark.parametrize("file", ["core/allocator.h", "core/options/options.def", "plugin/plugin.h", "driver/driver.h"])
def test_a_library_built_from_other_headers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    import torch

    from poolalloc._internal import bridge

    for folder in ("bridge", *bridge.HEADERS):
        shutil.copytree(ROOT / "csrc" / folder, tmp_path / folder)
    monkeypatch.setattr(bridge, "sources", lambda: tmp_path)
    bridge.plan(torch)
    with (tmp_path / file).open("a") as stream:
        stream.write("// changed\n")
    with pytest.raises(bridge.BridgeError, match=r"built from other headers .* build it again"):
        bridge.plan(torch)
