"""Trains the Llama of transformers, made from a configuration: mixed precision, AdamW, batch and length change.

At size `full` it is Llama 3.2 1B, as Hugging Face ships it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from _training import Text, texts, train
from torch import Tensor

NEEDS = ("transformers",)


class Size(NamedTuple):
    """One setting of the size knob."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    text: Text


SIZES = {
    "tiny": Size(2, 64, 128, 4, 2, Text(512, max_batch=4, max_length=64, tokens=192)),
    "small": Size(8, 1024, 4096, 16, 4, Text(32000, max_batch=16, max_length=1024, tokens=8192)),
    "full": Size(16, 2048, 8192, 32, 8, Text(128256, max_batch=16, max_length=2048, tokens=8192)),
}
STEPS = 24


def llama(size: Size) -> Any:
    """Make the model on the current default device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size.text.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.text.max_length,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def losses(model: Any, text: Text, steps: int, device: torch.device, seed: int) -> Iterator[Callable[[], Tensor]]:
    """Yield what computes the loss of each of `steps` batches."""
    return (lambda ids=ids: model(input_ids=ids, labels=ids).loss for ids in texts(text, steps, device, seed))


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the Llama of this size (a key of SIZES)."""
    shape = SIZES[size]
    with torch.device(device):
        model = llama(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    return train(model, optimizer, losses(model, shape.text, steps, device, 30), device)


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
