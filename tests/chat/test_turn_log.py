"""Answers of a log stand in a client's history as they were sampled, and never another's."""

import json
import random
import sqlite3
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import (
    Completion,
    Found,
    Message,
    ToolCall,
    TurnLog,
    fingerprint_of_vocabulary,
)
from fulmen.chat.messages import SampledIds
from fulmen.chat.turn_payload import pack_turn, unpack_turn
from tests.bounds import num_lines
from tests.chat.clients import FORMATS, SMALL, Client, completion, written
from tests.chat.helpers import JSON_VALUES, NAMES, TEXT
from tests.chat.test_transcript import place_of
from tests.examples import examples
from tests.warm import python

KINDS = list(FORMATS)
NATIVE = ["m1", "m2"]
LONG = "A sentence of more than sixty-four characters, which nobody says twice by chance."
ARGUMENTS = st.dictionaries(
    st.sampled_from(["city", "b", "1", "10", "2", "größe"]),
    JSON_VALUES | st.sampled_from([1.0, -0.0, 2**53 + 1, 1e21, 0.1, "\U0001f30d"]),
    max_size=4,
)


def memory(**options: Any) -> TurnLog:
    return TurnLog(None, vocabulary="v", **options)


@pytest.fixture
def log() -> Iterator[TurnLog]:
    one = memory()
    yield one
    one.close()


def client_of(
    log: TurnLog, kind: str, *, seed: int = 0, is_plain: bool = True, **fields: Any
) -> Client:
    return Client(log, FORMATS[kind], random.Random(seed), is_plain=is_plain, **fields)


def states(found: Found) -> list[str]:
    return [turn.state for turn in found.turns]


def signs(found: Found) -> list[str | None]:
    return [turn.by for turn in found.turns]


# ---- whatever a client makes of a history


def converse(client: Client, data: st.DataObject, num_turns: int) -> None:
    """Hold a conversation of turns that no two are the same."""
    for number in range(num_turns):
        client.ask(f"{data.draw(TEXT)} {number}")
        thought = data.draw(TEXT.map(str.strip))
        content = data.draw(TEXT.filter(lambda text: "<think" not in text).map(str.strip))
        calls = data.draw(st.lists(st.tuples(NAMES, ARGUMENTS), max_size=2))
        if client.format.name == "template":
            calls = []
        client.answer(written(client.format, thought, f"{content} ({number})", calls))


def check_found(client: Client, found: Found, ids: Sequence[int] | None = None) -> None:
    """Check that unedited answers are as they were sampled, and stand so in the prompt."""
    shows = client.format.shows_thoughts(found.messages, keep_thoughts=client.keep_thoughts)
    assistants = [i for i, message in enumerate(client.history) if message.role == "assistant"]
    assert [turn.index for turn in found.turns] == assistants
    answers = iter(
        [
            (place, message)
            for place, message in enumerate(found.messages)
            if message.role == "assistant"
        ]
    )
    start, previous = 0, None
    place, message = 0, Message("assistant")
    for turn, owner in zip(found.turns, client.owners, strict=True):
        if owner in client.edited:
            place, message = next(answers)
            assert (turn.state, turn.turn_id, message.sampled) == ("rendered", None, None)
            previous = owner
            continue
        if owner != previous:
            place, message = next(answers)
        is_same, previous = owner == previous, owner
        sampled = client.completions[owner].sampled
        assert sampled is not None
        if message.sampled is not None and message.sampled.is_answer_only:
            # Too short to be sure, with nothing around it that is known: no thought comes back.
            assert all(one.state == "rendered" or one.by == "content" for one in found.turns)
            assert client.is_changed
            assert message.sampled == sampled.without_thought()
            assert (turn.state, turn.turn_id) == ("matched", f"{client.name}-{owner}")
            continue
        assert message.sampled == sampled
        assert message.thinking == (client.completions[owner].message.thinking)
        assert turn.turn_id == f"{client.name}-{owner}"
        is_put_back = owner in client.lacking and bool(message.thinking) and shows[place]
        assert turn.state == ("restored" if is_put_back else "matched")
        if ids is not None and not is_same:
            whole = shows[place] or client.format.thinking is None
            part = sampled.ids if whole else sampled.ids[sampled.answer_start :]
            at = place_of(ids, part, start)
            assert at >= 0
            start = at + len(part)
    assert next(answers, None) is None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_every_unedited_answer_keeps_its_ids_and_every_edited_one_is_rendered(
    kind: str, data: st.DataObject
) -> None:
    log = memory()
    try:
        client = client_of(
            log,
            kind,
            seed=data.draw(st.integers(0, 2**32)),
            is_plain=False,
            keep_thoughts=data.draw(st.booleans()),
        )
        num_turns = data.draw(st.integers(1, 4))
        converse(client, data, num_turns)
        client.ask("and now?")
        check(client)
        edit(client, data)
        check(client)
        nobody = client.find(scope="another key")
        assert set(states(nobody)) <= {"rendered"}
        assert all(message.sampled is None for message in nobody.messages)
    finally:
        log.close()


def check(client: Client) -> None:
    found = client.find()
    encoded = client.format.encode_history(
        found.messages, tokenizer=SMALL, keep_thoughts=client.keep_thoughts
    )
    check_found(client, found, encoded.ids)


def edit(client: Client, data: st.DataObject) -> None:
    """Edit some answers and questions, or leave the beginning out."""
    for index in client.completions:
        what = data.draw(st.sampled_from(["keep", "keep", "edit", "question"]))
        message = client.messages[index]
        if what == "edit":
            client.messages[index] = replace(message, content=message.content + " edited")
            client.edited.add(index)
            client.is_changed = True
        elif what == "question":
            asked = client.messages[index - 1]
            client.messages[index - 1] = replace(asked, content=asked.content + " edited")
            client.is_changed = True


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(30), deadline=None)
@given(data=st.data())
def test_answers_keep_their_ids_when_the_turns_before_are_left_out(
    kind: str, data: st.DataObject
) -> None:
    log = memory()
    try:
        client = client_of(log, kind, seed=data.draw(st.integers(0, 2**32)), is_plain=False)
        for number in range(4):
            client.messages.append(Message("user", f"question {number}"))
            client.answer(written(client.format, f"thought {number}", f"answer {number}", []))
        client.ask("and now?")
        first = data.draw(st.integers(1, 3))
        del client.messages[: 2 * first]
        kept = {i - 2 * first: c for i, c in client.completions.items() if i >= 2 * first}
        client.completions = kept
        found = client.find()
        answers = [message for message in found.messages if message.role == "assistant"]
        assert [one.sampled for one in answers] == [one.sampled for one in kept.values()]
        assert [one.thinking for one in answers] == [one.message.thinking for one in kept.values()]
    finally:
        log.close()


# ---- each sign


def two_turns(log: TurnLog, kind: str = "m2", **fields: Any) -> Client:
    client = client_of(log, kind, **fields)
    client.ask("what is the weather?")
    client.answer(
        written(client.format, "I must look", "Let me look.", [("get", {"city": "Oslo", "n": 1})])
    )
    client.ask("rain")
    client.answer(written(client.format, "it rains", "It rains in Oslo.", []))
    client.ask("thanks")
    return client


@pytest.mark.parametrize("kind", NATIVE)
def test_an_unchanged_history_is_found_by_what_we_issued(log: TurnLog, kind: str) -> None:
    found = two_turns(log, kind).find()
    assert signs(found) == ["tool_call_id", "conversation"]
    assert states(found) == ["matched", "matched"]


def history_of(client: Client, **changes: Any) -> list[Message]:
    return [
        replace(message, **changes) if message.role == "assistant" else message
        for message in client.messages
    ]


def test_a_signature_finds_an_answer_in_another_conversation(log: TurnLog) -> None:
    two_turns(log)
    history = [
        Message("user", "something else"),
        Message("assistant", "It rains in Oslo.", None, signatures=("sig-c-3",)),
        Message("user", "?"),
    ]
    found = log.find(history, scope="key", format=FORMATS["m2"])
    assert (signs(found), states(found)) == (["signature"], ["matched"])  # M2 drops the thought
    found = log.find(history[:2], scope="key", format=FORMATS["m2"])
    assert (signs(found), states(found)) == (["signature"], ["restored"])
    assert found.messages[1].thinking == "it rains"


def test_a_sign_of_another_answer_finds_nothing(log: TurnLog) -> None:
    client = two_turns(log)
    history = [
        Message("user", "something else"),
        Message("assistant", "It snows.", None, signatures=("sig-c-3",)),
        Message("user", "?"),
        replace(client.messages[1], content="Let me think."),
        *client.messages[2:3],
    ]
    found = log.find(history, scope="key", format=FORMATS["m2"])
    assert states(found) == ["rendered", "rendered"]
    assert found.messages == tuple(history)


def test_an_answer_is_found_by_its_question_after_another_beginning(log: TurnLog) -> None:
    client = client_of(log, "m2")
    client.ask("what is the weather?")
    client.answer(written(client.format, "hm", "Rain.", []))
    client.ask("where is Oslo?")
    client.answer(written(client.format, "north", "In Norway.", []))
    history = [Message("user", "hello"), Message("assistant", "Hi!"), *client.messages[2:]]
    found = log.find(history, scope="key", format=client.format)
    assert states(found) == ["rendered", "matched"]
    assert signs(found) == [None, "question"]
    assert found.messages[3].thinking == "north"


def test_an_answer_of_the_conversation_is_found_after_an_edited_question(log: TurnLog) -> None:
    client = client_of(log, "m2")
    for question, thought, text in (("a?", "x", "Yes."), ("b?", "y", "OK"), ("c?", "z", "No.")):
        client.ask(question)
        client.answer(written(client.format, thought, text, []))
    client.messages[2] = Message("user", "b, please?")
    found = client.find()
    assert states(found) == ["matched", "matched", "matched"]
    assert signs(found) == ["conversation", "content", "question"]
    assert [one.thinking for one in found.messages if one.role == "assistant"] == ["x", "y", "z"]


def test_a_long_answer_is_found_by_its_text_alone(log: TurnLog) -> None:
    client = client_of(log, "m2")
    client.ask("a?")
    client.answer(written(client.format, "x", LONG, []))
    history = [Message("user", "b?"), Message("assistant", LONG)]
    found = log.find(history, scope="key", format=client.format)
    assert (signs(found), states(found)) == (["content"], ["restored"])
    assert found.messages[1].thinking == "x"


def test_equal_answers_of_one_conversation_keep_their_order(log: TurnLog) -> None:
    client = client_of(log, "m1")
    for number in range(4):
        client.ask("go on")
        client.answer(written(client.format, f"thought {number}", "OK", []))
    client.ask("go on")
    found = client.find()
    thoughts = [one.thinking for one in found.messages if one.role == "assistant"]
    assert thoughts == [f"thought {number}" for number in range(4)]
    client.messages[0] = Message("user", "an edited beginning")
    found = client.find()
    thoughts = [one.thinking for one in found.messages if one.role == "assistant"]
    assert thoughts == [f"thought {number}" for number in range(4)]


def test_of_two_conversations_with_equal_answers_each_finds_its_own(log: TurnLog) -> None:
    clients = [client_of(log, "m1", seed=i, name=f"c{i}") for i in range(2)]
    for number, question in enumerate(["hello", "yes", "yes", "yes"]):
        for i, client in enumerate(clients):
            client.ask(f"{question} {i}" if number == 0 else question)
            client.answer(written(client.format, f"thought {i}.{number}", "OK", []))
    for i, client in enumerate(clients):
        client.messages[2] = Message("user", "an edited question")
        found = client.find()
        thoughts = [one.thinking for one in found.messages if one.role == "assistant"]
        assert thoughts == [f"thought {i}.{number}" for number in range(4)]


# ---- thoughts that are not one's own


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_a_short_answer_of_another_conversation_brings_no_thought(
    kind: str, data: st.DataObject
) -> None:
    log = memory()
    try:
        format = FORMATS[kind]
        secret = "SECRET"
        content = data.draw(st.sampled_from(["OK", "Yes.", "x OK", "é", "Ox"]))
        text = written(format, secret, content, [])
        if kind == "template" and data.draw(st.booleans()):
            text = f"<think>{secret}</think>\n{content}"
        elif data.draw(st.booleans()):
            text = written(format, "first", f"{content}\n<think>{secret}</think>", [])
        client = client_of(log, kind, seed=data.draw(st.integers(0, 99)))
        client.ask("the question of one conversation")
        made = client.answer(text)
        content = made.reply.content.replace(f"<think>{secret}</think>", "").strip()
        thought = data.draw(st.sampled_from([None, "my own"]))
        history = [
            Message("user", "another question"),
            Message("assistant", content, thought),
            *data.draw(st.sampled_from([[], [Message("user", "more")]])),
        ]
        found = log.find(history, scope="key", format=format, keep_thoughts=True)
        encoded = format.encode_history(found.messages, tokenizer=SMALL, keep_thoughts=True)
        prompt = SMALL.decode(encoded.ids)
        assert secret not in prompt
        if thought is not None and format.thinking is not None:
            assert prompt.count(thought) == 1
        assert content.strip() in prompt
        sampled = made.sampled
        assert sampled is not None
        if "<think>" not in text.removeprefix("<think>") and kind != "template":
            assert (states(found), signs(found)) == (["matched"], ["content"])
            assert place_of(encoded.ids, sampled.ids[sampled.answer_start :], 0) >= 0
    finally:
        log.close()


def test_several_equal_answers_of_other_conversations_bring_no_thought(log: TurnLog) -> None:
    for i in range(3):
        client = client_of(log, "m2", name=f"c{i}", seed=i)
        client.ask(f"question {i}")
        client.answer(written(client.format, f"thought {i}", LONG, []))
    history = [Message("user", "b?"), Message("assistant", LONG)]
    found = log.find(history, scope="key", format=FORMATS["m2"])
    assert found.messages[1].thinking is None
    assert signs(found) == ["content"]


def test_a_short_answer_to_a_tool_brings_no_thought_of_another_conversation(log: TurnLog) -> None:
    client = client_of(log, "m2")
    client.ask("write it")
    client.answer(written(client.format, "one", "", [("write", {"a": "x"})]))
    client.ask("ok")
    client.answer(written(client.format, "SECRET", "Done.", []))
    other = replace(client.messages[1].tool_calls[0], id="call_other", arguments={"a": "y"})
    history = [
        Message("user", "write another"),
        Message("assistant", "", None, (other,)),
        Message("tool", "ok0", tool_call_id="call_other"),
        Message("assistant", "Done."),
    ]
    found = log.find(history, scope="key", format=FORMATS["m2"], keep_thoughts=True)
    assert found.messages[3].thinking is None
    assert states(found) == ["rendered", "matched"]


@pytest.mark.parametrize("sign", ["tool_call_id", "signature", "conversation", "content"])
def test_nothing_is_found_in_another_scope_or_vocabulary(tmp_path: Path, sign: str) -> None:
    file = tmp_path / "turns.db"
    log, other = TurnLog(file, vocabulary="v"), TurnLog(file, vocabulary="w")
    client = client_of(log, "m2")
    client.ask("a?")
    client.answer(written(client.format, "x", LONG, [("f", {"a": 1})]))
    history = list(client.messages)
    if sign == "signature":
        history[1] = replace(history[1], signatures=("sig-c-1",))
    if sign != "tool_call_id":
        calls = tuple(replace(call, id=None) for call in history[1].tool_calls)
        history[1] = replace(history[1], tool_calls=calls)
    if sign == "content":
        history[0] = Message("user", "b?")
    assert signs(log.find(history, scope="key", format=client.format)) == [sign]
    for one, scope in ((log, ""), (log, "key2"), (log, "ke"), (other, "key")):
        found = one.find(history, scope=scope, format=client.format)
        assert found.messages == tuple(history)
        assert found.messages[1].sampled is None
        assert states(found) == ["rendered"]
        assert one.read("c-1", scope=scope) is None
    assert log.read("c-1", scope="key") is not None
    log.close()
    other.close()


# ---- what is put back


@pytest.mark.parametrize("kind", NATIVE)
def test_a_thought_that_moved_into_the_content_is_matched(log: TurnLog, kind: str) -> None:
    client = client_of(log, kind)
    client.ask("a?")
    made = client.answer(written(client.format, "my\nthought", "Fine.", []))
    for space in ("", "\n", "\n\n"):
        content = f"<think>{space}my\nthought{space}</think>{space}Fine."
        history = [client.messages[0], Message("assistant", content)]
        found = log.find(history, scope="key", format=client.format)
        assert states(found) == ["matched"]
        assert found.messages[1].sampled == made.sampled
        assert (found.messages[1].content, found.messages[1].thinking) == ("Fine.", "my\nthought")


def test_a_thought_that_is_sent_twice_is_matched(log: TurnLog) -> None:
    client = client_of(log, "m1")
    client.ask("a?")
    client.answer(written(client.format, "hm", "Fine.", []))
    history = [client.messages[0], Message("assistant", "<think>hm</think>Fine.", "hm")]
    assert states(log.find(history, scope="key", format=client.format)) == ["matched"]


def test_calls_are_put_back_as_they_were_written_with_the_ids_of_the_client(log: TurnLog) -> None:
    client = client_of(log, "m1")
    client.ask("a?")
    arguments = {"b": 1.0, "10": 2**53 + 1, "2": -0.0}
    client.answer(written(client.format, "x", "", [("f", arguments)]))
    call = replace(
        client.messages[1].tool_calls[0], id="mine", arguments={"2": 0, "10": 2**53, "b": 1}
    )
    history = [client.messages[0], Message("assistant", "", None, (call,))]
    found = log.find(history, scope="key", format=client.format)
    (put_back,) = found.messages[1].tool_calls
    assert put_back.id == "mine"
    assert json.dumps(put_back.arguments) == json.dumps(arguments)


@pytest.mark.parametrize("kind", NATIVE)
def test_an_answer_in_several_messages_is_one_again(log: TurnLog, kind: str) -> None:
    client = client_of(log, kind)
    client.ask("a?")
    calls = [("f", {"a": "1"}), ("g", {"a": "2"})]
    made = client.answer(written(client.format, "x", "I look.", calls))
    shown = client.messages[1]
    first, second = shown.tool_calls
    for pieces in (
        [Message("assistant", "I look."), Message("assistant", "", None, (first, second))],
        [Message("assistant", "", "x"), Message("assistant", "I look.", None, (first, second))],
        [
            Message("assistant", "I "),
            Message("assistant", "look.", None, (first,)),
            Message("assistant", "", None, (second,)),
        ],
    ):
        history = [client.messages[0], *pieces, Message("tool", "1"), Message("tool", "2")]
        found = log.find(history, scope="key", format=client.format)
        assert [message.role for message in found.messages] == [
            *("user", "assistant", "tool", "tool")
        ]
        assert found.messages[1].sampled == made.sampled
        assert [turn.index for turn in found.turns] == list(range(1, 1 + len(pieces)))
        assert {turn.turn_id for turn in found.turns} == {"c-1"}


def test_two_answers_in_a_row_are_two(log: TurnLog) -> None:
    client = client_of(log, "m2")
    client.ask("a?")
    made = [
        client.answer(written(client.format, f"thought {i}", f"answer {i}", [])) for i in range(9)
    ]
    found = client.find()
    assert [one.sampled for one in found.messages[1:]] == [one.sampled for one in made]
    assert set(states(found)) == {"matched"}


def test_an_answer_that_was_shown_as_another_text_is_found(log: TurnLog) -> None:
    format = FORMATS["m2"]
    made = completion(format, "x\n</think>\n\n<minimax:tool_call>\n<invoke name=")
    assert made.reply.content == ""
    history = [Message("user", "a?")]
    shown = Message("assistant", "the call was cut", made.reply.thinking)
    log.add(history, made, scope="key", turn_id="1", shown=shown)
    history += [shown, Message("user", "b?")]
    found = log.find(history, scope="key", format=format)
    assert states(found) == ["matched"]
    assert found.messages[1].sampled == made.sampled
    second = completion(format, "y\n</think>\n\nOK")
    answer = Message("assistant", "OK", "y")
    log.add(found.messages, second, scope="key", turn_id="2", shown=answer)
    found = log.find([*history, answer], scope="key", format=format)
    assert signs(found) == ["conversation", "conversation"]


# ---- what is logged


@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("end", ["length", "stop text", "abort", "stop"])
def test_an_answer_that_was_cut_inside_a_call_is_not_logged(kind: str, end: str) -> None:
    format = FORMATS[kind]
    text = written(format, "x", "I look.", [("f", {"a": "1"}), ("g", {"b": "2"})])
    assert format.calls is not None
    block = text.index(format.calls.block) + len(format.calls.block)
    closing = text.rindex("</")
    if kind == "m2":
        ends = [
            at + len("</invoke>") for at in range(len(text)) if text.startswith("</invoke>", at)
        ]
    else:  # a call that lacks its last brace only is a call
        ends = [at for at in range(len(text)) if text.startswith("}}", at)]
        ends = [at + 1 for at in ends]
    second = text.index('<invoke name="g' if kind == "m2" else '{"name": "g')
    for length in range(1, len(text) + 1):
        # The text "<" may begin a call or the end of the block.
        begun = second + 2 if kind == "m2" else second + 1
        is_in_first = block <= length < ends[0]
        is_in_second = begun <= length < ends[1]
        is_cut = (is_in_first or is_in_second) and end != "stop"
        log = memory()
        made = completion(
            format,
            text[:length],
            finish_reason="stop" if end == "stop text" else end,  # type: ignore[arg-type]
            stop_text="x" if end == "stop text" else None,
        )
        reply = made.reply
        shown = Message("assistant", reply.content, reply.thinking or None, reply.tool_calls)
        asked = [Message("user", "a?")]
        log.add(asked, made, scope="key", turn_id="1", shown=shown)
        assert (log.read("1", scope="key") is None) == is_cut, text[:length]
        found = log.find([*asked, shown], scope="key", format=format)
        assert (found.messages[1].sampled is None) == is_cut
        assert closing > ends[1]
        log.close()


def test_a_failed_answer_and_one_without_ids_are_not_logged(log: TurnLog) -> None:
    format = FORMATS["m2"]
    made = completion(format, "x\n</think>\n\nOK")
    shown = Message("assistant", "OK")
    for one in (replace(made, finish_reason="error"), replace(made, sampled=None)):
        log.add([], one, scope="key", turn_id="1", shown=shown)
        assert log.read("1", scope="key") is None


def test_a_logged_turn_is_read_by_its_id(log: TurnLog) -> None:
    client = two_turns(log, "m1")
    for index, made in client.completions.items():
        turn = log.read(f"c-{index}", scope="key")
        assert turn is not None
        assert turn.message == made.message
        assert turn.message.sampled == made.sampled
        assert turn.ids == made.answer_ids
        assert turn.logprobs == pytest.approx([token.logprob for token in made.tokens], rel=1e-6)
        assert (turn.finish_reason, turn.params) == (made.finish_reason, made.params)
    for id in ("", "c-2", "\ud800", "c-1\0"):
        assert log.read(id, scope="key") is None


def test_halves_of_surrogate_pairs_are_logged_and_found(log: TurnLog) -> None:
    format = FORMATS["m1"]
    text = '<think>\nx\n</think>\n<tool_calls>\n{"name": "f", "arguments": {"a": "\\ud800"}}\n'
    made = completion(format, f"{text}</tool_calls>")
    (call,) = made.reply.tool_calls
    for text in ("\ud800", "\ufffd"):
        shown = Message("assistant", "", "x", (replace(call, arguments={"a": text}),))
        log.add([Message("user", "\udfff")], made, scope="\ud800", turn_id="\ud800", shown=shown)
        found = log.find([Message("user", "\ufffd"), shown], scope="\ud800", format=format)
        assert found.messages[1].sampled == made.sampled
    assert log.read("\ud800", scope="\ud800") is not None


def test_a_turn_that_is_no_json_is_refused(log: TurnLog) -> None:
    made = completion(FORMATS["m2"], "x\n</think>\n\nOK")
    wrong = replace(made, params=replace(made.params, regex="a"))
    object.__setattr__(wrong.params, "regex", {1, 2})
    with pytest.raises(ValueError, match="cannot be written"):
        log.add([], wrong, scope="key", turn_id="1", shown=Message("assistant", "OK"))


# ---- payloads


@cache
def packed(kind: str) -> tuple[Completion, bytes]:
    text = written(FORMATS[kind], "x", "I look.", [("f", {"a": "1"})])
    made = completion(FORMATS[kind], text)
    assert made.sampled is not None
    payload = pack_turn(made, made.sampled)
    assert payload is not None
    return made, payload


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(100), deadline=None)
@given(data=st.data())
def test_any_other_bytes_are_a_turn_or_one_sentence(kind: str, data: st.DataObject) -> None:
    made, payload = packed(kind)
    turn = unpack_turn("1", payload)
    assert (turn.message, turn.message.sampled) == (made.message, made.sampled)
    raw = bytearray(zlib.decompress(payload))
    way = data.draw(st.sampled_from(["byte", "cut", "any", "raw", "json"]))
    if way == "byte":
        broken = bytearray(payload)
        broken[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    elif way == "cut":
        broken = bytearray(payload[: data.draw(st.integers(0, len(payload) - 1))])
    elif way == "any":
        broken = bytearray(data.draw(st.binary(max_size=200)))
    elif way == "raw":
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        broken = bytearray(zlib.compress(bytes(raw)))
    else:
        size = int.from_bytes(raw[:4], "little")
        head = json.loads(raw[4 : 4 + size])
        replace_one(head, data)
        written_head = json.dumps(head).encode()
        broken = bytearray(
            zlib.compress(len(written_head).to_bytes(4, "little") + written_head + raw[4 + size :])
        )
    try:
        read = unpack_turn("1", bytes(broken))
    except ValueError:
        return
    sampled = read.message.sampled
    assert isinstance(sampled, SampledIds)
    assert all(0 <= span.start <= span.stop <= len(sampled.ids) for span in sampled.spans)
    assert 0 <= sampled.answer_start <= len(sampled.ids)
    assert isinstance(sampled.tail, str)


def replace_one(value: Any, data: st.DataObject) -> None:
    """Put any JSON in the place of a value inside of another."""
    while True:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        place = data.draw(st.sampled_from(places))
        inner = value[place]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            value[place] = data.draw(JSON_VALUES | st.just([[[1] * 3]]))
            return
        value = inner


def test_a_payload_that_grows_is_bounded() -> None:
    with pytest.raises(ValueError, match="end"):
        unpack_turn("1", zlib.compress(bytes(2**27)))
    for payload in (None, 5, "text", b""):
        with pytest.raises(ValueError):  # noqa: PT011, each has its own
            unpack_turn("1", payload)


def test_a_broken_turn_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "turns.db"
    log = TurnLog(file, vocabulary="v")
    client = two_turns(log)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE payloads SET payload = x'0102'")
    connection.close()
    with pytest.raises(ValueError, match=rf"^{file} has a broken turn, remove it: ") as failed:
        client.find()
    assert "\n" not in str(failed.value)
    log.close()


# ---- on disk


def test_a_log_that_is_opened_again_finds_the_same(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "turns.db"
    log = TurnLog(file, vocabulary="v")
    client = two_turns(log)
    before = client.find()
    log.close()
    client.log = TurnLog(file, vocabulary="v")
    after = client.find()
    assert after == before
    assert [one.sampled for one in after.messages] == [one.sampled for one in before.messages]
    client.log.close()


def test_turns_expire_after_their_last_use(tmp_path: Path) -> None:
    clock = [1000.0]
    log = TurnLog(tmp_path / "t", vocabulary="v", max_age_seconds=100, now=lambda: clock[0])
    client = two_turns(log)
    clock[0] += 99
    assert states(client.find()) == ["matched", "matched"]
    clock[0] += 99
    assert states(client.find()) == ["matched", "matched"]
    clock[0] += 101
    assert states(client.find()) == ["rendered", "rendered"]
    assert log.read("c-1", scope="key") is None
    log.close()


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_turns_that_were_not_used_for_longest_go_first(tmp_path: Path, is_on_disk: bool) -> None:
    file = tmp_path / "turns.db" if is_on_disk else None
    clock = [0.0]
    log = TurnLog(file, vocabulary="v", max_bytes=2**19, now=lambda: clock[0])
    random_ = random.Random(0)
    clients = []
    for number in range(60):
        clock[0] += 1
        client = client_of(log, "m2", name=f"c{number}", seed=number)
        client.ask(f"question {number}")
        text = random_.randbytes(1_500).hex()
        client.answer(written(client.format, f"thought {number}", text, []))
        clients.append(client)
        clock[0] += 1
        assert states(clients[0].find()) == ["matched"]
    found = [states(client.find()) == ["matched"] for client in clients]
    assert found[0]
    assert not any(found[1:20])
    assert all(found[-5:])
    assert 5 < sum(found) < 50
    assert sorted(found[1:]) == found[1:]
    if file is not None:
        size = sum(one.stat().st_size for one in tmp_path.iterdir() if "-wal" not in one.name)
        assert size < 2**19 + 2**18
    log.close()


def test_an_answer_that_is_larger_than_the_log_is_left_out() -> None:
    log = memory(max_bytes=10_000)
    client = client_of(log, "m2")
    client.ask("a?")
    client.answer(written(client.format, "x", "OK", []))
    client.ask("b?")
    client.answer(written(client.format, "x", random.Random(0).randbytes(50_000).hex(), []))
    assert states(client.find()) == ["matched", "rendered"]
    log.close()


WRITER = """
import sys
from pathlib import Path
from fulmen.chat import TurnLog
from tests.chat.clients import Client, FORMATS, written
import random
file, name = Path(sys.argv[1]), sys.argv[2]
log = TurnLog(file, vocabulary="v")
for number in range(25):
    client = Client(log, FORMATS["m2"], random.Random(number), name=f"{name}{number}")
    client.is_plain = True
    client.ask(f"question {name} {number}")
    client.answer(written(client.format, f"thought {name} {number}", f"OK {name} {number}", []))
log.close()
"""


def test_several_processes_write_and_read_one_log(tmp_path: Path) -> None:
    file = tmp_path / "turns.db"
    processes = [
        subprocess.Popen(python("-c", WRITER, file, name), stderr=subprocess.PIPE) for name in "ab"
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    log = TurnLog(file, vocabulary="v")
    for name in "ab":
        for number in range(25):
            history = [
                Message("user", f"question {name} {number}"),
                Message("assistant", f"OK {name} {number}"),
            ]
            found = log.find(history, scope="key", format=FORMATS["m2"])
            assert found.messages[1].thinking == f"thought {name} {number}"
    log.close()


def test_many_threads_use_one_log(log: TurnLog) -> None:
    failures: list[BaseException] = []

    def talk(number: int) -> None:
        try:
            client = client_of(log, "m2", name=f"c{number}", seed=number)
            for turn in range(8):
                client.ask(f"question {number} {turn}")
                client.answer(written(client.format, f"{number} {turn}", f"OK {number} {turn}", []))
            client.ask("?")
            check_found(client, client.find())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_time_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="max_age_seconds"):
        memory(max_age_seconds=value)


def test_fingerprints_tell_formats_apart() -> None:
    prints = {fingerprint_of_vocabulary(SMALL, format) for format in FORMATS.values()}
    assert len(prints) == len(FORMATS)
    assert fingerprint_of_vocabulary(SMALL, FORMATS["m2"]) in prints


# ---- bounds


def long_history(count: int, kind: str) -> list[Message]:
    """Return a history of this many messages that no log has, or all in one run of answers."""
    if kind == "run":
        return [Message("assistant", f"OK {i}") for i in range(count)]
    roles = ("user", "assistant")
    return [Message(roles[i % 2], "OK" if kind == "same" else f"OK {i}") for i in range(count)]


@pytest.mark.parametrize("kind", ["turns", "same", "run"])
def test_work_grows_with_the_history_and_no_faster(kind: str) -> None:
    log = memory()
    format = FORMATS["m2"]
    made = completion(format, "x\n</think>\n\nOK")
    for number in range(100):
        log.add(
            [Message("user", f"OK {number}")],
            made,
            scope="key",
            turn_id=str(number),
            shown=Message("assistant", "OK"),
        )

    def work(count: int) -> None:
        log.find(long_history(count, kind), scope="key", format=format)

    work(100)
    assert num_lines(lambda: work(2500)) < 5 * num_lines(lambda: work(625))
    log.close()


def test_a_conversation_of_thousands_of_logged_turns_is_found(log: TurnLog) -> None:
    format = FORMATS["template"]
    history: list[Message] = []
    made = completion(format, "OK")
    for number in range(1000):
        history.append(Message("user", f"question {number}"))
        shown = Message("assistant", f"OK {number}")
        log.add(history[-1:], made, scope="key", turn_id=str(number), shown=shown)
        history.append(shown)
    start = time.process_time()
    found = log.find(history, scope="key", format=format)
    assert time.process_time() - start < 5
    assert {turn.turn_id for turn in found.turns} == {str(number) for number in range(1000)}


def test_a_message_of_a_hundred_thousand_calls_is_searched_and_logged(log: TurnLog) -> None:
    count = 100_000
    calls = tuple(ToolCall("f", {}, f"call_{i}") for i in range(count))
    history = [Message("user", "a?"), Message("assistant", "", None, calls)]
    history += [Message("tool", "", tool_call_id=call.id) for call in calls]
    made = completion(FORMATS["m2"], "</think>\n\nOK")
    start = time.process_time()
    assert states(log.find(history, scope="key", format=FORMATS["m2"])) == ["rendered"]
    log.add(history[:1], made, scope="key", turn_id="1", shown=history[1])
    assert states(log.find(history, scope="key", format=FORMATS["m2"])) == ["matched"]
    assert time.process_time() - start < 15  # squares would take minutes
