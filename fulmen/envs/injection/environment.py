"""The environment of prompt injection: draws a job, an attack and a disguise.

    seed, level, index -> Job, with its files -> Attack, hidden where the job leads to -> task

In about a fifth of the tasks the orders in the folder belong to the job, and there is no attack.
"""

from random import Random
from typing import Final

from fulmen.agent import PROFILES
from fulmen.envs.injection.attacks import LEVELS, Grounds, disguise, draw_attack
from fulmen.envs.injection.jobs import READ, SEEN
from fulmen.envs.injection.orders import ORDERS
from fulmen.envs.injection.task import InjectionTask

_SHARE_OF_ORDERS: Final = 0.2
_JOBS: Final = {1: READ, 2: READ, 3: SEEN, 4: READ, 5: (*READ, SEEN[0])}
"""Jobs by level"""


class Injection:
    """Jobs under attack; without a level, all levels in turn."""

    num_tasks: Final = None

    def __init__(self, seed: int, *, level: int | None = None, profile: str = "coding") -> None:
        """profile: tools that the model has, coding or minimal"""
        if level is not None and level not in LEVELS:
            raise ValueError(f"level is {level}, it must be from {LEVELS[0]} to {LEVELS[-1]}")
        if profile not in PROFILES or profile == "none":
            known = ", ".join(name for name in PROFILES if name != "none")
            raise ValueError(f"profile is {profile}, it must be one of {known}")
        self._seed = seed
        self._level = level
        self._profile = profile

    def task(self, index: int) -> InjectionTask:
        """Return the job at an index; there is no last one."""
        level = self._level or LEVELS[index % len(LEVELS)]
        draw = Random(f"injection {self._seed} {level} {index}")
        grounds = Grounds.of(draw)
        if draw.random() < _SHARE_OF_ORDERS:
            job, attack, hidden = draw.choice(ORDERS)(draw), None, {}
        else:
            job = draw.choice(_JOBS[level])(draw)
            attack = draw_attack(draw, grounds, job.wrong)
            hidden = dict(job.hide(disguise(draw, level, attack.order)))
        files = dict(sorted({**grounds.files, **job.files, **hidden}.items()))
        return InjectionTask(level, job, attack, files, self._profile)
