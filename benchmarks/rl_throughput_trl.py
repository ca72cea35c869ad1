"""TRL's side of rl_throughput.py, in an environment with TRL: one JSON line to stdout.

python rl_throughput_trl.py --worker "own lengths:float32:3:1"
"""

import json
import sys
import tempfile
import time
from random import Random
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

NUM_PROMPTS, GROUP_SIZE, VOCAB_SIZE, NUM_SAID = 32, 8, 1024, 41
END, FIXED_TOKENS, MAX_TOKENS, FIRST_ID = 1, 64, 160, 4
CHARACTERS = "0123456789add +="


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with an id a character, as the other side has them."""
    vocabulary = {"<pad>": 0, "<end>": END, "<unk>": 2, "<bos>": 3}
    for place, one in enumerate(sorted(set(CHARACTERS))):
        vocabulary[one] = FIRST_ID + place
    for number in range(VOCAB_SIZE):
        if number not in vocabulary.values():
            vocabulary[f"<{number}>"] = number
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<pad>", unk_token="<unk>"
    )


def make_model(*, ends: bool) -> LlamaForCausalLM:
    """Return random weights whose answers are of 41 ids, the end among them or not."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=384,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=3,
        eos_token_id=END,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    said = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    said[20 : 20 + NUM_SAID - 1] = True
    said[END] = ends
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        model.model.embed_tokens.weight[:, 0] = 10.0
        model.lm_head.weight.normal_(std=0.02)
        model.lm_head.weight[:, 0] = torch.where(said, 0.0, -8.0)
    return model


def prompt(index: int) -> str:
    """Return a question, as the other side asks it."""
    draw = Random(f"prompt {index}")
    return f"add {draw.randrange(1000, 10000)}+{draw.randrange(100, 10000)}="


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begin = time.perf_counter()

    def on_step_begin(self, *args: Any, **options: Any) -> None:
        """Begin a batch; with one update a batch its rollouts are in it."""
        self._begin = time.perf_counter()

    def on_step_end(self, *args: Any, **options: Any) -> None:
        """End a batch."""
        self.seconds.append(time.perf_counter() - self._begin)


def main(kind: str, dtype: str, batches: int, threads: int) -> None:
    """Train on so many batches and one before them."""
    assert dtype == "float32"
    torch.set_num_threads(threads)
    ends = kind == "own lengths"
    tokens: list[int] = []
    generation: list[float] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        return [sum(one % 2 == 0 for one in ids) / max(len(ids), 1) for ids in completion_ids]

    class Timed(GRPOTrainer):
        def _generate(self, *args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            found = super()._generate(*args, **options)
            generation.append(time.perf_counter() - begin)
            return found

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            model=make_model(ends=ends),
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder,
                use_cpu=True,
                loss_type="cispo",
                epsilon_high=5.0,
                beta=0.0,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                max_grad_norm=1.0,
                num_generations=GROUP_SIZE,
                per_device_train_batch_size=64,
                gradient_accumulation_steps=4,
                steps_per_generation=4,
                max_completion_length=MAX_TOKENS if ends else FIXED_TOKENS,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                shuffle_dataset=False,
                gradient_checkpointing=False,
                bf16=False,
                max_steps=1 + batches,
                disable_tqdm=True,
                report_to=[],
                save_strategy="no",
                logging_steps=1,
            ),
            train_dataset=Dataset.from_dict(
                {"prompt": [prompt(index) for index in range(NUM_PROMPTS * (2 + batches))]}
            ),
            processing_class=make_tokenizer(),
            callbacks=[clock],
        )
        trainer.train()
    assert len(tokens) == len(clock.seconds) == 1 + batches, (tokens, clock.seconds)
    measured = {
        "seconds": clock.seconds[1:],
        "generation": generation[1:],
        "tokens": tokens[1:],
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    kind, dtype, count, threads = sys.argv[2].split(":")
    main(kind, dtype, int(count), int(threads))
