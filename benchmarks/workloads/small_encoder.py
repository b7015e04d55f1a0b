"""Answers batches of texts of every length with an encoder of 22 million parameters: about 0.2 GiB, inference only."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from _training import ATTENTION
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel


class Size(NamedTuple):
    """One setting of the size knob."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    max_batch: int
    max_length: int


SIZES = {
    "tiny": Size(layers=1, width=32, heads=2, vocabulary=512, max_batch=4, max_length=32),
    "full": Size(layers=6, width=384, heads=12, vocabulary=30522, max_batch=32, max_length=256),
}
STEPS = 200


class Encoder(nn.Module):
    """Token and position embeddings, layers, the mean over all tokens."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.max_length, size.width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(size.width, size.heads, 4 * size.width, dropout=0, batch_first=True)
            for _ in range(size.layers)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Return one vector for each text; ids is (batch, length)."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return x.mean(1)


@torch.no_grad()
def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Answer `steps` batches with the encoder of this size (a key of SIZES); the answers stay on the device."""
    shape = SIZES[size]
    torch.manual_seed(24)
    choose = random.Random(24)
    with torch.device(device):
        model = Encoder(shape)
    answers = []
    for step in range(1, steps + 1):
        batch, length = choose.randint(1, shape.max_batch), choose.randint(8, shape.max_length)
        ids = torch.randint(shape.vocabulary, (batch, length)).to(device)
        with sdpa_kernel(ATTENTION):
            answers.append(model(ids))
        yield step


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
