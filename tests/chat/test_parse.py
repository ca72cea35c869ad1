"""Parsing in both formats: every cut gives one answer, nothing raises, time is linear."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import ChatFormat
from tests.chat.helpers import (
    M1,
    M2,
    MANY,
    MARKERS,
    TOOLS,
    check_all_cuts,
    cut,
    m1_block,
    m2_call,
    stream,
)

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
    '<parameter name="a>b">',
    "<parameter\nname = 'unit'>",
    '<parameter name="',
    "'",
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
    '{"name"',
    '{"arguments": ',
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


SWALLOWED = ("<invoke", "<parameter name=", "</parameter>")


def assembled(fragments: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(fragments), max_size=25).map("".join)


M2_TEXTS = assembled(M2_FRAGMENTS) | st.text()
M1_TEXTS = assembled(M1_FRAGMENTS) | st.text()


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


def test_a_text_that_ended_takes_no_more() -> None:
    parser = M2.parser()
    parser.feed("a")
    first = parser.finish_events()
    assert parser.finish_events() == first
    with pytest.raises(ValueError, match="already ended"):
        parser.feed("b")


def test_a_call_of_an_unknown_tool_is_forwarded_and_reported() -> None:
    for format_, text in ((M1, m1_block('{"name": "f", "arguments": {}}')), (M2, m2_call(""))):
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


@settings(max_examples=MANY, deadline=None)
@given(
    assembled([*M2_FRAGMENTS, m2_call('<parameter name="city">Oslo</parameter>\n')]),
    st.none() | st.just(TOOLS),
)
def test_m2_no_value_swallows_a_call_unreported(text: str, tools: Any) -> None:
    reply = M2.parse(text, tools, thinking_open=False)
    values = [str(value) for call in reply.tool_calls for value in call.arguments.values()]
    if any(tag in value for tag in SWALLOWED for value in values):
        assert reply.problems


@settings(max_examples=MANY // 4, deadline=None)
@given(st.data(), assembled([*M2_FRAGMENTS, " " * 999, " " * 1500, "\n" * 2500]))
def test_m2_every_cut_of_long_white_space_gives_the_same_reply(
    data: st.DataObject, text: str
) -> None:
    check_all_cuts(M2, text, data.draw(cut(text)), TOOLS, thinking_open=False)


LONG = 100_000
NULLABLE = [{"name": "f", "parameters": {"properties": {"a": {"type": ["array", "null"]}}}}]


@pytest.mark.parametrize(
    ("format_", "start", "repeated", "end"),
    [
        (M2, "why", "\n", "</think>"),
        (M2, "</think>", "\n", "x"),
        (M2, "</think>x", " ", "x"),
        (M1, "x", " ", "x"),
        (M1, "<think>x", "\n", "x"),
        (M1, '<tool_calls>{"name": "f", oops', "{", "}"),
        (M1, '<tool_calls>{"name": "f", "arguments": {"a": ', "9", "}}"),
        (M1, '<tool_calls>{"name": "f", "arguments": {"a": 0.', "9", "}}"),
        (M1, '<tool_calls>{"name": "f", "arguments": {"a": t', "r", "}}"),
        (M2, '</think><minimax:tool_call><invoke name="f"><parameter name="a">', "[", "]"),
        (M2, '</think><minimax:tool_call><invoke name="f"><parameter name="b">', " ", "x"),
        (M2, "</think><minimax:tool_call><invoke>", "x", "</invoke>"),
    ],
)
def test_long_runs_in_single_characters_take_linear_time(
    format_: ChatFormat, start: str, repeated: str, end: str
) -> None:
    """Work that grows with what was read would take minutes here."""
    stream(format_, [start, *(repeated for _ in range(LONG)), end], NULLABLE)


@pytest.mark.parametrize(
    "repeated",
    [
        "</parameter> x",
        '<parameter name="b">',
        "<invoke",
        '</parameter></invoke><invoke name="f"><parameter name="a">',
        "<think>",
    ],
)
def test_long_texts_in_one_piece_take_linear_time(repeated: str) -> None:
    text = '<minimax:tool_call><invoke name="f"><parameter name="a">' + repeated * 20_000
    M2.parse(text, NULLABLE, thinking_open=False)
