"""A task of tau2-bench, played once: calls and words go to its own code in a worker process.

    call -> worker: the calls so far, and this one -> result      answer -> user -> next words
    in the end: worker: all calls and words -> its verdict, by parts

Its user is a model that is told a scenario. Where there is none, a task is a ticket for a model
alone, as tau2's solo mode has it; where it has no ticket, the scenario is all that the user says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import ChatModel, ChatRequest, Message, ModelError, Tool, ToolCall, complete
from fulmen.envs.task import GraderError, Task
from fulmen.envs.workers import WorkerError, Workers
from fulmen.sampling import SamplingParams

PROGRAM: Final = str(Path(__file__).with_name("inside.py"))
SECONDS: Final = 20.0
"""Longest work of tau2 for one request, of the processor; it may have to read its data first"""
_DONE: Final = Tool(
    "done", "Say that you are done with the ticket; nothing can be called after it."
)
_ALONE: Final = (
    "Work on this ticket with your tools alone, nobody answers questions. In the end, call done."
)
_SCENARIO: Final = (
    "I cannot answer questions. Here is what I was told about my own case; do all of it that you "
    "may. Where I would have to agree, I do, as far as it says so."
)
_HELLO: Final = "Hello, I need some help."
_GREETING: Final = "Hello, what can I do for you?"
_STOPS: Final = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")
"""Marks by which tau2's users end a conversation"""
_NUM_USER_CALLS: Final = 20
"""Most calls of a user before it says something"""


@dataclass
class Tau2Task(Task):
    """Task of a domain, as a model is given it."""

    domain: str
    place: int
    """Index among all tasks of the domain's base split"""
    facts: Mapping[str, Any] = field(repr=False)
    """The task as `inside.describe` tells it"""
    workers: Workers = field(repr=False, compare=False)
    user: ChatModel | None = field(default=None, repr=False, compare=False)
    user_params: SamplingParams | None = field(default=None, repr=False, compare=False)
    calls: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    """Calls so far: who made them (assistant or user), the tool's name, the arguments"""
    is_over: bool = False
    """True once the ticket is done, or the user has ended the conversation"""

    def __post_init__(self) -> None:
        # The user's own view: what the task's model says is said to it.
        before = [_message(one) for one in self.facts["history"] if one["role"] != "tool"]
        heard = [one for one in before if not one.tool_calls] or [Message("assistant", _GREETING)]
        turned = {"assistant": "user", "user": "assistant"}
        said = [Message(turned[one.role], one.content) for one in (*heard, Message("user", _HELLO))]
        self._talk = [Message("system", self.facts["guide"]), *said]

    @property
    def messages(self) -> tuple[Message, ...]:
        """The policy, the conversation so far where there is one, and the user's words."""
        before = tuple(map(_message, self.facts["history"]))
        return (Message("system", self.facts["policy"]), *before, Message("user", self._words()))

    @property
    def key(self) -> str:
        """The messages and the task's name: the data of tasks differ too."""
        return f"{super().key}\n{self.domain} {self.facts['name']}"

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Tools of the domain. A ticket has those of its user too, and `done`."""
        own = tuple(map(_tool, self.facts["tools"]))
        return (*own, _DONE) if self.facts["is_solo"] else own

    @cached_property
    def known_answers(self) -> tuple[Message, ...]:
        """The calls that tau2 lists, and the words that have to be told. Empty where they need a
        user, or where tau2 itself does not take them for right. Raises WorkerError if it fails."""
        if self.user is not None:
            return ()
        actions, told = self.facts["actions"], ", ".join(self.facts["told"]) or "Done."
        calls = [("assistant", *one) for one in actions]
        parts = self.workers.call(*self._request("verdict", calls, [told]), **_limits())
        if not _is_right(parts):
            return ()
        ending = [ToolCall("done", {})] if self.facts["is_solo"] else []
        made = [*(ToolCall(name, arguments) for name, arguments in actions), *ending]
        answers = [Message("assistant", "", tool_calls=(call,)) for call in made]
        return (*answers, Message("assistant", told))

    async def act(self, call: ToolCall) -> str:
        """Return what a tool says; ValueError if it says that something is wrong. A call at which
        it hangs is not made, and the model is told. Raises WorkerError if it was not that call."""
        if self.is_over:
            raise ValueError("the ticket is done, nothing can be called any more")
        if self.facts["is_solo"] and call.name == _DONE.name:
            self.is_over = True
            return "The ticket is done."
        return await self._make("assistant", call)

    async def next_words(self, trajectory: Trajectory) -> str | None:
        """Return what the user says to the last answer; None at the end, and always without a
        model that plays it. Raises GraderError if that fails."""
        reply = trajectory.reply
        if self.user is None or reply is None or not reply.content.strip():
            return None
        self._talk.append(Message("user", reply.content))
        for _ in range(_NUM_USER_CALLS):
            said = await self._user_says(self.user)
            self._talk.append(said)
            if any(mark in said.content for mark in _STOPS):
                self.is_over = True
                return None
            if not said.tool_calls:
                return said.content
            for call in said.tool_calls:
                try:
                    found = await self._make("user", call)
                except ValueError as error:
                    found = str(error)
                self._talk.append(Message("tool", found, tool_call_id=call.id, name=call.name))
        raise GraderError(f"the user made {_NUM_USER_CALLS} calls in turn and said nothing")

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if everything holds that tau2 counts and can check without a model.

        Parts: those of db, env_assertion, action and communicate that count in this task; ended
        (the ticket was said to be done, or the conversation came to its end, without an empty
        answer); left_out, where there is something that only a model can judge: so many kinds.
        Raises WorkerError if tau2 fails.
        """
        said = [step.answer.message for step in trajectory.steps]
        words = [one.content for one in said if one.content.strip()]
        request = self._request("verdict", self.calls, words)
        parts: dict[str, float] = await self.workers.acall(*request, **_limits())
        has_ended = self.is_over if self._has_own_end else trajectory.end == "done"
        if not self.facts["is_solo"]:
            has_ended &= bool(said) and all(one.content.strip() or one.tool_calls for one in said)
        value = float(has_ended and _is_right(parts))
        return Score(value, {**parts, "ended": float(has_ended)})

    @property
    def _has_own_end(self) -> bool:
        return self.facts["is_solo"] or self.user is not None

    def _words(self) -> str:
        if self.facts["is_solo"]:
            return f"{_ALONE}\n\n{self.facts['request']}"
        return _HELLO if self.user is not None else f"{_SCENARIO}\n\n{self.facts['request']}"

    async def _make(self, who: str, call: ToolCall) -> str:
        before = [*self.calls]
        calls = [*before, (who, call.name, call.arguments)]
        try:
            found = await self.workers.acall(*self._request("act", calls), **_limits())
        except WorkerError as error:
            # Was it that call? A state that cannot be made is nobody's work but tau2's.
            await self.workers.acall(*self._request("state", before), **_limits())
            raise ValueError(f"the call was not made: {error}") from None
        self.calls = calls
        if found["is_error"]:
            raise ValueError(found["content"])
        return str(found["content"])

    async def _user_says(self, user: ChatModel) -> Message:
        tools = tuple(map(_tool, self.facts["user_tools"]))
        request = ChatRequest(messages=tuple(self._talk), tools=tools, params=self.user_params)
        try:
            said = (await complete(user, request)).message
        except (ModelError, ValueError) as error:
            raise GraderError(f"the user failed: {error}") from error
        if not (said.content.strip() or said.tool_calls):
            raise GraderError("the user said nothing")
        return said

    def _request(self, function: str, *more: Any) -> tuple[Any, ...]:
        place = [self.domain, self.place, self.facts["is_solo"]]
        return ("call", f"{PROGRAM}:{function}", [*place, *more])


def _limits() -> dict[str, Any]:
    return {"seconds": SECONDS, "module": PROGRAM}


def _is_right(parts: Mapping[str, float]) -> bool:
    return all(value == 1 for name, value in parts.items() if name != "left_out")


def _tool(schema: Mapping[str, Any]) -> Tool:
    function = schema["function"]
    return Tool(function["name"], function["description"], function["parameters"])


def _message(theirs: Mapping[str, Any]) -> Message:
    """Return a message of a conversation that tau2 begins with."""
    content = theirs["content"] or ""
    if theirs["role"] == "tool":
        return Message("tool", content, tool_call_id=theirs["id"])
    calls = [
        ToolCall(one["name"], one["arguments"], one["id"]) for one in theirs["tool_calls"] or ()
    ]
    return Message(theirs["role"], content, tool_calls=tuple(calls))
