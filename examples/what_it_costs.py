"""Compares the memory cost of in-place operations, checkpointing, accumulation, autocast, quantization and sharding.

Trains the same small network in several ways. It also works on a simulated GPU:
`poolalloc sim -- python examples/what_it_costs.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

import poolalloc
from poolalloc.analysis.compare import compare

WIDTH, LAYERS, BATCH, LENGTH = 512, 8, 16, 256
RANKS = 8


class Int8Linear(nn.Module):
    """A linear layer that stores its weights in 8 bits with a scale for each row, and converts them when used."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(dim=1, keepdim=True) / 127)
        self.register_buffer("weight", (weight / self.scale).round().to(torch.int8))
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the weights, plus the bias."""
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class Block(nn.Module):
    """A norm, a linear layer to four times the width, an activation, and a linear layer back."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.act = nn.ReLU(inplace=in_place)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x of shape (batch, length, WIDTH) plus what the block adds."""
        return x + self.down(self.act(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks, one after the other."""

    def __init__(self, *, in_place: bool = False, checkpointed: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(in_place) for _ in range(LAYERS))
        self.checkpointed = checkpointed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x of shape (batch, length, WIDTH) after all blocks."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return x


def train(
    make: Callable[[], nn.Module] = Net, *, parts: int = 1, half: bool = False, steps: int = 2
) -> Callable[[], object]:
    """Return a function that trains a new model for some steps. Each step splits its batch into `parts`."""

    def run() -> object:
        model = make()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(steps):
            for _ in range(parts):
                x = torch.randn(BATCH // parts, LENGTH, WIDTH, device="cuda")
                with torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
                    loss = model(x).square().mean() / parts
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    return run


def infer(quantized: bool) -> Callable[[], object]:
    """Return a function that runs inference once, with the original weights or with weights of 8 bits."""

    def run() -> object:
        model = Net()
        if quantized:
            for block in model.blocks:
                block.up, block.down = Int8Linear(block.up), Int8Linear(block.down)
        model.cuda()
        with torch.inference_mode():
            model(torch.randn(BATCH, LENGTH, WIDTH, device="cuda"))
        return model

    return run


def sharded() -> nn.Module:
    """Return one of eight ranks under FSDP2. The other ranks do not exist; collectives return at once."""
    model = Net().cuda()
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def main() -> None:
    """Print both comparisons."""
    poolalloc.install()
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    print("training")
    print(
        compare(
            {
                "as it is": train(lambda: Net().cuda()),
                "activations in place": train(lambda: Net(in_place=True).cuda()),
                "checkpointed": train(lambda: Net(checkpointed=True).cuda()),
                "batch in 4 parts": train(lambda: Net().cuda(), parts=4),
                "autocast to bfloat16": train(lambda: Net().cuda(), half=True),
                "one of 8 shards": train(sharded),
            }
        )
    )
    print("\ninference")
    print(compare({"weights of 32 bits": infer(quantized=False), "of 8 bits": infer(quantized=True)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
