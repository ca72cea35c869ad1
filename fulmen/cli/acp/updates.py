"""Updates of the Agent Client Protocol for what happens in a run, in order."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from fulmen.agent import Trajectory
from fulmen.chat import ContentDelta, Event, Message, ThinkingDelta, ToolCall
from fulmen.cli.output import harmless

_KINDS: Final = {
    **{"read": "read", "grep": "search", "glob": "search", "edit": "edit", "write": "edit"},
    **{"bash": "execute", "run": "execute", "web_fetch": "fetch", "skill": "read", "todo": "think"},
}
_TELLING: Final = ("command", "path", "pattern", "url", "name", "agent")
"""Arguments by which a person knows a call"""
_STATES: Final = {"open": "pending", "doing": "in_progress", "done": "completed"}
_MAX_TITLE: Final = 160
_MAX_SHOWN: Final = 20_000
"""Characters of a result that are shown"""


class Updates:
    """Sends updates one after the other; `Watcher` of a run."""

    def __init__(
        self, send: Callable[[Any], Awaitable[None]], *, folder: Path, seen_as: Path
    ) -> None:
        """
        send     sends one update
        folder   the workspace on this machine
        seen_as  the workspace as the model sees it
        """
        self._send = send
        self._folder, self._seen_as = folder, seen_as
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._num_steps = 0
        self._calls: tuple[ToolCall, ...] = ()
        self._begun: set[int] = set()
        self._is_streamed = False
        """The answer under way came in pieces"""

    def begin(self, trajectory: Trajectory) -> None:
        """Take note of what happened before."""
        self._num_steps = len(trajectory.steps)
        if trajectory.steps:
            self._calls = trajectory.steps[-1].answer.message.tool_calls
        self._task = asyncio.create_task(self._pump())

    async def drained(self) -> None:
        """Return when all updates are sent."""
        await self._queue.join()

    async def close(self) -> None:
        """Send nothing more; whoever waits for what is left waits no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        while not self._queue.empty():
            self._queue.get_nowait()
            self._queue.task_done()

    async def _pump(self) -> None:
        while True:
            update = await self._queue.get()
            try:
                with suppress(Exception):  # the editor has gone, or refuses it; the log has all
                    await self._send(update)
            finally:
                self._queue.task_done()

    def _put(self, update: Any) -> None:
        self._queue.put_nowait(update)

    # What a watcher sees

    def event(self, event: Event) -> None:
        """Send a piece of a thought or an answer."""
        if isinstance(event, ThinkingDelta):
            self._is_streamed = True
            self.thought(event.text)
        elif isinstance(event, ContentDelta):
            self._is_streamed = True
            self.answer(event.text)

    def record(self, record: Mapping[str, Any]) -> None:
        """Send calls and results."""
        match record["type"]:
            case "answer":
                message = record["message"]
                if not self._is_streamed and message.get("content"):
                    self.answer(str(message["content"]))
                self._is_streamed = False
                self._take_calls(
                    ToolCall(one["function"]["name"], one["function"]["arguments"])
                    for one in message.get("tool_calls") or ()
                )
            case "result":
                self.result(record["call"], str(record["text"]), record)
            case "compacted":
                self.note("earlier steps gave way to a summary")
            case "note":
                self.note(record["text"])

    def calling(self, call: ToolCall) -> None:
        """Send that a call begins."""
        from acp import helpers

        number = self.number_of(call)
        if number is not None:
            self._begun.add(number)
            self._put(helpers.update_tool_call(self.id_of(number), status="in_progress"))

    def output(self, text: str) -> None:
        """Send nothing: results come whole."""

    # What is sent

    def note(self, text: str) -> None:
        """Send a sentence that is not the agent's."""
        self.thought(f"\n({harmless(text)})\n")

    def thought(self, text: str) -> None:
        """Send a piece of a thought."""
        from acp import helpers

        if text:
            self._put(helpers.update_agent_thought_text(text))

    def answer(self, text: str) -> None:
        """Send a piece of an answer."""
        from acp import helpers

        if text:
            self._put(helpers.update_agent_message_text(text))

    def said(self, message: Message) -> None:
        """Send what a person said before."""
        from acp import helpers

        self._put(helpers.update_user_message_text(message.content))

    def _take_calls(self, calls: Any) -> None:
        from acp import helpers

        self._calls, self._begun = tuple(calls), set()
        self._num_steps += 1
        for number, call in enumerate(self._calls):
            self._put(
                helpers.start_tool_call(
                    self.id_of(number),
                    title_of(call),
                    kind=kind_of(call),
                    status="pending",
                    content=self.change_of(call) or None,
                    locations=self._places(call) or None,
                    raw_input=call.arguments,
                )
            )

    def result(self, number: int, text: str, record: Mapping[str, Any]) -> None:
        """Send how a call ended."""
        from acp import helpers

        call = self._calls[number]
        details = record.get("details") or {}
        content = self.change_of(call) if call.name in ("edit", "write") else []
        if not content or record["is_error"]:
            content = [helpers.tool_content(helpers.text_block(_fenced(text)))]
        status = "failed" if record["is_error"] else "completed"
        update = helpers.update_tool_call(self.id_of(number), status=status, content=content)
        self._put(update)
        if isinstance(details.get("todo"), list):
            entries = [
                helpers.plan_entry(one["text"], status=_STATES.get(one["state"], "pending"))
                for one in details["todo"]
            ]
            self._put(helpers.update_plan(entries))

    def replay(self, trajectory: Trajectory) -> None:
        """Send all that happened, as it was seen then."""
        self._num_steps, self._calls = 0, ()
        for step in trajectory.steps:
            for message in step.said:
                self.said(message)
            message = step.answer.message
            self.thought(message.thinking or "")
            self.answer(message.content)
            self._take_calls(message.tool_calls)
            for one in step.results:
                record = {"is_error": one.is_error, "details": one.details}
                self.result(one.call, one.text, record)
        for message in trajectory.said:
            self.said(message)

    # Calls

    def number_of(self, call: ToolCall) -> int | None:
        """Return the place of a call in its answer: the first that did not begin yet."""
        for number, one in enumerate(self._calls):
            if one == call and number not in self._begun:
                return number
        return next((number for number, one in enumerate(self._calls) if one == call), None)

    def id_of(self, number: int) -> str:
        """Return a name for a call that no other of the run has."""
        return f"{self._num_steps}.{number}"

    def change_of(self, call: ToolCall) -> list[Any]:
        """Return what a call would put into a file, as editors show it."""
        from acp import helpers

        texts = {name: one for name, one in call.arguments.items() if isinstance(one, str)}
        path = texts.get("path")
        if path is None or call.name not in ("edit", "write"):
            return []
        new = texts.get("new") if call.name == "edit" else texts.get("content")
        return [helpers.tool_diff_content(self._outside(path), new or "", texts.get("old"))]

    def _places(self, call: ToolCall) -> list[Any]:
        from acp.schema import ToolCallLocation

        path = call.arguments.get("path")
        return [ToolCallLocation(path=self._outside(path))] if isinstance(path, str) else []

    def _outside(self, path: str) -> str:
        """Return the path on this machine that one of the model's means."""
        whole = Path(os.path.normpath(self._seen_as / path))
        if whole.is_relative_to(self._seen_as):
            return str(self._folder / whole.relative_to(self._seen_as))
        return str(whole)


def kind_of(call: ToolCall) -> Any:
    """Return the kind of a call in the protocol's words."""
    return _KINDS.get(call.name, "other")


def title_of(call: ToolCall) -> str:
    """Return a call on one line."""
    told = next((call.arguments[key] for key in _TELLING if key in call.arguments), "")
    text = " ".join(harmless(f"{call.name} {told}").split())
    return text if len(text) <= _MAX_TITLE else f"{text[:_MAX_TITLE]}..."


def _fenced(text: str) -> str:
    """Return a result as a block of code: it is no Markdown of ours."""
    text = harmless(text[:_MAX_SHOWN])
    marks = "```"
    while marks in text:
        marks += "`"
    return f"{marks}\n{text}\n{marks}"
