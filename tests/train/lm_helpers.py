"""Small tokenizers, coders and runs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fulmen.chat import Tokenizer, get_format
from fulmen.train import (
    Coder,
    LMConfig,
    LMTrainer,
    ProbeResult,
    StepReport,
    Watcher,
    make_tokenizer,
    read_run_file,
)

RUN = """
out = "{out}"
save_every = 2
tensorboard = false

[model]
dtype = "{dtype}"
tokenizer = "{tokenizer}"

[model.config]
model_type = "{family}"
hidden_size = 24
num_hidden_layers = 3
num_attention_heads = 3
num_key_value_heads = 1
head_dim = 8
rotary_dim = 4
intermediate_size = 16
num_local_experts = 4
num_experts_per_tok = 2
max_position_embeddings = 512
router_aux_loss_coef = 0.01
{more}

[tasks.copy]
generator = "copy"
smallest = 2
largest = 6

[tasks.add]
generator = "add"
largest = 2

[tasks.text]
files = ["{text}"]
block_bytes = 256

[[stages]]
tokens = 600
length = 64
step_tokens = 256
mixture = {{copy = 3, add = 1}}

[[stages]]
tokens = 600
length = 128
step_tokens = 256
rope_theta = 20000.0

[optimizer]
kind = "{kind}"

[schedule]
warmup = 300

[probe]
every = 4
documents = 3
max_tokens = 8
samples = 1
"""
M1 = "attn_type_list = [0, 0, 1]\npostnorm = true\nlayernorm_mlp_alpha = 1.5"


def coder(folder: Path, format: str = "minimax_m1", words: Sequence[str] = ()) -> Coder:
    """A coder whose tokenizer has one id a byte."""
    if not (folder / "tokenizer.json").exists():
        make_tokenizer(folder, kind="characters", words=words, format=format)
    return Coder(Tokenizer.from_folder(folder), get_format(format))


def run_file(
    folder: Path, *, family: str = "minimax_m1", dtype: str = "float32", kind: str = "adamw"
) -> Path:
    """Write a run file of six small steps over three tasks and two stages, and what it names."""
    if not (folder / "tokenizer").exists():
        make_tokenizer(folder / "tokenizer", kind="characters", format=family)
    text = folder / "text.txt"
    text.write_text("".join(f"line {i} of a text, {i * i} words\n" for i in range(100)))
    file = folder / "run.toml"
    file.write_text(
        RUN.format(
            out=folder / "out",
            dtype=dtype,
            tokenizer=folder / "tokenizer",
            family=family,
            more=M1 if family == "minimax_m1" else "",
            text=text,
            kind=kind,
        )
    )
    return file


def run_config(folder: Path, *overrides: str, **choices: str) -> LMConfig:
    """Return the config of `run_file`."""
    return read_run_file(run_file(folder, **choices), LMConfig, overrides)


class Notes(Watcher):
    """Watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.probes: list[ProbeResult] = []
        self.sentences: list[str] = []

    def stepped(self, report: StepReport, config: LMConfig) -> None:
        self.losses.append(report.loss)

    def probed(self, step: int, result: ProbeResult) -> None:
        self.probes.append(result)

    def said(self, sentence: str) -> None:
        self.sentences.append(sentence)


def finish(config: LMConfig) -> tuple[LMTrainer, Notes]:
    trainer, notes = LMTrainer(config), Notes()
    assert trainer.run(notes)
    trainer.close()
    return trainer, notes


def tensors(trainer: LMTrainer) -> dict[str, Tensor]:
    found = dict(trainer.model.state_dict())
    return found | {f"optimizer.{n}": t for n, t in trainer.optimizer.state().items()}


def assert_same(one: LMTrainer, other: LMTrainer) -> None:
    found, expected = tensors(one), tensors(other)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
