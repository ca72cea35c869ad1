"""Thoughts of both formats: one that is opened again, and literal tags in one."""

import random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fulmen.chat import ChatFormat, Message, Transcript
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
        ("a\n</think>\n\nYes.\n<think>b", "a\n\nb", "Yes.\n"),
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


def test_in_the_middle_of_a_line_the_tag_opens_nothing() -> None:
    m1 = check_all_cuts(M1, "<think>a</think>x <think>y</think> z")
    assert (m1.thinking, m1.content) == ("a", "x <think>y</think> z")
    m2 = check_all_cuts(M2, "a</think>x <think>y z")
    assert (m2.thinking, m2.content) == ("a", "x y z")
    assert m2.problems == ("a stray <think> was taken out of the text",)
    never = check_all_cuts(M1, "x\n<think>y</think>")
    assert (never.thinking, never.content) == ("", "x\n<think>y</think>")


PIECES = ["<think>", "</think>", "\n", "\n\n", " ", "x", "Yes.\n", "é"]


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
    assert (parser.is_thinking, parser.may_think_again, parser.num_thoughts) == (False, True, 1)
    parser.feed("<thi")
    assert not parser.may_think_again
    parser.feed("nk>")
    assert (parser.is_thinking, parser.num_thoughts) == (True, 2)
    parser.feed("b</think>Yes")
    assert not parser.may_think_again
    parser.feed(f"\n{CALLS['m2']}")
    assert parser.may_think_again
