"""Programs with torch's own allocator on the simulated GPU, for test_torch_on_sim.py. Run under `poolalloc sim`
with the names of some; each checks itself.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

SIM = ctypes.CDLL(None)
MIB = 1 << 20


def used(device: int = 0) -> int:
    """What the simulated driver says is in use, in bytes."""
    SIM.simgpu_used_bytes.restype = ctypes.c_uint64
    return int(SIM.simgpu_used_bytes(device))


def calls(name: str) -> int:
    SIM.simgpu_calls.restype = ctypes.c_uint64
    return int(SIM.simgpu_calls(name.encode()))


def violations() -> int:
    SIM.simgpu_violations.restype = ctypes.c_uint64
    return int(SIM.simgpu_violations())


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.split, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (part.view(shape).transpose(1, 2) for part in self.split(self.before(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=0.1)
        x = x + self.join(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.after(x))


class Gpt(nn.Module):
    def __init__(self, words: int = 5000, width: int = 256, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, tokens: torch.Tensor, checkpointed: bool = False) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
        return self.head(x)


def train(model: Gpt, backend: SDPBackend, steps: int = 3, checkpointed: bool = False, **options: bool) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    scaler = torch.amp.GradScaler()
    for step in range(steps):
        tokens = torch.randint(0, 5000, (2, 64 * (step + 1)), device="cuda")
        with torch.autocast("cuda", torch.float16), sdpa_kernel(backend):
            loss = F.cross_entropy(model(tokens, checkpointed).flatten(0, 1), tokens.flatten())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        assert loss.item() == 0.0


def training() -> None:
    model = Gpt().cuda()
    train(model, SDPBackend.FLASH_ATTENTION, fused=True)
    train(model, SDPBackend.EFFICIENT_ATTENTION, foreach=True)
    train(model, SDPBackend.MATH, foreach=False)
    whole = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train(model, SDPBackend.FLASH_ATTENTION, checkpointed=True, fused=True)
    assert torch.cuda.max_memory_allocated() < whole
    assert used() == torch.cuda.memory_reserved() > 0
    torch.cuda.empty_cache()
    assert used() == torch.cuda.memory_reserved()
    free, total = torch.cuda.mem_get_info()
    assert total - free == used()


def training_expandable() -> None:
    training()
    assert calls("cuMemCreate") > 0
    assert calls("cudaMalloc") == 0


def training_async() -> None:
    training_plain = Gpt().cuda()
    train(training_plain, SDPBackend.FLASH_ATTENTION, fused=True)
    assert calls("cudaMallocAsync") > 0
    assert used() == torch.cuda.memory_reserved() > 0
    del training_plain
    torch.cuda.empty_cache()


def graphs() -> None:
    model = Gpt().cuda().eval()
    tokens = torch.zeros(2, 32, dtype=torch.long, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        model(tokens)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = model(tokens)
    graph.replay()
    assert output.sum().item() == 0.0
    assert calls("cudaGraphLaunch") == 1

    x = torch.randn(4, 4, device="cuda")
    broken = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="capture"), torch.cuda.graph(broken):
        x.sum().item()
    assert not torch.cuda.is_current_stream_capturing()
    # The capture owned its pool; the rest of the program goes on.
    torch.ones(4, device="cuda")
    assert violations() == 0


def out_of_memory() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    assert total == 512 * MIB
    kept = torch.empty(300 * MIB, dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 300\.00 MiB"):
        torch.empty(300 * MIB, dtype=torch.uint8, device="cuda")
    assert used() == torch.cuda.memory_reserved() == 300 * MIB
    assert torch.cuda.memory_stats()["num_ooms"] == 1
    del kept
    torch.empty(400 * MIB, dtype=torch.uint8, device="cuda")
    assert used() == 400 * MIB


def two_devices() -> None:
    assert torch.cuda.device_count() == 2
    values = torch.randn(1000)
    there = values.to("cuda:0").to("cuda:1")
    assert torch.equal(there.cpu(), values)
    assert used(0) == torch.cuda.memory_reserved(0)
    assert used(1) == torch.cuda.memory_reserved(1) > 0
    assert torch.cuda.can_device_access_peer(0, 1)
    with torch.cuda.device(1):
        assert torch.empty(1, device="cuda").device.index == 1


def copies() -> None:
    values = torch.randn(123, 45)
    assert torch.equal(values.cuda().cpu(), values)
    pinned = values.pin_memory()
    assert pinned.is_pinned()
    assert torch.equal(pinned.cuda(non_blocking=True).cpu(), values)
    computed = values.cuda() + 1
    assert torch.equal(computed.cpu(), torch.zeros_like(values))
    batches = list(DataLoader(TensorDataset(torch.arange(32.0)), batch_size=8, num_workers=2, pin_memory=True))
    assert [batch[0].cuda().cpu()[0].item() for batch in batches] == [0.0, 8.0, 16.0, 24.0]
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) > 0


def record_stream() -> None:
    # Run with lag: what record_stream protects may not come back before its event completes.
    side = torch.cuda.Stream()
    # In a segment of 2 MiB of its own size there is one place only.
    tensor = torch.empty(20 * MIB, dtype=torch.uint8, device="cuda")
    address = tensor.data_ptr()
    tensor.record_stream(side)
    del tensor
    early = torch.empty(20 * MIB, dtype=torch.uint8, device="cuda")
    assert early.data_ptr() != address
    torch.cuda.synchronize()
    late = torch.empty(20 * MIB, dtype=torch.uint8, device="cuda")
    assert late.data_ptr() == address


def send(queue: mp.Queue) -> None:
    queue.put(torch.ones(6, device="cuda"))
    time.sleep(2)


def processes() -> None:
    torch.ones(1, device="cuda")
    context = mp.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=send, args=(queue,))
    process.start()
    received = queue.get()
    assert (received.shape, received.device.type) == ((6,), "cuda")
    del received
    process.join()
    assert process.exitcode == 0
    child = os.fork()
    if child == 0:
        try:
            torch.ones(1, device="cuda")
        except RuntimeError as error:
            os._exit(0 if "forked subprocess" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def tools() -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        torch.randn(1000, device="cuda").sum()
    assert profile.events()
    torch.cuda.memory._record_memory_history()
    kept = torch.randn(100, device="cuda")
    snapshot = torch.cuda.memory._snapshot()
    assert sum(part["total_size"] for part in snapshot["segments"] if part["device"] == 0) == used()
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        inside = torch.empty(1000, device="cuda")
    assert len(pool.snapshot()) == 1
    del inside, kept
    assert "NVIDIA H100" in torch.cuda.get_device_name()


def main(names: list[str]) -> None:
    for name in names:
        program: Callable[[], None] = globals()[name]
        program()
        assert violations() == 0
        print("done", name)


if __name__ == "__main__":
    main(sys.argv[1:])
