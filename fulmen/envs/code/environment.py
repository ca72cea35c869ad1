"""The environment of code: programs to write, put together from problems and steps.

seed, level, index -> family and style in turn -> make_task -> CodeTask
"""

from random import Random
from typing import Final

from fulmen.envs.code.families import FAMILIES
from fulmen.envs.code.making import make_task
from fulmen.envs.code.task import CodeTask

LEVELS: Final = range(1, 6)
STYLES: Final = ("stdin", "function")


class Code:
    """Programs to write; of one level or all levels in turn, of one style or of both."""

    num_tasks: Final = None

    def __init__(self, seed: int, *, level: int | None = None, style: str | None = None) -> None:
        if level is not None and level not in LEVELS:
            raise ValueError(f"level is {level}, it must be from {LEVELS[0]} to {LEVELS[-1]}")
        if style is not None and style not in STYLES:
            raise ValueError(f"style is {style}, it must be one of {', '.join(STYLES)}")
        self._seed = seed
        self._level = level
        self._style = style

    def task(self, index: int) -> CodeTask:
        """Return the task at an index; there is no last one."""
        names = list(FAMILIES)
        name, turn = names[index % len(names)], index // len(names)
        level = self._level or LEVELS[turn % len(LEVELS)]
        draw = Random(f"code {name} {self._seed} {level} {index}")
        style = self._style or draw.choice(STYLES)
        return make_task(draw, FAMILIES[name], level, is_function=style == "function")
