"""Anthropic's Messages: the fields of a request, and the `Ask` they become.

Tools that a client finds later leave the beginning of the prompt as it was: they are told where
the conversation refers to them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fulmen.chat import dump_json
from fulmen.sampling import SamplingParams, shown
from fulmen.server.asking import Ask
from fulmen.server.bodies import ListOf
from fulmen.server.errors import Refusal
from fulmen.server.fields import describe_ignored, unknown_fields
from fulmen.server.openai_chat import names_of
from fulmen.server.requests import (
    ContextManagementIn,
    DiagnosticsIn,
    MakersToolIn,
    MessagesChoiceIn,
    MessagesMessageIn,
    MessagesThinkingIn,
    MessagesToolIn,
    OutputConfigIn,
    SchemaFormatIn,
    Shape,
    TextPartIn,
)
from fulmen.server.thinking import Thinking, read_messages_thinking


class MessagesBody(BaseModel):
    """Body of a Messages request."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra=describe_ignored)

    model: str = Field(
        "", description="Name of a model; any other is the first one's, unless the server is strict"
    )
    messages: ListOf[Annotated[dict[str, Any], Shape(MessagesMessageIn)]] = Field(
        [], description="The conversation so far"
    )
    system: str | ListOf[Annotated[dict[str, Any], Shape(TextPartIn)]] | None = None
    max_tokens: int | None = Field(None, description="Most tokens, thought included")
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: ListOf[str] | None = None
    tools: ListOf[Annotated[dict[str, Any], Shape(MessagesToolIn | MakersToolIn)]] | None = None
    tool_choice: Annotated[dict[str, Any], Shape(MessagesChoiceIn)] | None = Field(
        None, description="auto, any, tool or none"
    )
    thinking: Annotated[dict[str, Any], Shape(MessagesThinkingIn)] | None = Field(
        None, description="enabled, adaptive or disabled"
    )
    output_config: Annotated[dict[str, Any], Shape(OutputConfigIn)] | None = Field(
        None, description="effort and format"
    )
    output_format: Annotated[dict[str, Any], Shape(SchemaFormatIn)] | None = Field(
        None, description="Older name of the format"
    )
    context_management: Annotated[dict[str, Any], Shape(ContextManagementIn)] | None = Field(
        None, description="clear_thinking with keep all shows the model all its thoughts"
    )
    diagnostics: Annotated[dict[str, Any], Shape(DiagnosticsIn)] | None = Field(
        None, description="previous_message_id: the answer to compare this prompt with"
    )
    session: str | None = Field(None, description="Name that the conversation is kept under")
    session_turn: str | None = Field(
        None,
        description="Id of the session's last turn as the client knows it, empty where it has "
        "none; if it stands elsewhere, nothing is asked",
    )
    thread: Annotated[dict[str, Any], Shape(None)] | None = Field(
        None, description="Refused: the whole conversation comes with each request"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MessagesCall:
    """A request, read."""

    ask: Ask
    thinking: Thinking
    is_streamed: bool
    has_cache_marks: bool
    """The client marks what shall be cached"""
    has_diagnostics: bool


def read_messages_call(body: MessagesBody, defaults: SamplingParams) -> MessagesCall:
    """Read a request; whatever is wrong with it is a Refusal or a ValueError."""
    if body.thread is not None:
        raise Refusal(
            400,
            "thread is given, no threads are kept here: send the whole conversation without it",
            details={"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
        )
    ignored = unknown_fields(body.model_extra or {})
    thinking = read_messages_thinking(
        {"thinking": body.thinking, "output_config": body.output_config}
    )
    tools, deferred, left_out = _read_tools(body.tools)
    given: dict[str, Any] = {**_tool_choice(body.tool_choice, [*tools, *deferred])}
    for name in ("temperature", "top_p", "max_tokens"):
        if (value := getattr(body, name)) is not None:
            given[name] = value
    if body.top_k is not None:
        given["top_k"] = None if body.top_k in (0, -1) else body.top_k
    if body.stop_sequences is not None:
        given["stop"] = tuple(body.stop_sequences)
    if any(tool.get("strict") is True for tool in (*tools, *deferred)):
        given["strict_tools"] = True
    if thinking.budget != "default":
        given["thinking_budget"] = thinking.budget
    format = (body.output_config or {}).get("format") or body.output_format
    if format is not None:
        given["json_schema"] = _schema(format)
    previous = (body.diagnostics or {}).get("previous_message_id")
    if not isinstance(previous, str | None):
        raise Refusal(400, f"diagnostics.previous_message_id is {shown(previous)}, it is an id")
    definitions = {
        own_name: tool for tool in deferred if isinstance(own_name := tool.get("name"), str)
    }
    return MessagesCall(
        ask=Ask(
            messages=[_with_tools_told(message, definitions) for message in body.messages],
            system=body.system,
            tools=tools,
            deferred_tools=deferred,
            params=replace(defaults, **given),
            keep_thoughts=_keeps_thoughts(body.context_management),
            continues=True,
            has_thinking_budget=thinking.is_number,
            model=body.model,
            session=body.session,
            session_turn=body.session_turn,
            previous_id=previous,
            ignored=(*ignored, *left_out),
        ),
        thinking=thinking,
        is_streamed=bool(body.stream),
        has_cache_marks=_has_cache_marks(body),
        has_diagnostics=body.diagnostics is not None,
    )


def _read_tools(
    tools: Sequence[Mapping[str, Any]] | None,
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]], list[str]]:
    """Return the tools that the prompt shows, those that wait until they are asked for, and the
    names of those that only Anthropic runs, which are left out."""
    known: list[Mapping[str, Any]] = []
    deferred: list[Mapping[str, Any]] = []
    left_out: list[str] = []
    for tool in tools or ():
        if tool.get("type", "custom") not in ("custom", "function", None):
            left_out.append(f"tool {str(tool.get('name'))[:80]}")
        elif tool.get("defer_loading") is True:
            deferred.append(_shown_tool(tool))
        else:
            known.append(_shown_tool(tool))
    return known, deferred, left_out


def _shown_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tool as the prompt shows it: without what is about serving it."""
    hidden = ("cache_control", "defer_loading", "eager_input_streaming", "allowed_callers", "type")
    return {key: value for key, value in tool.items() if key not in hidden}


def _with_tools_told(
    message: Mapping[str, Any], definitions: Mapping[Any, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return a message in which references to tools are their definitions, as text: so a tool that
    is found later leaves the beginning of the prompt as it was."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_told(block, definitions) for block in content]}


def _told(block: Any, definitions: Mapping[Any, Mapping[str, Any]]) -> Any:
    if not isinstance(block, Mapping):
        return block
    kind = block.get("type")
    if kind == "tool_result" and isinstance(block.get("content"), list):
        return {**block, "content": [_told(part, definitions) for part in block["content"]]}
    if kind == "tool_reference":
        return {"type": "text", "text": _definition(block, definitions)}
    if kind in ("tool_addition", "tool_removal"):
        named = block.get("tool")
        name = named if isinstance(named, Mapping) else block
        text = _definition(name, definitions)
        words = "Tool added" if kind == "tool_addition" else "Tool removed"
        return {"type": "text", "text": f"{words}: {text}"}
    return block


def _definition(reference: Mapping[str, Any], definitions: Mapping[Any, Mapping[str, Any]]) -> str:
    name = reference.get("tool_name", reference.get("name"))
    tool = reference.get("definition")
    if not isinstance(tool, Mapping):
        tool = definitions.get(name) if isinstance(name, str) else None
    if tool is None:
        return str(name)
    renamed = {"input_schema": "parameters"}
    shown_tool = {renamed.get(key, key): value for key, value in tool.items()}
    return f"<tool>{dump_json(shown_tool)}</tool>"


def _tool_choice(
    choice: Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    if choice is None:
        return {}
    kind, given = choice.get("type"), dict[str, Any]()
    if choice.get("disable_parallel_tool_use") is True and tools:
        given["max_calls"] = 1
    if kind == "auto":
        return given
    if kind == "none":
        return {"tool_choice": "none"} if tools else {}
    if kind == "any":
        if not tools:
            raise Refusal(400, "tool_choice.type is any, the request has no tools")
        return {**given, "tool_choice": "required"}
    if kind == "tool":
        name = choice.get("name")
        if not isinstance(name, str) or name not in names_of(tools):
            raise Refusal(400, f"tool_choice.name is {shown(name)}, no tool has that name")
        return {**given, "tool_choice": "required", "allowed_tools": (name,)}
    raise Refusal(400, f"tool_choice.type is {shown(kind)}, it must be auto, any, tool or none")


def _schema(format: object) -> str:
    schema = format.get("schema") if isinstance(format, Mapping) else None
    if schema is None or not isinstance(format, Mapping) or format.get("type") != "json_schema":
        raise Refusal(
            400, "output_config.format needs the type json_schema and a JSON Schema as schema"
        )
    return json.dumps(schema)


def _keeps_thoughts(management: Mapping[str, Any] | None) -> bool | None:
    """Return whether a request keeps every thought: clear_thinking with keep all."""
    edits = (management or {}).get("edits")
    for edit in edits if isinstance(edits, list) else ():
        if isinstance(edit, Mapping) and str(edit.get("type", "")).startswith("clear_thinking"):
            return edit.get("keep") == "all"
    return None


def _has_cache_marks(body: MessagesBody) -> bool:
    held = [*(body.tools or ()), *(body.system if isinstance(body.system, list) else ())]
    for message in body.messages:
        content = message.get("content")
        held += content if isinstance(content, list) else ()
    return any(isinstance(one, Mapping) and one.get("cache_control") for one in held)
