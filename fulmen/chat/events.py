"""Events that an answer arrives in, and the Reply they add up to.

A parser settles text into events as it comes; whoever has seen all of them has seen the whole
Reply, since it is their sum and nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from fulmen.chat.messages import Message, ToolCall
from fulmen.chat.reading import read_arguments


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """Next piece of the thought."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """Next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """Start of a call, which counts only if its ToolCallEnd comes."""

    index: int
    id: str = field(compare=False)
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """Fragment of a call's arguments; the fragments of a call join to one JSON object."""

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """End of a call that is complete."""

    index: int


@dataclass(frozen=True, slots=True)
class ProblemFound:
    """Sentence about text of the model that could not be used as it stood; it quotes the text."""

    text: str


Event = ThinkingDelta | ContentDelta | ToolCallStart | ToolCallDelta | ToolCallEnd | ProblemFound
"""Piece of an answer, as it comes."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer of the model: the sum of its events."""

    thinking: str = ""
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    problems: tuple[str, ...] = ()
    is_thinking_closed: bool = field(default=True, compare=False)
    """False when the text ended inside the thought. Events do not tell, so it is not compared."""
    is_call_open: bool = field(default=False, compare=False)
    """True when the text ended inside a call, or before the first one of a block"""

    def message(self) -> Message:
        """Return the reply as the assistant's message."""
        return Message("assistant", self.content, self.thinking, self.tool_calls)


class ReplySum:
    """Sum of the events so far."""

    def __init__(self) -> None:
        self._thinking: list[str] = []
        self._content: list[str] = []
        self._problems: list[str] = []
        self._open: dict[int, tuple[ToolCallStart, list[str]]] = {}
        self._tool_calls: list[ToolCall] = []

    def add(self, event: Event) -> None:
        match event:
            case ThinkingDelta(text):
                self._thinking.append(text)
            case ContentDelta(text):
                self._content.append(text)
            case ProblemFound(text):
                self._problems.append(text)
            case ToolCallStart(index):
                self._open[index] = event, []
            case ToolCallDelta(index, arguments):
                self._open[index][1].append(arguments)
            case ToolCallEnd(index):
                start, fragments = self._open.pop(index)
                given = read_arguments("".join(fragments), start.name)
                self._tool_calls.append(ToolCall(start.name, given, start.id))

    def reply(self, *, is_thinking_closed: bool = True, is_call_open: bool = False) -> Reply:
        return Reply(
            "".join(self._thinking),
            "".join(self._content),
            tuple(self._tool_calls),
            tuple(self._problems),
            is_thinking_closed,
            is_call_open,
        )


def sum_events(events: Iterable[Event]) -> Reply:
    """Return the Reply that events add up to; a call that never ended is not in it."""
    total = ReplySum()
    for event in events:
        total.add(event)
    return total.reply()
