"""Plan of a speedrun: hours, and how fast this machine is, become tokens.

    hours x share of learn x speed of real steps -> tokens -> all stages and the fall of the rate
        scaled by one factor; the warm-up stays as long as it is

A plan is made once and kept, so that a run that goes on has the plan that it began with.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from fulmen.files import read_json, write_text
from fulmen.train.lm.config import LMConfig
from fulmen.train.lm.trainer import LMTrainer
from fulmen.train.speedrun.recipe import Recipe

PLAN: Final = "plan.json"
MOST_HOURS: Final = 1000
_STEP_SHARE: Final = 0.95
"""Share of the time of learning that steps take; probes and states take the rest"""
_WARM_STEPS: Final = 3
"""Steps before the measured ones"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedrunPlan:
    """Sizes of a run's parts."""

    name: str
    """Name of the recipe"""
    hours: float
    machine: str
    """Processor, and how many cores of it"""
    tokens_per_second: float
    """Speed of steps of learning, as it was measured"""
    learn_tokens: int
    learn_seconds: float
    practice_seconds: float
    scores_seconds: float

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the plan in a run's folder, None where there is none."""
        file = folder / PLAN
        if not file.exists():
            return None
        given: dict[str, Any] = dict(read_json(file))
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"{file} is no plan of a speedrun: {error}") from None

    def learn_config(self, recipe: Recipe) -> LMConfig:
        """Return the recipe's run of learning, with this plan's tokens."""
        return scaled(recipe.learn, self.learn_tokens)

    def write(self, folder: Path) -> None:
        """Write the plan into a run's folder."""
        write_text(folder / PLAN, json.dumps(asdict(self), indent=1) + "\n")


def make_plan(recipe: Recipe, hours: float, tokens_per_second: float) -> SpeedrunPlan:
    """Return the plan of so many hours.

    Raises ValueError for hours in which the rate would fall before it has risen.
    """
    seconds = 3600 * hours
    per_token = 1 / (tokens_per_second * recipe.shares.learn * _STEP_SHARE)
    tokens = int(seconds / per_token)
    if tokens < (least := least_tokens(recipe.learn)):
        raise ValueError(
            f"{hours:g} hours are {tokens:,} tokens at {tokens_per_second:,.0f} a second, and the "
            f"warm-up and the stages of {recipe.name} need {least:,}: at least "
            f"{_rounded_up(least * per_token / 3600)} hours are needed here"
        )
    return SpeedrunPlan(
        name=recipe.name,
        hours=hours,
        machine=machine_name(),
        tokens_per_second=round(tokens_per_second, 1),
        learn_tokens=tokens,
        learn_seconds=round(seconds * recipe.shares.learn, 1),
        practice_seconds=round(seconds * recipe.shares.practice, 1),
        scores_seconds=round(seconds * recipe.shares.scores, 1),
    )


def check_hours(hours: float) -> None:
    """Raise ValueError for hours that no plan is made for."""
    if not 0 < hours <= MOST_HOURS:
        raise ValueError(f"hours is {hours:g}, it must be above 0 and at most {MOST_HOURS}")


def least_tokens(config: LMConfig) -> int:
    """Return the fewest tokens that a run can be scaled to: the rate has risen before it falls,
    and each stage has a step."""
    schedule = config.schedule
    total = config.num_tokens
    risen = total if schedule.decay_start is None else schedule.decay_start
    factors = [stage.step_tokens / stage.tokens for stage in config.stages]
    if risen:
        factors.append(schedule.warmup / risen)
    return -int(-max(factors) * total // 1)


def scaled(config: LMConfig, num_tokens: int) -> LMConfig:
    """Return a run of so many tokens in all, whose stages and whose fall of the rate have their
    shares of it; the warm-up stays."""
    total = config.num_tokens

    def place(tokens: int) -> int:
        return (2 * tokens * num_tokens + total) // (2 * total)  # rounded

    ends = [0]
    stages = []
    begun = 0
    for stage in config.stages:
        begun += stage.tokens
        ends.append(place(begun))
        stages.append(replace(stage, tokens=ends[-1] - ends[-2]))
    schedule = config.schedule
    if schedule.decay_start is not None:
        start = place(schedule.decay_start)
        end = place(schedule.decay_start + schedule.decay_length)
        schedule = replace(schedule, decay_start=start, decay_length=max(end - start, 1))
    return replace(config, stages=tuple(stages), schedule=schedule)


def measure_speed(
    config: LMConfig, seconds: float, should_stop: Callable[[], bool] = lambda: False
) -> float | None:
    """Return the tokens a second of real steps of the longest stage; None if it was stopped.

    The model that is trained for it is thrown away.
    """
    longest = max(config.stages, key=lambda stage: stage.tokens)
    with tempfile.TemporaryDirectory(prefix="fulmen-speed-") as folder:
        out = Path(folder) / "run"
        trainer = LMTrainer(replace(config, out=out, stages=(longest,), tensorboard=False))
        try:
            for _ in range(_WARM_STEPS):
                trainer.step()
                if should_stop():
                    return None
            before, started = trainer.num_tokens, time.perf_counter()
            while True:
                trainer.step()
                spent = time.perf_counter() - started
                if should_stop():
                    return None
                if spent >= seconds:
                    return (trainer.num_tokens - before) / spent
        finally:
            trainer.close()


def machine_name() -> str:
    """Return the processor's name, and how many cores of it this process may use."""
    name = platform.processor() or platform.machine() or "unknown"
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = usable or 1
    return f"{count} {'core' if count == 1 else 'cores'} of {(names or [name])[0].strip()}"


def _rounded_up(hours: float) -> str:
    """Return hours with two digits, no less than they are."""
    digits = 1
    while hours * 10**digits < 10:
        digits += 1
    return f"{-int(-hours * 10**digits // 1) / 10**digits:g}"
