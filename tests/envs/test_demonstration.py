"""Demonstrations: what is known to be right, done with the tools of a task."""

import asyncio

import pytest

from fulmen.agent import Trajectory
from fulmen.chat import Message
from fulmen.envs import (
    Arithmetic,
    KnownAnswers,
    NumberTask,
    demonstrate,
    load_environment,
    tools_of,
)
from tests.sandbox.helpers import skip_without_sandbox


def demonstrated(name: str, index: int) -> Trajectory:
    return asyncio.run(demonstrate(load_environment(name, seed=3).task(index)))


@pytest.mark.parametrize("name", ["arithmetic", "logic", "tools:1", "tools:5"])
def test_known_answers_are_said_in_turn_and_score_one(name: str) -> None:
    for index in range(5):
        task = load_environment(name, seed=3).task(index)
        trajectory = demonstrated(name, index)
        said = [one for one in trajectory.messages if one.role == "assistant"]
        assert [one.content for one in said] == [one.content for one in task.known_answers]
        assert trajectory.score is not None
        assert trajectory.score.value == 1
        names = {tool.name for tool in tools_of(task)}
        assert {call.name for one in said for call in one.tool_calls} <= names


@pytest.mark.parametrize("name", ["repairs:1:minimal", "repairs:3", "injection:2"])
def test_files_are_put_right_with_the_tools_of_the_profile(name: str) -> None:
    skip_without_sandbox()
    trajectory = demonstrated(name, 1)
    assert not any(result.is_error for step in trajectory.steps for result in step.results)


def test_a_task_that_nobody_knows_and_a_wrong_answer_are_refused() -> None:
    task = Arithmetic(0).task(0)

    class Knows(NumberTask):
        said: tuple[Message, ...] = ()

        @property
        def known_answers(self) -> tuple[Message, ...]:
            return self.said

    class Wrong(Knows):
        said = (Message("assistant", "It is -1."),)

    for kind, sentence in ((Knows, "no known answers"), (Wrong, "must score 1")):
        with pytest.raises(ValueError, match=sentence):
            asyncio.run(demonstrate(kind(task.question, task.number)))


def test_nothing_is_said_after_the_last_answer() -> None:
    with pytest.raises(ValueError, match="no known answer left"):
        KnownAnswers([]).stream(None)  # type: ignore[arg-type]
