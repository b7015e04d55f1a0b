"""What the workloads of library models share.

Batches of changing shape, one training step after the other, and the steps of a trainer that has a loop of its own.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# The same attention kernels on every card, so that the memory asked for does not depend on the card's preferences.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Text(NamedTuple):
    """Random text: batch x length changes at every step, tokens bounds it."""

    vocabulary: int
    max_batch: int
    max_length: int
    tokens: int


def texts(text: Text, steps: int, device: torch.device, seed: int) -> Iterator[Tensor]:
    """Yield `steps` tensors of random token ids, (batch, length), of a new shape every time."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(steps):
        length = choose.randint(max(1, text.max_length // 8), text.max_length)
        batch = choose.randint(1, max(1, min(text.max_batch, text.tokens // length)))
        yield torch.randint(text.vocabulary, (batch, length)).to(device)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Iterator[Callable[[], Tensor]],
    device: torch.device,
    autocast: bool = True,
) -> Iterator[int]:
    """Take one step for each loss in turn, yielding the number of steps done after each."""
    model.train()
    for step, loss in enumerate(losses, 1):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast), sdpa_kernel(ATTENTION):
            value = loss()
        value.backward()
        del value
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step


def steps_of(train: Callable[[Callable[[int], None]], None]) -> Iterator[int]:
    """Yield the steps of a trainer that has a loop of its own: `train` passes on the number of steps done.

    The trainer runs in a thread, which waits while the one who iterates is at work. What it raises is raised here.
    """
    done: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    go_on = threading.Semaphore(0)

    def stepped(step: int) -> None:
        done.put(step)
        go_on.acquire()

    def loop() -> None:
        try:
            train(stepped)
        except BaseException as error:
            done.put(error)
        else:
            done.put(None)

    threading.Thread(target=loop, name="trainer", daemon=True).start()
    while (step := done.get()) is not None:
        if isinstance(step, BaseException):
            raise step
        yield step
        go_on.release()
