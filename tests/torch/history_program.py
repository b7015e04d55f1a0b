"""Records memory history in every way torch knows, and prints what came of it, under torch's allocator or poolalloc's.

Run under `poolalloc sim` with lagging events: python history_program.py builtin|poolalloc. What is printed does not
depend on the layout of memory, so both print the same.
"""

import contextlib
import json
import sys
from typing import Any

import torch

if sys.argv[1] == "poolalloc":
    import poolalloc

    assert poolalloc.install(bridge=True).backend == "bridge"

memory = torch.cuda.memory
MiB = 1 << 20
DELAYED = 3 * MiB + 1000


def block(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def small() -> torch.Tensor:
    return block(5000)


def large() -> torch.Tensor:
    return block(3 * MiB)


def program() -> torch.Tensor:
    side = torch.cuda.Stream()
    a, b, late = small(), large(), block(DELAYED)
    with torch.cuda.stream(side):
        c = block(100)
    with contextlib.suppress(torch.OutOfMemoryError):
        block(1 << 40)
    late.record_stream(side)
    del b, late
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    d = small()
    del c, a
    return d


def entries(snapshot: dict[str, Any]) -> list[Any]:
    """What happened to blocks. Which call finds that a delayed free has completed is up to the allocator."""
    rows = []
    for entry in snapshot["device_traces"][0]:
        row = {key: value for key, value in entry.items() if key not in ("addr", "time_us", "device_free")}
        if entry["action"].startswith("segment_"):
            continue
        if "frames" in row:
            row["frames"] = [frame["name"] for frame in row["frames"]]
        if (row["action"], row["size"]) == ("free_completed", DELAYED):
            row.pop("frames", None)
        row["stream"] = row["stream"] != 0
        rows.append(row)
    return rows


def blocks(snapshot: dict[str, Any]) -> list[Any]:
    """Every block in use, with its stack."""
    return sorted(
        [block["requested_size"], block["state"], [frame["name"] for frame in block["frames"]]]
        for segment in snapshot["segments"]
        for block in segment["blocks"]
        if block["state"] != "inactive"
    )


def keys(snapshot: dict[str, Any]) -> list[Any]:
    """The form of a snapshot."""
    segment = snapshot["segments"][0]
    rows = [snapshot, snapshot["allocator_settings"], segment, segment["blocks"][0]]
    return [*map(sorted, rows), sorted({key for entry in snapshot["device_traces"][0] for key in entry})]


def run() -> dict[str, Any]:
    """Every mode, and what a snapshot shows after it."""
    result: dict[str, Any] = {}

    def mode(name: str, **settings: Any) -> None:
        kept = block(777)
        memory._record_memory_history(**settings)
        held = program()
        del kept
        snapshot = memory._snapshot()
        on = torch._C._cuda_isHistoryEnabled()
        result[name] = [entries(snapshot), blocks(snapshot), keys(snapshot), len(snapshot["device_traces"]), on]
        memory._record_memory_history(enabled=None)
        snapshot = memory._snapshot()
        on = torch._C._cuda_isHistoryEnabled()
        result[f"{name}, off again"] = [entries(snapshot), blocks(snapshot), on]
        del held

    first = block(1)
    mode("all", stacks="python")
    mode("state", enabled="state", stacks="python")
    for context in (None, "state", "alloc", "all"):
        mode(f"context {context}", context=context, stacks="python")
    mode("a ring of 4", max_entries=4, stacks="python")
    mode("without some", skip_actions=["free_requested", "oom"], stacks="python")
    torch._C._cuda_setMemoryMetadata("step 1")
    mode("metadata", stacks="python")
    result["metadata is"] = torch._C._cuda_getMemoryMetadata()
    torch._C._cuda_setMemoryMetadata("")

    memory._record_memory_history(stacks="python")
    held = [small() for _ in range(5)]
    memory._snapshot()
    result["a snapshot is an entry"] = entries(memory._snapshot())
    memory._record_memory_history(stacks="python", clear_history=True)
    result["cleared"] = entries(memory._snapshot())
    held.append(large())
    result["lists of segments"] = [
        sorted(memory.memory_snapshot()[0]),
        sum(segment["allocated_size"] for segment in memory.memory_snapshot()),
    ]

    memory._record_memory_history(stacks="python", global_record_annotations=True)
    with torch.profiler.record_function("## a step ##"):
        held.append(small())
    annotations = memory._snapshot()["external_annotations"]
    result["annotations"] = [{k: v for k, v in row.items() if k != "time_us"} for row in annotations]
    if hasattr(memory, "_annotate_tensor"):
        memory._annotate_tensor(held[-1][10:], "precious")
        result["marks"] = [entries(memory._snapshot())[-1], memory._memory_metadata_supported()]
    if hasattr(memory, "_allocation_traceback"):
        start = held[-1].untyped_storage().data_ptr()
        result["stacks of addresses"] = [
            [frame["name"] for frame in memory._allocation_traceback(start)],
            memory._allocation_traceback(start + 512),
            memory._allocation_traceback(first.data_ptr()),
        ]
    memory._record_memory_history(enabled=None)

    memory._record_memory_history(True, trace_alloc_max_entries=10, trace_alloc_record_context=True)
    held.append(small())
    result["the older form"] = entries(memory._snapshot())
    memory._record_memory_history(False)
    for wrong in ({"skip_actions": ["nope"]}, {"stacks": "c"}, {"enabled": "x"}, {"context": "y"}):
        try:
            memory._record_memory_history(**wrong)
        except Exception as error:
            result[f"{wrong}"] = type(error).__name__
    memory._record_memory_history(enabled=None)
    return result


if __name__ == "__main__":
    print(json.dumps(run()))
