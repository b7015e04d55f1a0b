"""Trains a residual network on images of 32 x 32 pixels and tests it after every tenth step: about 0.2 GiB."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Size(NamedTuple):
    """One setting of the size knob."""

    blocks: int
    width: int
    batch: int
    images: int


SIZES = {
    "tiny": Size(blocks=1, width=8, batch=8, images=20),
    "full": Size(blocks=3, width=32, batch=128, images=1000),
}
STEPS = 20


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        stride = 1 if inputs == width else 2
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def network(size: Size) -> nn.Sequential:
    """Build the network: a stem, three stages, pooling, a linear layer."""
    layers: list[nn.Module] = [nn.Conv2d(3, size.width, 3, 1, 1, bias=False), nn.BatchNorm2d(size.width), nn.ReLU()]
    inputs = size.width
    for stage in range(3):
        for _ in range(size.blocks):
            layers.append(Block(inputs, size.width << stage))
            inputs = size.width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the network of this size (a key of SIZES); the last batch of an epoch is smaller than the others."""
    shape = SIZES[size]
    torch.manual_seed(23)
    with torch.device(device):
        model = network(shape)
        images = torch.rand(shape.images, 3, 32, 32)
        targets = torch.randint(10, (shape.images,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    batches = list(range(0, shape.images, shape.batch))
    for step in range(1, steps + 1):
        start = batches[step % len(batches)]
        batch = images[start : start + shape.batch].flip(3)
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(model(batch).float(), targets[start : start + shape.batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            model.eval()
            with torch.no_grad():
                torch.cat([model(batch).argmax(1) for batch in images.split(2 * shape.batch)])
            model.train()
        yield step


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
