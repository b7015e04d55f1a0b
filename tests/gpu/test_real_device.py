"""What only a real device can tell: that values survive, that memory really comes and goes, that streams really wait.

Each program runs in a process of its own, since torch's allocator can be swapped once. At its end every equation of the
allocator is checked, and that no call of it failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from poolalloc.bench.devices import has_real_gpu

pytestmark = pytest.mark.skipif(not has_real_gpu(), reason="no real CUDA device that torch can use on this machine")

INSTALL = """
import atexit, json, os, torch
import poolalloc
from poolalloc import _core
assert poolalloc.install(bridge=True).backend == "bridge"
MiB = 1 << 20
def sound():
    torch.cuda.synchronize()
    _core.validate()
    assert _core.plugin_state()["failures"] == 0, _core.plugin_state()["last_failure"]
if __name__ == "__main__":
    atexit.register(sound)
"""

TRAIN = """
import json, torch
from torch import nn

torch.manual_seed(3)
torch.use_deterministic_algorithms(True)
model = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)).cuda()
optimizer = torch.optim.AdamW(model.parameters())
losses = []
for step in range(60):
    rows = 64 + 997 * (step * 7 % 11)  # other sizes at every step, so that pages move between addresses
    x = torch.sin(torch.arange(rows * 512, device="cuda", dtype=torch.float32)).view(rows, 512)
    extra = [torch.full((rows * 300 + i * 40_000,), float(i), device="cuda") for i in range(9)]
    loss = (model(x) - x).square().mean()
    loss.backward()
    assert all(bool((block == i).all()) for i, block in enumerate(extra)), f"a block changed at step {step}"
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
"""


def value_of(program: str, folder: Path | None = None) -> Any:
    """What the program prints last, read as JSON. With a folder it runs from a file there, as processes need."""
    command = ["-c", textwrap.dedent(program)]
    if folder is not None:
        (folder / "program.py").write_text(textwrap.dedent(program))
        command = [str(folder / "program.py")]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        env={**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},  # cuBLAS: the same result in every run
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "terminate called" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_training_gives_the_same_losses_as_under_torchs_own_allocator() -> None:
    report = "print(json.dumps(losses))\n"
    own = value_of(TRAIN + report)
    ours = value_of(INSTALL + TRAIN + report)
    assert ours == pytest.approx(own, rel=1e-5)


def test_pages_were_mapped_a_second_time_and_every_equation_holds() -> None:
    report = "print(json.dumps(poolalloc.memory_stats(0)['pages_aliased']))\n"
    assert value_of(INSTALL + TRAIN + report) > 0


@pytest.mark.parametrize("conf", ["growth:fast", "segments:true", "trim_after:0.001", "max_mappings:1024"])
def test_values_survive_under_other_options(conf: str) -> None:
    report = "print(json.dumps(len(losses)))\n"
    assert value_of(f"import os\nos.environ['POOLALLOC_CONF'] = {conf!r}\n" + INSTALL + TRAIN + report) == 60


def test_what_was_written_at_one_address_is_read_at_another() -> None:
    """Physical pages at many addresses in turn, on one stream, written and read by kernels, fills and copies."""
    wrong, aliased = value_of(
        INSTALL
        + """
import random
chance = random.Random(5)
host = torch.arange(4 * MiB, dtype=torch.int32).pin_memory()
live, wrong = [], 0
def check(kind, tag, block):
    if kind == "copied":
        return int((block.cpu() != host[: block.numel()]).sum())
    return int((block != tag).sum())
for round in range(600):
    size = chance.randrange(80_000, 4 * MiB)
    kind = chance.choice(("filled", "computed", "copied"))
    if kind == "filled":
        block = torch.empty(size, dtype=torch.int32, device="cuda").fill_(round)
    elif kind == "computed":
        block = torch.full((size,), round - 1, dtype=torch.int32, device="cuda") + 1
    else:
        block = torch.empty(size, dtype=torch.int32, device="cuda").copy_(host[:size], non_blocking=True)
    live.append((kind, round, block))
    del block
    if len(live) > 24:
        wrong += check(*live.pop(chance.randrange(len(live))))
wrong += sum(check(*each) for each in live)
print(json.dumps([wrong, poolalloc.memory_stats(0)["pages_aliased"]]))
"""
    )
    assert wrong == 0
    assert aliased > 100


def test_a_grid_that_begins_early_reads_what_it_wrote_itself() -> None:
    """Programmatic dependent launch: each grid is there while the one before still writes through another address.

    The second sentence of the programming guide on aliases (docs/design/driver.md) is about such grids.
    """
    found = value_of(
        INSTALL
        + """
import ctypes, random
if torch.cuda.get_device_capability() < (9, 0) or not hasattr(torch.cuda, "_compile_kernel"):
    print(json.dumps(None))
    raise SystemExit
SOURCE = r'''
extern "C" __global__ void fill(int* block, long long n, int tag, int* wrong) {
  asm volatile("griddepcontrol.launch_dependents;");  // the next grid may begin
  asm volatile("griddepcontrol.wait;" ::: "memory");  // this one waits for those before it
  const long long first = blockIdx.x * (long long)blockDim.x + threadIdx.x, step = gridDim.x * (long long)blockDim.x;
  for (long long i = first; i < n; i += step) block[i] = tag + (int)i;
  for (long long i = first; i < n; i += step)
    if (((volatile int*)block)[i] != tag + (int)i) atomicAdd(wrong, 1);
}
'''
kernel = torch.cuda._compile_kernel(SOURCE, "fill")
class Attribute(ctypes.Structure):  # CUlaunchAttribute
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int * 16)]
class Config(ctypes.Structure):  # CUlaunchConfig
    _fields_ = [(name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")] + [
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(Attribute)), ("count", ctypes.c_uint)]
attribute = Attribute(6, b"", (1,))  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
library = ctypes.CDLL("libcuda.so.1")
chance, live, wrong = random.Random(7), [], torch.zeros(1, dtype=torch.int32, device="cuda")
torch.cuda.synchronize()
stream = torch.cuda.Stream()
with torch.cuda.stream(stream):
    for tag in range(2000):
        size = chance.randrange(80_000, 4 * MiB)
        block = torch.empty(size, dtype=torch.int32, device="cuda")
        arguments = [ctypes.c_void_p(block.data_ptr()), ctypes.c_longlong(size), ctypes.c_int(tag),
                     ctypes.c_void_p(wrong.data_ptr())]
        pointers = (ctypes.c_void_p * 4)(*[ctypes.addressof(each) for each in arguments])
        config = Config(32, 1, 1, 256, 1, 1, 0, stream.cuda_stream, ctypes.pointer(attribute), 1)
        assert library.cuLaunchKernelEx(ctypes.byref(config), kernel.func, pointers, None) == 0
        live.append(block)
        del block
        if len(live) > 12:
            del live[chance.randrange(len(live))]
torch.cuda.synchronize()
print(json.dumps([int(wrong), poolalloc.memory_stats(0)["pages_aliased"]]))
"""
    )
    if found is None:
        pytest.skip("programmatic dependent launch needs compute capability 9.0 and a torch that compiles kernels")
    wrong, aliased = found
    assert wrong == 0
    assert aliased > 100


def test_empty_cache_gives_memory_back_to_the_device() -> None:
    before, held, after = value_of(
        INSTALL
        + """
kept = torch.zeros(1, device="cuda")
torch.cuda.synchronize()
free = lambda: torch.cuda.mem_get_info()[0]
torch.cuda.empty_cache()
before = free()
block = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
held = free()
del block
torch.cuda.empty_cache()
print(json.dumps([before, held, free()]))
"""
    )
    assert before - held >= 1 << 30
    assert after - held >= (1 << 30) - (2 << 20)


def test_a_block_used_by_another_stream_is_not_reused_before_that_stream_is_done() -> None:
    wrong = value_of(
        INSTALL
        + """
side = torch.cuda.Stream()
busy = torch.randn(4096, 4096, device="cuda")
wrong = 0
for round in range(20):
    block = torch.full((1 << 22,), float(round), device="cuda")
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(20):
            busy = torch.mm(busy, busy).clamp(-1, 1)
        copy = block.clone()
    block.record_stream(side)
    del block
    others = [torch.full((1 << 22,), -1.0, device="cuda") for _ in range(4)]
    torch.cuda.synchronize()
    wrong += int((copy != round).sum())
    del copy, others
print(json.dumps(wrong))
"""
    )
    assert wrong == 0


def test_streams_on_threads_keep_their_values_while_memory_goes_between_them() -> None:
    """Each thread has a stream of its own; a small limit makes pages go from one to the other behind real work."""
    wrong = value_of(
        INSTALL
        + """
import threading
poolalloc.set_memory_limit(600 * MiB)
wrong = [0, 0, 0]
def work(number):
    with torch.cuda.stream(torch.cuda.Stream()):
        for round in range(60):
            tag = number * 1000 + round
            sizes = [MiB * (1 + (round + i) % 9) for i in range(4)]
            blocks = [torch.full((size,), tag, dtype=torch.int32, device="cuda") for size in sizes]
            wrong[number] += sum(int((block != tag).sum()) for block in blocks)
threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(wrong))
"""
    )
    assert wrong == [0, 0, 0]


def test_a_stream_that_is_destroyed_leaves_memory_that_can_be_had() -> None:
    """A stream of the program's own, gone while blocks of it and blocks that it used are freed or idle."""
    wrong, reserved = value_of(
        INSTALL
        + """
import ctypes
runtime = torch.cuda.cudart()
number = ctypes.c_uint64()
assert int(runtime.cudaStreamCreate(ctypes.addressof(number))) == 0
stream = torch.cuda.ExternalStream(number.value)
with torch.cuda.stream(stream):
    own = torch.full((64 * MiB,), 1, dtype=torch.uint8, device="cuda")
used = torch.ones(64 * MiB, dtype=torch.uint8, device="cuda")
used.record_stream(stream)
stream.synchronize()
del stream
assert int(runtime.cudaStreamDestroy(number.value)) == 0
del own, used
wrong = 0
for i in range(20):
    other = torch.full((40 * MiB + i * MiB,), i, dtype=torch.uint8, device="cuda")
    wrong += int((other != i).sum())
    del other
torch.cuda.empty_cache()
print(json.dumps([wrong, torch.cuda.memory_reserved()]))
"""
    )
    assert wrong == 0
    assert reserved == 0


def test_running_out_is_an_error_one_can_go_on_after() -> None:
    text, total = value_of(
        INSTALL
        + """
text = ""
try:
    torch.empty(1 << 45, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError as error:
    text = str(error)
print(json.dumps([text, float(torch.ones(1000, device="cuda").sum())]))
"""
    )
    assert "32 TiB" in text
    assert total == 1000


def test_a_full_device_fails_cleanly_and_serves_what_was_freed() -> None:
    """Filled until the driver itself refuses; what is freed then serves blocks of other sizes, with right values."""
    blocks, total_gib, wrong = value_of(
        INSTALL
        + """
blocks = []
try:
    while True:
        blocks.append(torch.empty(257 * MiB, dtype=torch.uint8, device="cuda"))
except torch.OutOfMemoryError as error:
    text = str(error)
count = len(blocks)
del blocks[::3]
others = [torch.full((70 * MiB // 4,), i, dtype=torch.int32, device="cuda") for i in range(count)]
wrong = sum(int((other != i).sum()) for i, other in enumerate(others))
print(json.dumps([count, torch.cuda.get_device_properties(0).total_memory >> 30, wrong]))
"""
    )
    assert blocks * 257 >= (total_gib - 4) * 1024
    assert wrong == 0


def test_a_captured_graph_replays_with_the_right_values() -> None:
    assert value_of(
        INSTALL
        + """
x = torch.ones(1 << 20, device="cuda")
warm = (x * 2 + 1).sum()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = (x * 2 + 1).sum()
noise = [torch.full((1 << 20,), 9.0, device="cuda") for _ in range(8)]
x.fill_(3)
graph.replay()
torch.cuda.synchronize()
print(json.dumps(float(y)))
"""
    ) == 7 * (1 << 20)


def test_memory_may_come_and_go_while_a_graph_is_captured() -> None:
    """In a capture of the strictest mode: the graph's own pool grows, other streams and threads allocate and free."""
    values, others = value_of(
        INSTALL
        + """
import threading
x = torch.ones(MiB, device="cuda")
weight = torch.eye(1024, device="cuda")
(x.view(1024, 1024) @ weight).sum()
torch.cuda.synchronize()
other_stream, right = torch.cuda.Stream(), []
go, done = threading.Event(), threading.Event()
def elsewhere():
    go.wait()
    with torch.cuda.stream(other_stream):
        for i in range(30):
            block = torch.empty((i + 1) * MiB, dtype=torch.uint8, device="cuda")
            block.record_stream(torch.cuda.default_stream())
            del block
    done.set()
thread = threading.Thread(target=elsewhere)
thread.start()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph, capture_error_mode="global"):
    parts = []
    for i in range(20):
        temporary = x * i
        parts.append((temporary.view(1024, 1024) @ weight).sum())
        if i == 5:
            go.set()
            done.wait()
    y = torch.stack(parts)
thread.join()
noise = [torch.full((4 * MiB,), 9.0, device="cuda") for _ in range(8)]
values = []
for factor in (1.0, 2.0):
    x.fill_(factor)
    graph.replay()
    torch.cuda.synchronize()
    values.append([round(v / MiB, 4) for v in y.tolist()])
print(json.dumps([values, sum(int((block != 9).sum()) for block in noise)]))
"""
    )
    assert values == [[float(i) for i in range(20)], [2.0 * i for i in range(20)]]
    assert others == 0


def test_tensors_go_between_processes(tmp_path: Path) -> None:
    seen, written = value_of(
        INSTALL
        + """
import torch.multiprocessing as mp
def consumer(there, back):
    tensor = there.get()
    back.put([int(tensor.sum()), tensor.numel()])
    tensor.fill_(5)
    torch.cuda.synchronize()
    del tensor
    back.put("written")
    there.get()
    sound()
if __name__ == "__main__":
    context = mp.get_context("spawn")
    there, back = context.Queue(), context.Queue()
    process = context.Process(target=consumer, args=(there, back))
    process.start()
    tensor = torch.full((3_000_001,), 2, dtype=torch.int32, device="cuda")
    there.put(tensor)
    seen = back.get(timeout=120)
    assert back.get(timeout=120) == "written"
    written = int(tensor.sum())
    there.put("end")
    process.join(60)
    assert process.exitcode == 0, process.exitcode
    print(json.dumps([seen, written]))
""",
        tmp_path,
    )
    assert seen == [6_000_002, 3_000_001]
    assert written == 15_000_005


def test_a_process_ends_cleanly_with_live_tensors_and_a_background_thread() -> None:
    assert (
        value_of(
            "import os\nos.environ['POOLALLOC_CONF'] = 'trim_after:0.001'\n"
            + INSTALL
            + """
import threading
side = torch.cuda.Stream()
kept = [torch.ones(i * MiB, device="cuda") for i in range(1, 9)]
class Cycle: pass
cycle = Cycle()
cycle.own, cycle.tensor = cycle, torch.ones(MiB, device="cuda")
with torch.cuda.stream(side):
    kept.append(torch.ones(MiB, device="cuda"))
kept[0].record_stream(side)
threading.Thread(target=lambda: torch.ones(MiB, device="cuda"), daemon=True).start()
print(json.dumps(len(kept)))
"""
        )
        == 9
    )


def test_driver_calls_take_a_time_that_can_be_measured() -> None:
    from poolalloc.analysis import costs

    measured = costs.measure(rounds=10)
    assert measured.prices.source == "measured"
    assert {"create", "map", "allow_access", "unmap", "destroy"} <= set(measured.prices.microseconds)
    assert all(0 < low <= high for low, high in measured.prices.microseconds.values())
    assert all(low <= middle <= high for of in measured.cases.values() for low, middle, high in of.values())
