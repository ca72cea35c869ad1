"""The events that an answer arrives in, and the Reply they add up to."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from fulmen.chat.messages import Message, ToolCall
from fulmen.chat.reading import read_arguments


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """More of the thought."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins. It counts only if its ToolCallEnd comes."""

    index: int
    id: str = field(compare=False)
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A fragment of a call's arguments; the fragments of a call join to one JSON object."""

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The call is complete."""

    index: int


@dataclass(frozen=True, slots=True)
class ProblemFound:
    """Something the model wrote could not be used as it stood; the sentence quotes it."""

    text: str


Event = ThinkingDelta | ContentDelta | ToolCallStart | ToolCallDelta | ToolCallEnd | ProblemFound


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered: the sum of its events."""

    thinking: str = ""
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    problems: tuple[str, ...] = ()
    is_thinking_closed: bool = field(default=True, compare=False)
    """False when the text ended inside the thought. Events do not tell, so it is not compared."""

    def message(self) -> Message:
        """The reply as the assistant's turn in the history."""
        return Message("assistant", self.content, self.thinking, self.tool_calls)

    def content_with_thinking(self) -> str:
        """The thought in tags before the content, for clients that only send content back."""
        end = "</think>" if self.is_thinking_closed else ""
        return f"<think>{self.thinking}{end}{self.content}"


class ReplySum:
    """Adds events up to a Reply."""

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

    def reply(self, *, is_thinking_closed: bool = True) -> Reply:
        return Reply(
            "".join(self._thinking),
            "".join(self._content),
            tuple(self._tool_calls),
            tuple(self._problems),
            is_thinking_closed,
        )


def sum_events(events: Iterable[Event]) -> Reply:
    """The Reply that a stream of events adds up to; a call that never ended is not in it."""
    total = ReplySum()
    for event in events:
        total.add(event)
    return total.reply()
