"""OpenAI's Responses: the fields of a request, and the `Ask` they become.

    items of the input -> messages -> Ask

An answer of the model is several items: a reasoning, a message, calls. They become one message
again, whose thought is found by what `encrypted_content` holds: the signature of the thought.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from fulmen.sampling import SamplingParams, shown
from fulmen.server.asking import Ask
from fulmen.server.bodies import ListOf, Metadata
from fulmen.server.errors import Refusal
from fulmen.server.fields import unknown_fields
from fulmen.server.openai_chat import (
    SampledBody,
    read_format,
    read_sampling,
    read_tool_choice,
)
from fulmen.server.requests import (
    Budget,
    ChatChoiceIn,
    ItemIn,
    ResponsesReasoningIn,
    ResponsesToolsIn,
    Shape,
    TemplateIn,
    TextIn,
    ThinkingIn,
)
from fulmen.server.thinking import Thinking, read_chat_thinking

_INPUT: Final = "input"
"""Argument of a custom tool, whose input is text"""
_LOGPROBS: Final = "message.output_text.logprobs"
_TEXT_TYPES: Final = {"input_text": "text", "output_text": "text"}
_THINKING_FIELDS: Final = ("reasoning", "thinking", "thinking_token_budget", "chat_template_kwargs")
_KEYS_OF_REASONING: Final = ("effort", "max_tokens", "enabled", "exclude")


class ResponsesBody(SampledBody):
    """Body of a Responses request."""

    input: str | ListOf[Annotated[dict[str, Any], Shape(ItemIn)]] = Field(
        [], description="A question, or items of a history"
    )
    instructions: str | None = Field(None, description="System prompt, of this request alone")
    previous_response_id: str | None = Field(
        None, description="Stored response that the input comes after"
    )
    store: bool | None = Field(None, description="Keep the response for later; true by default")
    background: bool | None = Field(None, description="Answer at once, and work on; poll with GET")
    stream_options: dict[str, Any] | None = None
    max_output_tokens: int | None = Field(None, description="Most tokens, thought included")
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: ListOf[str] | None = Field(
        None, description="message.output_text.logprobs, reasoning.encrypted_content"
    )
    tools: ListOf[Annotated[dict[str, Any], Shape(ResponsesToolsIn)]] | None = Field(
        None, description="function, custom, and namespace with tools in it"
    )
    tool_choice: Annotated[str | dict[str, Any], Shape(ChatChoiceIn)] | None = Field(
        None, description="none, auto, required, a function, a custom tool, or allowed_tools"
    )
    parallel_tool_calls: bool | None = None
    reasoning: Annotated[dict[str, Any], Shape(ResponsesReasoningIn)] | None = Field(
        None, description="effort; summary: the thought as a summary; context: all_turns keeps all"
    )
    thinking: Annotated[dict[str, Any], Shape(ThinkingIn)] | None = Field(
        None, description="As in Chat Completions"
    )
    thinking_token_budget: Annotated[int, Shape(Budget)] | None = Field(
        None, description="Most tokens of thought"
    )
    chat_template_kwargs: Annotated[dict[str, Any], Shape(TemplateIn)] | None = Field(
        None, description="As in Chat Completions"
    )
    prefix_token_ids: ListOf[int] | None = Field(
        None,
        description="Ids that the answer begins with; the reply says what comes after them",
    )
    keep_thoughts: bool | None = Field(None, description="Show the model all its earlier thoughts")
    text: Annotated[dict[str, Any], Shape(TextIn)] | None = Field(
        None, description="format: text, json_object, json_schema"
    )
    truncation: Annotated[str, Shape(Literal["auto", "disabled"])] | None = Field(
        None, description="disabled; auto is not followed"
    )
    metadata: Metadata | None = None
    session: str | None = Field(None, description="Name that the conversation is kept under")
    session_turn: str | None = Field(
        None,
        description="Id of the session's last turn as the client knows it, empty where it has "
        "none; if it stands elsewhere, nothing is asked",
    )


@dataclass(frozen=True, slots=True)
class NamedTool:
    """A tool as the client calls it."""

    name: str
    namespace: str | None = None
    is_custom: bool = False
    """Its input is text, not an object"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponsesCall:
    """A request, read."""

    ask: Ask
    thinking: Thinking
    tools: Mapping[str, NamedTool]
    """Tools by the name that the model calls them by"""
    items: Sequence[Mapping[str, Any]]
    """Items of this request's own input"""
    is_streamed: bool
    is_stored: bool
    is_background: bool
    has_summary: bool
    """The client wants the thought as a summary"""
    has_logprobs: bool
    body: ResponsesBody


def read_responses_call(
    body: ResponsesBody, defaults: SamplingParams, earlier: Sequence[Mapping[str, Any]] = ()
) -> ResponsesCall:
    """Read a request; whatever is wrong with it is a Refusal or a ValueError.

    earlier  items before the input, of the responses that it goes on from
    """
    ignored = [*unknown_fields(body.model_extra or {})]
    reasoning = _reasoning(body)
    thinking = read_chat_thinking(
        {name: getattr(body, name) for name in _THINKING_FIELDS if name != "reasoning"}
        | {"reasoning": {k: reasoning[k] for k in _KEYS_OF_REASONING if k in reasoning} or None}
    )
    tools, names, left_out = _read_tools(body.tools or ())
    items = _items(body.input)
    history = read_items([*earlier, *items], names)
    given = {**read_sampling(body, body.max_output_tokens), **_structure(body.text or {})}
    given |= read_tool_choice(_chat_choice(body.tool_choice, names), tools)
    if any(tool.get("strict") is True for tool in tools):
        given["strict_tools"] = True
    if body.parallel_tool_calls is False and tools:
        given["max_calls"] = 1
    if thinking.budget != "default":
        given["thinking_budget"] = thinking.budget
    keep = body.keep_thoughts
    if keep is None and reasoning.get("context") in ("all_turns", "current_turn"):
        keep = reasoning["context"] == "all_turns"
    if body.truncation not in (None, "disabled", "auto"):
        raise Refusal(400, f"truncation is {shown(body.truncation)}, it must be auto or disabled")
    if body.truncation == "auto":
        ignored.append("truncation")
    has_logprobs = _LOGPROBS in (body.include or ())
    if body.top_logprobs and not has_logprobs:
        raise Refusal(400, f"top_logprobs is given, it needs {_LOGPROBS} in include")
    if has_logprobs:
        given["logprobs"] = body.top_logprobs or 0
    if body.background and body.store is False:
        raise Refusal(400, "background is true and store false, nobody could read the response")
    return ResponsesCall(
        ask=Ask(
            messages=history.messages,
            places=[place - len(earlier) for place in history.places],
            messages_name="input",
            system=body.instructions,
            tools=tools,
            params=replace(defaults, **given),
            keep_thoughts=keep,
            has_thinking_budget=thinking.is_number,
            prefix_ids=tuple(body.prefix_token_ids or ()),
            model=body.model,
            session=body.session,
            session_turn=body.session_turn,
            previous_id=body.previous_response_id,
            ignored=(*ignored, *left_out, *history.ignored),
        ),
        thinking=thinking,
        tools=names,
        items=items,
        is_streamed=bool(body.stream),
        is_stored=body.store is not False,
        is_background=bool(body.background),
        has_summary=bool(reasoning.get("summary") or reasoning.get("generate_summary")),
        has_logprobs=has_logprobs,
        body=body,
    )


def _items(given: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return list(given)


def _reasoning(body: ResponsesBody) -> Mapping[str, Any]:
    reasoning = body.reasoning or {}
    context = reasoning.get("context")
    if context not in (None, "auto", "current_turn", "all_turns"):
        raise Refusal(
            400,
            f"reasoning.context is {shown(context)}, it must be auto, current_turn or all_turns",
        )
    return reasoning


def _structure(text: Mapping[str, Any]) -> dict[str, Any]:
    format = text.get("format")
    if not isinstance(format, Mapping | None):
        raise Refusal(400, f"text.format is {shown(format)}, it must be an object", param="text")
    return read_format(format or {}, (format or {}).get("schema"), "text.format", "schema")


# ---- tools --------------------------------------------------------------------------------------


def _read_tools(
    tools: Iterable[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], dict[str, NamedTool], list[str]]:
    """Return the tools that the model is shown, how the client calls each, and the names of those
    that only their maker runs, which are left out."""
    shown_tools: list[Mapping[str, Any]] = []
    names: dict[str, NamedTool] = {}
    left_out: list[str] = []
    for tool, namespace in _flat(tools):
        kind, name = tool.get("type", "function"), tool.get("name")
        if kind not in ("function", "custom"):
            left_out.append(f"tool {str(name or kind)[:80]}")
            continue
        if not isinstance(name, str) or not name:
            raise Refusal(400, f"a tool has the name {shown(name)}, it must be text", param="tools")
        called = NamedTool(name, namespace, kind == "custom")
        own = name_for_model(name, namespace)
        if own in names:
            raise Refusal(400, f"two tools have the name {shown(own)}", param="tools")
        names[own] = called
        shown_tools.append(_custom(tool, own) if kind == "custom" else _function(tool, own))
    return shown_tools, names, left_out


def _flat(
    tools: Iterable[Mapping[str, Any]],
) -> Iterable[tuple[Mapping[str, Any], str | None]]:
    for tool in tools:
        if tool.get("type") != "namespace":
            yield tool, None
            continue
        nested = tool.get("tools")
        for one in nested if isinstance(nested, list) else ():
            if isinstance(one, Mapping):
                yield one, str(tool.get("name", ""))


def name_for_model(name: str, namespace: str | None) -> str:
    """Return the name by which the model calls a tool."""
    return f"{namespace}__{name}" if namespace else name


def _function(tool: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    hidden = ("defer_loading", "allowed_callers")
    return {key: value for key, value in tool.items() if key not in hidden} | {"name": name}


def _custom(tool: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a tool that takes text as one that takes an object with the text in it."""
    format = tool.get("format")
    text = str(tool.get("description") or "")
    if isinstance(format, Mapping) and format.get("type") == "grammar":
        text += f"\n\nThe input follows this {format.get('syntax')} grammar:\n"
        text += str(format.get("definition"))
    return {
        "type": "function",
        "name": name,
        "description": text.strip(),
        "parameters": {
            "type": "object",
            "properties": {_INPUT: {"type": "string"}},
            "required": [_INPUT],
        },
    }


def custom_input(arguments: Mapping[str, Any]) -> str:
    """Return the text that a custom tool is called with."""
    value = arguments.get(_INPUT)
    return value if isinstance(value, str) else json.dumps(arguments, ensure_ascii=False)


def _chat_choice(choice: object, names: Mapping[str, NamedTool]) -> object:
    """Return a tool_choice in the words of Chat Completions."""
    if not isinstance(choice, Mapping):
        return choice
    kind = choice.get("type")
    if kind in ("function", "custom"):
        return {"type": "function", "name": _own_name(choice, names)}
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list):
        listed = [
            {"name": _own_name(tool, names)} if isinstance(tool, Mapping) else tool
            for tool in choice["tools"]
        ]
        return {**choice, "tools": listed}
    return choice


def _own_name(named: Mapping[str, Any], names: Mapping[str, NamedTool]) -> object:
    name, namespace = named.get("name"), named.get("namespace")
    if isinstance(name, str) and isinstance(namespace, str):
        return name_for_model(name, namespace)
    if isinstance(name, str) and name not in names:
        return next((own for own, tool in names.items() if tool.name == name), name)
    return name


# ---- items --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Items:
    """Items of a history as messages."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Index of the first item of each message"""
    ignored: list[str] = field(default_factory=list)


def read_items(items: Sequence[Mapping[str, Any]], names: Mapping[str, NamedTool]) -> Items:
    """Return the messages that items stand for. Items of one answer become one message.

    Raises a Refusal for an item that cannot be read.
    """
    read = Items()
    answer: dict[str, Any] | None = None
    for place, item in enumerate(items):
        kind = item.get("type", "message" if "role" in item else None)
        if kind in ("reasoning", "function_call", "custom_tool_call") or (
            kind == "message" and item.get("role") == "assistant"
        ):
            if answer is None:
                answer = {"role": "assistant", "content": [], "tool_calls": []}
                read.messages.append(answer)
                read.places.append(place)
            _add_to_answer(answer, kind, item, names, place)
            continue
        message = _other_message(kind, item, place)
        if message is None:
            read.ignored.append(f"item {str(kind)[:80]}")
            continue
        answer = None
        read.messages.append(message)
        read.places.append(place)
    return read


def _add_to_answer(
    answer: dict[str, Any],
    kind: str,
    item: Mapping[str, Any],
    names: Mapping[str, NamedTool],
    place: int,
) -> None:
    if kind == "reasoning":
        answer["content"] += _thought(item, place)
    elif kind == "message":
        content = _content(item.get("content"), place)
        answer["content"] += (
            [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
        )
    else:
        name = item.get("name")
        if not isinstance(name, str) or not name:
            raise Refusal(400, f"input[{place}].name is {shown(name)}, it must name a tool")
        arguments = item.get("arguments")
        if kind == "custom_tool_call":
            arguments = {_INPUT: item.get("input")}
        answer["tool_calls"].append(
            {
                "id": item.get("call_id"),
                "type": "function",
                "function": {"name": _own_name(item, names), "arguments": arguments},
            }
        )


def _thought(item: Mapping[str, Any], place: int) -> list[dict[str, Any]]:
    """Return a reasoning as a block of a thought, with the signature that finds it again."""
    parts: Any = item.get("content") or item.get("summary") or ()
    if not isinstance(parts, list | tuple):
        raise Refusal(400, f"input[{place}] has the thought {shown(parts)}, it must be a list")
    texts = [
        part["text"]
        for part in parts
        if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    ]
    signature = item.get("encrypted_content")
    if not texts:
        return [{"type": "redacted_thinking", "data": signature}] if signature else []
    return [{"type": "thinking", "thinking": "\n".join(texts), "signature": signature}]


def _other_message(kind: object, item: Mapping[str, Any], place: int) -> dict[str, Any] | None:
    if kind == "message":
        return {"role": item.get("role"), "content": _content(item.get("content"), place)}
    if kind in ("function_call_output", "custom_tool_call_output"):
        return {
            "role": "tool",
            "tool_call_id": item.get("call_id"),
            "content": _content(item.get("output"), place),
        }
    return None


def _content(content: object, place: int) -> Any:
    """Return a content with parts in the words of Chat Completions."""
    if not isinstance(content, list):
        return content
    parts: list[object] = []
    for part in content:
        if isinstance(part, Mapping):
            kind = part.get("type")
            if kind == "refusal":
                part = {"type": "text", "text": str(part.get("refusal", ""))}
            elif isinstance(kind, str) and kind in _TEXT_TYPES:
                part = {"type": "text", "text": part.get("text")}
        parts.append(part)
    return parts
