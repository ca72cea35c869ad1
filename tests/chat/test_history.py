"""A client's history: read, repaired where asked, or refused with the place of what is wrong."""

import json
import random
import re
import time
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import VOLATILE_LINES, History, Message, TurnLog, read_history
from fulmen.chat.history import NOT_ANSWERED
from fulmen.chat.mending import mend_arguments
from fulmen.chat.tokenizer import join_segments
from tests.bounds import num_lines
from tests.chat.clients import FORMATS, SMALL, Client, tools_of, written
from tests.chat.helpers import JSON_VALUES, M2, TEXT
from tests.chat.test_transcript import place_of
from tests.examples import examples

PLACE = re.compile(r"(messages(\[\d+\])?|system): ")
USER = {"role": "user", "content": "Hello"}
UNKNOWN = "Result of a tool call that is not in this conversation:\n"
BILLING = "x-anthropic-billing-header: cc_version=2.1.3; cc_entrypoint=cli;"


def call(id: str | None = "c1", arguments: Any = "{}", name: str = "f") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


def calls(*given: dict[str, Any], content: Any = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(given)}


def result(id: str | None = "c1", content: Any = "ok") -> dict[str, Any]:
    sent = {"role": "tool", "content": content}
    return sent if id is None else {**sent, "tool_call_id": id}


def system(text: Any) -> dict[str, Any]:
    return {"role": "system", "content": text}


def use(id: str = "c1", input: Any = None) -> dict[str, Any]:
    block = {"type": "tool_use", "id": id, "name": "f", "input": {} if input is None else input}
    return {"role": "assistant", "content": [block]}


def used(id: str = "c1", content: Any = "ok", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


def sentence(messages: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as failed:  # noqa: PT011, each has its own
        read_history(messages, **options)
    text = str(failed.value)
    assert "\n" not in text
    assert len(text) < 700
    assert not text.endswith(".")
    return text


# ---- refused

REFUSED: dict[str, tuple[list[Any], int, str]] = {
    "a result that is an object": ([USER, calls(call()), result(content={"a": 1})], 2, "object"),
    "a result block that is an object": (
        [USER, use(), {"role": "user", "content": [used(content={"a": 1})]}],
        2,
        "object",
    ),
    "an unknown tool_call_id": ([USER, calls(call()), result("c2")], 2, "c2"),
    "an unknown tool_use_id": ([USER, use(), {"role": "user", "content": [used("c2")]}], 2, "c2"),
    "a result of an earlier call": (
        [USER, calls(call()), result(), calls(call("c2")), result("c1")],
        4,
        "c1",
    ),
    "a result without a call": ([USER, result(None)], 1, "after no tool call"),
    "a result with an id and no call": ([USER, result("c9")], 1, "c9"),
    "a result without an id": ([USER, calls(call()), result(None)], 2, "tool_call_id"),
    "two results of one call": ([USER, calls(call()), result(), result()], 3, "already"),
    "more results than calls": (
        [USER, calls(call(None)), result(None), result(None)],
        3,
        "already",
    ),
    "no result at the end": ([USER, calls(call())], 1, "has no result"),
    "no result before a user": ([USER, calls(call()), USER, result()], 1, "has no result"),
    "no result before an answer": (
        [USER, calls(call()), {"role": "assistant", "content": "x"}],
        1,
        "has no result",
    ),
    "only one result of two": ([USER, calls(call(), call("c2")), result("c2")], 1, "c1"),
    "only a system message after the call": ([USER, calls(call()), system("x")], 1, "c1"),
    "arguments that are no JSON": ([USER, calls(call(arguments="{a: 1}")), result()], 1, "JSON"),
    "arguments that are cut": ([USER, calls(call(arguments='{"a": ')), result()], 1, "JSON"),
    "arguments that are a list": ([USER, calls(call(arguments="[1]")), result()], 1, "object"),
    "arguments that are a number": ([USER, calls(call(arguments=5)), result()], 1, "object"),
    "an input that is text": ([USER, use(input="no"), USER], 1, "JSON"),
    "deep arguments": (
        [USER, calls(call(arguments='{"a": ' + "[" * 9999 + "]" * 9999 + "}")), result()],
        1,
        "nested",
    ),
    "NaN in arguments": ([USER, calls(call(arguments='{"a": NaN}')), result()], 1, "NaN"),
    "a call without a name": ([USER, calls({"id": "c1", "function": {}}), result()], 1, "name"),
    "calls that are an object": ([USER, {"role": "assistant", "tool_calls": {"a": 1}}], 1, "list"),
    "a call that is text": ([USER, {"role": "assistant", "tool_calls": ["f"]}], 1, "object"),
    "an unknown role": ([USER, {"role": "robot", "content": "x"}], 1, "robot"),
    "a role that is no text": ([USER, {"role": ["user"], "content": "x"}], 1, "role"),
    "no role": ([USER, {"content": "x"}], 1, "role"),
    "content that is a number": ([{"role": "user", "content": 5}], 0, "content"),
    "content that is an object": ([USER, {"role": "user", "content": {"text": "x"}}], 1, "content"),
    "a message that is text": ([USER, "Hello"], 1, "object"),
    "a message that is null": ([None], 0, "object"),
    "an image": (
        [USER, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        1,
        "image_url",
    ),
    "a document": (
        [{"role": "user", "content": [{"type": "document", "source": {}}]}],
        0,
        "document",
    ),
    "an image in a result": (
        [USER, use(), {"role": "user", "content": [used(content=[{"type": "image"}])]}],
        2,
        "image",
    ),
    "an unknown part": ([{"role": "user", "content": [{"type": "hologram"}]}], 0, "hologram"),
    "calls of a user": ([{**USER, "tool_calls": [call()]}], 0, "tool_calls"),
    "a call block of a user": ([{**use(), "role": "user"}], 0, "tool_use"),
    "a result block of an assistant": (
        [USER, {"role": "assistant", "content": [used()]}],
        1,
        "tool_result",
    ),
    "an id that is a number": ([USER, calls({**call(), "id": 5}), result()], 1, "id"),
    "a tool_call_id that is a number": (
        [USER, calls(call()), {**result(), "tool_call_id": 5}],
        2,
        "tool_call_id",
    ),
    "is_error that is text": (
        [USER, use(), {"role": "user", "content": [used(is_error="yes")]}],
        2,
        "is_error",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_with_its_place(name: str) -> None:
    messages, place, word = REFUSED[name]
    text = sentence(messages)
    assert text.startswith(f"messages[{place}]: ")
    assert word in text
    # A system prompt that the server put before it is not counted.
    assert sentence([system("Be kind."), *messages], first_index=1) == text
    earlier = [system("a"), {"role": "assistant", "content": "x"}]
    assert sentence([*earlier, *messages]) == text.replace(f"[{place}]", f"[{place + 2}]", 1)


def test_a_system_prompt_that_the_server_put_before_is_named_so() -> None:
    text = sentence([system([{"type": "image"}]), USER], first_index=1)
    assert text.startswith("system: ")
    assert sentence([system("x")], first_index=1).startswith("messages: ")


@pytest.mark.parametrize("messages", [[], (), "Hello", {"role": "user"}, 5, None, b"x"])
def test_messages_that_are_no_list_or_empty_are_refused(messages: Any) -> None:
    assert sentence(messages).startswith("messages: ")


# ---- accepted

ACCEPTED: dict[str, list[Any]] = {
    "several system messages": [system("a"), system("b"), USER, system("c")],
    "a developer": [{"role": "developer", "content": "a"}, USER],
    "a root": [{"role": "root", "content": "a"}, USER],
    "only a system message": [system("a")],
    "answers in a row": [USER, *({"role": "assistant", "content": "x"},) * 3, USER],
    "users in a row": [USER, USER, USER],
    "an answer first": [{"role": "assistant", "content": "Hi"}, USER],
    "an answer last": [USER, {"role": "assistant", "content": "It is"}],
    "null content with calls": [USER, calls(call()), result()],
    "missing content with calls": [USER, {"role": "assistant", "tool_calls": [call()]}, result()],
    "empty content with calls": [USER, calls(call(), content=""), result()],
    "an empty list with calls": [USER, calls(call(), content=[]), result()],
    "null content": [USER, {"role": "assistant", "content": None}, USER],
    "missing content": [USER, {"role": "assistant"}, USER],
    "empty content": [USER, {"role": "assistant", "content": ""}, USER],
    "an empty list": [USER, {"role": "assistant", "content": []}, USER],
    "null calls": [USER, {"role": "assistant", "content": "x", "tool_calls": None}, USER],
    "no calls in a list": [USER, {"role": "assistant", "content": "x", "tool_calls": []}, USER],
    "arguments without any": [USER, calls(call(arguments="{}")), result()],
    "empty arguments": [USER, calls(call(arguments="")), result()],
    "arguments as an object": [USER, calls(call(arguments={"a": [1, None]})), result()],
    "null arguments": [USER, calls(call(arguments=None)), result()],
    "odd names": [
        USER, calls(call(name="a-b.c_d"), call("c2", name="mcp__x.y-z")), result(), result("c2")
    ],
    "a long result": [USER, calls(call()), result(content="x" * 50_000)],
    "a result of parts": [USER, calls(call()), result(content=[{"type": "text", "text": "a"}])],
    "an empty result": [USER, calls(call()), result(content="")],
    "a null result": [USER, calls(call()), result(content=None)],
    "results in another order": [USER, calls(call(), call("c2")), result("c2"), result("c1")],
    "calls without ids": [USER, calls(call(None), call(None)), result(None), result(None)],
    "a system message among results": [
        USER, calls(call(), call("c2")), result(), system("x"), result("c2"), system("y"), USER
    ],
    "a system message before the result": [USER, calls(call()), system("x"), result()],
    "anthropic's blocks": [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "x", "signature": "s"},
            {"type": "redacted_thinking", "data": "d"},
            {"type": "text", "text": "b"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
            {"type": "tool_use", "id": "c2", "name": "f", "input": {}},
        ]},
        {"role": "user", "content": [
            used(), used("c2", [{"type": "text", "text": "x"}]), {"type": "text", "text": "c"}
        ]},
    ],
    "results in two user messages": [
        USER,
        {"role": "assistant", "content": [*use()["content"], *use("c2")["content"]]},
        {"role": "user", "content": [used()]},
        {"role": "user", "content": [used("c2")]},
    ],
    "a failed result": [USER, use(), {"role": "user", "content": [used(is_error=True)]}],
    "unknown keys": [{**USER, "name": "Ann", "cache_control": {}, "x": {"y": 1}}],
    "reasoning_details": [
        USER,
        {"role": "assistant", "reasoning_details": [{"text": "t", "signature": "s"}]},
    ],
    "the same call id again": [USER, calls(call()), result(), USER, calls(call()), result()],
    "two calls of one id": [USER, calls(call(), call()), result(), result()],
    "our own messages": [Message("user", "a"), Message("assistant", "b")],
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("lenient", [False, True])
def test_what_clients_may_send_is_read_and_rendered(name: str, lenient: bool) -> None:
    messages = ACCEPTED[name]
    history = read_history(messages, lenient=lenient)
    assert history.repairs == ()
    assert len(history.places) == len(history.messages)
    assert set(history.places) <= set(range(len(messages)))
    for format in FORMATS.values():
        assert format.encode(history.messages, tokenizer=SMALL)


def test_results_come_in_the_order_of_their_calls_with_their_places() -> None:
    history = read_history(
        [
            *(USER, calls(call(), call("c2"), call("c3")), result("c3", "3"), system("x")),
            *(result("c1", "1"), system("y"), result("c2", "2"), USER),
        ]
    )
    assert [message.content for message in history.messages] == [
        *("Hello", "", "1", "x", "2", "y", "3", "Hello")
    ]
    assert history.places == (0, 1, 4, 3, 6, 5, 2, 7)


def test_signatures_are_read() -> None:
    history = read_history(ACCEPTED["anthropic's blocks"])
    assert history.messages[1].signatures == ("s", "d")
    history = read_history(ACCEPTED["reasoning_details"])
    assert history.messages[1].signatures == ("s",)


# ---- repaired

REPAIRED: dict[str, tuple[list[Any], list[tuple[str, str]], list[int]]] = {
    "a call without a result": (
        [USER, calls(call()), USER],
        [("user", "Hello"), ("assistant", ""), ("tool", NOT_ANSWERED), ("user", "Hello")],
        [1],
    ),
    "one of two without": (
        [USER, calls(call(), call("c2")), result("c2", "2")],
        [("user", "Hello"), ("assistant", ""), ("tool", NOT_ANSWERED), ("tool", "2")],
        [1],
    ),
    "a late result": (
        [USER, calls(call()), USER, result(content="late")],
        [("user", "Hello"), ("assistant", ""), ("tool", "late"), ("user", "Hello")],
        [3],
    ),
    "a result without an id": (
        [USER, calls(call(), call("c2")), result(None, "1"), result(None, "2")],
        [("user", "Hello"), ("assistant", ""), ("tool", "1"), ("tool", "2")],
        [2, 3],
    ),
    "one id and one without": (
        [USER, calls(call(), call("c2")), result(None, "2"), result("c1", "1")],
        [("user", "Hello"), ("assistant", ""), ("tool", "1"), ("tool", "2")],
        [2],
    ),
    "a result of an unknown call": (
        [USER, result("c9", "what")],
        [("user", "Hello"), ("user", f"{UNKNOWN}what")],
        [1],
    ),
    "a second result": (
        [USER, calls(call()), result(content="1"), result(content="2")],
        [
            ("user", "Hello"), ("assistant", ""), ("tool", "1"),
            ("user", f"{UNKNOWN}2"),
        ],
        [3],
    ),
    "an object": (
        [USER, calls(call()), result(content={"a": [1, "é"]})],
        [("user", "Hello"), ("assistant", ""), ("tool", '{"a": [1, "é"]}')],
        [2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REPAIRED)
def test_a_lenient_reader_repairs_and_says_so(name: str) -> None:
    messages, wanted, places = REPAIRED[name]
    sentence(messages)
    history = read_history(messages, lenient=True)
    assert [(message.role, message.content) for message in history.messages] == wanted
    assert [int(text.split("]")[0].removeprefix("messages[")) for text in history.repairs] == places
    shifted = read_history([system("x"), *messages], lenient=True, first_index=1)
    assert shifted.repairs == history.repairs
    assert shifted.places == (-1, *history.places)
    for format in FORMATS.values():
        assert format.encode(history.messages, tokenizer=SMALL)


MENDED = {
    "{'a': True, 'b': None}": {"a": True, "b": None},
    '{"a": [1, 2,], }': {"a": [1, 2]},
    '{"a": [1, {"b": 2': {"a": [1, {"b": 2}]},
    '{"a": (1, 2)}': {"a": [1, 2]},
    "{'a': 'it\\'s'}": {"a": "it's"},
    '"{\\"a\\": 1}"': {"a": 1},
    '{"a": "b"': {"a": "b"},
    "{": {},
}
KEPT = ["rm -rf", "[1]", "5", "{a: 1}", '{"a": ', '{"a": "b', "{]", "NaN", "null", '{"a": f(x)}']


@pytest.mark.parametrize("text", [*MENDED, *KEPT])
def test_a_lenient_reader_reads_arguments_that_are_nearly_json(text: str) -> None:
    history = read_history([USER, calls(call(arguments=text)), result()], lenient=True)
    (read,) = history.messages[1].tool_calls
    assert read.arguments == MENDED.get(text, {"arguments": text})
    (repair,) = history.repairs
    assert repair.startswith("messages[1]: the arguments of the call of f ")
    assert ("kept as text" in repair) == (text not in MENDED)


@settings(max_examples=examples(200), deadline=None)
@given(st.dictionaries(TEXT, JSON_VALUES, max_size=4))
def test_mending_reads_python_and_json_as_they_are(value: dict[str, Any]) -> None:
    assert mend_arguments(json.dumps(value)) == value
    assert mend_arguments(repr(value)) == value
    assert mend_arguments(json.dumps({"a": [value]}).rstrip("]}")) == {"a": [value]}


def test_half_of_a_surrogate_pair_is_read_and_said() -> None:
    asked = calls(call("a\ud800", {"k\udc00": ["x\ud800"]}), content="A\ud83d")
    history = read_history([USER, asked, result("a\ud800", "R\udfff")])
    assert history.messages[1].content == "A\ufffd"
    assert history.messages[1].tool_calls[0].arguments == {"k\ufffd": ["x\ufffd"]}
    assert history.messages[2].content == "R\ufffd"
    assert [text.split(":")[0] for text in history.repairs] == ["messages[1]", "messages[2]"]
    for format in FORMATS.values():
        assert format.encode(history.messages, tokenizer=SMALL)


def test_a_lenient_reader_still_refuses_what_has_no_meaning() -> None:
    for name in (
        "an unknown role",
        "content that is a number",
        "an image",
        "a message that is text",
    ):
        messages, place, word = REFUSED[name]
        text = sentence(messages, lenient=True)
        assert text.startswith(f"messages[{place}]: ")
        assert word in text


# ---- left out

VOLATILE = {
    "a line": (f"{BILLING}\nBe kind.", "Be kind."),
    "a line of Windows": (f"{BILLING}\r\nBe kind.", "Be kind."),
    "two lines": (f"{BILLING}\n{BILLING}\nBe kind.", "Be kind."),
    "a block": ([BILLING, "Be kind."], "Be kind."),
    "a block and a line": ([BILLING, f"{BILLING}\nBe kind."], "Be kind."),
    "a line break of its own": ([f"{BILLING}\n", "Be kind."], "Be kind."),
    "not at the head": (f"Be kind.\n{BILLING}", f"Be kind.\n{BILLING}"),
    "after an empty line": (f"\n{BILLING}\nBe kind.", f"\n{BILLING}\nBe kind."),
    "part of a line": (f"- {BILLING}\nBe kind.", f"- {BILLING}\nBe kind."),
    "no such line": ("Be kind.", "Be kind."),
}


@pytest.mark.parametrize("name", VOLATILE)
def test_volatile_lines_at_the_head_are_left_out(name: str) -> None:
    given, wanted = VOLATILE[name]
    content = given if isinstance(given, str) else [{"type": "text", "text": one} for one in given]
    history = read_history([system(content), USER], volatile_lines=VOLATILE_LINES)
    assert [message.content for message in history.messages] == [wanted, "Hello"]
    parts = history.messages[0].parts
    assert parts is None or "".join(part.text for part in parts) == wanted
    assert read_history([system(content), USER]).messages[0].content == "".join(given)


def test_a_system_message_of_volatile_lines_alone_goes() -> None:
    for messages in ([system(BILLING), USER], [system(BILLING), system(f"{BILLING}\n"), USER]):
        history = read_history(messages, volatile_lines=VOLATILE_LINES, first_index=1)
        assert [message.role for message in history.messages] == ["user"]
        assert history.places == (len(messages) - 2,)
    history = read_history(
        [system(BILLING), system(f"{BILLING}\nBe kind."), USER], volatile_lines=VOLATILE_LINES
    )
    assert [message.content for message in history.messages] == ["Be kind.", "Hello"]
    history = read_history([USER, system(BILLING)], volatile_lines=VOLATILE_LINES)
    assert history.messages[1].content == BILLING


def test_media_are_left_out_and_counted() -> None:
    parts = [
        {"type": "text", "text": "see "},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "document", "source": {}},
        {"type": "file", "file": {}},
    ]
    inner = [{"type": "image", "source": {}}, {"type": "text", "text": " it"}]
    history = read_history(
        [
            {"role": "user", "content": parts},
            use(),
            {"role": "user", "content": [used(content=inner)]},
        ],
        drop_images=True,
    )
    assert history.messages[0].content == (
        "see [image left out][audio left out][document left out][file left out]"
    )
    assert history.messages[2].content == "[image left out] it"
    assert history.num_dropped_images == 5


# ---- system messages in place


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """A conversation with system messages anywhere, also among results."""
    messages: list[Message] = []

    def remarks() -> None:
        for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
            messages.append(Message("system", draw(TEXT)))

    remarks()
    for number in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            messages.append(Message("user", draw(TEXT)))
            remarks()
        count = draw(st.integers(0, 2))
        made = [call(f"{number}.{i}") for i in range(count)]
        thought = draw(st.none() | TEXT)
        sent = {"role": "assistant", "content": draw(TEXT), "reasoning_content": thought}
        messages += read_history(
            [{**sent, "tool_calls": made}, *(result(f"{number}.{i}") for i in range(count))]
        ).messages[:1]
        remarks() if not count else None
        for i in range(count):
            messages.append(Message("tool", draw(TEXT), tool_call_id=f"{number}.{i}"))
            remarks()
    return messages


@settings(max_examples=examples(200), deadline=None)
@given(messages=conversations(), keep_thoughts=st.booleans())
def test_m2_prompts_are_append_only(messages: list[Message], keep_thoughts: bool) -> None:
    if not keep_thoughts:  # those that are dropped go from the middle
        messages = [
            Message(one.role, one.content, None, one.tool_calls, one.tool_call_id)
            for one in messages
            if "</think>" not in one.content
        ]

    def prompt(some: Sequence[Message]) -> str:
        return join_segments(M2.segments(some, None, False, keep_thoughts=keep_thoughts))

    whole = prompt(messages)
    for index, message in enumerate(messages):
        if message.role == "assistant":
            assert whole.startswith(prompt(messages[:index]))
            assert whole.startswith(prompt(messages[: index + 1]))


# ---- whatever is sent


@cache
def logged(kind: str) -> tuple[TurnLog, list[Client]]:
    """Return a log, and clients whose conversations are in it."""
    log = TurnLog(None, vocabulary="v")
    clients = []
    for number in range(12):
        client = Client(log, FORMATS[kind], random.Random(number), name=f"c{number}")
        for turn in range(3):
            client.ask(f"question {number} {turn}")
            some = [("f", {"a": 1.0, "10": [turn], "2": "x"})] * client.random.choice([0, 0, 1, 2])
            some = [] if kind == "template" else some
            thought = client.random.choice(["", f"thought {number}"])
            client.answer(written(client.format, thought, f"answer {number} {turn}", some))
        client.ask("and now?")
        clients.append(client)
    return log, clients


JUNK: list[Any] = [
    *(None, True, 0, -1, 1e308, "", "x", [], {}, [[]], ["x"], {"a": {}}, "\ud800", "\0", "{", "[1"),
    *("user", "tool", "robot", "call_c0_1_0", {"type": "text"}, [{"type": "text", "text": 5}]),
    *([{"type": "image"}], [{"type": "tool_result"}], [{"type": "tool_use"}], [None]),
    *([{"type": "tool_result", "tool_use_id": "x", "content": {}}], "</think>", "<think>"),
    {"role": "tool", "content": {"a": 1}},
    {"role": "assistant", "tool_calls": [{}]},
]


def corrupt(messages: list[Any], random_: random.Random) -> None:
    """Change one thing anywhere in what a client sends."""
    way = random_.randrange(6)
    place = random_.randrange(len(messages)) if messages else 0
    if way == 0 or not messages:
        junk = random_.choice([random_.choice(JUNK), system("x"), USER])
        messages.insert(place, deepcopy(junk))
    elif way == 1:
        del messages[place]
    elif way == 2:
        other = random_.randrange(len(messages))
        messages[place], messages[other] = messages[other], messages[place]
    elif way == 3:
        messages.insert(place, json.loads(json.dumps(messages[random_.randrange(len(messages))])))
    else:
        value: Any = messages
        while True:
            places = list(value) if isinstance(value, dict) else range(len(value))
            at = random_.choice(list(places))
            inner = value[at]
            if not isinstance(inner, dict | list) or not inner or random_.random() < 0.25:
                if way == 4:
                    del value[at]
                else:
                    value[at] = deepcopy(random_.choice(JUNK))
                return
            value = inner


def read_or_refuse(messages: list[Any], **options: Any) -> History | str:
    """Return what is read, or the sentence of a refusal, which names a place."""
    try:
        return read_history(messages, **options)
    except ValueError as error:
        text = str(error)
    assert PLACE.match(text), text
    assert "\n" not in text
    return text


def check_any_history(kind: str, seed: int) -> str:
    random_ = random.Random(seed)
    log, clients = logged(kind)
    client = random_.choice(clients)
    client.random = random_
    client.is_plain = False
    sent: list[Any] = json.loads(json.dumps(client.spelled()))
    num_corrupted = random_.choice([0, 1, 1, 2, 4, 16])
    for _ in range(num_corrupted):
        corrupt(sent, random_)
    history = read_or_refuse(
        sent,
        lenient=random_.random() < 0.4,
        drop_images=random_.random() < 0.5,
        volatile_lines=VOLATILE_LINES if random_.random() < 0.5 else (),
    )
    if isinstance(history, str):
        assert num_corrupted, history
        return "refused"
    assert len(history.places) == len(history.messages)
    assert all(PLACE.match(text) for text in history.repairs)
    keep = random_.random() < 0.3
    format = client.format
    found = log.find(
        history.messages,
        scope="key",
        format=format,
        tools=tools_of(client.messages),
        keep_thoughts=keep,
    )
    assert len(found.turns) == sum(one.role == "assistant" for one in history.messages)
    ids = format.encode_history(found.messages, tokenizer=SMALL, keep_thoughts=keep).ids
    shows = format.shows_thoughts(found.messages, keep_thoughts=keep)
    start = num_found = 0
    for message, is_shown in zip(found.messages, shows, strict=True):
        if message.sampled is None:
            continue
        sampled = message.sampled
        is_whole = is_shown or format.thinking is None
        part = sampled.ids if is_whole else sampled.ids[sampled.answer_start :]
        at = place_of(ids, part, start)
        assert at >= 0
        start = at + len(part)
        num_found += 1
    if not num_corrupted:
        assert num_found == 3
    return "found" if num_found else "rendered"


@pytest.mark.parametrize("kind", FORMATS)
def test_any_history_is_read_with_its_ids_or_refused_with_its_place(kind: str) -> None:
    ends = [check_any_history(kind, seed) for seed in range(200)]
    assert set(ends) >= {"found", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_ten_thousand_histories_are_read_or_refused(kind: str) -> None:
    ends = [check_any_history(kind, 1000 + seed) for seed in range(3400)]
    assert ends.count("found") > 300
    assert ends.count("refused") > 300
    assert "rendered" in ends


@settings(max_examples=examples(200), deadline=None)
@given(messages=st.lists(JSON_VALUES | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "x"]), "content": JSON_VALUES},
    optional=dict.fromkeys(("tool_calls", "tool_call_id", "reasoning_details"), JSON_VALUES),
), max_size=4), lenient=st.booleans())  # fmt: skip
def test_any_json_is_read_or_refused(messages: list[Any], lenient: bool) -> None:
    history = read_or_refuse(messages, lenient=lenient, drop_images=True)
    if isinstance(history, str):
        return
    for format in (FORMATS["m1"], FORMATS["m2"]):
        assert format.encode(history.messages, tokenizer=SMALL)


# ---- bounds

LONG_HISTORIES = {
    "calls": lambda n: [
        one for i in range(n // 2) for one in (calls(call(f"{i}")), result(f"{i}"))
    ],
    "unknown results": lambda n: [USER, *(result(f"{i}") for i in range(n))],
    "late results": lambda n: [
        *(calls(call(f"{i}")) for i in range(n // 2)), *(result(f"{i}") for i in range(n // 2))
    ],
    "one id": lambda n: [
        *(calls(call("c")) for _ in range(n // 2)), *(result("c") for _ in range(n // 2))
    ],
    "calls of one message": lambda n: [
        calls(*(call(f"{i}") for i in range(n))), *(result(f"{n - 1 - i}") for i in range(n))
    ],
    "no ids": lambda n: [calls(*(call(None) for _ in range(n))), *(result(None) for _ in range(n))],
    "one id in one message": lambda n: [
        calls(*(call("c") for _ in range(n))), *(result("c") for _ in range(n))
    ],
    "system messages": lambda n: [
        USER, calls(*(call(f"{i}") for i in range(n // 2))),
        *(one for i in range(n // 2) for one in (system("x"), result(f"{i}"))),
    ],
    "leading systems": lambda n: [*(system(BILLING) for _ in range(n)), USER],
    "lines": lambda n: [system(f"{BILLING}\n" * (20 * n)), USER],
    "nearly JSON": lambda n: [calls(call(arguments="{'a': [" + "1, " * (50 * n))), result("c1")],
    "brackets": lambda n: [calls(call(arguments="{'a': " + "[" * (50 * n))), result("c1")],
    "backslashes": lambda n: [calls(call(arguments="{'a': '" + "\\" * (100 * n))), result("c1")],
    "quotes": lambda n: [calls(call(arguments="'" * (100 * n))), result("c1")],
    "thoughts": lambda n: [USER, {"role": "assistant", "content": "<think></think>" * (10 * n)}],
}  # fmt: skip


@pytest.mark.parametrize("name", LONG_HISTORIES)
def test_work_grows_with_a_history_and_no_faster(name: str) -> None:
    log = logged("m2")[0]

    def work(count: int) -> None:
        sent = LONG_HISTORIES[name](count)
        history = read_history(sent, lenient=True, volatile_lines=VOLATILE_LINES)
        found = log.find(history.messages, scope="key", format=M2)
        for format in (FORMATS["m1"], FORMATS["m2"]):
            format.render(found.messages)

    work(50)
    assert num_lines(lambda: work(1000)) < 5 * num_lines(lambda: work(250))
    start = time.process_time()
    work(4000)
    assert time.process_time() - start < 10


def test_an_open_quote_is_tried_once() -> None:
    assert mend_arguments('"' + '\\"' * 100_000) is None
