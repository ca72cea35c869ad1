"""Recorded truth: every case of cases/, whole, in its own pieces, and one character at a time."""

from typing import Any

import pytest

from fulmen.chat import ChatFormat, Reply, get_format, sum_events
from fulmen.chat.m2 import MiniMaxM2
from fulmen.chat.rendering import render_template
from tests.chat.helpers import (
    M1,
    M2,
    MARKERS,
    content_with_thinking,
    read_cases,
    stream,
    template,
)

M1_TAGS = ("<tool_calls>", "</tool_calls>")

# The raw template drops system messages after the first and developer messages, and prints None.
TEMPLATE_DIFFERENCES = {
    "late-system-dropped": (
        "]~b]user\nc",
        "]~b]user\n<system-reminder>\nLATE\n</system-reminder>\nc",
    ),
    "developer-role-dropped": ("You are a helpful assistant.", "D"),
    "null-content-tool-call": ("]~b]ai\nNone\n", "]~b]ai\n\n"),
}
# Streaming and not, upstream's parser answers differently: ours gives the streaming answer to both.
REASONING_DIFFERENCES = {"m1-only-open": ("This is a reasoning section", "")}
# The thought is the answer's start: only a parser of thought and calls together reads these.
STARTS_IN_THOUGHT = {"issue-dynamo108"}


def cuts(case: dict[str, Any]) -> list[list[str]]:
    return [[case["text"]], case["chunks"] or [], list(case["text"])]


def read_all_ways(format_: ChatFormat, case: dict[str, Any], thinking_open: bool) -> Reply:
    """The reply, after a check that all ways of cutting the text give it."""
    whole = format_.parse(case["text"], case.get("tools"), thinking_open)
    for pieces in cuts(case):
        if "".join(pieces) == case["text"]:
            events, reply = stream(format_, pieces, case.get("tools"), thinking_open)
            assert reply == whole
            assert sum_events(events) == whole
    return whole


def calls(reply: Reply) -> list[dict[str, Any]]:
    return [{"name": call.name, "arguments": call.arguments} for call in reply.tool_calls]


def content_fits(content: str, case: dict[str, Any]) -> bool:
    expected = case["expect"]["content"] or ""
    match case["expect"]["content_match"]:
        case "exact":
            return content == expected
        case "prefix":
            return content.startswith(expected)
        case "blank":
            return not content.strip()
        case "no-markup":
            return "<" not in content
        case "whitespace-insensitive":
            return "".join(content.split()) == "".join(expected.split())
    return True


def by_id(file: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(c, id=c["id"]) for c in read_cases(file)])


@by_id("m2_reports.jsonl")
def test_m2_reads_what_was_reported(case: dict[str, Any]) -> None:
    test_m2_reads_the_calls_and_content_of_the_case(case)


@by_id("m2_tool_calls.jsonl")
def test_m2_reads_the_calls_and_content_of_the_case(case: dict[str, Any]) -> None:
    reply = read_all_ways(M2, case, thinking_open=case["id"] in STARTS_IN_THOUGHT)
    accepted = [case["expect"]["tool_calls"]]
    accepted += [
        other["tool_calls"] for other in case.get("alternatives", []) if "tool_calls" in other
    ]
    assert calls(reply) in accepted
    assert content_fits(reply.content, case)
    assert not any(marker in reply.content for marker in MARKERS)


def test_a_tool_block_ends_the_thought_in_the_case_that_starts_in_it() -> None:
    (case,) = [c for c in read_cases("m2_tool_calls.jsonl") if c["id"] in STARTS_IN_THOUGHT]
    assert M2.parse(case["text"], case["tools"]).thinking == "I should look this up."


@by_id("m1_tool_calls.jsonl")
def test_m1_reads_the_calls_and_content_of_the_case(case: dict[str, Any]) -> None:
    reply = read_all_ways(M1, case, thinking_open=False)
    assert calls(reply) == case["expect"]["tool_calls"]
    assert content_fits(reply.content, case)


@by_id("m1_tool_calls.jsonl")
def test_m1_reads_the_same_calls_when_the_thought_is_split_off(case: dict[str, Any]) -> None:
    reply = read_all_ways(M1, case, thinking_open=True)
    assert calls(reply) == case["expect"]["tool_calls"]
    if case["text"].startswith("<think>"):
        assert reply.thinking
        assert not any(tag in reply.content for tag in ("<think>", *M1_TAGS))


@by_id("reasoning.jsonl")
def test_thought_and_content_are_split_as_in_the_case(case: dict[str, Any]) -> None:
    format_ = M1 if case["parser"] == "minimax_m1" else M2
    reply = read_all_ways(format_, case, thinking_open=True)
    expect = case["expect"]
    if case["parser"] == "minimax_m2_append_think":
        if case["text"]:
            assert content_with_thinking(reply) == expect["content"]
        elif case["streaming"]:
            assert stream(format_, [""])[0] == []
        else:
            assert content_with_thinking(reply) == expect["content"] == "<think>"
    else:
        # Newlines around the thought and after its end are layout, which both texts may lose.
        thinking, content = (expect["reasoning"] or "").strip("\n"), expect["content"] or ""
        thinking, content = REASONING_DIFFERENCES.get(case["id"], (thinking, content.lstrip("\n")))
        assert (reply.thinking, reply.content) == (thinking, content)
    if "is_reasoning_end" in expect:
        assert reply.is_thinking_closed == expect["is_reasoning_end"]


def case_template(case: dict[str, Any]) -> tuple[str, ChatFormat]:
    """The template that the case was rendered with, and the format that should equal it."""
    source = template("minimax-m2.jinja")
    if case["template"] == "minimax-m2.jinja":
        return source, M2
    release = get_format("minimax_m2.7")
    assert isinstance(release, MiniMaxM2)
    return source.replace("You are a helpful assistant.", release.model_identity), release


@by_id("m2_template.jsonl")
def test_rendering_gives_the_text_of_the_case(case: dict[str, Any]) -> None:
    source, format_ = case_template(case)
    arguments = case["messages"], case["tools"], case["add_generation_prompt"]
    variables = dict(zip(("messages", "tools", "add_generation_prompt"), arguments, strict=True))
    if case["rendered"] is None:
        with pytest.raises(ValueError, match="refused the messages: Message has tool role"):
            render_template(source, **variables)
        with pytest.raises(ValueError, match="a tool message comes after no tool call"):
            format_.render(*arguments)
        return
    assert render_template(source, **variables) == case["rendered"]
    wrong, right = TEMPLATE_DIFFERENCES.get(case["id"], ("", ""))
    assert wrong in case["rendered"]
    expected = case["rendered"].replace(wrong, right) if wrong else case["rendered"]
    assert format_.render(*arguments) == expected
