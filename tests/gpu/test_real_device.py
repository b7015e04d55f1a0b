"""What only a real device can tell: that values survive, that memory really comes and goes, that streams really wait.

Each program runs in a process of its own, since torch's allocator can be swapped once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from poolalloc.bench.devices import has_real_gpu

pytestmark = pytest.mark.skipif(not has_real_gpu(), reason="no real CUDA device that torch can use on this machine")

INSTALL = "import poolalloc\npoolalloc.install()\n"

TRAIN = """
import json, torch
from torch import nn

torch.manual_seed(3)
torch.use_deterministic_algorithms(True, warn_only=True)
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


def value_of(program: str) -> Any:
    """What the program prints last, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_training_gives_the_same_losses_as_under_torchs_own_allocator() -> None:
    report = "print(json.dumps(losses))\n"
    own = value_of(TRAIN + report)
    ours = value_of(INSTALL + TRAIN + report)
    assert ours == pytest.approx(own, rel=1e-5)


def test_pages_were_mapped_a_second_time_and_every_equation_holds() -> None:
    report = "s = poolalloc.memory_stats(0)\npoolalloc._core.validate()\nprint(json.dumps(s['pages_aliased']))\n"
    assert value_of(INSTALL + TRAIN + report) > 0


def test_empty_cache_gives_memory_back_to_the_device() -> None:
    before, held, after = value_of(
        INSTALL
        + """
import json, torch
torch.zeros(1, device="cuda")
free = lambda: torch.cuda.mem_get_info()[0]
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
import json, torch
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


def test_running_out_is_an_error_one_can_go_on_after() -> None:
    text, total = value_of(
        INSTALL
        + """
import json, torch
poolalloc_text = ""
try:
    torch.empty(1 << 45, dtype=torch.uint8, device="cuda")
except RuntimeError as error:
    poolalloc_text = str(error)
print(json.dumps([poolalloc_text, float(torch.ones(1000, device="cuda").sum())]))
"""
    )
    assert "32 TiB" in text
    assert total == 1000


def test_a_captured_graph_replays_with_the_right_values() -> None:
    assert value_of(
        INSTALL
        + """
import json, torch
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


def test_driver_calls_take_a_time_that_can_be_measured() -> None:
    from poolalloc import costs

    table = costs.measure(rounds=10)
    assert table.source == "measured"
    assert {"create", "map", "allow_access", "unmap", "destroy"} <= set(table.microseconds)
    assert all(0 < low <= high for low, high in table.microseconds.values())
