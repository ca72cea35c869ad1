"""Demonstrations: a task as somebody does it who knows the answers.

    task.known_answers -> KnownAnswers, a model -> run_task -> Trajectory

Its messages are what a model learns before it practises the task by itself.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Self

from fulmen.agent import PROFILES, Trajectory
from fulmen.chat import ChatRequest, Completion, Event, Message, Reply, Tool, Usage
from fulmen.envs.run import run_task, system_of
from fulmen.envs.task import Task
from fulmen.sampling import SamplingParams


class KnownAnswers:
    """A `ChatModel` that says these messages, one for each request, whatever it is asked."""

    def __init__(self, answers: Sequence[Message]) -> None:
        self._left = iter(answers)

    def stream(self, request: ChatRequest) -> "_Said":
        """Return the next answer. Raises ValueError after the last one."""
        said = next(self._left, None)
        if said is None:
            raise ValueError("there is no known answer left, and another was asked for")
        return _Said(said)


class _Said:
    """An answer that is there at once and has no events."""

    def __init__(self, message: Message) -> None:
        self._message = message

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def __aiter__(self) -> AsyncIterator[Event]:
        nothing: tuple[Event, ...] = ()
        for event in nothing:
            yield event

    async def close(self) -> None:
        """Leave it as it is: it has ended."""

    async def finish(self) -> Completion:
        """Return the message as a completion without ids."""
        said = self._message
        return Completion(
            reply=Reply(said.thinking or "", said.content, said.tool_calls),
            finish_reason="stop",
            prompt_ids=(),
            tokens=(),
            params=SamplingParams(),
            usage=Usage(num_prompt_tokens=0, num_new_tokens=0),
        )


async def demonstrate(task: Task) -> Trajectory:
    """Return the scored trajectory of the known answers of a task, which is played by that.

    Raises ValueError for a task without known answers, or whose known answers do not score 1.
    """
    if not task.known_answers:
        raise ValueError("the task has no known answers, so nothing can be demonstrated")
    trajectory = await run_task(KnownAnswers(task.known_answers), task)
    assert trajectory.score is not None
    if trajectory.score.value != 1:
        raise ValueError(f"the known answers score {trajectory.score.value:g}, they must score 1")
    return trajectory


def demonstrated(task: Task) -> list[Message]:
    """Return a task and its known answers as a conversation: played, unless the task knows what its
    calls come to, which its tests have to hold against a play. Raises ValueError as `demonstrate`
    where it is played."""
    if (results := task.known_results) is not None:
        return _with_results(task, results)
    if task.is_question and len(task.known_answers) == 1:
        return [*task.messages, *task.known_answers]
    return asyncio.run(demonstrate(task)).messages


def _with_results(task: Task, results: Sequence[str]) -> list[Message]:
    left = iter(results)
    messages = [*system_of(task), *(one for one in task.messages if one.role != "system")]
    for answer in task.known_answers:
        messages.append(answer)
        messages += [Message("tool", next(left), name=call.name) for call in answer.tool_calls]
    return messages


def tools_of(task: Task) -> tuple[Tool, ...]:
    """Return the tools that a model has in a task: those of its profile, and its own."""
    return (*PROFILES[task.profile], *task.tools)
