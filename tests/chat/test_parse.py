"""Parsing: every cut gives one answer, nothing raises, and what each rule decides."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import (
    ContentDelta,
    Format,
    ProblemFound,
    Reply,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    sum_events,
)
from fulmen.chat.arguments import MAX_JSON_DEPTH
from tests.chat.helpers import M1, M2, MANY, MARKERS, TOOLS, cut, stream

M2_FRAGMENTS = [
    *MARKERS,
    '<invoke name="get_weather">',
    "<invoke name='search'>",
    "<invoke name=f>",
    "<invoke>",
    "<invoke",
    "</invoke>",
    '<parameter name="city">',
    '<parameter name="days">',
    '<parameter name="unit">',
    "<parameter>",
    "</parameter>",
    "<tool_calls>",
    "</",
    "<",
    ">",
    '"',
    "null",
    "5",
    "Oslo",
    " ",
    "\n",
    "é🌍",
]
M1_FRAGMENTS = [
    "<think>",
    "</think>",
    "<tool_calls>",
    "</tool_calls>",
    '{"name": "get_weather", "arguments": {"city": "Oslo", "days": [1, 2.5e3, true]}}',
    '{"name": "search", "arguments": "{\\"q\\": 1}"}',
    '{"name": "f"}',
    '{"arguments": {}, "name": "f"}',
    '{"name": "f", "arguments": {"a": {',
    "}",
    "{",
    "]",
    ",",
    ":",
    '"',
    "\\u00e9",
    "\\",
    "12",
    "nul",
    "\n",
    " ",
    "</tool",
    "text",
    "é🌍",
]


def assembled(fragments: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(fragments), max_size=25).map("".join)


M2_TEXTS = assembled(M2_FRAGMENTS) | st.text()
M1_TEXTS = assembled(M1_FRAGMENTS) | st.text()


def check_all_cuts(
    format_: Format,
    text: str,
    pieces: list[str] | None = None,
    tools: Any = None,
    thinking_open: bool = True,
) -> Reply:
    """The reply, after a check that the text whole, in pieces and in characters gives it."""
    middle = len(text) // 2
    pieces = pieces or [text[:middle], text[middle:]]
    whole = format_.parse(text, tools, thinking_open)
    for cut_text in ([text], pieces, list(text)):
        events, reply = stream(format_, cut_text, tools, thinking_open)
        assert reply == whole
        assert sum_events(events) == whole
        check_order(events)
    return whole


def check_order(events: list[Any]) -> None:
    """A call's events come in order, its fragments join to its object, and indices are dense."""
    open_index, next_index, fragments = None, 0, ""
    for event in events:
        if isinstance(event, ToolCallStart):
            assert event.index == next_index
            open_index, next_index, fragments = event.index, next_index + 1, ""
        elif isinstance(event, ToolCallDelta):
            assert event.index == open_index
            fragments += event.arguments
        elif isinstance(event, ToolCallEnd):
            assert event.index == open_index
            assert isinstance(json.loads(fragments), dict)
            open_index = None
        elif isinstance(event, ThinkingDelta | ContentDelta | ProblemFound):
            assert event.text


@settings(max_examples=MANY, deadline=None)
@given(st.data(), M2_TEXTS, st.none() | st.just(TOOLS), st.booleans())
def test_m2_every_cut_gives_the_same_reply(
    data: st.DataObject, text: str, tools: Any, thinking_open: bool
) -> None:
    check_all_cuts(M2, text, data.draw(cut(text)), tools, thinking_open)


@settings(max_examples=MANY, deadline=None)
@given(st.data(), M1_TEXTS, st.none() | st.just(TOOLS), st.booleans())
def test_m1_every_cut_gives_the_same_reply(
    data: st.DataObject, text: str, tools: Any, thinking_open: bool
) -> None:
    check_all_cuts(M1, text, data.draw(cut(text)), tools, thinking_open)


@settings(max_examples=MANY, deadline=None)
@given(assembled([*M2_FRAGMENTS[:13], "words ", "\n"]), st.booleans())
def test_m2_tags_never_reach_the_content(text: str, thinking_open: bool) -> None:
    reply = M2.parse(text, None, thinking_open)
    assert not any(marker in reply.content for marker in MARKERS)


# MiniMax-M2, rule by rule.


def m2_call(body: str, name: str = "f") -> str:
    return f'<minimax:tool_call>\n<invoke name="{name}">\n{body}</invoke>\n</minimax:tool_call>'


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
        ("true", {"type": ["boolean", "string"]}, True),
        ('{"a": [1]}', {"type": "object"}, {"a": [1]}),
        ("[1]", {"type": "object"}, [1]),
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
def test_m2_a_value_means_what_its_schema_says(value: str, schema: Any, expected: Any) -> None:
    found = m2_arguments(value, schema)
    assert found == expected
    assert type(found) is type(expected)


def test_m2_references_in_a_schema_are_followed() -> None:
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
        "text with </parameter> inside",
        "</invoke>",
        '<invoke name="x">\n<parameter>1</parameter>\n</invoke> and more',
        "</think> <think> </minimax:tool_call>",
        "<parameter>\n</parameter>",
        '<parameter name="other">1</parameter>',
        "a < b && c </p",
        "\n leading and trailing \n\n",
    ],
)
def test_m2_markup_in_a_value_belongs_to_it(value: str) -> None:
    assert m2_arguments(value, {"type": "string"}) == value


def test_m2_a_value_with_no_closing_tag_ends_at_the_next_parameter_of_the_tool() -> None:
    body = '<parameter name="city">Oslo\n<parameter name="days">3</parameter>\n'
    reply = M2.parse(m2_call(body, "get_weather"), TOOLS, thinking_open=False)
    assert reply.tool_calls[0].arguments == {"city": "Oslo\n", "days": 3}
    assert reply.problems == ("the call of get_weather has a value with no </parameter>",)


def test_m2_the_first_of_a_repeated_parameter_counts() -> None:
    body = '<parameter name="a">1</parameter><parameter name="a">2</parameter>'
    reply = M2.parse(m2_call(body), thinking_open=False)
    assert reply.tool_calls[0].arguments == {"a": "1"}
    assert reply.problems == ("the call of f gives a again, the first value counts",)


def test_m2_string_values_stream_as_they_come_and_others_when_complete() -> None:
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


def test_m2_a_cut_call_is_no_call_and_is_quoted_in_full() -> None:
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
        ("a<think>b", "ab", "stray <think>"),
        ('<tool_calls>\n{"name": "f"}', '<tool_calls>\n{"name": "f"}', "belongs to MiniMax-M1"),
    ],
)
def test_m2_what_is_malformed_comes_back_and_is_reported(
    text: str, content: str, problem: str
) -> None:
    reply = M2.parse(text, thinking_open=False)
    assert reply.content == content
    assert problem in " | ".join(reply.problems)


def test_m2_layout_falls_away_only_after_a_thought() -> None:
    thought = "\nwhy\n</think>\n\nLook:\n\n" + m2_call("") + "\n"
    assert (M2.parse(thought).thinking, M2.parse(thought).content) == ("why", "Look:\n")
    bare = M2.parse("Look:\n\n" + m2_call(""), thinking_open=False)
    assert bare.content == "Look:\n\n"
    explicit = M2.parse("\n<think>why</think>\nLook", thinking_open=False)
    assert (explicit.thinking, explicit.content) == ("why", "Look")


def test_a_text_that_ended_takes_no_more() -> None:
    parser = M2.parser()
    parser.feed("a")
    first = parser.finish_events()
    assert parser.finish_events() == first
    with pytest.raises(ValueError, match="already ended"):
        parser.feed("b")


def test_waiting_for_the_rest_of_a_tag_has_an_end() -> None:
    text = '<minimax:tool_call><invoke name="f"><parameter name="a">x</parameter>' + "\n" * 50_000
    for long_text in (text, "<minimax:tool_call><invoke" + "x" * 50_000):
        parser = M2.parser(thinking_open=False)
        for character in long_text:
            parser.feed(character)
        assert parser.finish().tool_calls == ()


# MiniMax-M1, rule by rule.


def m1_block(*lines: str) -> str:
    return "<tool_calls>\n" + "\n".join(lines) + "\n</tool_calls>"


GOOD = '{"name": "f", "arguments": {"a": "x"}}'


@pytest.mark.parametrize(
    "line",
    [
        GOOD,
        GOOD + "}}",
        GOOD[:-1],
        f"[{GOOD}]",
        f"{GOOD},",
        '{"id": 7, "arguments": {"a": "x"}, "type": [{}], "name": "f"}',
        '{"name": "f", "arguments": "{\\"a\\": \\"x\\"}"}',
        '{"name": "f", "arguments": {"a": "x"}, "arguments": {}, "name": "g"}',
        '{\n "name":"f",\n "arguments":{\n  "a" : "x"\n }\n}',
    ],
)
def test_m1_a_call_is_read_in_any_spelling(line: str) -> None:
    reply = check_all_cuts(M1, m1_block(line, GOOD))
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("f", {"a": "x"})] * 2
    assert reply.content == ""


@pytest.mark.parametrize(
    "line",
    [
        "{invalid json here}",
        '{"name": "f"}',
        '{"name": "f", "arguments": null}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "x"}',
        '{"name": 5, "arguments": {}}',
        '{"name": "", "arguments": {}}',
        '{"name": "\\ud800", "arguments": {}}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {"a": 1e999}}',
        '{"name": "f", "arguments": {"a": 01}}',
        '{"name": "f", "arguments": {"a": "\\x"}}',
        '{"name": "f", "arguments": {"a": 1,}}',
        '{"name": "f", "arguments": {"a": [1}}}',
        '{"name": "f", "arguments": {"a": ' + "[" * MAX_JSON_DEPTH,
        '{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}",
        '{"name": "f" "arguments": {}}',
        "{]",
    ],
)
def test_m1_a_bad_line_is_reported_and_the_next_one_read(line: str) -> None:
    reply = check_all_cuts(M1, m1_block(line, GOOD))
    assert [call.name for call in reply.tool_calls] == ["f"]
    (problem,) = reply.problems
    assert line in problem


def test_m1_problems_come_in_the_same_order_for_every_cut() -> None:
    reply = check_all_cuts(M1, m1_block(GOOD[:-1]), tools=TOOLS)
    assert [call.name for call in reply.tool_calls] == ["f"]
    assert ["none of its tools" in reply.problems[0], "no closing" in reply.problems[1]] == [
        True
    ] * 2


def test_m1_arguments_stream_as_they_come() -> None:
    parser = M1.parser(new_call_id=lambda: "call_x")
    assert parser.feed('<tool_calls>\n{"name": "f", "argu') == []
    assert parser.feed('ments": {"a": "x') == [
        ToolCallStart(0, "call_x", "f"),
        ToolCallDelta(0, '{"a": "x'),
    ]
    assert parser.feed('y\\"", "b": [1') == [ToolCallDelta(0, 'y\\"", "b": [1')]
    assert parser.feed("]}}\n") == [ToolCallDelta(0, "]}"), ToolCallEnd(0)]
    assert parser.finish().problems == ("the tool block has no </tool_calls>",)


def test_m1_a_cut_call_is_no_call_and_is_quoted_in_full() -> None:
    reply = check_all_cuts(M1, "Look: <tool_calls>\n" + GOOD[:-4])
    assert (reply.content, reply.tool_calls) == ("Look:", ())
    assert reply.problems[0] == "a tool call was cut off by the end of the text: " + GOOD[:-4]


def test_m1_text_in_a_block_comes_back_as_content() -> None:
    reply = check_all_cuts(M1, m1_block("I call f:", GOOD))
    assert (reply.content, len(reply.tool_calls)) == ("I call f:\n", 1)
    assert reply.problems == ("a tool block has text beside its calls, it is kept as content",)


def test_m1_calls_in_a_thought_are_no_calls() -> None:
    text = f"<think>\n{m1_block(GOOD)}\n</think>\n\nDone. <think>{m1_block(GOOD)}</think>"
    split = M1.parse(text)
    assert (split.thinking, split.tool_calls) == (m1_block(GOOD), ())
    assert split.content == f"Done. <think>{m1_block(GOOD)}</think>"
    assert M1.parse(text, thinking_open=False).content == text


def test_a_call_of_an_unknown_tool_is_forwarded_and_reported() -> None:
    for format_, text in ((M1, m1_block(GOOD)), (M2, m2_call(""))):
        reply = format_.parse(text, TOOLS, thinking_open=False)
        assert [call.name for call in reply.tool_calls] == ["f"]
        assert reply.problems == (
            "the model called f, which is none of its tools: get_weather, search",
        )


def test_a_parser_says_whether_it_is_in_the_thought() -> None:
    for format_, start in ((M2, ""), (M1, "<think>")):
        parser = format_.parser()
        parser.feed(f"{start}why")
        assert parser.is_thinking
        parser.feed("</think>answer")
        assert not parser.is_thinking
