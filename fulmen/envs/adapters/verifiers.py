"""Tasksets of the library `verifiers` (its v1), as our environments.

    Taskset -> Task.data -> messages -> the reply, as a Trace -> Task.score -> rewards

Tasks are single questions here: those that bring tools, a container or hooks of their own need the
library's harnesses, and are refused. Their rewards run in this process, so they are code that is
trusted.
"""

import asyncio
import inspect
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.task import Task
from fulmen.envs.workers import WorkerError

_SCORE_SECONDS: Final = 60.0
_MAX_TASKS: Final = 100_000
"""Tasks that are kept"""


@dataclass(frozen=True)
class VerifiersTask(Task):
    """Question of a taskset."""

    messages_: tuple[Message, ...]
    theirs: Any = field(repr=False, compare=False)
    """The library's task"""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The task's system prompt and prompt."""
        return self.messages_

    @property
    def key(self) -> str:
        """The library's own identity of a task."""
        return str(self.theirs.key)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return the sum of the weighted rewards, at least 0 and at most 1. Parts are rewards and
        metrics. Raises WorkerError if one fails."""
        if trajectory.reply is None:
            return Score(0.0)
        trace = _trace(self.theirs, trajectory.messages, len(self.messages_))
        try:
            async with asyncio.timeout(_SCORE_SECONDS):
                await self.theirs.score(trace)
        except TimeoutError:
            raise WorkerError(f"rewards took more than {_SCORE_SECONDS:g} seconds") from None
        except Exception as error:  # code of others, whose failure is no score
            raise WorkerError(f"a reward failed: {error}") from error
        found = {name: None if one is None else one.value for name, one in trace.rewards.items()}
        parts: dict[str, float] = {}
        # A metric may have the name of a reward: the reward counts.
        for name, value in (*trace.metrics.items(), *found.items()):
            if value is None or not math.isfinite(value):
                raise WorkerError(f"the reward {name} is {value}, it must be a finite number")
            parts[name] = value
        value = sum(parts[name] for name in found)
        return Score(min(max(value, 0.0), 1.0), parts)


class VerifiersEnvironment:
    """Tasks of a taskset, in its order; they are read as they are asked for."""

    def __init__(self, taskset: Iterable[Any]) -> None:
        """taskset: a `verifiers.v1.Taskset`, such as `load_taskset` returns, or a view of one"""
        self._rest: Iterator[Any] = iter(taskset)
        self._read: list[Any] = []
        self._lock = threading.Lock()
        is_bounded = getattr(taskset, "bounded", True)
        self._num_tasks = None
        if is_bounded:
            self._read_up_to(_MAX_TASKS)
            self._num_tasks = len(self._read)

    @property
    def num_tasks(self) -> int | None:
        """Number of tasks; None for a taskset without an end."""
        return self._num_tasks

    def task(self, index: int) -> VerifiersTask:
        """Return the task at an index. Raises ValueError for one that is more than a question."""
        if index >= 0:
            self._read_up_to(index + 1)
        if not 0 <= index < len(self._read):
            raise ValueError(f"task {index} was asked for, {len(self._read)} are known")
        theirs = self._read[index]
        return VerifiersTask(_messages(theirs), theirs)

    def _read_up_to(self, num_tasks: int) -> None:
        with self._lock:
            while len(self._read) < min(num_tasks, _MAX_TASKS):
                if (theirs := next(self._rest, None)) is None:
                    return
                self._read.append(theirs)


def _messages(theirs: Any) -> tuple[Message, ...]:
    """Return the messages of a task. Raises ValueError for one that is more than a question."""
    from verifiers.v1 import Task as TheirTask

    kind, data = type(theirs), theirs.data
    needs = {
        "a container": kind.NEEDS_CONTAINER or data.image is not None,
        "tools": bool(kind.toolsets(theirs.config)),
        "a user who speaks first": data.prompt is None,
        "a runtime": kind.setup is not TheirTask.setup
        or kind.finalize is not TheirTask.finalize
        or any(map(_needs_runtime, _signals(theirs))),
    }
    for name, is_needed in needs.items():
        if is_needed:
            raise ValueError(f"{kind.__name__} needs {name}, only questions are played here")
    messages = [Message("system", data.system_prompt)] if data.system_prompt else []
    if isinstance(data.prompt, str):
        return (*messages, Message("user", data.prompt))
    for one in data.prompt:
        if one.role not in ("system", "user", "assistant") or not isinstance(one.content, str):
            raise ValueError(f"{kind.__name__} has a message that is no plain text")
        messages.append(Message(one.role, one.content))
    return tuple(messages)


def _signals(theirs: Any) -> list[Callable[..., Any]]:
    """Return all that the library scores a task by."""
    judges = [one.score for one in theirs.plugged_judges()]
    return [*theirs.hooks("metric"), *theirs.hooks("reward"), *judges]


def _needs_runtime(signal: Callable[..., Any]) -> bool:
    """Return True for a signal that the library leaves out where there is no container."""
    runtime = inspect.signature(signal).parameters.get("runtime")
    return runtime is not None and runtime.default is inspect.Parameter.empty


def _trace(theirs: Any, messages: Sequence[Message], num_given: int) -> Any:
    """Return a conversation as the library's rewards read it; the first messages are the task's."""
    from verifiers import v1 as vf

    kinds = {"system": vf.SystemMessage, "user": vf.UserMessage}
    nodes = []
    for number, one in enumerate(messages):
        if one.role == "assistant":
            calls = [
                vf.ToolCall(id=call.id or "", name=call.name, arguments=json.dumps(call.arguments))
                for call in one.tool_calls
            ]
            said: Any = vf.AssistantMessage(
                content=one.content, reasoning_content=one.thinking, tool_calls=calls or None
            )
        elif one.role == "tool":  # a call that there is no tool for has a result too
            said = vf.ToolMessage(
                tool_call_id=one.tool_call_id or "", content=one.content, name=one.name
            )
        else:
            said = kinds[one.role](content=one.content)
        is_sampled = one.role == "assistant" and number >= num_given
        parent = number - 1 if number else None
        nodes.append(vf.MessageNode(parent=parent, message=said, sampled=is_sampled))
    place = vf.TraceTask(
        type=type(theirs).__name__, data=theirs.data, key=theirs.key, hash=theirs.hash
    )
    agent = vf.AgentInfo(config=vf.AgentConfig())
    return vf.Trace(task=place, agent=agent, nodes=nodes, is_completed=True)
