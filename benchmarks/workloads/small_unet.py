"""Trains a U-Net that removes noise from images of three sizes, with AdamW and averaged weights: about 0.6 GiB."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Size(NamedTuple):
    """One setting of the size knob."""

    width: int
    batch: int
    sides: tuple[int, ...]


SIZES = {"tiny": Size(width=8, batch=1, sides=(16, 32)), "full": Size(width=64, batch=8, sides=(48, 64, 96))}
STEPS = 60


def twice(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with normalization."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class UNet(nn.Module):
    """Three halvings of the side, and back, with shortcuts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(twice(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.middle = twice(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            twice(a + b, b) for a, b in zip([widths[-1], *widths[:0:-1]], widths[::-1], strict=True)
        )
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the noise in x."""
        kept = []
        for down in self.down:
            x = down(x)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for up in self.up:
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0), kept.pop()], 1))
        return self.last(x)


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the network of this size (a key of SIZES)."""
    shape = SIZES[size]
    torch.manual_seed(26)
    choose = random.Random(26)
    with torch.device(device):
        model = UNet(shape.width)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(1, steps + 1):
        side = choose.choice(shape.sides)
        images = torch.rand(shape.batch, 3, side, side, device=device)
        noise = torch.randn_like(images)
        loss = F.mse_loss(model(images + noise), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(model)
        yield step


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
