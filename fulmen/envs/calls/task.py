"""A task of calls, which the task's own tools answer."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message, Tool, ToolCall
from fulmen.envs.calls.case import Case
from fulmen.envs.task import Task


@dataclass(frozen=True)
class CallTask(Task):
    """A question beside tools, some of which lead to the answer, or none."""

    kind: str
    case: Case = field(repr=False)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question, as a user's message."""
        return (Message("user", self.case.question),)

    @property
    def key(self) -> str:
        """The question, the tools and the right calls."""
        tools = (repr(one.tool) for one in self.case.devices)
        return "\n".join([self.case.question, *tools, *map(repr, self.case.play)])

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Tools over the task's table."""
        return tuple(one.tool for one in self.case.devices)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """The right calls, one after the other, and the answer."""
        return self.case.play

    @property
    def known_results(self) -> tuple[str, ...]:
        """Results of the right calls."""
        calls = [call for answer in self.case.play for call in answer.tool_calls]
        return tuple(map(self._told, calls))

    async def act(self, call: ToolCall) -> str:
        """Make a call. Raises ValueError for one that cannot be made."""
        return self._result(call)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if the calls are the right ones and the answer holds the result.

        Parts: format (it ends with words), calls (all calls are the right ones, in their order),
        correct (the answer is right), false_call (a tool was called that is not needed, or more
        often than needed). A call that fails before the right one, where the user gave a wrong key,
        may be left out.
        """
        right = [call for answer in self.case.play for call in answer.tool_calls]
        made = [call for step in trajectory.steps for call in step.answer.message.tool_calls]
        reply = trajectory.reply
        is_ended = reply is not None and not reply.tool_calls and bool(reply.content.strip())
        forms, made_forms = list(map(self._form, right)), list(map(self._form, made))
        needed = [form for call, form in zip(right, forms, strict=True) if not self._fails(call)]
        is_called = made_forms in (forms, needed)
        is_told = is_ended and reply is not None and self.case.is_told(reply.content)
        beyond = Counter(one.name for one in made) - Counter(one.name for one in right)
        parts = {
            "format": float(is_ended),
            "calls": float(is_called),
            "correct": float(is_told),
            "false_call": float(bool(beyond)),
        }
        return Score(float(is_called and is_told), parts)

    def _result(self, call: ToolCall) -> str:
        found = next((one for one in self.case.devices if one.tool.name == call.name), None)
        if found is None:
            raise ValueError(f"there is no tool {call.name[:40]}")
        return found.run(call)

    def _told(self, call: ToolCall) -> str:
        """Return the result of a call as the model reads it: an error's sentence is one too."""
        try:
            return self._result(call)
        except ValueError as error:
            return str(error)

    def _form(self, call: ToolCall) -> str:
        """Return a text that is equal for calls that ask the same."""
        found = next((one for one in self.case.devices if one.tool.name == call.name), None)
        return f"no tool {call.name}" if found is None else found.form_of(call)

    def _fails(self, call: ToolCall) -> bool:
        try:
            self._result(call)
        except ValueError:
            return True
        return False
