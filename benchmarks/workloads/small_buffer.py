"""Trains a policy from a buffer of episodes, each a few small tensors of a length of its own: about 0.2 GiB."""

from __future__ import annotations

import math
import random
import sys
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Size(NamedTuple):
    """One setting of the size knob; an episode has up to max_length observations of so many numbers."""

    episodes: int
    observation: int
    max_length: int
    width: int
    batch: int


SIZES = {
    "tiny": Size(episodes=20, observation=4, max_length=20, width=16, batch=4),
    "full": Size(episodes=2000, observation=64, max_length=2000, width=256, batch=16),
}
STEPS = 200


class Episode(NamedTuple):
    """What happened: (length, observation), and (length,) thrice."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    done: Tensor


def episode(size: Size, choose: random.Random, device: torch.device) -> Episode:
    """Return an episode; most are short."""
    length = round(math.exp(choose.uniform(math.log(4), math.log(size.max_length))))
    return Episode(
        torch.randn(length, size.observation, device=device),
        torch.randint(8, (length,), device=device),
        torch.randn(length, device=device),
        torch.zeros(length, dtype=torch.bool, device=device),
    )


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Play ten episodes, which replace the oldest ones, and learn from some of the buffer, `steps` times."""
    shape = SIZES[size]
    torch.manual_seed(25)
    choose = random.Random(25)
    with torch.device(device):
        policy = nn.Sequential(
            nn.Linear(shape.observation, shape.width),
            nn.ReLU(),
            nn.Linear(shape.width, shape.width),
            nn.ReLU(),
            nn.Linear(shape.width, 8),
        )
    optimizer = torch.optim.AdamW(policy.parameters())
    buffer: deque[Episode] = deque(maxlen=shape.episodes)
    buffer.extend(episode(shape, choose, device) for _ in range(shape.episodes))
    for step in range(1, steps + 1):
        buffer.extend(episode(shape, choose, device) for _ in range(10))
        batch = choose.sample(list(buffer), shape.batch)
        values = policy(torch.cat([each.observations for each in batch]))
        chosen = values.gather(1, torch.cat([each.actions for each in batch])[:, None])[:, 0]
        loss = F.mse_loss(chosen, torch.cat([each.rewards for each in batch]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
