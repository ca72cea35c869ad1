"""Curriculum: which tasks are drawn next, from all that was seen so far.

    Curriculum.draw(count) -> tasks -> rollouts -> groups -> Curriculum.record(groups)

Tasks come from sources; a source is a ladder of environments, easy first. Four rules of the
MiniMax-M1 report (arXiv:2506.13585, sections 4 and 5) decide, whose numbers are ours:

- a task or level that is passed in some tries and not in all is drawn more often;
- a source climbs its ladder as it passes, and keeps drawing some of the levels below;
- reasoning comes first, general tasks are mixed in later;
- sources of synthetic tasks weigh less.

Every draw depends on the seed, its own number and the records before it. The state is JSON: what is
loaded draws on as if nothing had stopped.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Literal

from fulmen.train.rl.samples import Group

_TRIES: Final = 64
"""Draws of one task, each kept with a probability that its pass rate decides; the last is kept"""
_SKIPS: Final = 10_000
"""Held-out tasks in a row after which an endless environment is taken to have no others"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """A kind of task, in one or several levels."""

    levels: tuple[str, ...]
    """Names of environments, easy first"""
    kind: Literal["reasoning", "general"] = "reasoning"
    weight: float = 1.0
    """Share among the sources of its kind"""
    is_synthetic: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a source without a level, with one twice, or without a weight."""
        if not self.levels:
            raise ValueError("a source has no levels, it needs at least one environment")
        if len(set(self.levels)) < len(self.levels):
            raise ValueError(f"the source {self.name} names an environment twice")
        if not 0 < self.weight < math.inf:
            raise ValueError(
                f"weight of the source {self.name} is {self.weight:g}, it must be above 0"
            )

    @property
    def name(self) -> str:
        """Its first level's name."""
        return self.levels[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig:
    """Rules by which tasks are drawn."""

    pass_reward: float = 0.5
    """Least reward of an answer that has passed"""
    low: float = 0.1
    high: float = 0.9
    """Pass rates from low to high are worth drawing"""
    outside_weight: float = 0.2
    """Weight of tasks and levels outside, beside 1 for those inside and for unknown ones"""
    window: int = 32
    """Last groups of a level that make its pass rate"""
    climb_above: float = 0.8
    """Pass rate of a whole window above which the next level begins"""
    fall_below: float = 0.05
    """Pass rate of a whole window below which the level before comes back"""
    rehearsal: float = 0.2
    """Share of a source's draws that goes to the levels below"""
    general_from: int = 0
    """Batch from which general tasks are drawn"""
    general_over: int = 0
    """Batches over which their share grows"""
    general_share: float = 0.5
    """Share of general tasks in the end"""
    synthetic_weight: float = 0.5
    """Factor of the weights of synthetic sources"""

    def __post_init__(self) -> None:
        """Raise ValueError for shares that are none and limits that cross."""
        for name in ("low", "high", "climb_above", "fall_below", "rehearsal", "general_share"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is {value:g}, it must be from 0 to 1")
        for name in ("outside_weight", "synthetic_weight"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is {value:g}, it must be above 0 and at most 1")
        for below, above in (("low", "high"), ("fall_below", "climb_above")):
            if not getattr(self, below) < getattr(self, above):
                raise ValueError(
                    f"{below} is {getattr(self, below):g}, it must be below {above} "
                    f"({getattr(self, above):g})"
                )
        for name, least in (("window", 1), ("general_from", 0), ("general_over", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least {least}")
        if not math.isfinite(self.pass_reward):
            raise ValueError(f"pass_reward is {self.pass_reward}, it must be a number")


@dataclass(frozen=True, slots=True)
class Draw:
    """A task to be rolled out."""

    environment: str
    task_index: int


@dataclass(slots=True)
class _Level:
    """Everything known of an environment."""

    indices: tuple[int, ...] | None
    """Tasks that are drawn again and again; None where there is no end of them"""
    next_index: int = 0
    """Index of the next task where there is no end of them"""
    window: deque[float] = field(default_factory=deque)
    """Pass rates of its last groups"""
    tasks: dict[int, float] = field(default_factory=dict)
    """Last pass rate of each task that was seen; only where tasks come again"""
    fingerprint: str | None = None
    """Hash of all its tasks, which must be the same when a run goes on; None where it is not
    known"""


class Curriculum:
    """Sources, and what their tasks came to."""

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        config: CurriculumConfig,
        *,
        num_tasks: Mapping[str, int | None],
        seed: int,
        is_held_out: Callable[[str, int], bool] = lambda environment, index: False,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        """Begin at the first level of every source.

        num_tasks    tasks of each environment; None: no end, and each is drawn once
        is_held_out  tells of a task, by environment and index, that it is never to be drawn
        fingerprints hashes of the tasks of environments that could change, such as files

        Raises ValueError for sources that share an environment, or have no tasks.
        """
        names = [name for source in sources for name in source.levels]
        if not names:
            raise ValueError("there are no sources of tasks")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the environment {twice} is in two sources")
        self.config = config
        self._sources = tuple(sources)
        self._is_held_out = is_held_out
        self._levels: dict[str, _Level] = {}
        for name in names:
            indices = None
            if (count := num_tasks[name]) is not None:
                indices = tuple(index for index in range(count) if not is_held_out(name, index))
                if not indices:
                    raise ValueError(
                        f"the environment {name} has no tasks"
                        + (" that are not held out for the probe" if count else "")
                    )
            self._levels[name] = _Level(indices, fingerprint=(fingerprints or {}).get(name))
        self._heights = dict.fromkeys((source.name for source in sources), 0)
        self._seed = seed
        self._num_drawn = 0
        self._num_batches = 0

    def draw(self, count: int) -> list[Draw]:
        """Return the next tasks; no task twice, unless there are fewer."""
        drawn: list[Draw] = []
        known: set[tuple[str, int]] = set()
        for _ in range(count):
            random = Random(f"{self._seed}/{self._num_drawn}")
            self._num_drawn += 1
            source = random.choices(self._sources, self._source_weights())[0]
            height = self._draw_height(source, random)
            name = source.levels[height]
            index = self._draw_task(name, random, known)
            known.add((name, index))
            drawn.append(Draw(name, index))
        return drawn

    def record(self, groups: Iterable[Group]) -> None:
        """Learn from the groups of one batch, those too that were not trained on; then the next
        batch begins."""
        for group in groups:
            level = self._levels[group.environment]
            if rewards := group.rewards:
                rate = sum(reward >= self.config.pass_reward for reward in rewards) / len(rewards)
                level.window.append(rate)
                if len(level.window) > self.config.window:
                    level.window.popleft()
                if level.indices is not None:
                    level.tasks[group.task_index] = rate
        for source in self._sources:
            self._climb(source)
        self._num_batches += 1

    def pass_rate(self, environment: str) -> float | None:
        """Return the pass rate of an environment's last groups; None before the first."""
        window = self._levels[environment].window
        return sum(window) / len(window) if window else None

    @property
    def current_levels(self) -> dict[str, str]:
        """Environment at which each source stands, by the source's name."""
        return {one.name: one.levels[self._heights[one.name]] for one in self._sources}

    def numbers(self) -> dict[str, float]:
        """Return levels, from 0, and pass rates, as numbers of the log."""
        found: dict[str, float] = {
            f"level/{name}": height for name, height in self._heights.items()
        }
        for name in self._levels:
            if (rate := self.pass_rate(name)) is not None:
                found[f"pass_rate/{name}"] = rate
        return found

    @property
    def general_share(self) -> float:
        """Share of general tasks in the next draws, while there are tasks of both kinds."""
        config = self.config
        since = self._num_batches - config.general_from
        if since < 0:
            return 0.0
        return config.general_share * min(1.0, (since + 1) / (config.general_over + 1))

    def _source_weights(self) -> list[float]:
        """Return the probability of each source."""
        weights = [
            source.weight
            * (self.config.synthetic_weight if source.is_synthetic else 1.0)
            * self._worth(self.pass_rate(self.current_levels[source.name]))
            for source in self._sources
        ]
        kinds = [source.kind for source in self._sources]
        if len(set(kinds)) == 1:
            return weights
        share = {"general": self.general_share, "reasoning": 1 - self.general_share}
        sums = {
            kind: sum(weight for weight, own in zip(weights, kinds, strict=True) if own == kind)
            for kind in share
        }
        return [
            share[kind] * weight / sums[kind] for weight, kind in zip(weights, kinds, strict=True)
        ]

    def _draw_height(self, source: SourceConfig, random: Random) -> int:
        height = self._heights[source.name]
        if height > 0 and random.random() < self.config.rehearsal:
            return random.randrange(height)
        return height

    def _draw_task(self, name: str, random: Random, known: set[tuple[str, int]]) -> int:
        level = self._levels[name]
        if level.indices is None:
            for index in range(level.next_index, level.next_index + _SKIPS):
                if not self._is_held_out(name, index):
                    level.next_index = index + 1
                    return index
            raise ValueError(
                f"{_SKIPS} tasks of {name} in a row are all held out for the probe, so none is "
                "left to train on"
            )
        for _ in range(_TRIES):
            index = random.choice(level.indices)
            worth = self._worth(level.tasks.get(index))
            if random.random() < worth and (name, index) not in known:
                return index
        fresh = (i for i in level.indices if (name, i) not in known)
        return index if (name, index) not in known else next(fresh, index)

    def _worth(self, pass_rate: float | None) -> float:
        """Return the weight of a task or level of some pass rate."""
        if pass_rate is None or self.config.low <= pass_rate <= self.config.high:
            return 1.0
        return self.config.outside_weight

    def _climb(self, source: SourceConfig) -> None:
        """Move a source up or down its ladder, a level at a time."""
        height = self._heights[source.name]
        level = self._levels[source.levels[height]]
        rate = self.pass_rate(source.levels[height])
        if rate is None or len(level.window) < self.config.window:
            return
        if rate > self.config.climb_above and height + 1 < len(source.levels):
            self._heights[source.name] = height + 1
        elif rate < self.config.fall_below and height > 0:
            self._heights[source.name] = height - 1
        else:
            return
        # The next move needs a whole window of its own.
        self._levels[source.levels[self._heights[source.name]]].window.clear()

    def state(self) -> dict[str, Any]:
        """Return everything that later draws depend on, but for sources, config and seed."""
        return {
            "num_drawn": self._num_drawn,
            "num_batches": self._num_batches,
            "heights": dict(self._heights),
            "environments": {
                name: {
                    "next_index": level.next_index,
                    "window": list(level.window),
                    "tasks": [[index, rate] for index, rate in sorted(level.tasks.items())],
                    "fingerprint": level.fingerprint,
                }
                for name, level in self._levels.items()
            },
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; sources that it does not know begin anew.

        Raises ValueError, with nothing changed, for one that does not fit the sources.
        """
        try:
            environments, heights = dict(state["environments"]), dict(state["heights"])
            counts = [_count(state[name]) for name in ("num_drawn", "num_batches")]
            known = {name: one for name, one in environments.items() if name in self._levels}
            changed = [
                name
                for name, one in known.items()
                if one["fingerprint"] not in (None, self._levels[name].fingerprint)
            ]
            levels = {
                name: _read_level(one, self._levels[name])
                for name, one in known.items()
                if name not in changed
            }
            for source in self._sources:
                if _count(heights.get(source.name, 0)) >= len(source.levels):
                    raise ValueError(f"{source.name} has no level {heights[source.name]}")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the state is not that of a curriculum: {error}") from error
        if changed:
            raise ValueError(
                f"{changed[0]} has other tasks than the run began with: give it back what it had, "
                "or choose another folder"
            )
        if gone := sorted({*environments, *heights} - set(self._levels)):
            raise ValueError(f"the state knows the environment {gone[0]}, which no source has")
        self._num_drawn, self._num_batches = counts
        self._levels |= levels
        self._heights |= heights


def _read_level(state: Mapping[str, Any], now: _Level) -> _Level:
    indices = now.indices
    tasks = {_count(index): _rate(rate) for index, rate in state["tasks"]}
    if gone := sorted(tasks.keys() - {*(indices or ())}):
        raise ValueError(f"there is no task {gone[-1]} that is drawn again")
    window = deque(_rate(rate) for rate in state["window"])
    return _Level(indices, _count(state["next_index"]), window, tasks, now.fingerprint)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _rate(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} is no pass rate")
    return float(value)
