"""Parsing MiniMax-M2's completions, rule by rule."""

import json
from typing import Any

import pytest

from fulmen.chat import (
    ContentDelta,
    ProblemFound,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from fulmen.files import MAX_JSON_DEPTH
from tests.chat.helpers import M2, TOOLS, check_all_cuts, m2_call, stream

B, E = "<minimax:tool_call>", "</minimax:tool_call>"


def p(key: str, value: object) -> str:
    return f'<parameter name="{key}">{value}</parameter>'


def invoke(key: str, value: object) -> str:
    return f'<invoke name="f">{p(key, value)}</invoke>'


def m2_arguments(value: str, schema: Any) -> Any:
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}]
    body = f'<parameter name="a">{value}</parameter>\n'
    reply = M2.parse(m2_call(body), tools, thinking_open=False)
    assert reply.problems == ()
    return reply.tool_calls[0].arguments["a"]


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        ("5", {"type": "string"}, "5"),
        ("null", {"type": "string"}, "null"),
        (" x\n", {"type": "string"}, " x\n"),
        ("null", {"type": ["string", "null"]}, None),
        ("NULL", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        (" null", {"type": ["string", "null"]}, " null"),
        ("nullable", {"type": ["string", "null"]}, "nullable"),
        ("nil", {"type": ["string", "null"]}, "nil"),
        ("none", {"type": ["integer", "null"]}, None),
        ("null", {"type": "integer"}, None),
        ("x", {"type": "string", "nullable": True}, "x"),
        ("+5", {"type": "integer"}, 5),
        (" 5\n", {"type": "integer"}, 5),
        ("5.0", {"type": "integer"}, 5),
        ("1_000", {"type": "integer"}, "1_000"),
        ("5", {"type": ["integer", "string"]}, 5),
        ("5.5", {"type": ["integer", "string"]}, "5.5"),
        ("five", {"type": ["integer", "string"]}, "five"),
        (str(10**40), {"type": "integer"}, 10**40),
        ("9" * 5000, {"type": "integer"}, "9" * 5000),
        ("3.0", {"type": "number"}, 3),
        ("2.5", {"type": "number"}, 2.5),
        ("1e3", {"type": "number"}, 1000),
        ("nan", {"type": "number"}, "nan"),
        ("inf", {"type": "number"}, "inf"),
        ("1e999", {"type": "number"}, "1e999"),
        ("TRUE", {"type": "boolean"}, True),
        ("0", {"type": "boolean"}, False),
        ("off", {"type": "boolean"}, False),
        ("maybe", {"type": "boolean"}, "maybe"),
        ("on", {"type": ["boolean", "string"]}, "on"),
        ("1", {"type": ["boolean", "string"]}, True),
        ("0", {"type": ["string", "boolean"]}, False),
        ("1", {"type": ["integer", "boolean", "string"]}, 1),
        ("true", {"type": ["boolean", "string"]}, True),
        ('{"a": [1]}', {"type": "object"}, {"a": [1]}),
        ("[1]", {"type": "object"}, [1]),
        ('"x"', {"type": "object"}, "x"),
        ("{oops}", {"type": "object"}, "{oops}"),
        ("[NaN]", {"type": "array"}, "[NaN]"),
        ("[" * 5000, {"type": "array"}, "[" * 5000),
        ("[" * 500 + "]" * 500, {"type": "array"}, "[" * 500 + "]" * 500),
        ("hello", {"type": ["object", "string"]}, "hello"),
        ("5", {"type": ["object", "string"]}, "5"),
        ("2", {"enum": [1, 2]}, 2),
        ("auto", {"enum": [1, "auto"]}, "auto"),
        ("7", {"const": 7}, 7),
        ("7", {"type": "int"}, 7),
        ("7", {"type": "unheard-of"}, "7"),
        ("7", {}, "7"),
        ("7", {"allOf": [{"type": "integer"}, {"minimum": 0}]}, 7),
        ("[1, 2]", {"oneOf": [{"type": "array"}, {"type": "null"}]}, [1, 2]),
        ("7", None, "7"),
        ("7", {"type": 7, "anyOf": 3, "enum": 4}, "7"),
        ('"\\ud800"', {"type": "object"}, "\ud800"),
    ],
)
def test_a_value_means_what_its_schema_says(value: str, schema: Any, expected: Any) -> None:
    found = m2_arguments(value, schema)
    assert found == expected
    assert type(found) is type(expected)


def test_references_in_a_schema_are_followed() -> None:
    parameters = {
        "$defs": {"Count": {"type": "integer"}, "Loop": {"$ref": "#/$defs/Loop"}},
        "properties": {
            "a": {"anyOf": [{"$ref": "#/$defs/Count"}, {"type": "null"}]},
            "b": {"$ref": "#/$defs/Loop"},
            "c": {"$ref": "#/$defs/Missing"},
        },
    }
    body = "".join(f'<parameter name="{key}">7</parameter>' for key in "abc")
    reply = M2.parse(m2_call(body), [{"name": "f", "parameters": parameters}], thinking_open=False)
    assert reply.tool_calls[0].arguments == {"a": 7, "b": "7", "c": "7"}


@pytest.mark.parametrize(
    "value",
    [
        "</invoke>",
        "</invoke> and more",
        "</think> <think> </minimax:tool_call>",
        "<parameter> <parameters>",
        "a < b && c </p",
        "\n leading and trailing \n\n",
    ],
)
def test_markup_in_a_value_belongs_to_it(value: str) -> None:
    assert m2_arguments(value, {"type": "string"}) == value


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ("text with </parameter> inside", "</parameter>"),
        ("<parameter>\n</parameter>", "</parameter>"),
        ("</parameter>" + " " * 1001, "</parameter>"),
        ('<parameter name="other">1</parameter>', "<parameter, </parameter>"),
        ("<parameter\nname = other> </parameter></parameter>", "<parameter, </parameter>"),
        ("<parameter name=>", "<parameter"),
        ('<invoke name="x"> <invoke>', "<invoke"),
    ],
)
def test_a_value_with_a_tag_that_may_have_ended_it_is_reported(value: str, tags: str) -> None:
    tools = [{"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}]
    body = p("a", value) + "\n"
    reply = check_all_cuts(M2, m2_call(body), tools=tools, thinking_open=False)
    assert reply.tool_calls == (ToolCall("f", {"a": value}),)
    assert reply.problems == (f"the value of a in the call of f keeps {tags} as its text",)


def test_a_value_may_hold_a_whole_call() -> None:
    value = f'<invoke name="x">\n{p("b", 1)}\n</invoke> and more'
    tools = [{"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}]
    reply = check_all_cuts(M2, m2_call(p("a", value) + "\n"), tools=tools, thinking_open=False)
    assert reply.tool_calls == (ToolCall("f", {"a": value}),)
    assert reply.content == ""
    assert reply.problems


OSLO, ROME = {"city": "Oslo"}, {"city": "Rome"}


@pytest.mark.parametrize(
    ("text", "calls", "content", "problem"),
    [
        (
            f"{B}{invoke('city', 'Oslo')}\nand also\n{invoke('city', 'Rome')}{E}",
            [OSLO, ROME],
            "and also\n",
            "text beside its calls",
        ),
        (f"{B}{invoke('city', 'Oslo')}\nDone.", [OSLO], "Done.", "text beside its calls"),
        (
            f"{B}{invoke('city', 'Oslo')}\nThe weather is fine.\n{E}\nMore prose",
            [OSLO],
            "The weather is fine.\n\nMore prose",
            "text beside its calls",
        ),
        (
            f"{B}{invoke('city', 'Oslo')}\n</minimax:tool_calls>",
            [OSLO],
            "</minimax:tool_calls>",
            "text beside its calls",
        ),
        (f"{B}{invoke('city', 'Oslo')}\n</think>", [OSLO], "", "stray </think>"),
        (
            f'{B}<invoke name="f">{p("days", 5)}{invoke("days", 6)}{E}',
            [{"days": "5"}, {"days": "6"}],
            "",
            "the call of f has no </invoke>",
        ),
        (
            f'{B}<invoke name="f">{p("days", 5)}\n{B}{invoke("days", 6)}{E}',
            [{"days": "5"}, {"days": "6"}],
            "",
            "the call of f has no </invoke>",
        ),
        (
            f'{B}<invoke name="f">{p("days", 5)}{E}prose',
            [{"days": "5"}],
            "prose",
            "the call of f has no </invoke>",
        ),
        (
            f'{B}<invoke name="f"><parameter name="city">Oslo\n{E}\nprose {B}'
            f"{invoke('city', 'Rome')}{E}",
            [{"city": "Oslo\n"}, ROME],
            "\nprose ",
            "a value with no </parameter> | the call of f has no </invoke>",
        ),
        (
            f'{B}<invoke name="f"><parameter name="city">Rome{E}',
            [ROME],
            "",
            "a value with no </parameter> | the call of f has no </invoke>",
        ),
        (f"{B}<invoke>x{invoke('city', 'Rome')}{E}", [ROME], "<invoke>x", "has no name"),
        (
            f"{B}{invoke('city', 'Oslo')}{' ' * 1500}{invoke('city', 'Rome')}{E}",
            [OSLO, ROME],
            "",
            "",
        ),
        (f"{B}{' ' * 1500}{invoke('city', 'Rome')}{' ' * 1500}{E}", [ROME], "", "kept as text"),
        (
            f'{B}<invoke name="f">{" " * 1500}{p("city", "Rome")}</invoke>{E}',
            [ROME],
            "",
            "",
        ),
        (
            f'{B}<invoke name="f">{p("city", "Rome")}</invoke>{" " * 1500}{E}{B}{E}',
            [ROME],
            "",
            "not followed by a call",
        ),
    ],
)
def test_complete_calls_are_read_whatever_stands_around_them(
    text: str, calls: list[dict[str, Any]], content: str, problem: str
) -> None:
    reply = check_all_cuts(M2, text, thinking_open=False)
    assert [call.arguments for call in reply.tool_calls] == calls
    assert reply.content == content
    assert problem in " | ".join(reply.problems)
    assert bool(problem) == bool(reply.problems)


@pytest.mark.parametrize(
    "opening",
    [
        "<parameter  name='days'>",
        '<parameter\nname="days">',
        "<parameter name = days>",
        '<parameter name="days" type="integer">',
    ],
)
@pytest.mark.parametrize("closing", ["</parameter>", "</parameter>\n ", ""])
def test_a_value_ends_at_the_next_parameter_in_any_spelling(opening: str, closing: str) -> None:
    body = f'<parameter name="city">Oslo{closing}{opening}5</parameter>'
    reply = check_all_cuts(M2, m2_call(body, "get_weather"), tools=TOOLS, thinking_open=False)
    assert reply.tool_calls == (ToolCall("get_weather", {"city": "Oslo", "days": 5}),)
    assert len(reply.problems) == (0 if closing else 1)


@pytest.mark.parametrize("name", ["a>b", "a<b", "</parameter>", "a'b", 'a"b', "a b = c", "a/>"])
def test_names_may_hold_brackets_or_quotes(name: str) -> None:
    text = m2_call(f"{p(name, 1)}\n<parameter name='x'>2</parameter>\n", name)
    reply = check_all_cuts(M2, text, thinking_open=False)
    assert reply.tool_calls == (ToolCall(name, {name: "1", "x": "2"}),)
    assert reply.problems == ()


@pytest.mark.parametrize(
    "opening", ['<parameter name="city>', "<parameter name='city\">", '<parameter name="ci"t>y">']
)
def test_a_parameter_whose_name_is_broken_is_reported_and_the_next_one_read(opening: str) -> None:
    body = f"{opening}Oslo</parameter>\n{p('days', 5)}\n"
    reply = check_all_cuts(M2, m2_call(body), thinking_open=False)
    assert reply.tool_calls == (ToolCall("f", {"days": "5"}),)
    assert reply.problems == (f"the call of f has text in no parameter: {opening}Oslo</parameter>",)


def test_a_value_with_no_closing_tag_ends_at_the_next_parameter_of_the_tool() -> None:
    body = '<parameter name="city">Oslo\n<parameter name="days">3</parameter>\n'
    reply = M2.parse(m2_call(body, "get_weather"), TOOLS, thinking_open=False)
    assert reply.tool_calls[0].arguments == {"city": "Oslo\n", "days": 3}
    assert reply.problems == ("the call of get_weather has a value with no </parameter>",)


def test_the_first_of_a_repeated_parameter_counts() -> None:
    body = '<parameter name="a">1</parameter><parameter name="a">2</parameter>'
    reply = M2.parse(m2_call(body), thinking_open=False)
    assert reply.tool_calls[0].arguments == {"a": "1"}
    assert reply.problems == ("the call of f gives a again, the first value counts",)


def test_string_values_stream_as_they_come_and_others_when_complete() -> None:
    parser = M2.parser(TOOLS, thinking_open=False, new_call_id=lambda: "call_x")
    assert parser.feed('<minimax:tool_call><invoke name="get_weather">') == []
    assert parser.feed('<parameter name="city">Os') == [
        ToolCallStart(0, "call_x", "get_weather"),
        ToolCallDelta(0, '{"city": "Os'),
    ]
    assert parser.feed('lo "\n') == [ToolCallDelta(0, 'lo \\"\\n')]
    assert parser.feed('</parameter><parameter name="days">1') == [ToolCallDelta(0, '"')]
    assert parser.feed('2</parameter><parameter name="unit">nu') == [
        ToolCallDelta(0, ', "days": 12')
    ]
    assert parser.feed("m") == [ToolCallDelta(0, ', "unit": "num')]
    assert parser.feed("</parameter></invoke></minimax:tool_call>") == [
        ToolCallDelta(0, '"}'),
        ToolCallEnd(0),
    ]
    assert parser.finish_events() == []
    assert parser.finish().tool_calls[0].id == "call_x"


def test_a_cut_call_is_no_call_and_is_quoted_in_full() -> None:
    text = 'Look:\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">half a va'
    events, reply = stream(M2, [text], thinking_open=False)
    assert [type(event) for event in events] == [
        ContentDelta,
        ToolCallStart,
        ToolCallDelta,
        ProblemFound,
    ]
    assert (reply.content, reply.tool_calls) == ("Look:\n", ())
    (problem,) = reply.problems
    assert problem.endswith('<invoke name="f">\n<parameter name="a">half a va')


@pytest.mark.parametrize(
    ("text", "content", "problem"),
    [
        ("<minimax:tool_call>\nI give up.</minimax:tool_call>", "\nI give up.", "kept as text"),
        (
            '<minimax:tool_call><invoke id="1">x</invoke></minimax:tool_call>after',
            '<invoke id="1">x</invoke>after',
            "has no name",
        ),
        (m2_call("").replace("</invoke>", "</invoke> Hm."), "Hm.\n", "text beside its calls"),
        (m2_call("loose text"), "", "text in no parameter: loose text"),
        (m2_call("<parameter>x</parameter>"), "", "in no parameter: <parameter>x</parameter>"),
        (m2_call("").replace("</invoke>\n", ""), "", "has no </invoke>"),
        ("a <minimax:tool_call>", "a ", "cut off by the end of the text: <minimax:tool_call>"),
        ("a </minimax:tool_call>b", "a b", "stray </minimax:tool_call>"),
        ("a<think>b", "a", "a later thought is not closed"),
        ("a `<think>`b", "a `<think>`b", ""),
        ('<tool_calls>\n{"name": "f"}', '<tool_calls>\n{"name": "f"}', "belongs to MiniMax-M1"),
    ],
)
def test_what_is_malformed_comes_back_and_is_reported(
    text: str, content: str, problem: str
) -> None:
    reply = M2.parse(text, thinking_open=False)
    assert reply.content == content
    assert problem in " | ".join(reply.problems)


def test_layout_falls_away_only_after_a_thought() -> None:
    thought = "\nwhy\n</think>\n\nLook:\n\n" + m2_call("") + "\n"
    assert (M2.parse(thought).thinking, M2.parse(thought).content) == ("why", "Look:\n")
    bare = M2.parse("Look:\n\n" + m2_call(""), thinking_open=False)
    assert bare.content == "Look:\n\n"
    explicit = M2.parse("\n<think>why</think>\nLook", thinking_open=False)
    assert (explicit.thinking, explicit.content) == ("why", "Look")


def test_waiting_for_the_rest_of_a_tag_has_an_end() -> None:
    text = '<minimax:tool_call><invoke name="f"><parameter name="a">x</parameter>' + "\n" * 50_000
    for long_text in (text, "<minimax:tool_call><invoke" + "x" * 50_000):
        parser = M2.parser(thinking_open=False)
        for character in long_text:
            parser.feed(character)
        assert parser.finish().tool_calls == ()


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH - 1, MAX_JSON_DEPTH, MAX_JSON_DEPTH + 1])
def test_a_value_too_deep_for_the_arguments_stays_text(depth: int) -> None:
    tools = [{"name": "f", "parameters": {"properties": {"a": {"type": "array"}}}}]
    text = nested(depth)
    reply = check_all_cuts(M2, m2_call(p("a", text)), tools=tools, thinking_open=False)
    is_read = depth < MAX_JSON_DEPTH
    assert reply.tool_calls == (ToolCall("f", {"a": json.loads(text) if is_read else text}),)


def test_a_schema_may_be_deep_or_contain_itself() -> None:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(3_000):
        deep = {"anyOf": [deep]}
    cycle: dict[str, Any] = {"anyOf": [{"type": "integer"}]}
    cycle["anyOf"].append(cycle)
    tool = Tool("f", parameters={"properties": {"a": deep, "b": cycle}})
    reply = M2.parse(m2_call(p("a", 7) + p("b", 7)), [tool], thinking_open=False)
    assert reply.tool_calls == (ToolCall("f", {"a": 7, "b": 7}),)


def test_tags_in_a_nameless_call_never_reach_the_content() -> None:
    num_tags = 20_000
    text = f"{B}<invoke>{'<thi' * num_tags}<think>{'nk>' * num_tags}</invoke>{E}"
    reply = M2.parse(text, thinking_open=False)
    assert "<think>" not in reply.content
    assert reply.content.count("<thi") == num_tags
