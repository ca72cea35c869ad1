"""Messages, tools and calls in one shape.

Whatever dialect a caller speaks, `reading.py` turns it into these frozen types or refuses it, so
the formats (m1.py, m2.py) render and parse without doubting their input.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fulmen.files import shorten
from fulmen.sampling import shown

ROLES = ("system", "user", "assistant", "tool")
"""Roles of a `Message`"""
EXAMPLE_MESSAGE = '{"role": "user", "content": "Hello"}'
"""A message as a caller may write it, for sentences"""
SYSTEM_ROLES = ("developer", "root")
"""Roles that callers may give too: OpenAI's and MiniMax-M3's words for who rules a system prompt"""


def with_article(name: object) -> str:
    """Return the name of a role or a type with "a" or "an" before it, for a sentence."""
    text = name if isinstance(name, str) and name.isidentifier() else shown(name)
    return f"{'an' if text[0] in 'aeio' else 'a'} {shorten(text, 80)}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Call that a model made. Two calls are equal when they ask the same: ids are random."""

    name: str
    arguments: dict[str, Any]
    id: str | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the call in OpenAI's shape, arguments decoded."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Tool:
    """Function the model may call; `parameters` is a JSON Schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] | None = field(default=None, compare=False)
    """Object as the caller wrote it, except that Anthropic's input_schema is called parameters.
    Templates print it with its own keys in its own order."""

    def __post_init__(self) -> None:
        if not isinstance(self.parameters, Mapping):
            raise ValueError(
                f"the parameters of tool {shorten(self.name, 80)} are "
                f"{with_article(type(self.parameters).__name__)}, "
                "they must be a JSON Schema object"
            )

    @property
    def function(self) -> Mapping[str, Any]:
        """Object that MiniMax-M2 shows the model: name, description and parameters."""
        if self.given is None:
            return {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            }
        if isinstance(self.given.get("function"), Mapping):
            return dict(self.given["function"])
        return {key: value for key, value in self.given.items() if key != "type"}


@dataclass(frozen=True, slots=True)
class Part:
    """Text of a content given as a list; in a tool result it may name its tool."""

    text: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive ids of an answer that are one kind of text."""

    kind: Literal["thinking", "content", "tool_calls"]
    start: int
    stop: int
    """Index after the last id"""


@dataclass(frozen=True, slots=True)
class SampledIds:
    """Ids that an answer was sampled as, so that it never has to be encoded again.

    Ids that hold layout, tags or the end of the turn belong to no span. An id that holds parts of
    two spans belongs to the first one.
    """

    ids: tuple[int, ...]
    """Ids of the answer without the one that ended the turn"""
    spans: tuple[Span, ...]
    """Spans in their order; none overlaps another"""
    answer_start: int
    """Index of the first id after the thought and its layout; len(ids) where there is none"""
    answer_lead: str = ""
    """Text of the answer in the id before answer_start, which also holds the end of the thought"""
    is_thinking_closed: bool = True
    tail: str = ""
    """Text of the answer after ids: the id that held it also held a stop text"""
    has_later_thoughts: bool = False
    """True if the answer opened another thought after its first"""
    is_answer_only: bool = False
    """True if ids begin after the thought, which may be another conversation's: they follow the
    thought of their message, if it has one"""

    def without_thought(self) -> "SampledIds":
        """Return the ids after the thought alone; the answer must not have later thoughts."""
        start = self.answer_start
        spans = [Span(s.kind, max(s.start - start, 0), s.stop - start) for s in self.spans]
        return replace(
            self,
            ids=self.ids[start:],
            spans=tuple(s for s in spans if s.stop > 0 and s.kind != "thinking"),
            answer_start=0,
            is_thinking_closed=True,
            is_answer_only=True,
        )


@dataclass(frozen=True, slots=True)
class Message:
    """Message of a conversation."""

    role: str
    content: str = ""
    thinking: str | None = None
    """Thought of an assistant. None means not given apart: it may stand in `content` in tags."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    parts: tuple[Part, ...] | None = None
    """Texts of a content that came as a list; `content` holds them joined."""
    current_date: str | None = None
    current_location: str | None = None
    sampled: SampledIds | None = field(default=None, compare=False, repr=False)
    """Ids that an assistant's message was sampled as, if they are known"""
    signatures: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Signatures that came with the thought of an assistant's message"""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role is {shown(self.role)}, it must be one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise ValueError(
                f"content is of type {type(self.content).__name__}, it must be text; "
                "read_messages takes other shapes, given as dicts"
            )
        if not isinstance(self.thinking, str | None):
            raise ValueError(
                f"thinking is of type {type(self.thinking).__name__}, it must be text or None"
            )
        if not isinstance(self.tool_calls, tuple | list):
            kind = type(self.tool_calls).__name__
            raise ValueError(f"tool_calls is of type {kind}, it must be a tuple of ToolCall")
        for call in self.tool_calls:
            if not isinstance(call, ToolCall):
                kind = with_article(type(call).__name__)
                raise ValueError(f"tool_calls has {kind} in it, not a ToolCall")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(
                f"{with_article(self.role)} message has tool_calls, only assistant messages may"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the message in OpenAI's shape, arguments decoded."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thinking is not None:
            message["reasoning_content"] = self.thinking
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        for key in ("tool_call_id", "name", "current_date", "current_location"):
            value = getattr(self, key)
            if value is not None:
                message[key] = value
        return message


def random_call_id() -> str:
    """Return a tool_call_id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


Messages = Iterable[Message | Mapping[str, Any]]
Tools = Iterable[Tool | Mapping[str, Any]] | None
CallIds = Callable[[], str]
