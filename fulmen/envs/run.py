"""Playing a task: an agent in a fresh folder and sandbox, then the score of its trajectory.

    Task.prepare -> folder -> Sandbox -> Agent.run -> Trajectory -> Task.score

A task's folder is seen at one path in every run, so that prompts never differ by it. The sandbox
has no network and not this package, whose files could tell the answer. It is thrown away with all
that was done in it, so nobody is asked for consent.
"""

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from fulmen.agent import (
    Agent,
    Budget,
    Compactor,
    Memory,
    Notebook,
    Permissions,
    PlainMemory,
    Result,
    Rules,
    Trajectory,
    Verdict,
    Watcher,
    Workbench,
    system_prompt,
)
from fulmen.chat import ChatModel, Message, ModelError, Tool, ToolCall
from fulmen.envs.scratch import scratch_folder
from fulmen.envs.task import Task
from fulmen.sampling import SamplingParams
from fulmen.sandbox import Access, Limits, Sandbox

PACKAGE: Final = Path(__file__).resolve().parent.parent
_LIMITS: Final = Limits(seconds=60.0, memory_bytes=2**30, num_processes=64, file_bytes=2**26)


async def run_task(
    model: ChatModel,
    task: Task,
    *,
    memory: Memory | None = None,
    params: SamplingParams | None = None,
    budget: Budget | None = None,
    limits: Limits | None = None,
    watcher: Watcher | None = None,
    context: int | None = None,
) -> Trajectory:
    """Return the scored trajectory of an agent on a task.

    memory   the conversation as the model's side holds it: with a transcript, ids that were
             sampled are never encoded again; messages alone if omitted
    budget   fifty turns if omitted; a task may have a limit of time besides
    limits   of the sandbox: a second for processes and memory, sixty for a command, if omitted
    context  tokens that the model's context holds: a summary takes the place of a history that
             fills it; without it none is made, and where the model refuses what is too long, the
             work ends by `context`

    Raises ValueError for a task that was played before, SandboxError if there is no sandbox or it
    fails, ModelError if the model fails, GraderError if the grader does: none of it is a score.
    """
    task.begin()
    journal = Notebook(Trajectory(system=system_of(task)))
    with ExitStack() as scratch:
        folder = None
        async with AsyncExitStack() as stack:
            workbench = None
            if task.has_folder:
                folder = scratch.enter_context(scratch_folder("fulmen-task-")) / "folder"
                folder.mkdir()
                await task.prepare(folder)
                access = Access(
                    folder=folder,
                    seen_as=task.seen_as,
                    protected=(),
                    hidden=(PACKAGE, *task.hidden_paths),
                    environment=task.variables,
                )
                sandbox = await stack.enter_async_context(Sandbox(access, limits or _LIMITS))
                workbench = Workbench(
                    sandbox,
                    profile=task.profile,
                    permissions=_Anything(task.seen_as),
                    folder=task.seen_as,
                )
            agent = Agent(
                model,
                _TaskHands(task, workbench),
                memory or PlainMemory(),
                journal,
                params=params,
                budget=_bounded(budget or Budget(turns=50), task.agent_seconds),
                compactor=None if context is None else Compactor(max_tokens=context),
                watcher=watcher,
            )
            try:
                end = await agent.run([one for one in task.messages if one.role != "system"])
                while end == "done" and (words := await task.next_words(journal.trajectory)):
                    end = await agent.run([Message("user", words)])
            except ModelError as error:
                if not _is_full(error, journal.trajectory):
                    raise
                journal.append({"type": "ended", "reason": "context"})
        # Nothing runs in the folder any more.
        score = await task.score(journal.trajectory, folder)
    journal.append({"type": "scored", "value": score.value, "parts": dict(score.parts)})
    return journal.trajectory


def _bounded(budget: Budget, seconds: float | None) -> Budget:
    """Return a budget with no more time than that."""
    if seconds is None or (budget.seconds is not None and budget.seconds <= seconds):
        return budget
    return replace(budget, seconds=seconds)


def system_of(task: Task) -> tuple[Message, ...]:
    """Return the system messages of a task: those of its profile, then its own."""
    prompt = system_prompt(task.profile)
    own = [one for one in task.messages if one.role == "system"]
    return (*([Message("system", prompt)] if prompt else []), *own)


def _is_full(error: ModelError, trajectory: Trajectory) -> bool:
    """Return whether the context is full: a first prompt is too long, or has grown so. A limit of
    answers that leaves no room for any prompt is no such thing."""
    return error.overflow == "prompt" or (error.overflow is not None and bool(trajectory.steps))


class _Anything(Permissions):
    """Consent to every call: what it does is thrown away."""

    def __init__(self, workspace: Path) -> None:
        super().__init__("auto", Rules(), workspace=workspace)

    def judge(
        self, call: object, *, folder: Path | None = None, leaves: str | None = None
    ) -> Verdict:
        """Allow a call."""
        return Verdict("allow")

    def hides(self, path: Path) -> bool:
        """Hide nothing."""
        return False


class _TaskHands:
    """A workbench, if there is one, and the task's own tools beside it."""

    def __init__(self, task: Task, workbench: Workbench | None) -> None:
        self._task = task
        self._workbench = workbench
        self._own = {tool.name for tool in task.tools}
        given = workbench.tools if workbench is not None else ()
        twice = self._own & {tool.name for tool in given}
        if twice:
            raise ValueError(f"the task has a tool {min(twice)} that its profile has too")
        self.tools: Sequence[Tool] = (*given, *task.tools)

    def is_independent(self, call: ToolCall) -> bool:
        """Return whether a call only reads; of the task's own tools nothing is known."""
        is_known = self._workbench is not None and call.name not in self._own
        return is_known and self._workbench.is_independent(call)  # type: ignore[union-attr]

    async def run(self, number: int, call: ToolCall) -> Result:
        """Make a call."""
        if self._workbench is not None and call.name not in self._own:
            return await self._workbench.run(number, call)
        begin, is_error = time.monotonic(), False
        try:
            if call.name not in self._own:
                raise ValueError(f"there is no tool {call.name}")
            text = await self._task.act(call)
        except ValueError as error:
            text, is_error = str(error), True
        return Result(number, text, is_error, round(time.monotonic() - begin, 3))

    async def interrupted(self, number: int, call: ToolCall, by: str) -> Result:
        """Return the result of a call that was ended."""
        if self._workbench is not None and call.name not in self._own:
            return await self._workbench.interrupted(number, call, by)
        return Result(number, f"(ended by {by} before it was done)", is_error=True)

    def forget(self) -> None:
        """Take note that the model does not see earlier results any more."""
        if self._workbench is not None:
            self._workbench.forget()
