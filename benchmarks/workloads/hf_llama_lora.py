"""Fine-tunes the Llama of transformers with LoRA adapters from peft, with gradient checkpointing.

The base stays frozen in bfloat16, so what changes from step to step is activations alone. At size `full` the base is
Llama 3.1 8B.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from _training import Text, train
from hf_llama import Size, llama, losses

NEEDS = ("transformers", "peft")
SIZES = {
    "tiny": Size(2, 64, 128, 4, 2, Text(512, max_batch=4, max_length=64, tokens=192)),
    "small": Size(8, 1024, 4096, 16, 4, Text(32000, max_batch=16, max_length=2048, tokens=16384)),
    "full": Size(32, 4096, 14336, 32, 8, Text(128256, max_batch=16, max_length=4096, tokens=16384)),
}
STEPS = 24


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Fine-tune the Llama of this size (a key of SIZES)."""
    from peft import LoraConfig, get_peft_model

    shape = SIZES[size]
    # Made in its precision, not converted: a copy in float32 would be the peak.
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        base = llama(shape)
    torch.set_default_dtype(torch.float32)
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    base.enable_input_require_grads()
    adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, adapters)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    return train(model, optimizer, losses(model, shape.text, steps, device, 31), device)


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
