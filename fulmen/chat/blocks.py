"""Anthropic's content blocks as OpenAI's messages, so that the rest of this room knows one shape.

    assistant  text, thinking, tool_use blocks  -> content, reasoning_content, tool_calls
    user       tool_result blocks, then text    -> a tool message for each result, a user message

Ids are kept, so results still find their calls. A result with `is_error` begins with "Error: ": no
prompt has another place for that. Blocks of text, and all that `reading.py` knows or refuses as a
part of a content, stay as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fulmen.chat.messages import Message, Messages, with_article
from fulmen.sampling import shown

_THOUGHTS: Final = ("thinking", "redacted_thinking")
_HOLDERS: Final = {"tool_use": ("assistant",), "tool_result": ("user", "tool")}
"""Roles whose messages may hold a block of calls or results"""


def without_blocks(messages: Messages) -> list[Message | Mapping[str, Any]]:
    """Return messages with those that hold Anthropic's blocks in OpenAI's shape.

    Raises ValueError for a block that its message cannot hold.
    """
    return [one for message in messages for one in _one_shape(message)]


def _one_shape(
    message: Message | Mapping[str, Any],
) -> Sequence[Message | Mapping[str, Any]]:
    if isinstance(message, Message) or not isinstance(message, Mapping):
        return [message]
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return [message]
    kinds = [_kind(block) for block in content]
    role = message.get("role")
    for kind, holders in _HOLDERS.items():
        if kind in kinds and role not in holders:
            raise ValueError(
                f"content of {with_article(role)} message has a {kind} block, only "
                f"{holders[0]} messages may"
            )
    if role == "assistant":
        return [_assistant(message, content, kinds)]
    if "tool_result" in kinds:
        return _results(message, content, kinds)
    return [message]


def _assistant(
    message: Mapping[str, Any], content: Sequence[Any], kinds: Sequence[str | None]
) -> Mapping[str, Any]:
    if not {"tool_use", *_THOUGHTS} & set(kinds):
        return message
    calls = [_call(block) for block, kind in zip(content, kinds, strict=True) if kind == "tool_use"]
    thoughts = [
        block["thinking"]
        for block, kind in zip(content, kinds, strict=True)
        if kind == "thinking" and isinstance(block.get("thinking"), str)
    ]
    plain = dict(message)
    plain["content"] = [
        block
        for block, kind in zip(content, kinds, strict=True)
        if kind not in ("tool_use", *_THOUGHTS)
        or (kind == "thinking" and not isinstance(block.get("thinking"), str))
    ]
    if calls:
        given = message.get("tool_calls")
        plain["tool_calls"] = [*(given if isinstance(given, list | tuple) else ()), *calls]
    if thoughts and not any(
        isinstance(message.get(key), str) for key in ("reasoning_content", "reasoning", "thinking")
    ):
        plain["reasoning_content"] = "\n".join(thoughts)
    return plain


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    arguments = block.get("input")
    function = {"name": block.get("name"), "arguments": {} if arguments is None else arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


def _results(
    message: Mapping[str, Any], content: Sequence[Any], kinds: Sequence[str | None]
) -> list[Mapping[str, Any]]:
    results: list[Mapping[str, Any]] = [
        _result(block) for block, kind in zip(content, kinds, strict=True) if kind == "tool_result"
    ]
    rest = [block for block, kind in zip(content, kinds, strict=True) if kind != "tool_result"]
    return [*results, {**message, "role": "user", "content": rest}] if rest else results


def _result(block: Mapping[str, Any]) -> dict[str, Any]:
    id, content, is_error = block.get("tool_use_id"), block.get("content"), block.get("is_error")
    if id is not None and not isinstance(id, str):
        raise ValueError(f"tool_use_id is {shown(id)}, it must be text")
    if is_error is not None and not isinstance(is_error, bool):
        raise ValueError(f"is_error is {shown(is_error)}, it must be true or false")
    if is_error:
        content = _as_error(content)
    return {"role": "tool", "tool_call_id": id, "content": content}


def _as_error(content: object) -> object:
    """Return a failed call's result with the word error at its beginning."""
    if content is None or content == "" or content == []:
        return "Error"
    if isinstance(content, str):
        is_said = content.lstrip().lower().startswith("error")
        return content if is_said else f"Error: {content}"
    if not isinstance(content, list | tuple):
        return content
    first = content[0]
    text = first.get("text") if isinstance(first, Mapping) else first
    if not isinstance(text, str):
        return ["Error: ", *content]
    if text.lstrip().lower().startswith("error"):
        return content
    text = f"Error: {text}"
    return [{**first, "text": text} if isinstance(first, Mapping) else text, *content[1:]]


def _kind(block: object) -> str | None:
    kind = block.get("type") if isinstance(block, Mapping) else None
    return kind if isinstance(kind, str) else None
