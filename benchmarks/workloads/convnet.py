"""Trains a residual convolutional network (ResNet-50's shape) on random images whose size changes at every step.

Changing resolutions are common in detection and in progressive training; every activation changes its size with them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Size(NamedTuple):
    """One setting of the size knob; pixels bounds batch x height x width of a step. Unless it is fixed, all change."""

    blocks: tuple[int, ...]
    width: int
    classes: int
    max_batch: int
    max_side: int
    pixels: int
    fixed: bool = False


SIZES = {
    "tiny": Size(blocks=(1, 1), width=8, classes=10, max_batch=2, max_side=64, pixels=2 * 48 * 48),
    "small": Size(blocks=(2, 2, 2, 2), width=64, classes=1000, max_batch=32, max_side=256, pixels=16 * 224 * 224),
    "full": Size(blocks=(3, 4, 6, 3), width=64, classes=1000, max_batch=128, max_side=512, pixels=128 * 224 * 224),
    "tiny-fixed": Size((1, 1), 8, 10, max_batch=2, max_side=48, pixels=2 * 48 * 48, fixed=True),
    "full-fixed": Size((3, 4, 6, 3), 64, 1000, max_batch=128, max_side=224, pixels=128 * 224 * 224, fixed=True),
}
STEPS = 40


class Bottleneck(nn.Module):
    """Three convolutions around a shortcut; the outer ones are pointwise."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == 4 * width and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


def residual_network(size: Size) -> nn.Sequential:
    """Build the network: a stem, stages of bottlenecks that halve the side, pooling, a linear layer."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, size.width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(size.width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = size.width
    for stage, count in enumerate(size.blocks):
        width = size.width << stage
        for block in range(count):
            layers.append(Bottleneck(inputs, width, stride=2 if stage > 0 and block == 0 else 1))
            inputs = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, size.classes)]
    return nn.Sequential(*layers)


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the network of this size (a key of SIZES) for `steps` steps, yielding the number done after each."""
    shape = SIZES[size]
    torch.manual_seed(22)
    choose = random.Random(22)
    with torch.device(device):
        model = residual_network(shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for step in range(1, steps + 1):
        smallest = shape.max_side // 32 if shape.fixed else shape.max_side // 128 or 1
        side = 32 * choose.randint(smallest, shape.max_side // 32)
        batch = max(1, min(shape.max_batch, shape.pixels // (side * side)))
        # Made on the device: copying images from the host is not what is measured.
        images = torch.rand((batch, 3, side, side), device=device)
        targets = torch.randint(shape.classes, (batch,), device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(model(images).float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
