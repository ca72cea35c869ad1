"""Messages of callers, read into one shape or refused with one sentence."""

import json
from typing import Any

import pytest

from fulmen.chat import (
    ContentDelta,
    Event,
    Message,
    ProblemFound,
    Reply,
    TemplateFormat,
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
from tests.chat.helpers import M1, M2, content_with_thinking


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


# Anthropic's blocks.

USE_A = {"type": "tool_use", "id": "toolu_a", "name": "f", "input": {"x": 1}}
USE_B = {"type": "tool_use", "id": "toolu_b", "name": "g", "input": {}}
CALLS = {
    "role": "assistant",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "so"},
        USE_A,
        USE_B,
    ],
}


def result(id: str, content: Any = "r", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


def test_anthropic_s_history_is_openai_s_in_blocks() -> None:
    text = {"type": "text", "text": "go on", "cache_control": {"type": "ephemeral"}}
    anthropic: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        CALLS,
        {"role": "user", "content": [text, result("toolu_b", "rb"), result("toolu_a", "ra")]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, USE_A]},
        {"role": "user", "content": [result("toolu_a", None)]},
    ]
    functions = [{"name": "f", "arguments": '{"x": 1}'}, {"name": "g", "arguments": "{}"}]
    openai: list[dict[str, Any]] = [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": "so",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "toolu_a", "type": "function", "function": functions[0]},
                {"id": "toolu_b", "type": "function", "function": functions[1]},
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_b", "content": "rb"},
        {"role": "tool", "tool_call_id": "toolu_a", "content": "ra"},
        {"role": "user", "content": "go on"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "toolu_a", "type": "function", "function": functions[0]}],
        },
        {"role": "tool", "tool_call_id": "toolu_a", "content": ""},
    ]

    def ids_of(calls: tuple[ToolCall, ...]) -> list[str | None]:
        return [call.id for call in calls]

    def seen(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return [
            (m.role, m.content, m.thinking, m.tool_calls, m.tool_call_id, ids_of(m.tool_calls))
            for m in read_messages(messages)
        ]

    assert seen(anthropic) == seen(openai)
    assert [row[0] for row in seen(anthropic)] == [
        *("user", "assistant", "tool", "tool", "user", "assistant", "tool")
    ]
    assert [row[1] for row in seen(anthropic)] == ["q", "so", "ra", "rb", "go on", "", ""]
    for format in (M1, M2, TemplateFormat("{{ messages | tojson }}")):
        texts = [m | {"content": m["content"] or ""} for m in openai]
        if isinstance(format, TemplateFormat):  # which is handed the dicts themselves
            shown = [json.loads(format.render(messages)) for messages in (anthropic, openai)]
            assert shown[0] == shown[1]
            assert [m.get("tool_call_id") for m in shown[0]][2:4] == ["toolu_a", "toolu_b"]
        else:
            plain = [m for m in anthropic if m]
            assert "ra" in format.render(plain)
            assert format.render(plain).count("go on") == format.render(texts).count("go on") == 1


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (result("toolu_a", "text"), "text"),
        ({"type": "tool_result", "tool_use_id": "toolu_a"}, ""),
        (result("toolu_a", []), ""),
        (result("toolu_a", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab"),
        (result("toolu_a", "no such file", is_error=True), "Error: no such file"),
        (result("toolu_a", "Error: no", is_error=True), "Error: no"),
        (result("toolu_a", None, is_error=True), "Error"),
        (result("toolu_a", [{"type": "text", "text": "a"}], is_error=True), "Error: a"),
        (result("toolu_a", "fine", is_error=False), "fine"),
        (result("toolu_a", [{"type": "tool_reference", "tool_name": "g"}]), '"tool_name": "g"'),
    ],
)
def test_a_result_in_a_block_is_read(block: dict[str, Any], content: str) -> None:
    messages = read_messages([CALLS, {"role": "user", "content": [block]}])
    assert [message.role for message in messages] == ["assistant", "tool"]
    assert messages[1].tool_call_id == "toolu_a"
    assert content in messages[1].content
    if content != '"tool_name": "g"':
        assert messages[1].content == content


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "user", "content": [USE_A]}, "a user message has a tool_use block, only assist"),
        ({"role": "system", "content": [USE_A]}, "a system message has a tool_use block"),
        (
            {"role": "assistant", "content": [result("toolu_a")]},
            "an assistant message has a tool_result block, only user messages may",
        ),
        ({"role": "user", "content": [result("zzz")]}, "tool_call_id zzz matches no call"),
        ({"role": "user", "content": [result(5)]}, "tool_use_id is 5, it must be text"),  # type: ignore[arg-type]
        ({"role": "user", "content": [result("toolu_a", is_error="yes")]}, "is_error is 'yes'"),
        (
            {"role": "user", "content": [result("toolu_a", [{"type": "image", "source": {}}])]},
            "content of a tool message has a part of type image, these models read only text parts",
        ),
        (
            {"role": "user", "content": [result("toolu_a"), {"type": "document", "source": {}}]},
            "content of a user message has a part of type document",
        ),
        ({"role": "assistant", "content": [{"type": "image"}]}, "an assistant message has a part"),
        ({"role": "assistant", "content": [{"type": "server_tool_use"}]}, "type server_tool_use"),
        ({"role": "assistant", "content": [{"type": "tool_use"}]}, "a tool call has the name None"),
        (
            {"role": "assistant", "content": [{**USE_A, "input": [1]}]},
            "the arguments of the call of f are [1], they must be a JSON object",
        ),
        ({"role": "assistant", "content": [{**USE_A, "id": 5}]}, "id is 5, it must be text"),
        ({"role": "assistant", "content": [{"type": "thinking"}, USE_A]}, "part of type thinking"),
    ],
)
def test_a_block_that_cannot_be_read_is_one_sentence(message: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^[^A-Z\n]") as refused:
        read_messages([CALLS, message])
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


HUGE = "x" * 10**6


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": HUGE}],
        [{"role": "user", "content": [{"type": HUGE}]}],
        [{"role": "user", "content": [{HUGE: 1}]}],
        [{"role": "user", "content": [{str(i): 1 for i in range(10**5)}]}],
        [{"role": "assistant", "tool_calls": [call("{" + HUGE)]}],
        [{"role": "assistant", "tool_calls": [call('{"a": ' + HUGE)]}],
        [{"role": "assistant", "tool_calls": [call("9" * 10**6)]}],
        [{"role": "assistant", "tool_calls": [call('{"a": 1e' + "9" * 10**6 + "}")]}],
        [{"role": "assistant", "tool_calls": [call("[" * 10**6)]}],
        [{"role": "assistant", "tool_calls": [{"name": HUGE, "arguments": "{"}]}],
        [{"role": "assistant", "tool_calls": [{"name": HUGE, "arguments": [1]}]}],
        [{"role": "assistant", "tool_calls": [{"name": {HUGE: 1}}]}],
        [{"role": "assistant", "tool_calls": [call(id={HUGE: 1})]}],
        [CALLS, {"role": "tool", "tool_call_id": HUGE, "content": ""}],
        [CALLS, {"role": "user", "content": [result(HUGE)]}],
        [
            {"role": "assistant", "tool_calls": [call(id=f"{i}{'y' * 100}") for i in range(9999)]},
            {"role": "tool", "tool_call_id": "z", "content": ""},
        ],
        [{"role": "tool", "tool_call_id": [HUGE]}],
        [{"role": "user", "content": [result("a", is_error=HUGE)]}],
    ],
)
def test_a_sentence_stays_short_however_much_was_sent(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        read_messages(messages)
    assert len(str(refused.value)) < 700
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "tool",
    [
        {"name": HUGE, "parameters": [1]},
        {"name": HUGE, "parameters": {"default": {1}}},
        {"name": {HUGE: 1}},
    ],
)
def test_a_sentence_about_a_tool_stays_short(tool: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        read_tools([tool])
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "assistant", "content": 5}, "content of an assistant message is of type int"),
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
