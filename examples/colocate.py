"""A trainer and a generator take turns on memory that cannot hold both, cycle after cycle.

The trainer (AdamW under FSDP2, whose other ranks are made up) and the generator (a decoder with a key-value cache) each
have regions of their own. Whoever is not at work sleeps. After each turn of the trainer its weights go to the
generator.

`python examples/colocate.py 200 colocate.png` runs 200 cycles and draws what each region held during the first ones.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import poolalloc
from poolalloc.sizes import format_size

cycles = int(sys.argv[1]) if len(sys.argv) > 1 else 20
picture = sys.argv[2] if len(sys.argv) > 2 else None

poolalloc.install()
poolalloc.set_memory_limit("128 MiB")
dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())

LAYERS, WIDTH, LENGTH, BATCH = 4, 256, 256, 16


def make_model() -> nn.Module:
    """A small stack of transformer layers."""
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).cuda()


with poolalloc.region("trainer"):
    model = make_model()
    for part in model.layers:
        fully_shard(part)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
poolalloc.sleep("trainer")
with poolalloc.region("generator"):
    generator = make_model()
with poolalloc.region("kv-cache"):
    cache = torch.empty(LAYERS, 2, BATCH, LENGTH, WIDTH, device="cuda", dtype=torch.float32)

samples: list[dict[str, int]] = []


def look() -> None:
    """Note what each region holds on the device now."""
    samples.append({region.tag: region.reserved for region in poolalloc.regions()})


def train() -> dict[str, torch.Tensor]:
    """One step; activations live in the region too. Returns the weights, on the host."""
    with poolalloc.region("trainer"):
        look()
        loss = model(torch.randn(BATCH, 64, WIDTH, device="cuda")).square().mean()
        look()
        loss.backward()
        look()
        optimizer.step()
        optimizer.zero_grad()
        look()
    return {name: weight.full_tensor().cpu() for name, weight in model.named_parameters()}


def generate(weights: dict[str, torch.Tensor]) -> None:
    """Take the weights, and fill the cache token by token."""
    with poolalloc.region("generator"), torch.no_grad():
        for name, parameter in generator.named_parameters():
            parameter.copy_(weights[name])
        for position in range(0, LENGTH, 64):
            token = generator(torch.randn(BATCH, 1, WIDTH, device="cuda"))
            cache[:, :, :, position] = token.squeeze(1)
            look()


ends = []
for _cycle in range(cycles):
    poolalloc.sleep("generator", keep="nothing")  # its weights are about to be replaced
    poolalloc.sleep("kv-cache", keep="nothing")
    poolalloc.wake("trainer")
    weights = train()
    poolalloc.sleep("trainer", keep="host")
    poolalloc.wake("generator", "kv-cache")
    generate(weights)
    ends.append(torch.cuda.memory_reserved())

most = max(sum(sample.values()) for sample in samples)
apart = sum(max(sample.get(tag, 0) for sample in samples) for tag in samples[-1])
print(f"{cycles} cycles: at most {format_size(most)} on the device at one time, {format_size(apart)} if nobody slept")
print(
    f"reserved after the second cycle {format_size(ends[min(1, cycles - 1)])}, after the last {format_size(ends[-1])}"
)

if picture:
    import matplotlib.pyplot as plt

    shown = samples[: 4 * len(samples) // cycles]
    figure, axes = plt.subplots(figsize=(8, 3))
    tags = list(samples[-1])
    axes.stackplot(
        range(len(shown)), *([s.get(tag, 0) / 2**20 for s in shown] for tag in tags), labels=tags, step="mid"
    )
    axes.axhline(apart / 2**20, color="grey", linestyle="--", label="if nobody slept")
    axes.set(xlabel="moments of the first four cycles", ylabel="MiB on the device", ylim=(0, None))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False)
    figure.savefig(picture, dpi=120, bbox_inches="tight")

dist.destroy_process_group()
