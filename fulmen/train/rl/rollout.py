"""Rollouts: tasks in, groups of scored samples out, token by token as they were drawn.

    Draw x group_size -> Rollouts.roll_out -> answers -> scores -> Group

Who trains need not know where answers come from. Tasks of ids, and questions that a chat format
renders once, go to the engine as one batch (`local_rollouts.py`); tasks with tools are played by
the agent loop (`playing.py`) on the same engine, or on a server at a URL (`server_rollouts.py`).
Nothing is ever encoded twice: a sample is the ids that were drawn, with the marks of those that
were not.

A rollout that fails is counted and leaves its group; a group of fewer than two is dropped, and
counted. Nothing waits without a limit.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fulmen.models import Model
from fulmen.sampling import SamplingParams, check_whole
from fulmen.train.rl.curriculum import Draw
from fulmen.train.rl.samples import Group, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Options of drawing answers to train on."""

    group_size: int = 8
    """Answers to each task, whose rewards are compared"""
    max_tokens: int = 1024
    """Most tokens of an answer; windows start from their own"""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_window: int | None = 3000
    """Stop after this many nearly certain tokens in a row (arXiv:2506.13585, section 5)"""
    repetition_probability: float = 0.99
    """Probability above which a token counts as nearly certain"""
    thinking_budget: int | None = None
    """Most tokens of thought; only where a run is not exact"""
    exact: bool = True
    """Draw from the whole distribution, so that on-policy the importance ratio is exactly 1, and
    check that it is"""

    def __post_init__(self) -> None:
        """Raise ValueError for what an exact run cannot have."""
        check_whole("group_size", self.group_size, 2, 4096)
        if self.exact:
            for name, free in (
                ("temperature", 1.0),
                ("top_p", 1.0),
                ("top_k", None),
                ("min_p", 0.0),
                ("thinking_budget", None),
            ):
                value = getattr(self, name)
                if value != free:
                    raise ValueError(
                        f"{name} is {value}, an exact run draws from the whole distribution: leave "
                        f"{name} out, or set exact to false"
                    )
        self.params(seed=0)  # checks the rest

    def params(self, *, seed: int, max_tokens: int | None = None) -> SamplingParams:
        """Return the sampling of one answer."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=seed,
            max_tokens=self.max_tokens if max_tokens is None else max_tokens,
            repetition_window=self.repetition_window,
            repetition_probability=self.repetition_probability,
            thinking_budget=self.thinking_budget,
        )


@dataclass(slots=True)
class RolledOut:
    """Groups of one batch, and what is missing from it."""

    groups: list[Group] = field(default_factory=list)
    """In the order of the draws"""
    failures: Counter[str] = field(default_factory=Counter)
    """Rollouts that came to nothing, by reason"""
    num_dropped_groups: int = 0
    """Groups of which fewer than two rollouts are left"""
    num_tokens: int = 0
    """Tokens that were drawn, those of dropped groups included"""
    num_samples: int = 0
    """Rollouts that came to something, those of dropped groups included"""
    last_error: str = ""
    """Sentence of the last failure"""


Progress = Callable[[int, int, float], None]
"""Called while answers are drawn: answers that have ended, all of them, tokens a second so far"""


class Rollouts(Protocol):
    """Source of groups, with the weights that draw them."""

    @property
    def policy_version(self) -> int:
        """Number of the weights that draw now."""

    def roll_out(
        self,
        draws: Sequence[Draw],
        *,
        group_size: int,
        seed: int,
        max_tokens: int,
        on_progress: Progress | None = None,
    ) -> RolledOut:
        """Return groups of scored samples; seed makes every draw. What fails is counted."""

    def load_weights(self, model: Model, *, policy_version: int | None = None) -> int:
        """Draw from these weights from now on; return their policy_version, the next one unless it
        is given."""

    def text(self, sample: Sample) -> str:
        """Return a sample as people read it."""

    def close(self) -> None:
        """Let go of everything; nothing can be rolled out any more."""


class Meter:
    """Count of the answers of one round that have ended, and of its tokens."""

    def __init__(
        self, num_answers: int, count_tokens: Callable[[], int], on_progress: Progress | None
    ) -> None:
        """count_tokens: tells how many were ever drawn"""
        self._num_answers = num_answers
        self._count_tokens = count_tokens
        self._on_progress = on_progress
        self._num_before = count_tokens()
        self._began = time.monotonic()
        self.num_ended = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of this round so far."""
        return self._count_tokens() - self._num_before

    @property
    def seconds(self) -> float:
        """Time since it began."""
        return time.monotonic() - self._began

    def end_one(self) -> None:
        """Note that one more answer has ended, and tell how far the round is."""
        self.num_ended += 1
        self.tell()

    def tell(self) -> None:
        """Tell how far the round is."""
        if self._on_progress is not None:
            speed = self.num_tokens / max(self.seconds, 1e-9)
            self._on_progress(self.num_ended, self._num_answers, speed)


class RolloutError(Exception):
    """A run none of whose rollouts come to anything: one sentence says why."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A rollout without a sample."""

    reason: str
    """A few words, which are counted"""
    error: str = ""
    """The sentence, if there is one"""


Outcome = Sample | Failure


def grouped(
    draws: Sequence[Draw], outcomes: Sequence[Sequence[Outcome]], *, num_tokens: int
) -> RolledOut:
    """Return the groups of outcomes, a row for each draw."""
    rolled = RolledOut(num_tokens=num_tokens)
    for draw, row in zip(draws, outcomes, strict=True):
        samples = [one for one in row if isinstance(one, Sample)]
        rolled.num_samples += len(samples)
        for one in row:
            if isinstance(one, Failure):
                rolled.failures[one.reason] += 1
                rolled.last_error = one.error or one.reason
        if len(samples) < min(2, len(row)):
            rolled.num_dropped_groups += 1
            continue
        rolled.groups.append(
            Group(samples=tuple(samples), environment=draw.environment, task_index=draw.task_index)
        )
    return rolled


def check_any(num_samples: int, failures: Mapping[str, int], last_error: str) -> None:
    """Raise RolloutError if rollouts failed and not one came to anything."""
    if failures and num_samples == 0:
        raise RolloutError(
            f"all {sum(failures.values())} rollouts failed, the last with: {last_error}"
        )


def derive_seed(*names: object) -> int:
    """Return a seed of 63 bits that depends on the names alone."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def check_known(draws: Sequence[Draw], environments: Mapping[str, object]) -> None:
    """Raise ValueError for a draw from an environment that is not here."""
    for draw in draws:
        if draw.environment not in environments:
            known = ", ".join(environments)
            raise ValueError(f"{draw.environment} is no environment of this run, it has {known}")
