"""OpenAI's Chat Completions: the fields of a request, and the `Ask` they become.

What other servers of this dialect take, this one takes too; `fields.py` says what is ignored and
what is refused, `thinking.py` reads what is about thinking.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from fulmen.sampling import SamplingParams, shown
from fulmen.server.asking import Ask
from fulmen.server.bodies import ListOf
from fulmen.server.errors import Refusal
from fulmen.server.fields import describe_ignored, unknown_fields
from fulmen.server.requests import (
    Budget,
    ChatChoiceIn,
    ChatMessageIn,
    ChatToolIn,
    Effort,
    ReasoningIn,
    ResponseFormatIn,
    Shape,
    StructuredIn,
    Temperature,
    TemplateIn,
    ThinkingIn,
)
from fulmen.server.thinking import Thinking, read_chat_thinking

_THINKING_FIELDS: Final = frozenset(
    {
        "reasoning_effort",
        "reasoning",
        "thinking",
        "thinking_token_budget",
        "thinking_budget",
        "reasoning_budget",
        "include_reasoning",
        "separate_reasoning",
        "reasoning_format",
        "reasoning_split",
        "chat_template_kwargs",
    }
)
_MAX_TEMPERATURE: Final = 2.0


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="allow", strict=True)
    include_usage: bool | None = None


class SampledBody(BaseModel):
    """Fields of OpenAI's dialects that say how an answer is drawn, and when it ends."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra=describe_ignored)

    model: str = Field(
        "", description="Name of a model; any other is the first one's, unless the server is strict"
    )
    stream: bool | None = Field(None, description="Answer as server-sent events")
    temperature: Annotated[float, Shape(Temperature)] | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, description="0 or -1: all tokens")
    min_p: float | None = None
    seed: int | None = None
    stop: str | ListOf[str] | None = None
    stop_token_ids: ListOf[int] | None = None
    ignore_eos: bool | None = None


class AnswerBody(SampledBody):
    """Fields that requests of Chat Completions and Completions may have."""

    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, description="Most new tokens")
    n: int | None = Field(None, ge=1, description="Answers to the same prompt, which is read once")
    response_format: Annotated[dict[str, Any], Shape(ResponseFormatIn)] | None = Field(
        None, description="text, json_object or json_schema"
    )
    structured_outputs: Annotated[dict[str, Any], Shape(StructuredIn)] | None = Field(
        None, description="One of json, regex and choice"
    )
    json_schema: dict[str, Any] | None = Field(None, description="llama.cpp's name of a schema")
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: ListOf[str] | None = None
    return_token_ids: bool | None = Field(
        None, description="Add prompt_token_ids and token_ids to the reply"
    )
    return_tokens_as_token_ids: bool | None = Field(
        None, description="Show tokens of log-probabilities as token_id:ID in place of their text"
    )


class ChatBody(AnswerBody):
    """Body of a Chat Completions request."""

    messages: ListOf[Annotated[dict[str, Any], Shape(ChatMessageIn)]] = Field(
        [], description="The conversation so far"
    )
    max_completion_tokens: int | None = Field(
        None, description="Most new tokens, those of the thought included; beats max_tokens"
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: ListOf[Annotated[dict[str, Any], Shape(ChatToolIn)]] | None = None
    tool_choice: Annotated[str | dict[str, Any], Shape(ChatChoiceIn)] | None = Field(
        None, description="none, auto, required, a function, or allowed_tools"
    )
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, Shape(Effort)] | None = Field(
        None, description="none to max, see docs/serving.md"
    )
    reasoning: Annotated[dict[str, Any], Shape(ReasoningIn)] | None = Field(
        None, description="effort, max_tokens, enabled, exclude (OpenRouter)"
    )
    thinking: Annotated[dict[str, Any], Shape(ThinkingIn)] | None = Field(
        None, description="type: enabled, adaptive or disabled; budget_tokens"
    )
    thinking_token_budget: Annotated[int, Shape(Budget)] | None = Field(
        None, description="Most tokens of thought"
    )
    thinking_budget: Annotated[int, Shape(Budget)] | None = Field(None, description="The same")
    reasoning_budget: Annotated[int, Shape(Budget)] | None = Field(
        None, description="The same; -1: no limit"
    )
    include_reasoning: bool | None = Field(
        None, description="true: the thought as reasoning too; false: not at all"
    )
    separate_reasoning: bool | None = Field(None, description="false: the thought in the content")
    reasoning_split: bool | None = Field(
        None, description="true: the thought as reasoning_details too; false: in the content"
    )
    reasoning_format: str | None = Field(None, description="none: the thought in the content")
    chat_template_kwargs: Annotated[dict[str, Any], Shape(TemplateIn)] | None = Field(
        None, description="enable_thinking, thinking_budget, keep_thoughts"
    )
    keep_thoughts: bool | None = Field(
        None, description="Show the model all its earlier thoughts, also those the template drops"
    )
    continue_final_message: bool | None = Field(
        None, description="The last message is the beginning of the answer"
    )
    add_generation_prompt: bool | None = Field(
        None, description="false only with continue_final_message"
    )
    prompt_token_ids: ListOf[int] | None = Field(
        None, description="The prompt as token ids, in place of messages"
    )
    input_ids: ListOf[int] | None = Field(None, description="The same as prompt_token_ids")
    prefix_token_ids: ListOf[int] | None = Field(
        None,
        description="Ids that the answer begins with; the reply says what comes after them",
    )
    return_progress: bool | None = Field(
        None, description="Add prompt_progress to a stream while the prompt is read"
    )
    session: str | None = Field(None, description="Name that the conversation is kept under")
    session_turn: str | None = Field(
        None,
        description="Id of the session's last turn as the client knows it, empty where it has "
        "none; if it stands elsewhere, nothing is asked",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatCall:
    """A request, read."""

    ask: Ask
    thinking: Thinking
    is_streamed: bool
    has_usage: bool
    """The stream ends with the usage"""
    has_logprobs: bool
    has_token_ids: bool
    shows_ids: bool
    """Tokens of log-probabilities are shown by their ids"""
    has_progress: bool


def read_chat(body: ChatBody, defaults: SamplingParams) -> ChatCall:
    """Read a request; whatever is wrong with it is a Refusal or a ValueError."""
    _check_beginning(body)
    ignored = read_ignored(body)
    thinking = read_chat_thinking({name: getattr(body, name) for name in _THINKING_FIELDS})
    tools, left_out = read_function_tools(body.tools)
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    given: dict[str, Any] = {
        **read_sampling(body, most),
        **_chat_sampling(body),
        **read_structure(body),
        **read_tool_choice(body.tool_choice, tools),
    }
    if any(_function(tool).get("strict") is True for tool in tools):
        given["strict_tools"] = True
    if body.parallel_tool_calls is False and tools:
        given["max_calls"] = 1
    if thinking.budget != "default":
        given["thinking_budget"] = thinking.budget
    template = body.chat_template_kwargs or {}
    ids = body.prompt_token_ids if body.prompt_token_ids is not None else body.input_ids
    if ids is not None and body.messages:
        raise Refusal(400, "messages and prompt_token_ids are given, only one of them can be")
    keep_thoughts = body.keep_thoughts
    if keep_thoughts is None and isinstance(template.get("keep_thoughts"), bool):
        keep_thoughts = template["keep_thoughts"]
    options = body.stream_options or StreamOptions()
    return ChatCall(
        ask=Ask(
            messages=body.messages,
            tools=tools,
            params=replace(defaults, **given),
            prompt_ids=None if ids is None else tuple(ids),
            prefix_ids=tuple(body.prefix_token_ids or ()),
            num_answers=body.n or 1,
            keep_thoughts=keep_thoughts,
            continues=bool(body.continue_final_message),
            must_continue=bool(body.continue_final_message),
            has_thinking_budget=thinking.is_number,
            model=body.model,
            session=body.session,
            session_turn=body.session_turn,
            ignored=(*ignored, *left_out),
        ),
        thinking=thinking,
        is_streamed=bool(body.stream),
        has_usage=bool(options.include_usage),
        has_logprobs=bool(body.logprobs),
        has_token_ids=bool(body.return_token_ids),
        shows_ids=bool(body.return_tokens_as_token_ids),
        has_progress=bool(body.return_progress),
    )


def read_ignored(body: AnswerBody) -> list[str]:
    """Return fields and options of the stream that have no effect; refuse those that should."""
    extra = (body.stream_options or StreamOptions()).model_extra or {}
    options = [f"stream_options.{name[:80]}" for name in list(extra)[:10]]
    return [*unknown_fields(body.model_extra or {}), *options]


def _check_beginning(body: ChatBody) -> None:
    """Refuse to go on where nothing was begun."""
    if body.add_generation_prompt is False and not body.continue_final_message:
        raise Refusal(
            400,
            "add_generation_prompt is false, that goes only with continue_final_message",
            param="add_generation_prompt",
        )


def read_sampling(body: SampledBody, max_tokens: int | None) -> dict[str, Any]:
    """Return the fields of `SamplingParams` that say how an answer is drawn, and when it ends."""
    given: dict[str, Any] = {}
    if body.temperature is not None and not 0 <= body.temperature <= _MAX_TEMPERATURE:
        raise Refusal(
            400,
            f"temperature is {shown(body.temperature)}, it must lie between 0 and 2",
            param="temperature",
        )
    for name in ("temperature", "top_p", "min_p", "seed", "ignore_eos"):
        if (value := getattr(body, name)) is not None:
            given[name] = value
    if body.top_k is not None:
        given["top_k"] = None if body.top_k in (0, -1) else body.top_k
    if max_tokens is not None:
        given["max_tokens"] = max_tokens
    if body.stop is not None:
        given["stop"] = tuple([body.stop] if isinstance(body.stop, str) else body.stop)
    if body.stop_token_ids is not None:
        given["stop_token_ids"] = tuple(body.stop_token_ids)
    return given


def _chat_sampling(body: ChatBody) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if body.logprobs:
        given["logprobs"] = body.top_logprobs or 0
    elif body.top_logprobs:
        raise Refusal(400, "top_logprobs is given, it needs logprobs", param="top_logprobs")
    return given


def read_structure(body: AnswerBody) -> dict[str, Any]:
    """Return the constraint of the answer, in whichever of the known words it was asked for."""
    format = body.response_format or {}
    named = format.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    given = read_format(format, schema, "response_format", "json_schema.schema")
    asked = body.structured_outputs or {}
    if (other := set(asked) - {"json", "regex", "choice"}) and any(asked[key] for key in other):
        raise _wrong("structured_outputs", sorted(other), "an object of json, regex or choice")
    schema = asked.get("json", body.guided_json)
    if schema is None:
        schema = body.json_schema
    if schema is not None and "json_schema" in given:
        raise Refusal(400, "an answer is given two schemas, it can follow only one")
    if schema is not None:
        given["json_schema"] = schema if isinstance(schema, str) else json.dumps(schema)
    regex, choice = asked.get("regex", body.guided_regex), asked.get("choice", body.guided_choice)
    if not isinstance(regex, str | None):
        raise _wrong("structured_outputs.regex", regex, "a regular expression")
    if regex is not None:
        given["regex"] = regex
    if choice is not None:
        if not isinstance(choice, list) or not all(isinstance(one, str) for one in choice):
            raise _wrong("structured_outputs.choice", choice, "a list of texts")
        given["choice"] = tuple(choice)
    return given


def read_format(format: Mapping[str, Any], schema: object, name: str, place: str) -> dict[str, Any]:
    """Return the constraint that the format of an answer stands for.

    schema  its JSON Schema, None if it has none
    name    what the dialect calls the format
    place   where in it the dialect has the schema
    """
    kind = format.get("type", "text")
    if kind == "json_object":
        return {"json_schema": '{"type": "object"}'}
    if kind == "json_schema":
        if schema is None:
            sentence = f"{name}.{place} is missing, it must be a JSON Schema"
            raise Refusal(400, sentence, param=name.partition(".")[0])
        return {"json_schema": json.dumps(schema)}
    if kind != "text":
        raise _wrong(f"{name}.type", kind, "text, json_object or json_schema")
    return {}


def _wrong(name: str, value: object, needed: str) -> Refusal:
    sentence = f"{name} is {shown(value)}, it must be {needed}"
    return Refusal(400, sentence, param=name.partition(".")[0])


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    return function if isinstance(function, Mapping) else {}


def read_function_tools(
    tools: Sequence[Mapping[str, Any]] | None,
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the tools that a model can call, and the names of those that only a client's maker
    runs, which are left out."""
    known: list[Mapping[str, Any]] = []
    left_out: list[str] = []
    for tool in tools or ():
        kind = tool.get("type", "function")
        if kind == "function" or not isinstance(kind, str):
            known.append(tool)
        else:
            left_out.append(f"tool {str(tool.get('name', kind))[:80]}")
    return known, left_out


def read_tool_choice(choice: object, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if choice is None or choice == "auto":
        return {}
    if choice in ("none", "required"):
        if choice == "required" and not tools:
            raise Refusal(
                400, "tool_choice is required, the request has no tools", param="tool_choice"
            )
        return {"tool_choice": choice} if tools else {}
    names = names_of(map(_function, tools))
    if isinstance(choice, Mapping):
        kind = choice.get("type")
        if kind == "function":
            name = _function(choice).get("name")
            _check_named(name, names)
            return {"tool_choice": "required", "allowed_tools": (name,)}
        if kind == "allowed_tools":
            allowed = choice.get("allowed_tools", choice)
            listed = allowed.get("tools") if isinstance(allowed, Mapping) else None
            mode = allowed.get("mode", "auto") if isinstance(allowed, Mapping) else None
            if mode not in ("auto", "required") or not isinstance(listed, list) or not listed:
                raise Refusal(
                    400,
                    "tool_choice.allowed_tools needs a mode, auto or required, and a list of tools",
                    param="tool_choice",
                )
            found = [
                _function(tool).get("name") if isinstance(tool, Mapping) else None
                for tool in listed
            ]
            for name in found:
                _check_named(name, names)
            return {"tool_choice": mode, "allowed_tools": tuple(found)}
    raise Refusal(
        400,
        f"tool_choice is {shown(choice)}, it must be none, auto, required, a function or "
        "allowed_tools",
        param="tool_choice",
    )


def names_of(tools: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the names of tools; one that is no text is refused when the tools are read."""
    return {name for tool in tools if isinstance(name := tool.get("name"), str)}


def _check_named(name: object, names: set[str]) -> None:
    if not isinstance(name, str) or name not in names:
        raise Refusal(
            400, f"tool_choice names {shown(name)}, no tool has that name", param="tool_choice"
        )
