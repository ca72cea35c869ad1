"""Tasks of random ids, and runs on them small enough for every test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch

from fulmen.agent import Score
from fulmen.engine import EngineConfig
from fulmen.llm import LLM
from fulmen.models import Model, new_model
from fulmen.train import (
    BatchConfig,
    Curriculum,
    CurriculumConfig,
    Gathered,
    LimitsConfig,
    LocalRollouts,
    Optimizer,
    OptimizerConfig,
    RLWatcher,
    SamplingConfig,
    SourceConfig,
    Trainer,
    TrainerConfig,
)
from fulmen.train.rl.tasks import AnyEnvironment
from tests.models.helpers import tiny_m1, tiny_m2

VOCAB_SIZE = 61
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SMALL = EngineConfig(max_num_seqs=32, max_num_batched_tokens=512, kv_cache_bytes=2**23)


@dataclass(frozen=True)
class RandomTask:
    """A prompt of random ids; a third of the ids score, if they come first."""

    prompt_ids: tuple[int, ...]
    reward: float | None = None

    def score(self, answer_ids: Sequence[int]) -> Score:
        right = float(answer_ids[0] % 3 == 0) if self.reward is None else self.reward
        return Score(right, {"length": float(len(answer_ids))})


@dataclass
class RandomIds:
    """Prompts of few or of more than a hundred ids; some ids end an answer."""

    seed: int = 0
    reward: float | None = None
    """Score of every answer, whatever it is"""
    num_tasks: int | None = None
    vocab_size: int = VOCAB_SIZE
    end_ids: tuple[int, ...] = (7, 23, 41)
    lengths: tuple[int, ...] = (3, 40, 150)
    asked: list[int] = field(default_factory=list)

    def task(self, index: int) -> RandomTask:
        self.asked.append(index)
        draw = Random(f"{self.seed} {index}")
        length = draw.choice(self.lengths)
        return RandomTask(tuple(draw.choices(range(self.vocab_size), k=length)), self.reward)

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


class Seen(RLWatcher):
    """A watcher that keeps what it sees."""

    def __init__(self) -> None:
        self.rounds: list[tuple[int, int, int]] = []
        self.steps: list[Mapping[str, Any]] = []
        self.sentences: list[str] = []
        self.probes: list[dict[str, float]] = []
        self.progress: list[tuple[int, int, float]] = []

    def drawing(self, ended: int, total: int, tokens_per_second: float) -> None:
        self.progress.append((ended, total, tokens_per_second))

    def gathered(self, gathered: Gathered, wanted: int) -> None:
        self.rounds.append((gathered.num_rounds, len(gathered.groups), gathered.num_idle))

    def stepped(self, step: int, record: Mapping[str, Any], text: str) -> None:
        self.steps.append(record)

    def probed(self, step: int, rates: Mapping[str, float]) -> None:
        self.probes.append(dict(rates))

    def said(self, sentence: str) -> None:
        self.sentences.append(sentence)


class ClosingTrainer(Trainer):
    """A trainer that closes its rollouts too."""

    def close(self) -> None:
        super().close()
        self._rollouts.close()


def new_tiny(kind: str, dtype: str = "float32", seed: int = 0) -> Model:
    """Return a tiny model that can be trained."""
    config = tiny_m1() if kind == "m1" else tiny_m2()
    return new_model(config, dtype=DTYPES[dtype], seed=seed)


def new_trainer(
    model: Model,
    folder: Path,
    *,
    environments: Mapping[str, AnyEnvironment] | None = None,
    llm: LLM | None = None,
    engine: EngineConfig = SMALL,
    limits: LimitsConfig | None = None,
    num_steps: int = 3,
    num_minibatches: int = 2,
    max_tokens: int = 90,
    learning_rate: float = 1e-3,
    is_exact: bool = True,
    overlong: Literal["keep", "mask"] = "keep",
    options: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Trainer:
    """Return a trainer on random tasks, or on others.

    llm      whose tokenizer and format environments of messages need
    options  of the trainer's config
    fields   of the trainer
    """
    known: dict[str, AnyEnvironment] = dict(environments or {"random": RandomIds()})
    sampling = SamplingConfig(
        group_size=4, max_tokens=max_tokens, repetition_window=None, exact=is_exact
    )
    rollouts = LocalRollouts(
        model,
        known,
        sampling,
        limits,
        engine_config=engine,
        tokenizer=None if llm is None else llm.tokenizer,
        format=None if llm is None else llm.format,
    )
    trained = [name for name in known if "held" not in name]
    config = {"num_steps": num_steps, "num_groups": 6, "save_every": 100, **(options or {})}
    return ClosingTrainer(
        model,
        rollouts,
        Curriculum(
            [SourceConfig(levels=(name,)) for name in trained],
            CurriculumConfig(),
            num_tasks={name: known[name].num_tasks for name in trained},
            seed=0,
        ),
        TrainerConfig(**config),
        folder=folder,
        optimizer=Optimizer(model, OptimizerConfig(learning_rate=learning_rate)),
        sampling=sampling,
        batch=BatchConfig(
            num_minibatches=num_minibatches, min_groups=2, max_tokens=700, overlong=overlong
        ),
        **fields,
    )


def rollouts_of(trainer: Trainer) -> LocalRollouts:
    """Return the rollouts of a trainer of these."""
    rollouts = trainer._rollouts
    assert isinstance(rollouts, LocalRollouts)
    return rollouts


def weights_of(model: Model) -> dict[str, torch.Tensor]:
    """Return a copy of a model's weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def are_equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Return True if two models have the same bits."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
