"""Trains a GPT of 11 million parameters on random text: about 0.5 GiB, as a first program on a new card does.

`full` has nanoGPT's shape for single characters, `large` is GPT-2 with half of its layers, about 1.8 GiB.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from gpt import Size, train

SIZES = {
    "tiny": Size(layers=2, width=64, heads=4, vocabulary=65, max_batch=4, max_length=64, tokens=192),
    "full": Size(layers=6, width=384, heads=6, vocabulary=65, max_batch=64, max_length=256, tokens=4096),
    "large": Size(layers=6, width=768, heads=12, vocabulary=50304, max_batch=8, max_length=512, tokens=1024),
}
STEPS = 40


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the GPT of this size (a key of SIZES)."""
    return train(SIZES[size], steps, device, checkpointing=False)


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
