"""Trains the GPT of gpt.py on two devices: a process each, DDP over NCCL, batches of its own shape on every rank.

Run it alone with `torchrun --nproc-per-node 2 gpt_ddp.py [SIZE]`. `poolalloc bench gpt_ddp` starts both processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from gpt import SIZES as OF_GPT
from gpt import train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

SIZES = {"tiny": OF_GPT["tiny"], "small": OF_GPT["small"], "full": OF_GPT["full"]}
STEPS = 40
PROCESSES = 2


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the GPT of this size (a key of SIZES) as the rank that the environment names; alone if it names none."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        yield from train(SIZES[size], steps, device, False, wrap=distributed, seed=20 + dist.get_rank())
    finally:
        dist.destroy_process_group()


def distributed(model: nn.Module) -> nn.Module:
    """Return the model under DDP, as most programs call it."""
    return DistributedDataParallel(model)


if __name__ == "__main__":
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, own):
        print(f"step {done}/{STEPS}")
