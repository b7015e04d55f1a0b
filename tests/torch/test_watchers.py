"""Tools of torch that watch memory see the same under poolalloc as under torch's own allocator: profiler, sanitizer."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.torch_interface

WORK = """
import json, sys
import torch
if sys.argv[1] == "poolalloc":
    import poolalloc
    assert poolalloc.install(bridge=True).backend == "bridge"
def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 512)).cuda()
    return model, torch.optim.AdamW(model.parameters()), torch.cuda.Stream()
def train(model, optimizer, side):
    for _ in range(3):
        batch = torch.randn(256, 512, device="cuda")
        optimizer.zero_grad(set_to_none=True)
        model(batch).square().mean().backward()
        optimizer.step()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            other = batch * 2
        batch.record_stream(side)
        torch.cuda.current_stream().wait_stream(side)
        del batch, other
"""

PROFILER = (
    WORK
    + """
parts = make()
train(*parts)
cpu = [torch.profiler.ProfilerActivity.CPU]
with torch.profiler.profile(activities=cpu, profile_memory=True, record_shapes=True, with_stack=True) as profile:
    train(*parts)
profile.export_memory_timeline(sys.argv[2] + ".json", device="cuda:0")
with open(sys.argv[2] + ".json") as timeline:
    times, sizes = json.load(timeline)  # one entry a microsecond, so how many differs from run to run
print(json.dumps({
    "by category in the end": sizes[-1],
    "actions": [[action.name, type(key).__name__, version, size]
                for _, action, (key, version), size in profile._memory_profile().timeline],
    "by operator": {event.key: [event.count, event.self_device_memory_usage, event.device_memory_usage]
                    for event in profile.key_averages() if event.device_memory_usage},
}))
"""
)

SANITIZER = (
    WORK
    + """
import torch.cuda._sanitizer as sanitizer
if sys.argv[2] == "in the program":
    sanitizer.enable_cuda_sanitizer()
seen, names, live = [], {}, set()
def allocated(pointer):
    assert pointer not in live
    names[pointer] = len(seen)
    live.add(pointer)
    seen.append(["new", len(seen)])
def freed(pointer):
    live.remove(pointer)
    seen.append(["gone", names[pointer]])
torch.cuda._gpu_trace.register_callback_for_memory_allocation(allocated)
torch.cuda._gpu_trace.register_callback_for_memory_deallocation(freed)
parts = make()
train(*parts)
known = sanitizer.cuda_sanitizer.dispatch.event_handler.tensors_accessed.accesses
assert live <= known.keys(), "whatever lives was seen when it came"
assert all(known[pointer].allocation_stack_trace is not None for pointer in live)
held = len(live)
tensor = torch.ones(1000, device="cuda")
races = []
for waits in (True, False):
    side = torch.cuda.Stream()
    if waits:
        side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            tensor.mul_(2)
    except sanitizer.CUDASanitizerErrors as errors:
        races.append([len(errors.errors), "test_watchers" not in str(errors.errors[0])])
    torch.cuda.synchronize()
    tensor.add_(1)
print(json.dumps({"seen": seen, "held": held, "races": races}))
"""
)


def test_the_memory_profiler_sees_the_same(on_sim: Callable, tmp_path: Any) -> None:
    torchs, ours = (on_sim(PROFILER, arguments=(each, str(tmp_path / each))).value for each in ("torch", "poolalloc"))
    assert len(torchs["actions"]) > 200
    assert sum(torchs["by category in the end"]) > 0
    for part, expected in torchs.items():
        assert ours[part] == expected, part


@pytest.mark.parametrize("how", ["in the program", "from outside"])
def test_the_sanitizer_sees_the_same(on_sim: Callable, how: str) -> None:
    environment = {"TORCH_CUDA_SANITIZER": "1"} if how == "from outside" else {}
    torchs, ours = (
        on_sim(SANITIZER, arguments=(each, how), environment=environment).value for each in ("torch", "poolalloc")
    )
    assert torchs["races"] == [[1, True]]
    assert torchs["held"] >= 12
    assert ours == torchs
