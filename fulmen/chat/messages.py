"""What is said, in one shape: messages, tools, replies, and the events a reply arrives in.

The idea: whatever dialect a caller speaks (OpenAI dicts, Anthropic-style content blocks, our own
types), `read_messages` and `read_tools` turn it into these frozen types or refuse it with one
sentence. The formats (m1.py, m2.py) then render and parse without doubting their input.

Content is text, text parts or null. Tools return data as well, so in a tool message it may be any
JSON: a part's `output`, else the text of a text part, else the part itself; what of that is no text
is written as JSON. Pictures, sounds and files are refused everywhere.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fulmen.chat.arguments import dump_json, load_json

ROLES = ("system", "user", "assistant", "tool")

_TEXT_PARTS = ("text", "input_text", "output_text")
_OPENAI_KEYS = {"input_schema": "parameters"}
_MEDIA_PARTS = re.compile("(input_|output_)?(image|audio|video|file|document)(_url)?")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call a model made. Two calls are equal when they ask the same: ids are random."""

    name: str
    arguments: dict[str, Any]
    id: str | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The call in OpenAI's shape, arguments decoded."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is a JSON Schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] | None = field(default=None, compare=False)
    """The object as the caller wrote it, but for Anthropic's name of the parameters. Templates
    print it with its own keys in its own order."""

    def __post_init__(self) -> None:
        if not isinstance(self.parameters, Mapping):
            raise ValueError(
                f"the parameters of tool {self.name} are a {type(self.parameters).__name__}, "
                "they must be a JSON Schema object"
            )

    @property
    def function(self) -> Mapping[str, Any]:
        """The object that MiniMax-M2 shows the model: name, description and parameters."""
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
    """One text of a content given as a list; in a tool result it may name its tool."""

    text: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str = ""
    thinking: str | None = None
    """An assistant's thought. None means not given apart: it may stand in `content` in tags."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    parts: tuple[Part, ...] | None = None
    """The texts of a content that came as a list; `content` holds them joined."""
    current_date: str | None = None
    current_location: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role is {self.role!r}, it must be one of {', '.join(ROLES)}")
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
                raise ValueError(f"tool_calls has a {type(call).__name__} in it, not a ToolCall")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a {self.role} message has tool_calls, only assistant messages may")

    def to_dict(self) -> dict[str, Any]:
        """The message in OpenAI's shape, arguments decoded."""
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


def random_call_id() -> str:
    """A tool_call_id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


Messages = Iterable[Message | Mapping[str, Any]]
Tools = Iterable[Tool | Mapping[str, Any]] | None
CallIds = Callable[[], str]


# Reading what callers send.


def read_messages(messages: Messages) -> list[Message]:
    """Messages in any accepted shape as `Message`s, tool results in the order of their calls.

    A tool_call_id that no call of the last assistant message has is a ValueError. Calls without
    ids, and results without a tool_call_id, are matched by order alone.
    """
    read = [message if isinstance(message, Message) else _read(message) for message in messages]
    return _order_results(read)


def read_tools(tools: Tools) -> tuple[Tool, ...]:
    """Tools in OpenAI's form, flat, Anthropic's, or ours, as `Tool`s."""
    return tuple(tool if isinstance(tool, Tool) else _read_tool(tool) for tool in tools or ())


def read_arguments(arguments: object, name: str) -> dict[str, Any]:
    """A call's arguments, a JSON string or an object, as an object. An empty string means none."""
    value = arguments
    if isinstance(arguments, str):
        try:
            value = load_json(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise ValueError(
                f"the arguments of the call of {name} are not JSON ({error}): {arguments}"
            ) from None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(
            f"the arguments of the call of {name} are {arguments!r}, they must be a JSON object"
        )
    return dict(value)


def last_calls(messages: Sequence[Message], index: int) -> tuple[ToolCall, ...]:
    """The calls of the last assistant message before messages[index]."""
    for message in reversed(messages[:index]):
        if message.role == "assistant":
            return message.tool_calls
    return ()


def read_message_object(message: object) -> Mapping[str, Any]:
    """The message, if it is an object."""
    if not isinstance(message, Mapping):
        raise ValueError(f"a message is of type {type(message).__name__}, it must be an object")
    return message


def list_calls(message: Mapping[str, Any]) -> list[object]:
    """The tool_calls of a message, if they are a list, each as the caller wrote it."""
    calls = message.get("tool_calls") or ()
    if isinstance(calls, str | Mapping) or not isinstance(calls, Iterable):
        raise ValueError(f"tool_calls is of type {type(calls).__name__}, it must be a list")
    return list(calls)


def read_call(call: object) -> ToolCall:
    """A call in OpenAI's form, flat, or ours, as a `ToolCall`."""
    if isinstance(call, ToolCall):
        return call
    if not isinstance(call, Mapping):
        raise ValueError(f"a tool call is of type {type(call).__name__}, it must be an object")
    function = call.get("function") or call
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"a tool call has the name {name!r}, it must be the name of a tool")
    arguments = function.get("arguments")
    return ToolCall(
        name,
        read_arguments({} if arguments is None else arguments, name),
        _text_or_none(call, "id"),
    )


def _read(given: object) -> Message:
    message = read_message_object(given)
    role = message.get("role")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise ValueError(f"role is {role!r}, it must be one of {', '.join(ROLES)} or developer")
    content, parts, thought = _read_content(message.get("content"), role)
    return Message(
        role,
        content,
        _read_thinking(message, thought) if role == "assistant" else None,
        tuple(map(read_call, list_calls(message))),
        _text_or_none(message, "tool_call_id"),
        _text_or_none(message, "name"),
        parts,
        _text_or_none(message, "current_date"),
        _text_or_none(message, "current_location"),
    )


def _text_or_none(message: Mapping[str, Any], key: str) -> str | None:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}, it must be text")
    return value


def _read_content(content: object, role: str) -> tuple[str, tuple[Part, ...] | None, str | None]:
    """The joined text, its parts if it was a list, and the thought found in thinking blocks."""
    if content is None:
        return "", None, None
    if isinstance(content, str):
        return content, None, None
    if not isinstance(content, list | tuple):
        if role == "tool":
            return dump_json(content), None, None
        raise ValueError(
            f"content of a {role} message is of type {type(content).__name__}, "
            "it must be text, a list of parts or null"
        )
    parts: list[Part] = []
    thoughts: list[str] = []
    for item in content:
        kind = item.get("type", "text") if isinstance(item, Mapping) else None
        if kind == "thinking" and isinstance(item.get("thinking"), str):
            thoughts.append(item["thinking"])
        elif kind != "redacted_thinking":
            parts.append(_read_part(item, role))
    text = "".join(part.text for part in parts)
    return text, tuple(parts), "\n".join(thoughts) if thoughts else None


def _read_part(item: object, role: str) -> Part:
    if isinstance(item, str):
        return Part(item)
    part: Mapping[str, Any] = item if isinstance(item, Mapping) else {}
    # A tool's `output` comes before its `text`: so reads the template of MiniMax-M2.
    text = part.get("output") if role == "tool" else None
    if text is None and part.get("type", "text") in _TEXT_PARTS:
        text = part.get("text")
    if isinstance(text, str):
        return Part(text, _text_or_none(part, "name"))
    if role == "tool" and text is not None:
        return Part(dump_json(text), _text_or_none(part, "name"))
    if role == "tool" and not _MEDIA_PARTS.fullmatch(str(part.get("type"))):
        return Part(dump_json(item))
    raise ValueError(
        f"content of a {role} message has a part {_kind(item)}, these models read only text parts"
    )


def _kind(item: object) -> str:
    """What a part is, for the error that refuses it."""
    if not isinstance(item, Mapping):
        return f"of type {type(item).__name__}"
    if "type" not in item:
        return f"with the keys {', '.join(map(str, item)) or 'none'}"
    text = f" whose text is of type {type(item['text']).__name__}" if "text" in item else ""
    return f"of type {item['type']}{text}"


def _read_thinking(message: Mapping[str, Any], thought: str | None) -> str | None:
    for key in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(message.get(key), str):
            return str(message[key])
    if thought is not None:
        return thought
    details = message.get("reasoning_details")
    if isinstance(details, list | tuple):
        texts = [item.get("text") for item in details if isinstance(item, Mapping)]
        return "".join(text for text in texts if isinstance(text, str))
    return None


def _read_tool(tool: object) -> Tool:
    if not isinstance(tool, Mapping):
        raise ValueError(f"a tool is of type {type(tool).__name__}, it must be an object")
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"a tool has the name {name!r}, it must have a name that is text")
    parameters = function.get("parameters")
    if parameters is None and "input_schema" in function:
        parameters = function["input_schema"]
        tool = {_OPENAI_KEYS.get(key, key): value for key, value in function.items()}
    dump_json(tool)  # refuses what no template could print
    description = str(function.get("description") or "")
    return Tool(name, description, {} if parameters is None else parameters, tool)


def _order_results(messages: list[Message]) -> list[Message]:
    """Checks tool_call_ids, and sorts each run of tool results as their calls were made.

    Models match results to calls by order: MiniMax templates never print an id.
    """
    ordered: list[Message] = []
    index = 0
    while index < len(messages):
        end = index
        while end < len(messages) and messages[end].role == "tool":
            end += 1
        if end == index:
            ordered.append(messages[index])
            index += 1
            continue
        ids = [call.id for call in last_calls(messages, index)]
        run = messages[index:end]
        places = [_place(message, ids) for message in run]
        if all(place is not None for place in places):
            run = [run[i] for i in sorted(range(len(run)), key=lambda i: (places[i] or 0, i))]
        ordered += run
        index = end
    return ordered


def _place(message: Message, ids: list[str | None]) -> int | None:
    """Which of the calls the result answers; None when only its order can tell."""
    known = [id for id in ids if id is not None]
    if message.tool_call_id is None or not known:
        return None
    if message.tool_call_id not in known:
        raise ValueError(
            f"tool_call_id {message.tool_call_id} matches no call of the last assistant message, "
            f"it must be one of {', '.join(known)}"
        )
    return ids.index(message.tool_call_id)
