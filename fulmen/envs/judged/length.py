"""A watch on a judge's taste for length, while a policy is trained on its rewards.

    reward, length, prompt -> window of the last ones -> correlation and slope, with intervals
                           -> alarm, if even the interval's end is past the limit -> recalibration

A policy finds out that longer answers are judged better before it finds out how to be better. Both
numbers are taken within prompts: that some questions need long answers is no bias.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Final

_NORMAL: Final = 1.959964
"""Quantile for intervals of 95 %"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthBias:
    """Relation of rewards and lengths in a window; intervals are of 95 %."""

    num_answers: int
    correlation: float
    correlation_interval: tuple[float, float]
    slope: float
    """Reward for each further 1,000 characters"""
    slope_interval: tuple[float, float]
    mean_length: float

    def corrected(self, reward: float, length: int) -> float:
        """Return a reward without what its answer's length brought it, from 0 to 1."""
        excess = self.slope * (length - self.mean_length) / 1000
        return min(max(reward - excess, 0.0), 1.0)


class LengthMonitor:
    """A window of the last rewards, and an alarm."""

    def __init__(
        self,
        *,
        window: int = 256,
        limit: float = 0.2,
        recalibrate: Callable[[LengthBias], None] = lambda bias: None,
    ) -> None:
        """Look at each full window.

        limit        largest correlation, of either sign, that is no bias
        recalibrate  called at an alarm, such as to correct rewards or to train the judge; an empty
                     window begins then
        """
        if window < 8:
            raise ValueError(f"window is {window}, it must be 8 or more")
        if not 0 <= limit < 1:
            raise ValueError(f"limit is {limit}, it must be from 0 to below 1")
        self._limit = limit
        self._recalibrate = recalibrate
        self._rows: deque[tuple[float, int, str]] = deque(maxlen=window)
        self._num_new = 0
        self.alarms: list[LengthBias] = []
        """The bias at each alarm so far"""

    def add(self, reward: float, length: int, *, prompt: str = "") -> LengthBias | None:
        """Take a reward; return the bias if that is an alarm.

        A window is looked at when it is full, and then after each further quarter of it.
        """
        if not math.isfinite(reward) or length < 0:
            raise ValueError(f"reward {reward} of length {length} can be no reward of an answer")
        self._rows.append((reward, length, prompt))
        self._num_new += 1
        size = self._rows.maxlen or 0
        if len(self._rows) < size or self._num_new < size // 4:
            return None
        self._num_new = 0
        bias = self.bias
        if bias is None:
            return None
        low, high = bias.correlation_interval
        if -self._limit <= high and low <= self._limit:
            return None
        self.alarms.append(bias)
        self._rows.clear()
        self._recalibrate(bias)
        return bias

    @property
    def bias(self) -> LengthBias | None:
        """Return the bias in the window as it is; None if rewards or lengths do not vary in it, or
        if there are too few."""
        groups: dict[str, list[tuple[float, int]]] = {}
        for reward, length, prompt in self._rows:
            groups.setdefault(prompt, []).append((reward, length))
        rewards, lengths = list[float](), list[float]()
        for rows in groups.values():
            mean_reward = fmean(reward for reward, _ in rows)
            mean_length = fmean(length for _, length in rows)
            rewards += (reward - mean_reward for reward, _ in rows)
            lengths += (length - mean_length for _, length in rows)
        freedom = len(self._rows) - len(groups) - 1
        of_lengths = sum(one * one for one in lengths)
        of_rewards = sum(one * one for one in rewards)
        if freedom < 3 or of_lengths <= 1e-9 or of_rewards <= 1e-12:
            return None
        both = sum(one * other for one, other in zip(lengths, rewards, strict=True))
        correlation = min(max(both / math.sqrt(of_lengths * of_rewards), -1.0), 1.0)
        slope = both / of_lengths
        error = math.sqrt(max(of_rewards - slope * both, 0.0) / freedom / of_lengths)
        return LengthBias(
            num_answers=len(self._rows),
            correlation=correlation,
            correlation_interval=_interval(correlation, freedom),
            slope=1000 * slope,
            slope_interval=(
                1000 * (slope - _NORMAL * error),
                1000 * (slope + _NORMAL * error),
            ),
            mean_length=fmean(length for _, length, _ in self._rows),
        )


def _interval(correlation: float, freedom: int) -> tuple[float, float]:
    """Return Fisher's interval of a correlation."""
    bound = 1 - 1e-12
    place = math.atanh(min(max(correlation, -bound), bound))
    width = _NORMAL / math.sqrt(max(freedom - 1, 1))
    return math.tanh(place - width), math.tanh(place + width)
