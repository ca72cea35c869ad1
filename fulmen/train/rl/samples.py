"""Samples: trajectories as the trainer sees them, token by token, in groups of one task.

A sample is a whole conversation as ids. Its tokens are of two kinds: those that were drawn freely
from the policy, which are in the loss, and all others (prompts, results of tools, forced and biased
tokens), which are only read. Nothing here knows text, advantages or batches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from fulmen.sampling import FinishReason

LEAST_SPREAD: Final = 1e-6
"""Rewards of a group that differ by no more are the same but for rounding"""
_MAX_LOGPROB: Final = 1e-3
"""Log-probabilities may be above 0 by the rounding of float32, not by more than this"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One trajectory of T tokens, its prompt first."""

    ids: Tensor
    """(T,) int64"""
    is_sampled: Tensor
    """(T,) bool: drawn freely from the policy, so in the loss; never the first token"""
    logprobs: Tensor
    """(T,) float32: of the policy that drew them, at temperature 1; NaN where not sampled"""
    policy_versions: Tensor
    """(T,) int64: of the policy that drew them; without meaning where not sampled"""
    reward: float
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    finish_reason: FinishReason = "stop"
    """Reason why the last answer ended: by itself, at a limit, in a loop, or by a failure"""
    environment: str
    task_index: int
    num_turns: int = 1

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        logprobs: Sequence[float | None],
        *,
        policy_versions: Sequence[int] | int = 0,
        reward: float,
        reward_parts: Mapping[str, float] | None = None,
        finish_reason: FinishReason = "stop",
        environment: str,
        task_index: int,
        num_turns: int = 1,
    ) -> "Sample":
        """Return a sample from lists of T values.

        logprobs         as the engine told them, rounded to float32 here; None or NaN where a
                         token was not sampled
        policy_versions  one for each token, or one for all
        """
        known = [math.nan if value is None else value for value in logprobs]
        values = torch.tensor(known, dtype=torch.float64).float()
        versions = (
            torch.full((len(ids),), policy_versions)
            if isinstance(policy_versions, int)
            else torch.tensor(list(policy_versions), dtype=torch.int64)
        )
        return cls(
            ids=torch.tensor(list(ids), dtype=torch.int64),
            is_sampled=~values.isnan(),
            logprobs=values,
            policy_versions=versions,
            reward=reward,
            reward_parts=dict(reward_parts or {}),
            finish_reason=finish_reason,
            environment=environment,
            task_index=task_index,
            num_turns=num_turns,
        )

    def __post_init__(self) -> None:
        """Raise ValueError unless every token has its values, and the reward is a number."""
        name = f"a sample of task {self.task_index} of {self.environment}"
        if len(self.ids) == 0:
            raise ValueError(f"{name} has no tokens, it needs at least a prompt")
        for field_name, dtype in (
            ("ids", torch.int64),
            ("is_sampled", torch.bool),
            ("logprobs", torch.float32),
            ("policy_versions", torch.int64),
        ):
            values = getattr(self, field_name)
            if values.shape != self.ids.shape or values.dtype != dtype or values.ndim != 1:
                raise ValueError(
                    f"{name} has {field_name} of shape {tuple(values.shape)} and type "
                    f"{values.dtype}, it needs {dtype} for each of {len(self.ids)} tokens"
                )
        if self.is_sampled[0]:
            raise ValueError(f"{name} samples its first token, which nothing comes before")
        if not torch.equal(self.logprobs.isnan(), ~self.is_sampled):
            raise ValueError(f"{name} needs log-probabilities of its sampled tokens, and no others")
        if (drawn := self.logprobs[self.is_sampled]).numel():
            low, high = drawn.min().item(), drawn.max().item()
            if low == -math.inf or high > _MAX_LOGPROB:
                wrong = low if low == -math.inf else high
                raise ValueError(
                    f"{name} has a log-probability of {wrong:g}, it must be finite and at most 0"
                )
        if not math.isfinite(self.reward):
            raise ValueError(f"{name} has the reward {self.reward}, it must be a finite number")

    @property
    def has_failed(self) -> bool:
        """True if the machine ended the last answer, not the policy: its reward says nothing."""
        return self.finish_reason in ("abort", "error")

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens."""
        return len(self.ids)

    @property
    def num_sampled(self) -> int:
        """Number of tokens that were drawn from the policy."""
        return int(self.is_sampled.sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """The samples of one task, whose rewards are compared with each other."""

    samples: tuple[Sample, ...]
    environment: str
    task_index: int

    def __post_init__(self) -> None:
        """Raise ValueError unless there are samples, all of this task."""
        if not self.samples:
            raise ValueError(f"task {self.task_index} of {self.environment} has no samples")
        for one in self.samples:
            if (one.environment, one.task_index) != (self.environment, self.task_index):
                raise ValueError(
                    f"a group of task {self.task_index} of {self.environment} holds a sample of "
                    f"task {one.task_index} of {one.environment}"
                )

    @property
    def rewards(self) -> list[float]:
        """Rewards of the samples that count, in order: of those that have not failed."""
        return [one.reward for one in self.samples if not one.has_failed]

    @property
    def has_variance(self) -> bool:
        """True if two rewards differ; without, no token of the group has an advantage."""
        rewards = self.rewards
        return len(rewards) > 1 and max(rewards) - min(rewards) > LEAST_SPREAD
