"""A program that has torch write memory snapshots of many kinds, with its own statistics beside them.

Run under `poolalloc sim` with a CUDA build of torch: python snapshot_programs.py FOLDER SCENARIO...
For each scenario it writes SCENARIO.pickle and SCENARIO.json. "expandable" scenarios need PYTORCH_ALLOC_CONF.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch

MiB = 1 << 20


def empty(size: int, device: int = 0) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=f"cuda:{device}")


def mixed(device: int = 0, count: int = 40) -> list[torch.Tensor]:
    """Blocks of many sizes, a third of them freed."""
    blocks = [empty(1000 + (i * i * 7919) % (3 * MiB), device) for i in range(count)]
    del blocks[::3]
    return blocks


def streams() -> object:
    """Two streams, and frees that wait for the other one."""
    side = torch.cuda.Stream()
    held = []
    for i in range(20):
        with torch.cuda.stream(side):
            block = empty((i % 5 + 1) * MiB)
        block.record_stream(torch.cuda.current_stream())
        del block
        held.append(empty(300_000 + i))
        torch.zeros(10, device="cuda").add_(1)  # launches, so that lagging events move on
    return held


def pools() -> object:
    """A pool that is still there at the end, and one that is gone."""
    kept, gone = torch.cuda.MemPool(), torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(kept):
        held = [empty(MiB), empty(3 * MiB)]
    with torch.cuda.use_mem_pool(gone):
        short = empty(5 * MiB)
    held.append(empty(100))
    del short, gone
    torch.cuda.empty_cache()
    return held, kept


def oom() -> object:
    """Runs out of memory twice."""
    held = mixed()
    for size in (1 << 40, 1 << 42):
        with suppress(torch.OutOfMemoryError):
            empty(size)
    return held


def emptied() -> object:
    """Segments come, go, and come again."""
    held = mixed(count=30)
    for _ in range(3):
        big = [empty(30 * MiB), empty(11 * MiB)]
        del big
        torch.cuda.empty_cache()
    return held


def devices() -> object:
    """Two devices."""
    return [mixed(device) for device in (0, 1, 0, 1)]


def training() -> object:
    """A few steps of a small network."""
    net = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)]).cuda()
    optimizer = torch.optim.AdamW(net.parameters())
    for step in range(4):
        loss = net(torch.empty(32 + 16 * step, 256, device="cuda")).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


def graphs() -> object:
    """Two captured graphs, each with a pool of its own; one of them is gone at the end."""
    x = torch.zeros(MiB, device="cuda")
    kept, gone = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(kept):
        y = (x + 1) * 2
    with torch.cuda.graph(gone):
        z = x * 3
    kept.replay()
    held = [x, y, kept, empty(5 * MiB)]
    del gone, z
    torch.cuda.empty_cache()
    return held


SCENARIOS = {f.__name__: f for f in (streams, pools, oom, emptied, devices, training, graphs)}


def record(name: str, folder: Path) -> None:
    """`SCENARIO`, `SCENARIO-ring` (the buffer loses its oldest entries), `SCENARIO-late` (recorded from mid-run on)."""
    base, _, variant = name.removeprefix("expandable-").partition("-")
    before = SCENARIOS[base]() if variant == "late" else None
    torch.cuda.synchronize()
    for device in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.memory._record_memory_history(max_entries=25 if variant == "ring" else 100_000, stacks="python")
    held = SCENARIOS[base]()
    if variant == "late":
        before = None
    torch.cuda.memory._dump_snapshot(str(folder / f"{name}.pickle"))
    stats = [torch.cuda.memory_stats(device) for device in range(torch.cuda.device_count())]
    torch.cuda.memory._record_memory_history(enabled=None)
    (folder / f"{name}.json").write_text(json.dumps({"torch": torch.__version__, "stats": stats}))
    del held, before
    torch.cuda.empty_cache()


if __name__ == "__main__":
    for scenario in sys.argv[2:]:
        record(scenario, Path(sys.argv[1]))
