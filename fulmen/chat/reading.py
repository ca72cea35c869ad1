"""Messages and tools as callers send them, read into our types or refused with one sentence.

Callers speak OpenAI's dicts, Anthropic's content blocks (`blocks.py` puts them into OpenAI's shape)
or our own types. Content is text, text parts or null. Tools return data as well, so the content of
a tool message may be any JSON: of a part, its `output` counts, else the text of a text part, else
the part itself; what is no text is written as JSON. Pictures, sounds and files are refused
everywhere.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from fulmen.chat.arguments import check_depth, dump_json, load_json
from fulmen.chat.blocks import without_blocks
from fulmen.chat.messages import (
    EXAMPLE_MESSAGE,
    ROLES,
    SYSTEM_ROLES,
    Message,
    Messages,
    Part,
    Tool,
    ToolCall,
    Tools,
    with_article,
)
from fulmen.files import shorten
from fulmen.sampling import shown

_TEXT_PARTS = ("text", "input_text", "output_text")
_OPENAI_KEYS = {"input_schema": "parameters"}
_MEDIA_PARTS = re.compile("(input_|output_)?(image|audio|video|file|document|pdf)(_url)?")


def read_messages(messages: Messages) -> list[Message]:
    """Read messages in any accepted shape; tool results come in the order of their calls.

    A tool_call_id that no call of the last assistant message has is a ValueError. Calls without
    ids, and results without a tool_call_id, are matched by order alone.
    """
    read = [one for message in messages for one in read_message(message)]
    order = order_of_results(
        [
            (message.role, [call.id for call in message.tool_calls], message.tool_call_id)
            for message in read
        ]
    )
    return [read[index] for index in order]


def read_message(message: Message | Mapping[str, Any]) -> list[Message]:
    """Read one message in any accepted shape: its tool results, if it has blocks of them, then the
    rest of it."""
    if isinstance(message, Message):
        return [message]
    signatures = _read_signatures(message)
    return [
        replace(one, signatures=signatures) if signatures and one.role == "assistant" else one
        for one in map(read_plain_message, without_blocks([message]))
    ]


def check_not_empty(messages: Sequence[object]) -> None:
    """Raise ValueError for a conversation without messages: there is nothing to answer."""
    if not messages:
        raise ValueError("the conversation has no messages, at least one is needed")


def read_tools(tools: Tools) -> tuple[Tool, ...]:
    """Read tools in OpenAI's form, flat, Anthropic's, or ours; ValueError for what is no tool."""
    given = tools or ()
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"tools is of type {type(given).__name__}, it must be a list")
    return tuple(tool if isinstance(tool, Tool) else _read_tool(tool) for tool in given)


def read_arguments(arguments: object, name: str) -> dict[str, Any]:
    """Read a call's arguments, a JSON string or an object; an empty string means none."""
    value = arguments
    if isinstance(arguments, str):
        try:
            value = load_json(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise ValueError(
                f"the arguments of the call of {shorten(name, 80)} are not JSON "
                f"({shorten(error)}): {shown(arguments)}"
            ) from None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(
            f"the arguments of the call of {shorten(name, 80)} are {shown(arguments)}, "
            "they must be a JSON object"
        )
    try:
        check_depth(value)
    except ValueError as error:
        raise ValueError(
            f"the arguments of the call of {shorten(name, 80)} cannot be read: {error}"
        ) from None
    return dict(value)


def read_message_object(message: object) -> Mapping[str, Any]:
    """Return a message as an object, or raise ValueError."""
    if not isinstance(message, Mapping):
        raise ValueError(
            f"a message is of type {type(message).__name__}, it must be an object, such as "
            f"{EXAMPLE_MESSAGE}"
        )
    return message


def list_calls(message: Mapping[str, Any]) -> list[object]:
    """Return the tool_calls of a message, each as the caller wrote it; they must be a list."""
    calls = message.get("tool_calls")
    if calls is None:
        return []
    if isinstance(calls, str | Mapping) or not isinstance(calls, Iterable):
        raise ValueError(f"tool_calls is of type {type(calls).__name__}, it must be a list")
    return list(calls)


def read_call(call: object) -> ToolCall:
    """Read a call in OpenAI's form, flat, or ours."""
    if isinstance(call, ToolCall):
        return call
    if not isinstance(call, Mapping):
        raise ValueError(f"a tool call is of type {type(call).__name__}, it must be an object")
    function = call.get("function") or call
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"a tool call has the name {shown(name)}, it must be the name of a tool")
    arguments = function.get("arguments")
    return ToolCall(
        name,
        read_arguments({} if arguments is None else arguments, name),
        _text_or_none(call, "id"),
    )


def read_plain_message(given: object) -> Message:
    """Read a message without blocks of calls and results."""
    if isinstance(given, Message):
        return given
    message = read_message_object(given)
    role = message.get("role")
    if not isinstance(role, str) or role not in (*ROLES, *SYSTEM_ROLES):
        raise ValueError(wrong_role(role))
    role = "system" if role in SYSTEM_ROLES else role
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


def wrong_role(role: object) -> str:
    """Return the sentence that refuses a role."""
    known = ", ".join((*ROLES, *SYSTEM_ROLES[:-1]))
    return f"role is {shown(role)}, it must be one of {known} or {SYSTEM_ROLES[-1]}"


def _text_or_none(message: Mapping[str, Any], key: str) -> str | None:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is {shown(value)}, it must be text")
    return value


def _read_content(content: object, role: str) -> tuple[str, tuple[Part, ...] | None, str | None]:
    """Return the joined text, its parts if it was a list, and the thought of thinking blocks."""
    if content is None:
        return "", None, None
    if isinstance(content, str):
        return content, None, None
    if not isinstance(content, list | tuple):
        if role == "tool":
            return dump_json(content), None, None
        raise ValueError(
            f"content of {with_article(role)} message is of type {type(content).__name__}, "
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
    # MiniMax-M2's template prefers a tool's `output` to its `text`.
    text = part.get("output") if role == "tool" else None
    if text is None and part.get("type", "text") in _TEXT_PARTS:
        text = part.get("text")
    if isinstance(text, str):
        return Part(text, _text_or_none(part, "name"))
    if role == "tool" and text is not None:
        return Part(dump_json(text), _text_or_none(part, "name"))
    if role == "tool" and not is_media(part):
        return Part(dump_json(item))
    raise ValueError(_no_text(item, role))


def refuse_media(content: Sequence[object], role: str) -> None:
    """Raise for a part of a content that is a picture, a sound or a file."""
    for item in content:
        if isinstance(item, Mapping) and is_media(item):
            raise ValueError(_no_text(item, role))


def _no_text(item: object, role: str) -> str:
    return (
        f"content of {with_article(role)} message has a part {_kind(item)}, these models read "
        "only text parts"
    )


def is_media(part: Mapping[str, Any]) -> bool:
    """Return whether a part of a content is a picture, a sound or a file."""
    kind = part.get("type")
    return isinstance(kind, str) and _MEDIA_PARTS.fullmatch(kind) is not None


def _kind(item: object) -> str:
    """Describe a part, for the error that refuses it."""
    if not isinstance(item, Mapping):
        return f"of type {type(item).__name__}"
    if "type" not in item:
        return f"with the keys {shorten(', '.join(map(str, item))) if item else 'none'}"
    kind = shorten(item["type"], 80) if isinstance(item["type"], str) else shown(item["type"])
    text = f" whose text is of type {type(item['text']).__name__}" if "text" in item else ""
    return f"of type {kind}{text}"


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


def _read_signatures(message: object) -> tuple[str, ...]:
    """Return the signatures of thinking blocks and reasoning_details, data of hidden ones too."""
    if not isinstance(message, Mapping):
        return ()
    found: list[object] = []
    for key in ("content", "reasoning_details"):
        items = message.get(key)
        for item in items if isinstance(items, list | tuple) else ():
            if isinstance(item, Mapping):
                is_hidden = item.get("type") in ("redacted_thinking", "reasoning.encrypted")
                found.append(item.get("data" if is_hidden else "signature"))
    return tuple(text for text in found if isinstance(text, str) and text)


def _read_tool(tool: object) -> Tool:
    if not isinstance(tool, Mapping):
        raise ValueError(f"a tool is of type {type(tool).__name__}, it must be an object")
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"a tool has the name {shown(name)}, it must have a name that is text")
    parameters = function.get("parameters")
    if parameters is None and "input_schema" in function:
        parameters = function["input_schema"]
        tool = {_OPENAI_KEYS.get(key, key): value for key, value in function.items()}
    try:
        dump_json(tool)
    except ValueError as error:
        raise ValueError(f"the tool {shorten(name, 80)} cannot be read: {error}") from None
    description = str(function.get("description") or "")
    return Tool(name, description, {} if parameters is None else parameters, tool)


def order_of_results(
    messages: Sequence[tuple[object, Sequence[str | None], str | None]],
) -> list[int]:
    """Return the indices of messages with each run of tool results sorted as their calls were made.

    messages  (role, ids of its calls, tool_call_id) of each; a system message inside a run keeps
              its place

    Models match results to calls by order: MiniMax templates never print an id. Raises ValueError
    for a tool_call_id that no call of the last assistant message has.
    """
    ordered: list[int] = []
    calls: Sequence[str | None] = ()
    index = 0
    while index < len(messages):
        role, ids, _ = messages[index]
        if role != "tool":
            calls = ids if role == "assistant" else calls
            ordered.append(index)
            index += 1
            continue
        run = []
        end = index
        while end < len(messages) and messages[end][0] in ("tool", "system", *SYSTEM_ROLES):
            if messages[end][0] == "tool":
                run.append(end)
            end += 1
        known: dict[str, int] = {}
        for place, id in enumerate(calls):
            if id is not None:
                known.setdefault(id, place)
        places = {i: _place(messages[i][2], known) for i in run}
        in_order = run
        if all(place is not None for place in places.values()):
            in_order = sorted(run, key=lambda i: (places[i] or 0, i))
        moved = dict(zip(run, in_order, strict=True))
        ordered += [moved.get(i, i) for i in range(index, end)]
        index = end
    return ordered


def _place(tool_call_id: str | None, known: Mapping[str, int]) -> int | None:
    """Return the index of the call a result answers; None when only its order can tell."""
    if tool_call_id is None or not known:
        return None
    if tool_call_id not in known:
        raise ValueError(no_such_call(tool_call_id, known))
    return known[tool_call_id]


def no_such_call(tool_call_id: str, known: Iterable[str]) -> str:
    """Return the sentence that refuses a result of an unknown call."""
    ids = shorten(", ".join(islice(known, 20)))
    needed = f", it must be one of {ids}" if ids else ""
    return (
        f"tool_call_id {shorten(tool_call_id, 80)} matches no call of the last assistant "
        f"message{needed}"
    )
