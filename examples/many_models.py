"""A server keeps ten models in memory that holds three, and lets the one sleep that nobody has asked for longest.

Each model is a region. A request wakes its model; where that finds no room, a callback puts the least recently used one
to sleep, so that nothing here computes sizes. Decoding is a CUDA graph, captured once, which replays after every wake.
"""

from __future__ import annotations

import asyncio
import random

import torch
from torch import nn

import poolalloc
from poolalloc.sizes import format_size

MODELS, ROOM_FOR, REQUESTS, WIDTH = 10, 3, 60, 512

poolalloc.install()
poolalloc.set_memory_limit("48 MiB")


class Server:
    """The models, and the order in which they were used."""

    def __init__(self) -> None:
        self.awake: list[str] = []  # the least recently used one first
        self.wakes = 0
        self.models: dict[str, tuple[nn.Module, torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}
        self.turn = asyncio.Lock()  # one GPU: one model computes at a time
        poolalloc.on_oom(self.make_room)

    def make_room(self, device: int, size: int) -> bool:
        """Called by poolalloc when memory is short: put one model to sleep."""
        idle = [name for name in self.awake if name != self.current]
        if not idle:
            return False
        poolalloc.sleep(idle[0], keep="host")
        self.awake.remove(idle[0])
        return True

    def load(self, name: str) -> None:
        """Make a model and capture its decoding step, in a region of its own. A capture cannot make room on its way."""
        self.current = name
        while len(self.awake) >= ROOM_FOR:
            self.make_room(0, 0)
        self.awake.append(name)
        with poolalloc.region(name), torch.no_grad():
            model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(8))).cuda()
            token = torch.zeros(1, WIDTH, device="cuda")
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = model(token)
        self.models[name] = (model, graph, token, out)

    async def answer(self, name: str) -> None:
        """Decode four tokens with a model, awake or not."""
        async with self.turn:
            self.current = name
            if name in self.awake:
                self.awake.remove(name)
            else:
                poolalloc.wake(name)
                self.wakes += 1
            self.awake.append(name)
            _, graph, token, out = self.models[name]
            for _ in range(4):
                graph.replay()
                token.copy_(out)
            torch.cuda.synchronize()


async def main() -> None:
    """Load all of them, and answer requests at random."""
    server = Server()
    names = [f"model-{number}" for number in range(MODELS)]
    for name in names:
        server.load(name)
    rng = random.Random(1)
    await asyncio.gather(*(server.answer(rng.choice(names)) for _ in range(REQUESTS)))
    stats = poolalloc.memory_stats()
    print(f"{REQUESTS} requests to {MODELS} models, {server.wakes} wakes, {len(server.awake)} models awake at the end")
    print(f"{format_size(stats['reserved']['current'])} reserved, {format_size(stats['asleep'])} asleep")


asyncio.run(main())
