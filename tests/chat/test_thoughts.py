"""Thoughts of both formats: one that is opened again, and literal tags in one."""

import random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fulmen.chat import ChatFormat, CodePlace, Message, Transcript
from fulmen.chat.transcript import sampled_ids
from fulmen.sampling import SamplingParams
from tests.chat.helpers import M1, M2, MANY, check_all_cuts, cut, m1_block, m2_call
from tests.chat.test_transcript import SMALL, answer

CALLS = {
    "m1": m1_block('{"name": "f", "arguments": {"a": "Oslo"}}'),
    "m2": m2_call('<parameter name="a">Oslo</parameter>\n'),
}
FORMATS: dict[str, ChatFormat] = {"m1": M1, "m2": M2}


def begun(kind: str, text: str) -> str:
    """A completion that begins inside the thought."""
    return text if kind == "m2" else f"<think>\n{text}"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("text", "thinking", "content"),
    [
        ("a\n</think>\n\n<think>\nb\n</think>\n\nYes", "a\n\nb", "Yes"),
        ("a</think><think>b</think>Yes", "a\n\nb", "Yes"),
        ("a\n</think>\n \n <think>b</think>Yes", "a\n\nb", "Yes"),
        ("a\n</think>\n\nYes.\n<think>\nb\n</think>\n\nNo.", "a\n\nb", "Yes.\nNo."),
        ("\n</think>\n\n<think>b</think>", "b", ""),
        ("a</think><think>\n</think><think>c</think>Yes", "a\n\nc", "Yes"),
        ("a\n\n</think><think>b <think> c</think>x", "a\n\nb <think> c", "x"),
        ("I write <think> and\n<think> here.</think>x", "I write <think> and\n<think> here.", "x"),
        ("</minimax:tool_call> <invoke></think>x", "</minimax:tool_call> <invoke>", "x"),
        (" <minimax:tool_call> is a tag</think>x", " <minimax:tool_call> is a tag", "x"),
    ],
)
def test_thoughts_are_kept_as_written(kind: str, text: str, thinking: str, content: str) -> None:
    reply = check_all_cuts(FORMATS[kind], begun(kind, text))
    assert (reply.thinking, reply.content, reply.problems) == (thinking, content, ())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_thought_may_follow_calls(kind: str) -> None:
    text = begun(kind, f"a\n</think>\n\nx\n{CALLS[kind]}\n<think>b</think>\n{CALLS[kind]}")
    reply = check_all_cuts(FORMATS[kind], text)
    assert reply.thinking == "a\n\nb"
    assert [call.arguments for call in reply.tool_calls] == [{"a": "Oslo"}] * 2
    assert (reply.content.strip(), reply.problems) == ("x", ())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("text", "thinking", "content"),
    [
        ("Ok. <think>b</think>c", "b", "Ok. c"),
        ("Ok. <think>b</think>c <think>d</think>", "b\n\nd", "Ok. c "),
        ("`x` <think>b</think>c", "b", "`x` c"),
        ("it`s\n <think>b</think>c", "b", "it`s\n c"),
        ("```\nx\n```\n<think>b</think>c", "b", "```\nx\n```\nc"),
        ("```\nx\n``` <think>b</think>c", "b", "```\nx\n``` c"),
        ("~~~~\n~~~\n~~~~~\nx<think>b</think>c", "b", "~~~~\n~~~\n~~~~~\nxc"),
        ("```x``` y <think>b</think>c", "b", "```x``` y c"),
        ("`<think>` is a tag.\n<think>b</think>c", "b", "`<think>` is a tag.\nc"),
    ],
)
def test_a_tag_in_content_opens_a_thought(
    kind: str, text: str, thinking: str, content: str
) -> None:
    reply = check_all_cuts(FORMATS[kind], begun(kind, f"a\n</think>\n\n{text}"))
    assert (reply.thinking, reply.content) == (f"a\n\n{thinking}", content)
    assert (reply.problems, reply.is_thinking_closed) == ((), True)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "content",
    [
        "The tags are `<think>` and `</think>`.",
        "Write `<think>b</think>` here.",
        "```\n<think>\nb\n</think>\n```",
        "```xml <think>",
        " ~~~~\n```\n~~~\n<think>b</think>\n~~~~\nx",
        "1. As in\n   ```\n   <think>b</think>\n   ```\n",
        "````\n```\n<think>b</think>\n```\n</think>\n````",
        "```\n```x\n<think>b</think>",
        "~~~ `<think>",
    ],
)
def test_a_tag_in_code_is_content(kind: str, content: str) -> None:
    text = begun(kind, f"a\n</think>\n\n{content}")
    reply = check_all_cuts(FORMATS[kind], text)
    assert (reply.thinking, reply.content, reply.problems) == ("a", content, ())
    assert len(FORMATS[kind].find_thoughts(text)) == 1
    calls = check_all_cuts(FORMATS[kind], f"{text}\n{CALLS[kind]}<think>b</think>")
    assert (calls.thinking, calls.content.rstrip()) == ("a\n\nb", content.rstrip())
    assert [call.arguments for call in calls.tool_calls] == [{"a": "Oslo"}]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("content", ["", "Yes.\n", "Yes. "])
def test_a_later_thought_that_does_not_close_is_reported(kind: str, content: str) -> None:
    reply = check_all_cuts(FORMATS[kind], begun(kind, f"a\n</think>\n\n{content}<think>b"))
    assert (reply.thinking, reply.content) == ("a\n\nb", content)
    assert not reply.is_thinking_closed
    assert reply.problems == (
        "a later thought is not closed, all text after its tag is kept as thought",
    )


def test_a_thought_after_calls_that_does_not_close_is_reported() -> None:
    reply = check_all_cuts(M2, f"{CALLS['m2']}\n<think>b", thinking_open=False)
    assert (reply.thinking, len(reply.tool_calls)) == ("b", 1)
    assert "a later thought is not closed" in " ".join(reply.problems)


def test_without_a_first_thought_m1_has_no_later_one() -> None:
    never = check_all_cuts(M1, "x\n<think>y</think>")
    assert (never.thinking, never.content) == ("", "x\n<think>y</think>")


@settings(max_examples=MANY, deadline=None)
@given(st.data(), st.text("`~x \n\r\t", max_size=40))
def test_a_place_in_code_does_not_depend_on_cuts(data: st.DataObject, text: str) -> None:
    place = CodePlace()
    for piece in data.draw(cut(text)):
        place = place.after(piece)
    assert place == CodePlace().after(text)


def test_a_long_line_of_backticks_takes_linear_time() -> None:
    """Work that grows with what was read would take minutes here."""
    for text in ("```x " * 40_000, "`" * 100_000, "~" * 100_000, "```\n" * 40_000):
        place = CodePlace()
        for char in text:
            place = place.after(char)
        assert place == CodePlace().after(text)


PIECES = ["`", "```", "<think>", "</think>", "\n", "\n\n", " ", "x", "Yes.\n", "é"]


@settings(max_examples=MANY, deadline=None)
@given(
    st.data(),
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.sampled_from([*PIECES, "CALL"]), max_size=20),
)
def test_spans_hold_the_thoughts_that_the_parser_reads(
    data: st.DataObject, kind: str, pieces: list[str]
) -> None:
    format = FORMATS[kind]
    text = begun(kind, "".join(pieces).replace("CALL", CALLS[kind]))
    assume(kind == "m1" or not text.lstrip().startswith("<think>"))  # the prompt's own tag again
    reply = check_all_cuts(format, text, data.draw(cut(text)))
    ids = SMALL.encode(text)
    sampled = sampled_ids(format, SMALL, ids, SamplingParams(), has_end=False)
    assert sampled.is_thinking_closed == reply.is_thinking_closed
    stop = 0
    thoughts = []
    for span in sampled.spans:
        assert stop <= span.start < span.stop <= len(ids)
        stop = span.stop
        part = SMALL.decode(ids[span.start : span.stop])
        if span.kind == "thinking":
            thoughts.append(part.strip("\n"))
    assert "".join("\n\n".join(thoughts).split()) == "".join(reply.thinking.split())


@pytest.mark.parametrize("kind", FORMATS)
def test_an_answer_with_two_thoughts_comes_again_in_the_next_prompt(kind: str) -> None:
    format = FORMATS[kind]
    transcript = Transcript(format, SMALL)
    messages = [Message("user", "first")]
    text = begun(kind, "Hm.\n</think>\n\nYes.\n<think>\nWait.\n</think>\n\nNo.")
    completion = answer(format, SMALL, transcript, messages, text, random.Random(1))
    transcript.add(messages, completion)
    assert completion.reply.thinking == "Hm.\n\nWait."
    messages += [completion.message, Message("user", "next")]
    prompt = transcript.prompt(messages)
    shown = SMALL.decode(list(prompt.ids))
    if kind == "m1":
        assert text in shown
        assert prompt.num_reread_tokens == 0
    else:
        assert shown == format.render(messages)
        assert "Wait" not in shown
        assert "drops the thoughts" in str(prompt.reread_reason)


def test_many_thoughts_are_found_in_linear_time() -> None:
    """Work that grows with what was read would take minutes here."""
    for kind, format in FORMATS.items():
        text = begun(kind, "x</think>\n" + "<think>x</think>\ny\n" * 20_000)
        places = format.find_thoughts(text)
        assert len(places) == 20_001
        assert all(text[place.start : place.stop] == "x" for place in places)


def test_events_say_when_a_thought_is_open() -> None:
    parser: Any = M2.parser()
    parser.feed("a</think>\n")
    assert (parser.is_thinking, parser.code_place, parser.num_thoughts) == (False, CodePlace(), 1)
    parser.feed("<thi")
    assert not parser.code_place.is_code
    parser.feed("nk>")
    assert (parser.is_thinking, parser.code_place, parser.num_thoughts) == (True, None, 2)
    parser.feed("b</think>Yes: `")
    assert parser.code_place.is_code
    parser.feed(f"\n{CALLS['m2']}")
    assert not parser.code_place.is_code
    parser.feed('<minimax:tool_call><invoke name="f">')
    assert parser.code_place is None
