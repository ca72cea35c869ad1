"""Probe: all that a model is claimed to do, asked again and again while it trains on some of it.

    every so many steps: tasks never trained on, one answer each -> pass rate of each environment
        -> all as good as ever: the weights are kept -> one worse: the last good ones come back

Skills that are not practised are lost within minutes, so every claimed environment is here, not
only those in training. The same tasks and seeds are asked each time: what differs is the policy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fulmen.sampling import check_whole
from fulmen.train.rl.curriculum import Draw
from fulmen.train.rl.rollout import Rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """Size of a probe, its frequency, and the fall that sends a run back."""

    every: int = 20
    """Steps from one probe to the next"""
    num_tasks: int = 128
    """Tasks of each environment"""
    max_drop: float = 0.1
    """Fall of a mean reward, below the best so far and beyond chance, that sends the run back"""
    max_returns: int = 3
    """Times that the run goes back before it ends"""

    def __post_init__(self) -> None:
        """Raise ValueError for a number that is none."""
        check_whole("every", self.every, 1, 2**40)
        check_whole("num_tasks", self.num_tasks, 2, 2**20)
        check_whole("max_returns", self.max_returns, 0, 2**20)
        if not 0 < self.max_drop <= 1:
            raise ValueError(f"max_drop is {self.max_drop}, it must be above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Probed:
    """Outcome of one probe."""

    rates: dict[str, float]
    """Mean reward of each environment"""
    fallen: str | None
    """Sentence about the one that got worse; None if none did"""


class Probe:
    """The claimed environments, and how good each was at its best."""

    def __init__(
        self,
        environments: Sequence[str],
        config: ProbeConfig,
        *,
        num_tasks: Mapping[str, int | None],
        seed: int,
    ) -> None:
        """environments: by the names that the rollouts know; num_tasks: of each, None for no end"""
        self.config = config
        self.num_returns = 0
        self._environments = tuple(environments)
        self._num_tasks = dict(num_tasks)
        self._seed = seed
        self._best: dict[str, float] = {}

    def run(self, rollouts: Rollouts, *, max_tokens: int) -> Probed:
        """Ask all tasks once, and compare."""
        draws = []
        for name in self._environments:
            count = min(self.config.num_tasks, self._num_tasks[name] or self.config.num_tasks)
            draws += [Draw(name, index, 0.0) for index in range(count)]
        rolled = rollouts.roll_out(draws, group_size=1, seed=self._seed, max_tokens=max_tokens)
        rewards: dict[str, list[float]] = {name: [] for name in self._environments}
        for draw in rolled.groups:
            rewards[draw.environment] += draw.rewards
        rates = {name: math.fsum(own) / len(own) for name, own in rewards.items() if own}
        fallen = None
        for name, rate in rates.items():
            best = self._best.get(name, rate)
            drop, noise = best - rate, 2 * math.sqrt(0.5 / len(rewards[name]))
            if drop > max(self.config.max_drop, noise):
                fallen = f"{name} fell from {best:.2f} to {rate:.2f}"
        if fallen is None:
            for name, rate in rates.items():
                self._best[name] = max(rate, self._best.get(name, rate))
        return Probed(rates, fallen)

    def state(self) -> dict[str, Any]:
        """Return what later probes depend on."""
        return {"best": dict(self._best), "num_returns": self.num_returns}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._best = {str(name): float(rate) for name, rate in state["best"].items()}
        self.num_returns = int(state["num_returns"])
