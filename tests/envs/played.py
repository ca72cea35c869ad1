"""Tasks played by hand, without a model or an agent: calls and answers one after the other."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fulmen.agent import Answer, Score, Step, Trajectory
from fulmen.chat import Message
from fulmen.envs import Task
from fulmen.sampling import SamplingParams


def says(text: str) -> Message:
    """Return an answer in words."""
    return Message("assistant", text)


def trajectory_of(answers: Sequence[Message]) -> Trajectory:
    """Return a trajectory of such answers, without results."""
    steps = [
        Step((), Answer(message=one, finish_reason="stop", params=SamplingParams()))
        for one in answers
    ]
    return Trajectory(steps=steps, end="done")


def by_hand(task: Task, answers: Sequence[Message]) -> Score:
    """Return the score of a task with tools of its own to which these are the answers, as far as
    its user listens."""
    return asyncio.run(_by_hand(task, answers))


async def _by_hand(task: Task, answers: Sequence[Message]) -> Score:
    said: list[Message] = []
    for answer in answers:
        said.append(answer)
        for call in answer.tool_calls:
            with suppress(ValueError):
                await task.act(call)
        if not answer.tool_calls and await task.next_words(trajectory_of(said)) is None:
            break
    return await task.score(trajectory_of(said))


def in_folder(task: Task, answers: Sequence[Message], folder: Path) -> Score:
    """Return the score of a task with these answers and a folder as it was left."""
    return asyncio.run(task.score(trajectory_of(answers), folder))
