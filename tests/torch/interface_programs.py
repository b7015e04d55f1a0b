"""A short program for each Python call of torch that has to do with CUDA memory, and a runner for all of them.

python interface_programs.py builtin|plugin|bridge [LIBRARY] prints as JSON what became of each: "yes" if its promise
held, "raises", "no effect" if it returned and the promise did not hold, or "absent" in this torch. With LIBRARY, the
compiled interface_probe.cpp, the methods of the C++ interface too. Each program holds on torch's own allocator.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

MiB = 1 << 20

MEMORY = {
    "caching_allocator_alloc": """
        pointer = memory.caching_allocator_alloc(3 * MiB)
        assert pointer != 0
        memory.caching_allocator_delete(pointer)
    """,
    "caching_allocator_delete": """
        free = memory.mem_get_info()[0]
        memory.caching_allocator_delete(memory.caching_allocator_alloc(64 * MiB))
        memory.empty_cache()
        assert memory.mem_get_info()[0] >= free
    """,
    "caching_allocator_enable": """
        memory.empty_cache()
        memory.caching_allocator_enable(False)
        free = memory.mem_get_info()[0]
        gone = block(64 * MiB)
        del gone
        left = memory.mem_get_info()[0]
        memory.caching_allocator_enable(True)
        assert left == free  # without empty_cache
    """,
    "caching_allocator_disabled": """
        with memory.caching_allocator_disabled():
            assert not torch._C._cuda_cudaCachingAllocator_is_enabled()
    """,
    "set_per_process_memory_fraction": """
        memory.set_per_process_memory_fraction(0.01)
        try:
            block(200 * MiB)
        except RuntimeError:
            refused = True
        else:
            refused = False
        memory.set_per_process_memory_fraction(1.0)
        assert refused
    """,
    "get_per_process_memory_fraction": """
        memory.set_per_process_memory_fraction(0.5)
        fraction = memory.get_per_process_memory_fraction()
        memory.set_per_process_memory_fraction(1.0)
        assert fraction == 0.5
    """,
    "empty_cache": """
        memory.empty_cache()
        free = memory.mem_get_info()[0]
        gone = block(64 * MiB)
        del gone
        memory.empty_cache()
        assert memory.mem_get_info()[0] >= free
    """,
    "memory_stats": """
        before = memory.memory_stats()["allocation.all.current"]
        kept = block(3 * MiB)
        assert memory.memory_stats()["allocation.all.current"] == before + 1
    """,
    "memory_stats_as_nested_dict": """
        before = memory.memory_stats_as_nested_dict()["allocation"]["all"]["current"]
        kept = block(3 * MiB)
        assert memory.memory_stats_as_nested_dict()["allocation"]["all"]["current"] == before + 1
    """,
    "reset_accumulated_memory_stats": """
        block(MiB)
        memory.reset_accumulated_memory_stats()
        assert memory.memory_stats()["allocation.all.allocated"] == 0
    """,
    "reset_peak_memory_stats": """
        block(64 * MiB)
        memory.reset_peak_memory_stats()
        assert memory.max_memory_allocated() == memory.memory_allocated()
    """,
    "reset_max_memory_allocated": """
        block(64 * MiB)
        memory.reset_max_memory_allocated()
        assert memory.max_memory_allocated() == memory.memory_allocated()
    """,
    "reset_max_memory_cached": """
        block(64 * MiB)
        memory.empty_cache()
        memory.reset_max_memory_cached()
        assert memory.max_memory_reserved() == memory.memory_reserved()
    """,
    "memory_allocated": """
        before = memory.memory_allocated()
        kept = block(3 * MiB)
        assert memory.memory_allocated() - before == 3 * MiB
    """,
    "max_memory_allocated": """
        before = memory.memory_allocated()
        block(300 * MiB)
        assert memory.max_memory_allocated() >= before + 300 * MiB
    """,
    "memory_reserved": """
        kept = block(300 * MiB)
        assert memory.memory_reserved() >= memory.memory_allocated() >= 300 * MiB
    """,
    "max_memory_reserved": """
        block(300 * MiB)
        assert memory.max_memory_reserved() >= 300 * MiB
    """,
    "memory_cached": """
        kept = block(300 * MiB)
        assert memory.memory_cached() == memory.memory_reserved() >= 300 * MiB
    """,
    "max_memory_cached": """
        block(300 * MiB)
        assert memory.max_memory_cached() == memory.max_memory_reserved() >= 300 * MiB
    """,
    "memory_snapshot": """
        kept = block(3 * MiB)
        assert sum(segment["total_size"] for segment in memory.memory_snapshot()) == memory.memory_reserved()
    """,
    "memory_summary": """
        kept = block(3 * MiB)
        assert "PyTorch CUDA memory summary" in memory.memory_summary()
    """,
    "list_gpu_processes": """
        assert isinstance(memory.list_gpu_processes(), str)
    """,
    "mem_get_info": """
        memory.empty_cache()
        free, total = memory.mem_get_info()
        kept = block(640 * MiB)
        assert memory.mem_get_info() == (free - 640 * MiB, total)
    """,
    "host_memory_stats": """
        pinned = torch.empty(MiB, dtype=torch.uint8, pin_memory=True)
        assert any(value > 0 for name, value in memory.host_memory_stats().items() if name.endswith("current"))
    """,
    "host_memory_stats_as_nested_dict": """
        pinned = torch.empty(MiB, dtype=torch.uint8, pin_memory=True)
        assert memory.host_memory_stats_as_nested_dict()
    """,
    "reset_accumulated_host_memory_stats": """
        pinned = torch.empty(MiB, dtype=torch.uint8, pin_memory=True)
        memory.reset_accumulated_host_memory_stats()
        freed = [value for name, value in memory.host_memory_stats().items() if name.endswith("freed")]
        assert not any(freed)
    """,
    "reset_peak_host_memory_stats": """
        pinned = torch.empty(MiB, dtype=torch.uint8, pin_memory=True)
        memory.reset_peak_host_memory_stats()
        stats = memory.host_memory_stats()
        assert stats["allocated_bytes.peak"] == stats["allocated_bytes.current"]
    """,
    "get_allocator_backend": """
        assert memory.get_allocator_backend() == {"builtin": "native"}.get(allocator, "pluggable")
    """,
    "CUDAPluggableAllocator": """
        from poolalloc import _core
        other = memory.CUDAPluggableAllocator(_core.library_path(), "poolalloc_malloc", "poolalloc_free")
        assert other.allocator() is not None
    """,
    "change_current_allocator": """
        from poolalloc import _core
        other = memory.CUDAPluggableAllocator(_core.library_path(), "poolalloc_malloc", "poolalloc_free")
        try:
            memory.change_current_allocator(other)
        except RuntimeError as error:
            assert "already initialized" in str(error)
        else:
            raise AssertionError("changed in mid-run")
    """,
    "_get_current_allocator": """
        assert isinstance(memory._get_current_allocator(), memory._CUDAAllocator)
    """,
    "MemPool": """
        pool = memory.MemPool()
        with memory.use_mem_pool(pool):
            kept = block(3 * MiB)
        assert pool.use_count() == 1
        segments = pool.snapshot()
        segments = segments["segments"] if isinstance(segments, dict) else segments
        assert sum(segment["requested_size"] for segment in segments) == 3 * MiB
    """,
    "use_mem_pool": """
        pool = memory.MemPool()
        with memory.use_mem_pool(pool):
            inside = block(3 * MiB)
        outside = block(5 * MiB)
        pools = {tuple(segment["segment_pool_id"]): segment["allocated_size"] for segment in memory.memory_snapshot()}
        assert pools[pool.id] == 3 * MiB
    """,
    "_use_uvm": """
        with memory._use_uvm():
            kept = block(3 * MiB)
        assert kept.numel() == 3 * MiB
    """,
    "_record_memory_history": """
        memory._record_memory_history(stacks="python")
        kept = block(3 * MiB)
        entries = memory._snapshot()["device_traces"][0]
        memory._record_memory_history(enabled=None)
        assert [entry["size"] for entry in entries if entry["action"] == "alloc"] == [3 * MiB]
    """,
    "_snapshot": """
        kept = block(3 * MiB)
        segments = memory._snapshot()["segments"]
        assert sum(segment["total_size"] for segment in segments) == memory.memory_reserved()
    """,
    "_dump_snapshot": """
        import pickle
        memory._dump_snapshot(str(folder / "dump.pickle"))
        assert "segments" in pickle.loads((folder / "dump.pickle").read_bytes())
    """,
    "_save_segment_usage": """
        kept = block(3 * MiB)
        memory._save_segment_usage(str(folder / "segments.svg"))
        assert "active_allocated" in (folder / "segments.svg").read_text()
    """,
    "_save_memory_usage": """
        kept = block(3 * MiB)
        memory._save_memory_usage(str(folder / "memory.svg"))
        assert "active_allocated" in (folder / "memory.svg").read_text()
    """,
    "_set_allocator_settings": """
        def whole():  # what cudaIpcGetMemHandle takes
            memory.empty_cache()
            kept, handle, cuda = block(30 * MiB), (ctypes.c_char * 64)(), ctypes.CDLL(None)
            error = cuda.cudaIpcGetMemHandle(handle, ctypes.c_void_p(kept.data_ptr()))
            cuda.cudaGetLastError()  # or torch would find the error later
            return error == 0
        usual = whole()
        memory._set_allocator_settings(f"expandable_segments:{usual}")
        other = whole()
        memory._set_allocator_settings(f"expandable_segments:{not usual}")
        assert usual != other and whole() == usual
        try:
            memory._set_allocator_settings("no_such_setting:1")
        except (RuntimeError, ValueError):
            refused = True
        else:
            refused = False
        assert refused
    """,
    "_allocation_traceback": """
        memory._record_memory_history(stacks="python")
        kept = block(3 * MiB)
        frames = memory._allocation_traceback(kept.data_ptr())
        memory._record_memory_history(enabled=None)
        assert frames[0]["name"] == "block"
    """,
    "_annotate_tensor": """
        kept = block(3 * MiB)
        memory._record_memory_history(stacks="python")
        memory._annotate_tensor(kept, "a text")
        entry = memory._snapshot()["device_traces"][0][-1]
        memory._record_memory_history(enabled=None)
        assert entry["user_metadata"] == "a text"
    """,
    "_set_memory_metadata": """
        memory._record_memory_history(stacks="python")
        memory._set_memory_metadata("a text")
        kept = block(3 * MiB)
        memory._set_memory_metadata("")
        entry = memory._snapshot()["device_traces"][0][-1]
        memory._record_memory_history(enabled=None)
        assert entry["user_metadata"] == "a text"
    """,
    "_get_memory_metadata": """
        memory._set_memory_metadata("a text")
        text = memory._get_memory_metadata()
        memory._set_memory_metadata("")
        assert text == "a text"
    """,
    "_memory_metadata_supported": """
        assert memory._memory_metadata_supported()
    """,
}

ACCELERATOR = {
    "empty_cache": """
        gone = block(64 * MiB)
        del gone
        free = memory.mem_get_info()[0]
        accelerator.empty_cache()
        assert memory.mem_get_info()[0] >= free + 64 * MiB
    """,
    "empty_host_cache": """
        pinned = torch.empty(MiB, dtype=torch.uint8, pin_memory=True)
        del pinned
        freed = memory.host_memory_stats()["num_host_free"]
        accelerator.empty_host_cache()
        assert memory.host_memory_stats()["num_host_free"] > freed
    """,
    "get_memory_info": """
        assert accelerator.get_memory_info() == memory.mem_get_info()
    """,
    "memory_allocated": """
        before = accelerator.memory_allocated()
        kept = block(3 * MiB)
        assert accelerator.memory_allocated() - before == 3 * MiB
    """,
    "max_memory_allocated": """
        block(300 * MiB)
        assert accelerator.max_memory_allocated() >= 300 * MiB
    """,
    "memory_reserved": """
        kept = block(300 * MiB)
        assert accelerator.memory_reserved() >= 300 * MiB
    """,
    "max_memory_reserved": """
        block(300 * MiB)
        assert accelerator.max_memory_reserved() >= 300 * MiB
    """,
    "memory_stats": """
        kept = block(3 * MiB)
        assert accelerator.memory_stats()["allocation.all.current"] >= 1
    """,
    "reset_accumulated_memory_stats": """
        block(MiB)
        accelerator.reset_accumulated_memory_stats()
        assert accelerator.memory_stats()["allocation.all.allocated"] == 0
    """,
    "reset_peak_memory_stats": """
        block(300 * MiB)
        accelerator.reset_peak_memory_stats()
        assert accelerator.max_memory_allocated() == accelerator.memory_allocated()
    """,
    "_snapshot": """
        kept = block(3 * MiB)
        assert accelerator._snapshot()["segments"]
    """,
}

# What is built on them.
OTHERS = {
    "torch.OutOfMemoryError": """
        try:
            block(1 << 42)
        except torch.OutOfMemoryError as error:
            assert str(error).startswith("CUDA out of memory. ")
    """,
    "torch._C._cuda_attach_out_of_memory_observer": """
        seen = []
        torch._C._cuda_attach_out_of_memory_observer(lambda *figures: seen.append(figures))
        try:
            block(1 << 42)
        except RuntimeError:
            pass
        assert len(seen) == 1
    """,
    "torch.Tensor.record_stream": """
        kept, stream = block(8 * MiB), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            kept.add_(1)
        kept.record_stream(stream)
        active = memory.memory_stats()["active_bytes.all.current"]
        del kept
        assert memory.memory_stats()["active_bytes.all.current"] == active
    """,
    "torch.cuda.graph": """
        x, graph = torch.ones(MiB, device="cuda"), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x * 2
        graph.replay()
        torch.cuda.synchronize()
        seen, size = y.data_ptr(), y.nbytes
        del y
        others = [block(size) for _ in range(20)]  # the memory stays the graph's
        assert seen not in [other.data_ptr() for other in others]
    """,
    "torch.cuda.make_graphed_callables": """
        double = torch.cuda.make_graphed_callables(torch.nn.Linear(8, 8).cuda(), (torch.ones(4, 8, device="cuda"),))
        assert double(torch.ones(4, 8, device="cuda")).shape == (4, 8)
    """,
    'torch.compile(backend="cudagraphs")': """
        @torch.compile(backend="cudagraphs")
        def double(x):
            return x * 2 + 1
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            result = double(torch.ones(512, 512, device="cuda"))
    """,
    "torch.profiler.profile(profile_memory=True)": """
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(profile_memory=True, activities=cpu) as profile:
            kept = block(3 * MiB)
        assert sum(event.self_device_memory_usage for event in profile.key_averages()) == 3 * MiB
    """,
    "torch.cuda._gpu_trace": """
        from torch.cuda import _gpu_trace
        seen = []
        _gpu_trace.register_callback_for_memory_allocation(seen.append)
        torch._C._activate_gpu_trace()
        kept = block(MiB)
        assert seen == [kept.data_ptr()]
    """,
    "torch.UntypedStorage._share_cuda_": """
        handle = block(MiB).untyped_storage()._share_cuda_()
        assert len(handle[1]) > 0
        assert handle[2] == MiB  # bytes of the storage
    """,
}

PROGRAMS = {
    **{f"torch.cuda.memory.{name}": program for name, program in MEMORY.items()},
    **{f"torch.accelerator.{name}": program for name, program in ACCELERATOR.items()},
    **OTHERS,
}

# Parts of torch.cuda.memory that nobody calls from outside: bases, and what the functions above are made of.
PARTS = {
    "_CUDAAllocator",
    "_free_mutex",
    "_host_allocator",
    "_make_uvm_allocator",
    "_record_memory_history_impl",
    "_record_memory_history_legacy",
    "_recurse_add_to_result",
}


def dedented(program: str) -> str:
    lines = program.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[indent:] for line in lines)


def run(allocator: str, library: str | None) -> dict[str, str]:
    """What becomes of every program, and of every method of the C++ interface."""
    warnings.simplefilter("ignore")
    import torch

    if allocator != "builtin":
        import poolalloc

        assert poolalloc.install(bridge=allocator == "bridge").backend == allocator
    torch.ones(1, device="cuda")
    scope: dict[str, Any] = {
        "torch": torch,
        "ctypes": ctypes,
        "memory": torch.cuda.memory,
        "accelerator": torch.accelerator.memory if hasattr(torch.accelerator, "memory") else torch.accelerator,
        "MiB": MiB,
        "allocator": allocator,
        "folder": Path(tempfile.mkdtemp()),
    }
    exec("def block(bytes): return torch.empty(int(bytes), dtype=torch.uint8, device='cuda')", scope)
    outcomes = {}
    for name, program in PROGRAMS.items():
        owner, _, last = name.rpartition(".")
        holder = {"torch.cuda.memory": torch.cuda.memory, "torch.accelerator": scope["accelerator"]}.get(owner)
        outcomes[name] = "absent" if holder is not None and not hasattr(holder, last) else outcome(program, scope)
        gc.collect()
    if library is not None:
        probe = ctypes.PyDLL(library)
        probe.probe.restype = probe.probe_names.restype = ctypes.c_char_p
        for method in probe.probe_names().decode().split():
            text = probe.probe(method.encode()).decode()
            outcomes[f"C++ {method}"] = {"": "yes", "absent": "absent"}.get(
                text, "raises" if text.startswith("raises") else "no effect"
            )
            if text not in ("", "absent"):
                print(f"{method}: {text.splitlines()[0]}", file=sys.stderr)
    return outcomes


def outcome(program: str, scope: dict[str, Any]) -> str:
    try:
        exec(dedented(program), dict(scope))
    except AssertionError as error:
        print(f"{program.strip()}\n{error}", file=sys.stderr)
        return "no effect"
    except Exception as error:
        print(f"{program.strip()}\n{type(error).__name__}: {error}"[:2000], file=sys.stderr)
        return "raises"
    return "yes"


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)))
