"""The self-check finds what an environment does wrong."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs import Task
from fulmen.evaluate import self_check


@dataclass(frozen=True)
class Said(Task):
    """Task whose score is a function of what is said."""

    question: str
    right: tuple[str, ...]
    known: str = "forty-two"

    @property
    def messages(self) -> tuple[Message, ...]:
        return (Message("user", self.question),)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        return (Message("assistant", self.known),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        said = "" if trajectory.reply is None else trajectory.reply.content
        return Score(float(said in self.right))


@dataclass
class Sayings:
    """Environment of such tasks, the second time perhaps others."""

    tasks: Sequence[Task]
    num_tasks: int | None = None
    count: int = 0

    def task(self, index: int) -> Task:
        self.count += 1
        return self.tasks[self.count % len(self.tasks)]


def findings(*tasks: Task, chance: float = 0.0) -> list[str]:
    found = asyncio.run(self_check(Sayings(tasks), range(4), chance=chance))
    return [one.sentence for one in found]


def test_an_environment_as_it_should_be_has_no_findings() -> None:
    assert findings(Said("What?", ("forty-two",))) == []


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Said("What?", ("43",)), "scores 0 for its known answer"),
        (Said("What?", ("forty-two", "")), "scores 1 for ''"),
        (Said("What?", ("forty-two", "What?")), "scores 1 for 'What?'"),
        (Said("What?", ("forty-two", "Thought process:")), "scores 1 for 'Thought process:'"),
    ],
)
def test_wrong_scores_are_found(task: Task, sentence: str) -> None:
    assert findings(task) == [sentence] * 4


@dataclass(frozen=True)
class Filed(Said):
    """One with a file too."""

    file: str = ""

    @property
    def key(self) -> str:
        return f"{self.question} {self.file}"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Said("What?", ("42",), "42"), Said("Who?", ("42",), "42")),
        (Said("What?", ("42",), "42"), Said("What?", ("43",), "43")),
        (Filed("What?", ("42",), "42", "6 * 7"), Filed("What?", ("42",), "42", "7 * 6")),
    ],
)
def test_a_task_that_differs_the_second_time_is_found(first: Task, second: Task) -> None:
    assert "is not the same task a second time" in findings(first, second)
    assert findings(first, first) == []


def test_what_is_right_by_chance_may_be_so_often() -> None:
    task = Said("What?", ("forty-two", "null"))
    assert findings(task, chance=1.0) == []
    assert findings(task, chance=0.5) == ["4 of 4 tasks are solved by 'null'"]
