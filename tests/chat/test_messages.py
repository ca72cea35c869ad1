"""Messages of callers, read into one shape or refused with one sentence."""

from typing import Any

import pytest

from fulmen.chat import (
    ContentDelta,
    Event,
    Message,
    ProblemFound,
    Reply,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    read_messages,
    read_tools,
    sum_events,
)
from tests.chat.helpers import content_with_thinking


def read(message: dict[str, Any]) -> Message:
    return read_messages([message])[0]


def call(arguments: Any = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": arguments}, **more}


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "why"},
        {"reasoning": "why"},
        {"thinking": "why"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "why"}]},
        {"content": [{"type": "thinking", "thinking": "why", "signature": "s"}, "ok"]},
        {"reasoning_content": "why", "reasoning": "other"},
    ],
)
def test_thinking_is_read_in_every_dialect(fields: dict[str, Any]) -> None:
    message = read({"role": "assistant", "content": "ok", **fields})
    assert (message.thinking, message.content) == ("why", "ok")


def test_thinking_that_is_not_given_is_none_and_not_empty() -> None:
    assert read({"role": "assistant", "content": "x"}).thinking is None
    assert read({"role": "assistant", "content": "x", "reasoning_content": ""}).thinking == ""
    assert read({"role": "user", "content": "x", "reasoning_content": "y"}).thinking is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ""),
        ("a", "a"),
        ([], ""),
        (["a", {"type": "text", "text": "b"}, {"type": "input_text", "text": "c"}], "abc"),
        ([{"type": "redacted_thinking", "data": "x"}, {"text": "a"}], "a"),
    ],
)
def test_content_is_text_parts_or_null(content: Any, expected: str) -> None:
    assert read({"role": "user", "content": content}).content == expected


@pytest.mark.parametrize(
    ("content", "text", "parts"),
    [
        ({"a": 1}, '{"a": 1}', None),
        (5, "5", None),
        ([{"output": {"a": "é"}}], '{"a": "é"}', ['{"a": "é"}']),
        ([{"output": "o", "text": "t", "type": "text"}], "o", ["o"]),
        ([{"output": None, "type": "text", "text": "t"}], "t", ["t"]),
        ([{"a": 1}, "b", 5, None], '{"a": 1}b5null', ['{"a": 1}', "b", "5", "null"]),
        ([{"name": 5, "type": "city"}], '{"name": 5, "type": "city"}', None),
    ],
)
def test_a_tool_s_result_may_be_any_json(content: Any, text: str, parts: Any) -> None:
    message = read({"role": "tool", "content": content})
    assert message.content == text
    if parts is not None:
        assert [part.text for part in message.parts or ()] == parts


def test_developer_messages_are_system_messages() -> None:
    assert read({"role": "developer", "content": "x"}).role == "system"


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_tool_calls_are_read_nested_and_flat(arguments: Any) -> None:
    expected = (ToolCall("f", {"a": 1}, "call_1"),)
    nested = {"role": "assistant", "tool_calls": [call(arguments, id="call_1")]}
    flat = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": arguments}]}
    assert read(nested).tool_calls == read(flat).tool_calls == expected
    assert read(nested).tool_calls[0].id == "call_1"
    assert read({"role": "assistant", "tool_calls": [call("")]}).tool_calls[0].arguments == {}


def test_tools_are_read_nested_flat_anthropic_s_and_ours() -> None:
    function = {"name": "f", "description": "does", "parameters": {"type": "object"}}
    expected = Tool("f", "does", {"type": "object"})
    wrapped = {"type": "function", "function": function}
    assert read_tools([wrapped, function, expected]) == (expected,) * 3
    assert [dict(tool.function) for tool in read_tools([wrapped, expected])] == [function] * 2
    anthropic = {"name": "f", "description": "does", "input_schema": {"type": "object"}}
    assert read_tools([anthropic]) == (expected,)
    assert list(read_tools([anthropic])[0].function) == ["name", "description", "parameters"]
    assert read_tools(None) == read_tools([]) == ()


def test_messages_go_to_dicts_and_back() -> None:
    messages = [
        Message("system", "s", current_date="d", current_location="l"),
        Message("user", "q", name="me"),
        Message("assistant", "c", "t", (ToolCall("f", {"a": 1}, "call_1"),)),
        Message("tool", "r", tool_call_id="call_1"),
    ]
    assert read_messages([message.to_dict() for message in messages]) == messages


def test_results_are_put_in_the_order_of_their_calls() -> None:
    answer = {"role": "assistant", "tool_calls": [call(id=id) for id in "abc"]}
    results = [{"role": "tool", "tool_call_id": id, "content": id} for id in "cab"]
    ordered = read_messages([answer, *results, {"role": "user", "content": "q"}])
    assert [message.content for message in ordered] == ["", "a", "b", "c", "q"]
    unnamed = [{"role": "tool", "content": text} for text in "xy"]
    assert [m.content for m in read_messages([answer, *unnamed])] == ["", "x", "y"]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "robot"}, "role is 'robot', it must be one of system, user, assistant, tool"),
        ({}, "role is None"),
        ({"role": "user", "content": 5}, "content of a user message is of type int"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "has a part of type image_url"),
        ({"role": "user", "content": [5]}, "has a part of type int"),
        ({"role": "user", "content": [{"a": 1, "b": 2}]}, "has a part with the keys a, b"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "whose text is of type int"),
        ({"role": "tool", "content": [{"type": "image_url"}]}, "has a part of type image_url"),
        ({"role": "tool", "content": [{"output": {1}}]}, "cannot be written as JSON"),
        ({"role": "user", "tool_calls": [call()]}, "a user message has tool_calls"),
        ({"role": "assistant", "tool_calls": "f"}, "tool_calls is of type str, it must be a list"),
        ({"role": "assistant", "tool_calls": [5]}, "a tool call is of type int"),
        ({"role": "assistant", "tool_calls": [{"name": ""}]}, "a tool call has the name ''"),
        ({"role": "assistant", "tool_calls": [call("{a}")]}, "the call of f are not JSON"),
        ({"role": "assistant", "tool_calls": [call("[1]")]}, "must be a JSON object"),
        ({"role": "assistant", "tool_calls": [call([1])]}, "must be a JSON object"),
        ({"role": "tool", "tool_call_id": 5}, "tool_call_id is 5, it must be text"),
        (5, "a message is of type int, it must be an object"),
    ],
)
def test_a_bad_message_is_refused_with_one_sentence(message: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^[^A-Z\n]") as refused:
        read_messages([message])
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"content": [{"type": "text", "text": "q"}]}, "content is of type list, it must be text"),
        ({"content": None}, "content is of type NoneType, it must be text"),
        ({"thinking": ["why"]}, "thinking is of type list, it must be text or None"),
        ({"tool_calls": "f"}, "tool_calls is of type str, it must be a tuple of ToolCall"),
        ({"tool_calls": ({"name": "f"},)}, "tool_calls has a dict in it"),
    ],
)
def test_a_message_of_wrong_types_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Message("assistant", **fields)


def test_a_result_that_answers_no_call_is_refused() -> None:
    answer = {"role": "assistant", "tool_calls": [call(id="a"), call(id="b")]}
    with pytest.raises(ValueError, match=r"tool_call_id c matches no call .* one of a, b"):
        read_messages([answer, {"role": "tool", "tool_call_id": "c", "content": ""}])


@pytest.mark.parametrize(
    ("tool", "sentence"),
    [
        (5, "a tool is of type int"),
        ({"type": "function", "function": {}}, "a tool has the name None"),
        ({"name": "f", "parameters": [1]}, "the parameters of tool f are a list"),
        ({"name": "f", "input_schema": [1]}, "the parameters of tool f are a list"),
        ({"name": "f", "parameters": {"default": {1}}}, "cannot be written as JSON"),
    ],
)
def test_a_bad_tool_is_refused_with_one_sentence(tool: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_tools([tool])


def test_events_add_up_to_a_reply() -> None:
    events: list[Event] = [
        ThinkingDelta("wh"),
        ThinkingDelta("y"),
        ContentDelta("ok"),
        ToolCallStart(0, "call_1", "f"),
        ToolCallDelta(0, '{"a": '),
        ToolCallDelta(0, "1}"),
        ToolCallEnd(0),
        ToolCallStart(1, "call_2", "g"),
        ToolCallDelta(1, "{"),
        ProblemFound("cut off"),
    ]
    reply = sum_events(events)
    assert reply == Reply("why", "ok", (ToolCall("f", {"a": 1}),), ("cut off",))
    assert reply.tool_calls[0].id == "call_1"
    assert reply.message() == Message("assistant", "ok", "why", reply.tool_calls)
    assert content_with_thinking(reply) == "<think>why</think>ok"
