"""Serves a decoder: requests of varying lengths arrive and finish, each with key-value caches that grow as it runs.

A step is one round of the scheduler: admit what has arrived, run the prompts of the new requests, then make one token
for every running request. How long an answer becomes is drawn from the seed and never from what was computed.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from _training import ATTENTION
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel


class Size(NamedTuple):
    """One setting of the size knob; arrivals is the mean number of new requests in a step."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    vocabulary: int
    max_prompt: int
    max_answer: int
    max_running: int
    arrivals: float


SIZES = {
    "tiny": Size(2, 64, 4, 2, 512, max_prompt=48, max_answer=8, max_running=4, arrivals=1.0),
    "small": Size(12, 1024, 16, 4, 32000, max_prompt=2048, max_answer=96, max_running=12, arrivals=0.3),
    "full": Size(16, 2048, 32, 32, 32000, max_prompt=8192, max_answer=256, max_running=24, arrivals=0.3),
}
STEPS = 240
CHUNK = 16  # a cache that is full grows by this many tokens


@dataclass
class Request:
    """One running request; caches holds, for each layer, keys and values as (2, 1, kv_heads, capacity, head width)."""

    prompt: int
    answer: int
    length: int = 0
    caches: list[Tensor] = field(default_factory=list)


class Layer(nn.Module):
    """One decoder layer with grouped key-value heads."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = size.heads, size.kv_heads, size.width // size.heads
        kv_width = size.kv_heads * self.head_width
        self.split = [size.width, kv_width, kv_width]
        self.norm1 = nn.RMSNorm(size.width)
        self.qkv = nn.Linear(size.width, sum(self.split), bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.norm2 = nn.RMSNorm(size.width)
        self.gate_up = nn.Linear(size.width, 8 * size.width, bias=False)
        self.down = nn.Linear(4 * size.width, size.width, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of x as (rows, heads, length, head width)."""
        rows, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(self.split, dim=-1)
        return (
            q.view(rows, length, self.heads, -1).transpose(1, 2),
            k.view(rows, length, self.kv_heads, -1).transpose(1, 2),
            v.view(rows, length, self.kv_heads, -1).transpose(1, 2),
        )

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output from its input and the attention's result."""
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Attention of q over k and v, key-value heads repeated to match."""
        repeat = self.heads // self.kv_heads
        return F.scaled_dot_product_attention(
            q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), is_causal=causal
        )


class Decoder(nn.Module):
    """Embedding, layers, output layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)

    def prefill(self, request: Request, ids: Tensor) -> Tensor:
        """Run a prompt, (1, length), fill the request's caches, and return the next token's scores."""
        x = self.tokens(ids)
        room = math.ceil((ids.shape[1] + 1) / CHUNK) * CHUNK
        for layer in self.layers:
            q, k, v = layer.project(x)
            cache = torch.empty((2, 1, layer.kv_heads, room, layer.head_width), dtype=x.dtype, device=x.device)
            cache[0, :, :, : ids.shape[1]] = k
            cache[1, :, :, : ids.shape[1]] = v
            request.caches.append(cache)
            x = layer.finish(x, layer.attend(q, k, v, causal=True))
        request.length = ids.shape[1]
        return self.head(self.norm(x[:, -1]))

    def decode(self, requests: list[Request], ids: Tensor) -> Tensor:
        """Make one token for each request; ids is (requests, 1). Returns the scores of the tokens after them."""
        x = self.tokens(ids)
        for index, layer in enumerate(self.layers):
            q, k, v = layer.project(x)
            attended = []
            for row, request in enumerate(requests):
                cache = request.caches[index]
                if request.length == cache.shape[3]:
                    shape = list(cache.shape)
                    shape[3] += CHUNK
                    grown = cache.new_empty(shape)
                    grown[:, :, :, : request.length] = cache
                    cache = request.caches[index] = grown
                cache[0, 0, :, request.length] = k[row, :, 0]
                cache[1, 0, :, request.length] = v[row, :, 0]
                keys, values = cache[:, :, :, : request.length + 1]
                attended.append(layer.attend(q[row : row + 1], keys, values, causal=False))
            x = layer.finish(x, torch.cat(attended))
        for request in requests:
            request.length += 1
        return self.head(self.norm(x[:, -1]))


def arrivals(size: Size, choose: random.Random) -> list[Request]:
    """Draw the requests that arrive in one step: many short prompts, a few long ones."""
    new = []
    while choose.random() < size.arrivals / (1 + size.arrivals):
        prompt = round(math.exp(choose.uniform(math.log(16), math.log(size.max_prompt))))
        new.append(Request(prompt=prompt, answer=choose.randint(1, size.max_answer)))
    return new


@torch.inference_mode()
def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Serve for `steps` rounds with the decoder of this size (a key of SIZES)."""
    shape = SIZES[size]
    torch.manual_seed(21)
    choose = random.Random(21)
    with torch.device(device):
        model = Decoder(shape).to(torch.bfloat16)
    waiting: list[Request] = []
    running: list[Request] = []
    for step in range(1, steps + 1):
        waiting += arrivals(shape, choose)
        with sdpa_kernel(ATTENTION):
            while waiting and len(running) < shape.max_running:
                request = waiting.pop(0)
                prompt = torch.randint(shape.vocabulary, (1, request.prompt)).to(device)
                model.prefill(request, prompt).argmax(-1)
                running.append(request)
            if running:
                model.decode(running, torch.zeros((len(running), 1), dtype=torch.long, device=device)).argmax(-1)
        running = [request for request in running if request.length < request.prompt + request.answer]
        yield step


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
