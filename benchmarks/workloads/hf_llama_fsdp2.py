"""Trains the Llama of transformers sharded by FSDP2 over eight ranks, of which this process is the first.

The others are made up: the process group is torch's `fake` one, whose collectives return at once. Every allocation of
this rank is real: shards, gathered layers, reduced gradients, on the streams that FSDP2 uses. At size `full` it is
Llama 3.1 8B.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from _training import Text, train
from hf_llama import Size, llama, losses

NEEDS = ("transformers",)
RANKS = 8
SIZES = {
    "tiny": Size(2, 64, 128, 4, 2, Text(512, max_batch=4, max_length=64, tokens=192)),
    "small": Size(8, 1024, 4096, 16, 4, Text(32000, max_batch=16, max_length=1024, tokens=8192)),
    "full": Size(32, 4096, 14336, 32, 8, Text(128256, max_batch=8, max_length=2048, tokens=6144)),
}
STEPS = 16


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the Llama of this size (a key of SIZES) as rank 0 of RANKS."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    shape = SIZES[size]
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    try:
        mesh = init_device_mesh(device.type, (RANKS,))
        with torch.device("meta"):
            model = llama(shape)
        precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=precision)
        fully_shard(model, mesh=mesh, mp_policy=precision)
        model.to_empty(device=device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        yield from train(model, optimizer, losses(model, shape.text, steps, device, 35), device, autocast=False)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
