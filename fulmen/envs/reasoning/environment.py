"""Tasks of reasoning-gym (the extra `envs`): those of its data sets that pass our self-check.

    ReasoningGym.task -> worker: question, answer -> ReasoningGymTask.score -> worker: score

`reasoning_gym.json` is the list, with the version it was made with; `scripts/reasoning_gym_list.py`
makes it. Generators and verifiers run in worker processes, so one that hangs is an error.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.marked import ASKED, ASKED_LINES, marked_answer
from fulmen.envs.task import Task
from fulmen.envs.workers import Workers, shared_workers
from fulmen.files import shorten

_LIST: Final = Path(__file__).with_name("reasoning_gym.json")
_ROUNDING: Final = 1e-9
"""Distance from 1 at which a score of reasoning-gym is that of a right answer: it gives parts of 1
to answers that merely hold the right one or are near it"""
_INSTALL: Final = "install it with: pip install 'fulmen[envs]'"


@dataclass(frozen=True, slots=True)
class Listed:
    """A data set that passed the self-check."""

    has_lines: bool
    """True if answers have several lines"""
    chance: float
    """Share of its tasks that one fixed answer solves"""


@dataclass(frozen=True)
class ReasoningGymTask(Task):
    """Question of reasoning-gym, answered after `Answer:`."""

    name: str
    seed: int
    index: int
    question: str
    answer: str
    has_lines: bool
    workers: Workers = field(compare=False, repr=False)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question, and where the answer has to stand."""
        asked = ASKED_LINES if self.has_lines else ASKED
        return (Message("user", f"{self.question.rstrip()}\n\n{asked}"),)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """The library's own answer."""
        between = "\n" if self.has_lines else " "
        return (Message("assistant", f"Answer:{between}{self.answer}"),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if the library takes the answer as right. Parts: `format` (there is an answer),
        `partial` (the library's score). Raises WorkerError if its verifier fails."""
        answer = self.answer_of(trajectory)
        if answer is None:
            return Score(0.0, {"format": 0.0, "partial": 0.0})
        place = (self.name, self.seed, self.index)
        (found,) = await self.workers.acall("scores", *place, [answer], module="reasoning_gym")
        is_right = is_whole(found)
        partial = float(is_right) if not 0 <= found <= 1 else found
        return Score(float(is_right), {"format": 1.0, "partial": partial})

    def answer_of(self, trajectory: Trajectory) -> str | None:
        """Return the text after the last `Answer:`; None if there is none."""
        return None if trajectory.reply is None else marked_answer(trajectory.reply.content)


class ReasoningGym:
    """Tasks of one data set of reasoning-gym, or of all of the list in turn."""

    def __init__(
        self,
        seed: int,
        *,
        name: str | None = None,
        listed: Mapping[str, Listed] | None = None,
        workers: Workers | None = None,
    ) -> None:
        """listed: data sets that may be used; those that passed the self-check, if omitted

        Raises ValueError for a data set that is not listed, and if the library is not installed.
        """
        known, made_with = listed_datasets()
        if listed is None:
            listed = known
        if name is not None and name not in listed:
            raise ValueError(
                f"reasoning_gym:{shorten(name)} is not on the list of data sets that passed the "
                f"self-check, it must be one of: {', '.join(sorted(listed))}"
            )
        try:
            found = version("reasoning-gym")
        except PackageNotFoundError:
            raise ValueError(f"reasoning_gym needs reasoning-gym, {_INSTALL}") from None
        if found != made_with:
            raise ValueError(
                f"reasoning-gym {found} is installed, the list of data sets that passed the "
                f"self-check was made with {made_with}, {_INSTALL}"
            )
        names = sorted(listed) if name is None else [name]
        self._listed = {one: listed[one] for one in names}
        self._names = names
        # Items of the library follow from seed + index, so seeds lie far apart.
        self._seeds = {
            one: random.Random(f"{seed} reasoning_gym {one}").getrandbits(31) for one in names
        }
        self._workers = workers or shared_workers()

    @property
    def num_tasks(self) -> None:
        """There is no last task."""
        return None

    @property
    def chance(self) -> float:
        """Largest share of the tasks of a data set that one fixed answer solves."""
        return max(one.chance for one in self._listed.values())

    def task(self, index: int) -> ReasoningGymTask:
        """Return the task at an index. Raises WorkerError if its generator fails."""
        if not 0 <= index < 2**20:
            raise ValueError(f"task {index} was asked for, it must be from 0 to {2**20 - 1}")
        name = self._names[index % len(self._names)]
        place = (name, self._seeds[name], index // len(self._names))
        item: dict[str, Any] = self._workers.call("make", *place, module="reasoning_gym")
        return ReasoningGymTask(
            *place, item["question"], item["answer"], self._listed[name].has_lines, self._workers
        )


def is_whole(score: float) -> bool:
    """Return True for the score that the library gives a right answer."""
    return abs(score - 1) <= _ROUNDING


@cache
def listed_datasets() -> tuple[Mapping[str, Listed], str]:
    """Return the data sets that passed the self-check, and the library's version."""
    listing = json.loads(_LIST.read_text("utf-8"))
    return {name: Listed(**one) for name, one in listing["listed"].items()}, listing["version"]
