"""The environment of calls: a closed set of tasks with tools, in three parts that have no name and
no question in common.

    seed, kind, index -> part -> Names of that part -> CallKind.make, until the question is of it

The hash of a name is its part, and so is that of a question's text; a repair belongs to the part of
its right text, since all repairs are asked for in the same words.
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from fulmen.envs.basics import PARTS, part_of
from fulmen.envs.calls.asking import KINDS as ASKING
from fulmen.envs.calls.errors import KINDS as ERRORS
from fulmen.envs.calls.folder import in_folder, make_file_task
from fulmen.envs.calls.micro import make_repair
from fulmen.envs.calls.names import Names
from fulmen.envs.calls.talking import make_talk
from fulmen.envs.calls.task import CallTask
from fulmen.envs.task import Task
from fulmen.files import shorten

_SHARES: Final = (8, 1, 1)
"""Tasks of each part where no part is asked for"""
_IN_FOLDER: Final = 0.2
"""Share of the talk that is beside the tools of a folder"""
_MOST_DRAWS: Final = 1000
"""Tasks that are drawn until one is of a part"""


def _cases() -> dict[str, Callable[[Random, Names], Task]]:
    found: dict[str, Callable[[Random, Names], Task]] = {}
    for kind in (*ASKING, *ERRORS):
        found[kind.name] = lambda draw, names, kind=kind: CallTask(  # type: ignore[misc]
            kind.name, kind.make(draw, names)
        )
    return found


def _no_call(draw: Random, names: Names) -> Task:
    is_in_folder = draw.random() < _IN_FOLDER
    case = make_talk(draw, names, is_in_folder=is_in_folder)
    return in_folder(draw, names, case) if is_in_folder else CallTask("no_call", case)


KINDS: Final[Mapping[str, Callable[[Random, Names], Task]]] = {
    **_cases(),
    "no_call": _no_call,
    "file": make_file_task,
    "repair": make_repair,
}
"""Makers of tasks of all kinds, by name"""


class Calls:
    """Tasks of one kind, or of all kinds in turn; of one part, or of all parts."""

    num_tasks: Final = None

    def __init__(self, seed: int, *, kind: str | None = None, part: str | None = None) -> None:
        if kind is not None and kind not in KINDS:
            raise ValueError(
                f"{shorten(kind)} is no kind of calls, it must be one of {', '.join(KINDS)}"
            )
        if part is not None and part not in PARTS:
            raise ValueError(
                f"{shorten(part)} is no part of calls, it must be one of {', '.join(PARTS)}"
            )
        self._seed = seed
        self._kinds = tuple(KINDS) if kind is None else (kind,)
        self._part = part

    def task(self, index: int) -> Task:
        """Return the task at an index, to be played once; there is no last one."""
        kind = self._kinds[index % len(self._kinds)]
        draw = Random(f"calls {kind} {self._seed} {index}")
        part = self._part or draw.choices(PARTS, _SHARES)[0]
        for _ in range(_MOST_DRAWS):
            task = KINDS[kind](draw, Names(draw, part))
            if kind == "repair" or part_of(task.messages[-1].content) == part:
                return task
        raise AssertionError(f"no task of {kind} is of the part {part}")
