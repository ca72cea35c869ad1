"""Canonical forms are equal for all spellings of a message, and for nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import Message, Tool, ToolCall, read_messages
from fulmen.chat.canonical import MAX_PIECES, read_answer, read_contexts
from fulmen.chat.canonical_calls import CallForms
from tests.chat.clients import javascript
from tests.chat.helpers import JSON_VALUES, TEXT
from tests.examples import examples


def answer(content: str = "", arguments: Any = None, name: str = "f") -> Message:
    calls = () if arguments is None else (ToolCall(name, arguments),)
    return Message("assistant", content, None, calls)


def sent(**fields: Any) -> list[Message]:
    return read_messages([{"role": "assistant", **fields}])


SAME = {
    "white space": (sent(content="x y"), sent(content=" \n x y\t")),
    "parts": (sent(content="x y"), sent(content=[{"type": "text", "text": "x y"}])),
    "several parts": (sent(content="x y"), sent(content=["x", {"type": "text", "text": " y"}])),
    "cache_control": (
        sent(content="x"),
        sent(content=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]),
    ),
    "null": (sent(content=""), sent(content=None)),
    "an empty list": (sent(content=""), sent(content=[])),
    "a thought apart": (sent(content="x"), sent(content="x", reasoning_content="hm")),
    "a thought in tags": (sent(content="x"), sent(content="<think>\nhm\n</think>\n\nx")),
    "two thoughts": (sent(content="x"), sent(content="<think>a</think> <think>b</think> x")),
    "an empty thought": (sent(content="x"), sent(content="<think></think>x")),
    "a surrogate": (sent(content="a\ufffdb"), sent(content="a\ud800b")),
    "two messages": ([answer("x", {})], [answer("x"), answer("", {})]),
    "a cut text": ([answer("x y")], [answer("x "), answer("y")]),
    "an order of keys": ([answer("", {"a": 1, "b": {"d": 1, "c": 2}})],
                         [answer("", {"b": {"c": 2, "d": 1}, "a": 1})]),
    "ids": ([answer("", {})], [Message("assistant", "", None, (ToolCall("f", {}, "id"),))]),
}  # fmt: skip
OTHER = {
    "text": ([answer("x")], [answer("y")]),
    "white space inside": ([answer("x y")], [answer("x  y")]),
    "case": ([answer("x")], [answer("X")]),
    "a name": ([answer("", {}, "f")], [answer("", {}, "g")]),
    "a call": ([answer("x")], [answer("x", {})]),
    "a number": ([answer("", {"a": 1})], [answer("", {"a": 2})]),
    "a number and text": ([answer("", {"a": 1})], [answer("", {"a": "1"})]),
    "a number and a truth": ([answer("", {"a": 1})], [answer("", {"a": True})]),
    "null and nothing": ([answer("", {"a": None})], [answer("", {})]),
    "an order of items": ([answer("", {"a": [1, 2]})], [answer("", {"a": [2, 1]})]),
    "an order of calls": (
        [answer("", {}, "f"), answer("", {}, "g")],
        [answer("", {}, "g"), answer("", {}, "f")],
    ),
    "calls as text": ([answer('["f",{}]')], [answer("", {})]),
    "a thought that does not end": ([answer("x")], [answer("<think>hm x")]),
    "a thought in the middle": ([answer("x")], [answer("x<think>hm</think>")]),
}
NUMBERS = [
    (1.0, 1),
    (-0.0, 0),
    (2**53 + 1, 2**53),
    (10**400, None),
    (-(10**400), None),
    (float("inf"), None),
    (1e21, 10**21),
    (0.1, 0.1),
    (123456789012345678901234567890, 1.2345678901234568e29),
]


@pytest.mark.parametrize("name", SAME)
def test_spellings_of_one_answer_are_equal(name: str) -> None:
    first, second = SAME[name]
    assert read_answer(first).digest == read_answer(second).digest
    assert read_answer(first).content == read_answer(second).content


@pytest.mark.parametrize("name", OTHER)
def test_other_answers_are_not(name: str) -> None:
    first, second = OTHER[name]
    assert read_answer(first).digest != read_answer(second).digest


@pytest.mark.parametrize(("one", "other"), NUMBERS)
def test_numbers_are_as_javascript_reads_them(one: Any, other: Any) -> None:
    for wrap in (lambda x: {"a": x}, lambda x: {"a": [{"b": x}]}):
        first, second = (read_answer([answer("", wrap(value))]) for value in (one, other))
        assert first.digest == second.digest


@settings(max_examples=examples(200), deadline=None)
@given(
    arguments=st.dictionaries(TEXT | st.sampled_from(["1", "10", "2", "007"]), JSON_VALUES),
    text=TEXT,
)
def test_arguments_that_went_through_javascript_are_equal(
    arguments: dict[str, Any], text: str
) -> None:
    back = json.loads(javascript(arguments))
    first, second = answer(text, arguments), answer(f"\n{text} ", back)
    assert read_answer([first]).digest == read_answer([second]).digest
    assert javascript(back) == javascript(json.loads(javascript(back)))


def test_thoughts_are_kept_apart() -> None:
    read = read_answer(
        [
            Message("assistant", "<think>a</think>x", "b"),
            Message("assistant", " <think>\nc\n</think>\ny"),
        ]
    )
    assert (read.content, read.thinking, read.num_chars) == ("xy", "b\nc", 2)


# ---- conversations

ASKED = [
    Message("user", "a?"),
    answer("x", {"b": 1}),
    Message("tool", "1", tool_call_id="c"),
    answer("y"),
    Message("user", "b?"),
]


def test_system_messages_and_spelling_do_not_count_for_a_conversation() -> None:
    spelled = [
        Message("system", "Be kind."),
        Message("user", " a?\n"),
        Message("system", "now"),
        answer("x"),
        answer("", {"b": 1.0}),
        Message("tool", "1 "),
        Message("system", "now"),
        Message("assistant", "y", "hm"),
        Message("user", "b?"),
        Message("system", "now"),
    ]
    (runs, last), (other_runs, other_last) = read_contexts(ASKED), read_contexts(spelled)
    assert last == other_last
    assert [run.context for run in runs] == [run.context for run in other_runs]
    assert [run.start for run in other_runs] == [3, 7]


@pytest.mark.parametrize("index", range(len(ASKED)))
def test_everything_else_before_an_answer_counts(index: int) -> None:
    changed = list(ASKED)
    changed[index] = Message(changed[index].role, "changed")
    assert read_contexts(changed)[1].chain != read_contexts(ASKED)[1].chain
    left_out = ASKED[:index] + ASKED[index + 1 :]
    assert read_contexts(left_out)[1].chain != read_contexts(ASKED)[1].chain
    question = read_contexts(changed)[1].question
    assert (question == read_contexts(ASKED)[1].question) == (index < 4)


def test_a_question_is_all_since_the_last_answer() -> None:
    _, first = read_contexts([*ASKED, Message("user", "c?")])
    _, second = read_contexts([Message("user", "b?"), Message("user", "c?")])
    assert first.question == second.question
    assert (first.num_chars, first.has_user) == (4, True)
    _, after_tools = read_contexts(ASKED[:3])
    assert (after_tools.num_chars, after_tools.has_user) == (1, False)
    assert read_contexts(ASKED[:2])[1].question is None


def test_the_conversation_before_a_message_of_a_run_is_known_or_none() -> None:
    run_of = [answer(f"{i}") for i in range(2 * MAX_PIECES)]
    (run,), _ = read_contexts([Message("user", "a?"), *run_of])
    for offset in range(len(run_of)):
        context = run.context_at(offset)
        _, wanted = read_contexts([Message("user", "a?"), *run_of[:offset]])
        assert context.chain == (wanted.chain if offset < MAX_PIECES else None)
        assert (context.question is None) == (offset > 0)


def test_ranges_of_a_run_are_longest_first_and_skip_what_is_closed() -> None:
    (run,), _ = read_contexts([answer("a"), answer("b"), answer("c")])
    is_open = [True] * 3
    assert list(run.ranges(is_open)) == [(0, 3), (0, 2), (0, 1), (1, 3), (1, 2), (2, 3)]
    assert list(run.ranges([True, False, True])) == [(0, 1), (2, 3)]
    ranges = run.ranges(is_open)
    assert [next(ranges), next(ranges)] == [(0, 3), (0, 2)]
    is_open[:2] = [False, False]
    assert list(ranges) == [(2, 3)]


EDIT = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "all": {"type": "boolean", "default": False},
        "times": {"type": "number", "default": 1},
        "edits": {
            "type": "array",
            "items": {"type": "object", "properties": {"mode": {"default": {"a": [1, None]}}}},
            "default": [],
        },
        "options": {"type": "object", "properties": {"tag": {"type": "string", "default": ""}}},
    },
}
"""Schema whose defaults are at its top, in a list and in an object"""


def form(arguments: Any, schema: Any = EDIT) -> str:
    return CallForms([Tool("edit", parameters=schema)]).of(ToolCall("edit", arguments))


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        ({"path": "a"}, {"all": False, "path": "a", "times": 1.0, "edits": []}),
        ({"edits": [{}, {"b": 1}]}, {"edits": [{"mode": {"a": [1, None]}}, {"b": 1}]}),
        ({"options": {"x": 1}}, {"options": {"tag": "", "x": 1}}),
    ],
)
def test_a_default_of_the_tool_makes_no_difference(shorter: Any, longer: Any) -> None:
    assert form(shorter) == form(longer)
    other = CallForms([Tool("edit"), Tool("other", parameters=EDIT)])
    calls = ToolCall("edit", shorter), ToolCall("edit", longer)
    assert len({other.of(call) for call in calls}) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"all": True},
        {"all": 0},
        {"all": None},
        {"times": True},
        {"edits": [{"mode": {"a": [1]}}]},
        {"edits": [{}]},
        {"options": {"tag": "x"}},
        {"options": {}},
        {"tag": ""},
        {"mode": {"a": [1, None]}},
    ],
)
def test_another_value_or_another_place_does(arguments: Any) -> None:
    assert form(arguments) != form({})


@settings(max_examples=examples(200))
@given(JSON_VALUES, st.dictionaries(st.sampled_from(["path", "all", "edits"]), JSON_VALUES))
def test_any_schema_and_any_arguments_have_a_form(schema: Any, arguments: Any) -> None:
    properties = {"path": schema, "all": {"default": schema}, "edits": {"items": schema}}
    for given_schema in ({"properties": properties}, {"properties": schema}, {"items": schema}):
        assert form(arguments, given_schema) == form({**arguments}, given_schema)


def test_a_schema_that_is_deep_takes_no_deep_stack() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"properties": {"a": deep}}
    assert form({"a": 1}, deep) == form({"a": 1.0}, deep)
