"""Advantages: how much better each answer was than the others of its group.

Rewards of a group are centred at their mean, and divided by their spread (eq. 2 of the MiniMax-M1
report, arXiv:2506.13585), by that of the whole batch, or by nothing (Dr.GRPO). Answers that come
near the length limit can lose some of their reward first, as in DAPO (arXiv:2503.14476).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fulmen.train.rl.objective import Algorithm
from fulmen.train.rl.samples import LEAST_SPREAD, Group, Sample

Estimator = Literal["z_score", "mean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvantageConfig:
    """Way from rewards to advantages."""

    estimator: Estimator | None = None
    """Rewards minus their mean, over their standard deviation or not; None: as the algorithm has
    it, which is mean for dr_grpo and z_score for all others"""
    spread: Literal["group", "batch"] = "group"
    """Standard deviation of a z_score: of each group, or of all centred rewards of the batch"""
    overlong_limit: int | None = None
    """Sampled tokens at which an answer's penalty is whole; None: length costs nothing"""
    overlong_buffer: int = 0
    """Tokens before the limit over which the penalty grows to its whole"""
    overlong_penalty: float = 1.0
    """Reward that an answer at the limit loses"""

    def __post_init__(self) -> None:
        """Raise ValueError for a value that nothing would use, a buffer outside the limit, or a
        penalty that is a gift."""
        self.estimator_of("cispo")
        if self.overlong_limit is None:
            if self.overlong_penalty != 1.0:
                raise ValueError(
                    f"overlong_penalty is {self.overlong_penalty:g} without an overlong_limit at "
                    "which it is lost"
                )
            if self.overlong_buffer:
                raise ValueError(
                    f"overlong_buffer is {self.overlong_buffer} without an overlong_limit that it "
                    "lies before"
                )
        elif self.overlong_limit < 1:
            raise ValueError(f"overlong_limit is {self.overlong_limit}, it must be at least 1")
        elif not 0 <= self.overlong_buffer < self.overlong_limit:
            raise ValueError(
                f"overlong_buffer is {self.overlong_buffer}, it must be at least 0 and below "
                f"overlong_limit ({self.overlong_limit})"
            )
        if not 0 <= self.overlong_penalty < math.inf:
            raise ValueError(
                f"overlong_penalty is {self.overlong_penalty:g}, it must be at least 0"
            )

    def estimator_of(self, algorithm: Algorithm) -> Estimator:
        """Return the estimator of an algorithm, unless another was asked for. Raises ValueError
        where it divides by no spread, and that of the batch was asked for."""
        estimator = self.estimator or ("mean" if algorithm == "dr_grpo" else "z_score")
        if estimator == "mean" and self.spread == "batch":
            raise ValueError(
                "spread is batch for the estimator mean, which divides by no spread: leave spread "
                "out, or set estimator to z_score"
            )
        return estimator


def advantages_of(
    groups: Sequence[Group], config: AdvantageConfig, algorithm: Algorithm = "cispo"
) -> list[list[float]]:
    """Return the advantage of each sample of each group.

    All of a group's samples make its mean and its spread, those too that are masked later; only
    those that failed do not, and have the advantage 0.
    """
    centred = [_centred(group, config) for group in groups]
    if config.estimator_of(algorithm) == "mean":
        scales = [1.0] * len(groups)
    elif config.spread == "group":
        scales = [_deviation(values) for values in centred]
    else:
        scales = [_deviation([value for values in centred for value in values])] * len(groups)
    return [
        [(value or 0.0) / scale for value in values]
        for values, scale in zip(centred, scales, strict=True)
    ]


def length_penalty(num_sampled: int, config: AdvantageConfig) -> float:
    """Return what an answer loses by its length: 0 up to the buffer, the whole penalty from the
    limit on, in a straight line between."""
    if config.overlong_limit is None:
        return 0.0
    left = config.overlong_limit - num_sampled
    if left <= 0:
        return config.overlong_penalty
    if left >= config.overlong_buffer:
        return 0.0
    return config.overlong_penalty * (1 - left / config.overlong_buffer)


def _centred(group: Group, config: AdvantageConfig) -> list[float | None]:
    """Return each sample's reward minus their mean, None for one that failed."""
    rewards = [_shaped(one, config) for one in group.samples]
    known = [reward for reward in rewards if reward is not None]
    if not known or max(known) - min(known) <= LEAST_SPREAD:
        return [None if reward is None else 0.0 for reward in rewards]
    mean = math.fsum(known) / len(known)
    return [None if reward is None else reward - mean for reward in rewards]


def _shaped(sample: Sample, config: AdvantageConfig) -> float | None:
    if sample.has_failed:
        return None
    return sample.reward - length_penalty(sample.num_sampled, config)


def _deviation(centred: Sequence[float | None]) -> float:
    """Return the standard deviation of values around 0; 1 where all are 0, which then stay 0.

    Over their number, not one less: eq. 2 has that of these very rewards.
    """
    squares = [value**2 for value in centred if value is not None]
    return math.sqrt(math.fsum(squares) / len(squares)) if any(squares) else 1.0
