"""Trains the Llama of transformers by TRL's GRPO: answers are sampled, rewarded on the host, and learned from.

A frozen copy of the model is the reference. Prompts have a new number of words every time, drawn from the seed. An
answer that the model does not end has the greatest length allowed: on a simulated GPU all of them do.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _training import Text, steps_of
from hf_llama import Size as Model
from hf_llama import llama

NEEDS = ("transformers", "trl", "datasets")
VALUES = True


class Size(NamedTuple):
    """One setting of the size knob; answers of up to `answer` tokens, `group` of them to a prompt."""

    model: Model
    prompt: int
    answer: int
    group: int
    prompts: int


SIZES = {
    "tiny": Size(Model(2, 64, 128, 4, 2, Text(512, max_batch=4, max_length=64, tokens=192)), 16, 4, 2, 1),
    "small": Size(Model(8, 1024, 4096, 16, 4, Text(32000, max_batch=16, max_length=1024, tokens=8192)), 256, 32, 4, 2),
    "full": Size(Model(16, 2048, 8192, 32, 8, Text(128256, max_batch=16, max_length=2048, tokens=8192)), 512, 48, 8, 2),
}
STEPS = 6
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def tokenizer(vocabulary: int) -> Any:
    """Make a tokenizer of one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate((*SPECIAL, *map(word_of, range(len(SPECIAL), vocabulary))))}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, begin, end, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token=pad, bos_token=begin, eos_token=end, unk_token=unknown, padding_side="left"
    )


def word_of(token: int) -> str:
    """The word of a token that is none of SPECIAL."""
    return f"w{token}"


def reward(completions: list[str], **_: Any) -> list[float]:
    """Longer answers are better."""
    return [float(len(answer)) for answer in completions]


def run(size: str, steps: int, device: torch.device) -> Iterator[int]:
    """Train the Llama of this size (a key of SIZES)."""
    return steps_of(lambda stepped: fit(SIZES[size], steps, device, stepped))


def fit(shape: Size, steps: int, device: torch.device, stepped: Callable[[int], None]) -> None:
    """Run TRL's trainer to its end, and call `stepped` after each of its steps."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Stepped(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            stepped(state.global_step)

    choose = random.Random(70)
    vocabulary = shape.model.text.vocabulary

    def prompt() -> str:
        words = choose.randint(max(1, shape.prompt // 8), shape.prompt)
        return " ".join(word_of(choose.randrange(len(SPECIAL), vocabulary)) for _ in range(words))

    data = Dataset.from_list([{"prompt": prompt()} for _ in range(steps * shape.prompts)])
    model = llama(shape.model)
    with tempfile.TemporaryDirectory(prefix="trl-grpo-") as folder:
        # The trainer loads the reference by the name of the model.
        model.save_pretrained(Path(folder) / "model")
        model.config._name_or_path = str(Path(folder) / "model")
        arguments = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=shape.group * shape.prompts,
            num_generations=shape.group,
            max_completion_length=shape.answer,
            max_steps=steps,
            beta=0.04,
            bf16=device.type == "cuda",
            use_cpu=device.type == "cpu",
            gradient_checkpointing=False,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=71,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=data,
            processing_class=tokenizer(vocabulary),
            callbacks=[Stepped()],
        )
        trainer.train()


if __name__ == "__main__":
    for done in run((sys.argv[1:] or ["full"])[0], STEPS, torch.device("cuda")):
        print(f"step {done}/{STEPS}")
