"""Trains the GPT of gpt.py with activation checkpointing: a block's activations are made again in the backward pass.

Checkpointing trades time for memory, and leaves long-lived small tensors between short-lived large ones, which is
where an allocator that cannot move anything loses most.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from gpt import Size, train

SIZES = {
    "tiny": Size(layers=2, width=64, heads=4, vocabulary=512, max_batch=4, max_length=64, tokens=192),
    "small": Size(layers=12, width=768, heads=12, vocabulary=50304, max_batch=16, max_length=2048, tokens=16384),
    "full": Size(layers=24, width=1024, heads=16, vocabulary=50304, max_batch=32, max_length=4096, tokens=32768),
}
STEPS = 40


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the GPT of this size (a key of SIZES) with checkpointing."""
    return train(SIZES[size], steps, device, checkpointing=True)


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
