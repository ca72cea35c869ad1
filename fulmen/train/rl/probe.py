"""Probe: all that a model is claimed to do, asked again and again while it trains on some of it.

    every so many steps: held-out tasks, one answer each -> mean reward of each environment
        -> all as good as ever: the weights are kept -> one worse: the last good ones come back

Skills that are not practised are lost within minutes, so every claimed environment is here, not
only those in training. The same tasks and seeds are asked each time: what differs is the policy.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

from fulmen.sampling import check_whole
from fulmen.train.rl.curriculum import Draw
from fulmen.train.rl.rollout import Progress, Rollouts, check_any


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """Size of a probe, its frequency, and the fall that sends a run back."""

    every: int = 20
    """Steps from one probe to the next; the last step has one too"""
    num_tasks: int = 512
    """Tasks of each environment; where fewer are held out, they come again"""
    max_drop: float = 0.1
    """Fall of a mean reward below the best so far that sends the run back"""
    max_returns: int = 3
    """Times that the run goes back before it ends"""

    def __post_init__(self) -> None:
        """Raise ValueError for a number that is none."""
        check_whole("every", self.every, 1, 2**40)
        check_whole("num_tasks", self.num_tasks, 2, 2**20)
        check_whole("max_returns", self.max_returns, 0, 2**20)
        if not 0 < self.max_drop <= 1:
            raise ValueError(f"max_drop is {self.max_drop}, it must be above 0 and at most 1")
        if (noise := _noise(self.num_tasks)) > self.max_drop:
            raise ValueError(
                f"num_tasks is {self.num_tasks}, whose mean moves by {noise:.2g} by chance, and "
                f"max_drop is {self.max_drop:g}: ask at least {math.ceil(2 / self.max_drop**2)} "
                "tasks, or allow a larger drop"
            )


_LEAST_SHARE: Final = 0.9
"""Part of an environment's answers that must come to something, or nothing is known of it"""


def _noise(count: int) -> float:
    """Return two standard deviations of the difference of two means of rewards of 0 and 1."""
    return 2 * math.sqrt(0.5 / count)


@dataclass(frozen=True, slots=True)
class Probed:
    """Outcome of one probe."""

    rates: dict[str, float]
    """Mean reward of each environment that gave any"""
    failures: Counter[str]
    """Answers that came to nothing, by reason"""
    missing: tuple[str, ...]
    """Environments of which too few answers came to anything"""
    fallen: str | None
    """Sentence about the one that got worse; None if none did"""

    @property
    def is_good(self) -> bool:
        """True if every environment is known to be as good as ever."""
        return self.fallen is None and not self.missing


class Probe:
    """The claimed environments, and how good each was at its best."""

    def __init__(
        self,
        indices: Mapping[str, Sequence[int]],
        config: ProbeConfig,
        *,
        seed: int,
    ) -> None:
        """indices: of the held-out tasks of each environment, by the names that rollouts know"""
        self.config = config
        self.num_returns = 0
        self._draws = [
            Draw(name, index)
            for name, own in indices.items()
            for index in islice(cycle(own), config.num_tasks)
        ]
        self._environments = tuple(indices)
        self._seed = seed
        self._best: dict[str, float] = {}

    def run(
        self, rollouts: Rollouts, *, max_tokens: int, on_progress: Progress | None = None
    ) -> Probed:
        """Ask all tasks once, and compare. Raises RolloutError if no answer comes to anything."""
        rolled = rollouts.roll_out(
            self._draws,
            group_size=1,
            seed=self._seed,
            max_tokens=max_tokens,
            on_progress=on_progress,
        )
        check_any(rolled.num_samples, rolled.failures, rolled.last_error)
        rewards: dict[str, list[float]] = {name: [] for name in self._environments}
        for draw in rolled.groups:
            rewards[draw.environment] += draw.rewards
        rates = {name: math.fsum(own) / len(own) for name, own in rewards.items() if own}
        fallen = None
        for name, rate in rates.items():
            best = self._best.get(name, rate)
            noise = _noise(len(rewards[name]))  # more where answers failed
            if best - rate > max(self.config.max_drop, noise):
                fallen = f"{name} fell from {best:.2f} to {rate:.2f}"
        asked = Counter(draw.environment for draw in self._draws)
        missing = tuple(
            name for name in self._environments if len(rewards[name]) < _LEAST_SHARE * asked[name]
        )
        found = Probed(rates, rolled.failures, missing, fallen)
        if found.is_good:
            for name, rate in rates.items():
                self._best[name] = max(rate, self._best.get(name, rate))
        return found

    def state(self) -> dict[str, Any]:
        """Return what later probes depend on."""
        return {"best": dict(self._best), "num_returns": self.num_returns}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        num_returns = int(state["num_returns"])
        self._best = {str(name): float(rate) for name, rate in dict(state["best"]).items()}
        self.num_returns = num_returns
