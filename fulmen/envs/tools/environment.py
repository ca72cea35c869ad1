"""The environment of tool use.

seed, level, domain, index -> Domain.make -> Case -> ToolTask

    level 1   a value to look up
    level 2   one change
    level 3   several steps with a condition, and an identity to check
    level 4   a request that a rule forbids, all of it or a part; the user insists
    level 5   two requests that hang together, a plan to agree on, and a change of mind
"""

from random import Random
from typing import Final

from fulmen.envs.tools.domain import LEVELS
from fulmen.envs.tools.domains import DOMAINS
from fulmen.envs.tools.task import ToolTask
from fulmen.files import shorten


class ToolUse:
    """Cases of one domain, or of all in turn; of one level, or of all in turn."""

    num_tasks: Final = None

    def __init__(self, seed: int, *, level: int | None = None, domain: str | None = None) -> None:
        if level is not None and level not in LEVELS:
            raise ValueError(f"level is {level}, it must be from {LEVELS[0]} to {LEVELS[-1]}")
        if domain is not None and domain not in DOMAINS:
            found = shorten(domain)
            raise ValueError(f"{found} is no domain, it must be one of {', '.join(DOMAINS)}")
        self._seed = seed
        self._level = level
        self._domains = list(DOMAINS) if domain is None else [domain]

    def task(self, index: int) -> ToolTask:
        """Return the case at an index, to be played once; there is no last one."""
        name, turn = self._domains[index % len(self._domains)], index // len(self._domains)
        level = self._level or LEVELS[turn % len(LEVELS)]
        draw = Random(f"tools {name} {self._seed} {level} {index}")
        return ToolTask(level, DOMAINS[name], DOMAINS[name].make(draw, level))
