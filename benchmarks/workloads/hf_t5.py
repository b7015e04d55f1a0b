"""Trains the T5 of transformers, made from a configuration: the lengths of source and target change at every step.

At size `full` it is T5-large, whose attention makes its score matrices in memory.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from _training import Text, texts, train
from torch import Tensor

NEEDS = ("transformers",)


class Size(NamedTuple):
    """One setting of the size knob; targets are at most half as long as sources."""

    layers: int
    width: int
    inner: int
    heads: int
    text: Text


SIZES = {
    "tiny": Size(2, 64, 128, 4, Text(512, max_batch=4, max_length=64, tokens=192)),
    "small": Size(6, 512, 2048, 8, Text(32128, max_batch=32, max_length=512, tokens=4096)),
    "full": Size(24, 1024, 4096, 16, Text(32128, max_batch=64, max_length=512, tokens=8192)),
}
STEPS = 24


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the T5 of this size (a key of SIZES)."""
    from transformers import T5Config, T5ForConditionalGeneration

    shape = SIZES[size]
    config = T5Config(
        vocab_size=shape.text.vocabulary,
        d_model=shape.width,
        d_kv=shape.width // shape.heads,
        d_ff=shape.inner,
        num_layers=shape.layers,
        num_heads=shape.heads,
        decoder_start_token_id=0,
        use_cache=False,
    )
    with torch.device(device):
        model = T5ForConditionalGeneration(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    choose = random.Random(33)

    def losses() -> Iterator[Callable[[], Tensor]]:
        for source in texts(shape.text, steps, device, 32):
            length = choose.randint(max(1, source.shape[1] // 8), max(1, source.shape[1] // 2))
            target = source[:, :length].contiguous()
            yield lambda source=source, target=target: model(input_ids=source, labels=target).loss

    return train(model, optimizer, losses(), device)


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
