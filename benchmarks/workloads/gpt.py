"""Trains a GPT on random tokens: autocast to bfloat16, AdamW, and a batch and a length that change at every step.

The shapes are what matters here, not the loss: every step asks for activations of other sizes than the one before, as
training on real documents does. Run it alone with `python gpt.py [SIZE]`, or under `poolalloc bench gpt`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from _training import ATTENTION
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.utils.checkpoint import checkpoint


class Size(NamedTuple):
    """One setting of the size knob; tokens bounds batch x length of a step. Unless it is fixed, both change."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    max_batch: int
    max_length: int
    tokens: int
    fixed: bool = False


SIZES = {
    "tiny": Size(layers=2, width=64, heads=4, vocabulary=512, max_batch=4, max_length=64, tokens=192),
    "small": Size(layers=12, width=768, heads=12, vocabulary=50304, max_batch=16, max_length=1024, tokens=8192),
    "full": Size(layers=24, width=1024, heads=16, vocabulary=50304, max_batch=32, max_length=2048, tokens=16384),
    "tiny-fixed": Size(2, 64, 4, 512, max_batch=4, max_length=64, tokens=256, fixed=True),
    "full-fixed": Size(24, 1024, 16, 50304, max_batch=8, max_length=2048, tokens=16384, fixed=True),
}
STEPS = 40


class Block(nn.Module):
    """One transformer layer, normalization first."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm1 = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.out = nn.Linear(size.width, size.width)
        self.norm2 = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, 4 * size.width)
        self.down = nn.Linear(4 * size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x after attention and the feed-forward layer; (batch, length, width) both."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Token and position embeddings, blocks, a tied output layer."""

    def __init__(self, size: Size, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.max_length, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return the mean loss of predicting every token from those before it; ids is (batch, length + 1)."""
        inputs, targets = ids[:, :-1], ids[:, 1:]
        x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def batches(size: Size, steps: int, device: torch.device, seed: int) -> Iterator[Tensor]:
    """Yield `steps` tensors of random token ids, (batch, length + 1), of a new shape every time unless it is fixed."""
    choose = random.Random(seed)
    for _ in range(steps):
        if size.fixed:
            yield torch.randint(size.vocabulary, (size.tokens // size.max_length, size.max_length + 1)).to(device)
            continue
        length = choose.randint(size.max_length // 8, size.max_length)
        batch = choose.randint(1, max(1, min(size.max_batch, size.tokens // length)))
        yield torch.randint(size.vocabulary, (batch, length + 1)).to(device)


def train(
    size: Size,
    steps: int,
    device: torch.device,
    checkpointing: bool,
    *,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    seed: int = 20,
) -> Iterator[int]:
    """Train for `steps` steps, yielding the number of steps done after each; waits for no computed value.

    `wrap` makes of the model what is trained; the shapes of the batches are drawn from `seed`.
    """
    torch.manual_seed(20)
    with torch.device(device):
        model = wrap(GPT(size, checkpointing))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for step, ids in enumerate(batches(size, steps, device, seed), 1):
        with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(ATTENTION):
            loss = model(ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the GPT of this size (a key of SIZES)."""
    return train(SIZES[size], steps, device, checkpointing=False)


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
