"""Trains the ConvNeXt of timm on random images; batch and resolution change at every step."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from _training import train
from torch import Tensor

NEEDS = ("timm",)


class Size(NamedTuple):
    """One setting of the size knob; pixels bounds batch x height x width of a step."""

    model: str
    classes: int
    max_batch: int
    max_side: int
    pixels: int


SIZES = {
    "tiny": Size("convnext_atto", classes=10, max_batch=2, max_side=64, pixels=2 * 64 * 64),
    "small": Size("convnext_tiny", classes=1000, max_batch=32, max_side=256, pixels=16 * 224 * 224),
    "full": Size("convnext_base", classes=1000, max_batch=128, max_side=384, pixels=96 * 224 * 224),
}
STEPS = 24


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the ConvNeXt of this size (a key of SIZES)."""
    import timm

    shape = SIZES[size]
    torch.manual_seed(34)
    # Made on the host: its initialization waits for values, which a simulated card does not compute.
    model = timm.create_model(shape.model, num_classes=shape.classes, drop_path_rate=0.1).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    choose = random.Random(34)

    def losses() -> Iterator[Callable[[], Tensor]]:
        for _ in range(steps):
            side = 32 * choose.randint(2, shape.max_side // 32)
            batch = choose.randint(1, max(1, min(shape.max_batch, shape.pixels // (side * side))))
            # Made on the device: copying images from the host is not what is measured.
            images = torch.rand((batch, 3, side, side), device=device)
            targets = torch.randint(shape.classes, (batch,), device=device)
            yield lambda images=images, targets=targets: F.cross_entropy(model(images), targets)

    return train(model, optimizer, losses(), device)


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
