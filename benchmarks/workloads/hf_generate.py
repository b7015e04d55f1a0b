"""Evaluates the Llama of transformers: the loss of a batch of text, then answers to some prompts by `generate`.

Prompts are padded on the left to one length, and every other batch is sampled instead of taken greedily. How long the
answers become is drawn from the seed and never from what was computed. At size `full` it is Llama 3.2 1B.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import torch
from _training import ATTENTION, Text, texts
from hf_llama import Size, llama
from torch.nn.attention import sdpa_kernel

NEEDS = ("transformers",)
VALUES = True
SIZES = {
    "tiny": Size(2, 64, 128, 4, 2, Text(512, max_batch=4, max_length=64, tokens=192)),
    "small": Size(8, 1024, 4096, 16, 4, Text(32000, max_batch=16, max_length=1024, tokens=8192)),
    "full": Size(16, 2048, 8192, 32, 8, Text(128256, max_batch=16, max_length=2048, tokens=8192)),
}
STEPS = 12
PAD, END = 0, 1


@torch.inference_mode()
def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Evaluate `steps` batches with the Llama of this size (a key of SIZES)."""
    shape = SIZES[size]
    choose = random.Random(61)
    with torch.device(device):
        model = llama(shape).to(torch.bfloat16).eval()
    for step, ids in enumerate(texts(shape.text, steps, device, 60), 1):
        rows, length = ids.shape
        prompts = ids[:, : max(2, length // 4)].clamp(min=2)  # a prompt holds neither PAD nor END
        mask = torch.ones_like(prompts)
        for row in range(rows):
            mask[row, : choose.randrange(prompts.shape[1] // 2)] = 0
        answer = choose.randint(max(1, shape.text.max_length // 64), max(2, shape.text.max_length // 32))
        with sdpa_kernel(ATTENTION):
            model(input_ids=ids, labels=ids).loss.item()
            answers = model.generate(
                prompts,
                attention_mask=mask,
                min_new_tokens=answer,
                max_new_tokens=answer,
                do_sample=step % 2 == 0,
                use_cache=True,
                pad_token_id=PAD,
                eos_token_id=END,
            )
        if answers.shape != (rows, prompts.shape[1] + answer):
            raise RuntimeError(f"{answer} tokens were asked for, and {tuple(answers.shape)} came")
        yield step


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
