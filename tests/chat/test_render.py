"""Native rendering against the checkpoints' own templates, and each place where we differ."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import Message, Tool, ToolCall, get_format
from fulmen.chat.m2 import MiniMaxM2
from tests.chat.helpers import JSON_VALUES, KEYS, M1, M2, MANY, NAMES, TEXT, TOOLS, raw_render

ARGUMENTS = st.dictionaries(KEYS, JSON_VALUES, max_size=3)
TEXT_PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), max_size=3)
INLINE_THINKING = st.builds("<think>{}</think>{}".format, TEXT, TEXT)
QUESTION: dict[str, Any] = {"role": "user", "content": "q"}


def call(arguments: Any, id: str | None = "call_1", name: str = "f") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@st.composite
def m2_conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Well-formed conversations in the shape that the raw template handles."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        system: dict[str, Any] = {"role": "system", "content": draw(TEXT | TEXT_PARTS)}
        if draw(st.booleans()):
            system |= {"current_date": "2025-10-27", "current_location": "Oslo"}
        messages.append(system)
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            messages.append({"role": "user", "content": draw(TEXT | TEXT_PARTS)})
        answer: dict[str, Any] = {
            "role": "assistant",
            "content": draw(TEXT | TEXT_PARTS | INLINE_THINKING),
        }
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(TEXT)
        messages.append(answer)
        num_calls = draw(st.integers(0, 3))
        if not num_calls:
            continue
        answer["tool_calls"] = [
            call(draw(ARGUMENTS), f"call_{i}", draw(NAMES)) for i in range(num_calls)
        ]
        if draw(st.booleans()):
            answer["tool_calls"] = [one["function"] for one in answer["tool_calls"]]
        for i in range(draw(st.integers(0, num_calls))):
            messages.append({"role": "tool", "tool_call_id": f"call_{i}", "content": draw(TEXT)})
            if draw(st.booleans()):
                messages[-1]["content"] = draw(TEXT_PARTS)
    return messages


@settings(max_examples=MANY, deadline=None)
@given(m2_conversations(), st.none() | st.just(TOOLS), st.booleans())
def test_m2_renders_as_the_template_does(
    messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool
) -> None:
    raw = raw_render("minimax-m2.jinja", messages, tools, add_generation_prompt)
    assert M2.render(messages, tools, add_generation_prompt) == raw


@st.composite
def m1_conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Conversations of one text part each, all that the raw template handles."""
    messages: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 6))):
        role = draw(st.sampled_from(["system", "user", "assistant", "tool"]))
        text = draw(TEXT | INLINE_THINKING)
        part = {"type": "text", "text": text, "name": draw(NAMES)}
        parts = [part, part] if role in ("tool", "assistant") and draw(st.booleans()) else [part]
        messages.append({"role": role, "content": parts})
    return messages


@settings(max_examples=MANY, deadline=None)
@given(m1_conversations(), st.none() | st.just(TOOLS), st.booleans())
def test_m1_renders_as_the_template_does(
    messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool
) -> None:
    raw = raw_render("minimax-m1.jinja", messages, tools, add_generation_prompt)
    assert M1.render(messages, tools, add_generation_prompt) == raw


def test_m2_keeps_thoughts_after_the_last_user_message_and_drops_those_before_it() -> None:
    answer = {"role": "assistant", "content": "a", "reasoning_content": "why"}
    assert "why" in M2.render([QUESTION, answer])
    assert "why" not in M2.render([QUESTION, answer, QUESTION])


def test_own_types_render_like_dicts() -> None:
    typed = [
        Message("user", "q"),
        Message("assistant", "c", "t", (ToolCall("f", {"a": 1}, "call_1"),)),
        Message("tool", "o", tool_call_id="call_1"),
    ]
    dicts = [message.to_dict() for message in typed]
    tools = [Tool("f", "does", {"type": "object"})]
    function = {"name": "f", "description": "does", "parameters": {"type": "object"}}
    for format_ in (M1, M2):
        assert format_.render(typed) == format_.render(dicts)
    assert M2.render(typed, tools) == M2.render(typed, [{"type": "function", "function": function}])
    assert M1.render(typed, tools) == M1.render(typed, [function])


# Where M2's template is wrong.


def test_m2_null_content_is_empty_where_the_template_prints_none() -> None:
    null, empty = (
        [QUESTION, {"role": "assistant", "content": content, "tool_calls": [call({})]}]
        for content in (None, "")
    )
    assert "None" in raw_render("minimax-m2.jinja", null)
    assert M2.render(null) == raw_render("minimax-m2.jinja", empty)


def test_m2_decodes_string_arguments_where_the_template_fails() -> None:
    text, decoded = (
        [QUESTION, {"role": "assistant", "content": "", "tool_calls": [call(arguments)]}]
        for arguments in ('{"a": [1, "é"]}', {"a": [1, "é"]})
    )
    with pytest.raises(ValueError, match="chat template failed"):
        raw_render("minimax-m2.jinja", text)
    assert M2.render(text) == raw_render("minimax-m2.jinja", decoded)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_m2_leading_system_messages_are_one_block_where_the_template_drops_them(role: str) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": role, "content": "LATE"}, QUESTION]
    joined = [{"role": "system", "content": "S\n\nLATE"}, QUESTION]
    assert "LATE" not in raw_render("minimax-m2.jinja", messages)
    assert M2.render(messages) == raw_render("minimax-m2.jinja", joined)


LATE = "<system-reminder>\nLATE\n</system-reminder>"


@pytest.mark.parametrize("role", ["system", "developer", "root"])
@pytest.mark.parametrize(
    ("before", "after", "end"),
    [
        ("u", "", f"]~b]user\nQ\n{LATE}[e~[\n"),
        ("u", "u", f"]~b]user\nQ\n{LATE}[e~[\n]~b]user\nQ[e~[\n"),
        ("ua", "u", f"]~b]user\n{LATE}\nQ[e~[\n"),
        ("ua", "a", f"]~b]user\n{LATE}[e~[\n]~b]ai\nA[e~[\n"),
        ("ua", "", f"]~b]user\n{LATE}[e~[\n"),
        ("uctt", "", f"</response>\n<response>R</response>\n{LATE}[e~[\n"),
        ("uct", "t", f"\n<response>R</response>\n{LATE}\n<response>R</response>[e~[\n"),
        ("uc", "tt", f"]~b]tool\n{LATE}\n<response>R</response>\n<response>R</response>[e~[\n"),
        ("uctt", "u", f"\n{LATE}[e~[\n]~b]user\nQ[e~[\n"),
    ],
)
def test_m2_shows_a_later_system_message_in_its_place(
    role: str, before: str, after: str, end: str
) -> None:
    known: dict[str, dict[str, Any]] = {
        "u": {"role": "user", "content": "Q"},
        "a": {"role": "assistant", "content": "A"},
        "c": {"role": "assistant", "content": "", "tool_calls": [call({}), call({})]},
        "t": {"role": "tool", "content": "R"},
    }
    messages = [
        *(known[letter] for letter in before),
        {"role": role, "content": "LATE"},
        *(known[letter] for letter in after),
    ]
    text = M2.render(messages, add_generation_prompt=False)
    assert text.endswith(end)
    assert text.count("LATE") == 1


def test_m2_joins_later_system_messages_line_by_line() -> None:
    date = {"role": "system", "current_date": "2026-01-01"}
    empty = {"role": "system", "content": ""}
    user = {"role": "user", "content": "Q\n"}
    late = {"role": "system", "content": "LATE"}
    reminded = "<system-reminder>\nCurrent date: 2026-01-01\n</system-reminder>"
    text = M2.render([user, late, empty, date], add_generation_prompt=False)
    assert text.endswith(f"]~b]user\nQ\n{LATE}\n{reminded}[e~[\n")
    answer = {"role": "assistant", "content": "A"}
    messages = [user, answer, late, date, {"role": "user", "content": ""}]
    text = M2.render(messages, add_generation_prompt=False)
    assert text.endswith(f"]~b]user\n{LATE}\n{reminded}[e~[\n")
    text = M2.render([user, answer, empty, answer], add_generation_prompt=False)
    assert text.endswith("]~b]ai\nA[e~[\n]~b]ai\nA[e~[\n")


def test_m2_keeps_thoughts_before_a_system_message_that_is_no_question() -> None:
    thinks = {"role": "assistant", "content": "A", "reasoning_content": "T"}
    messages = [QUESTION, thinks, {"role": "system", "content": "LATE"}]
    assert "<think>\nT\n</think>\n\nA" in M2.render(messages)
    assert "</think>" not in M2.render([*messages, QUESTION])


def test_m2_shows_flat_tools_where_the_template_fails() -> None:
    flat = [{"type": "function", "name": "f", "parameters": {}}]
    wrapped = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(ValueError, match="chat template failed"):
        raw_render("minimax-m2.jinja", [QUESTION], flat)
    assert M2.render([QUESTION], flat) == raw_render("minimax-m2.jinja", [QUESTION], wrapped)


def test_m2_orders_results_as_their_calls_where_the_template_mixes_them_up() -> None:
    answer = {"role": "assistant", "content": "", "tool_calls": [call({}, "x"), call({}, "y")]}
    one, two = ({"role": "tool", "tool_call_id": id, "content": id} for id in ("x", "y"))
    ordered = M2.render([QUESTION, answer, one, two])
    assert M2.render([QUESTION, answer, two, one]) == ordered
    assert raw_render("minimax-m2.jinja", [QUESTION, answer, two, one]) != ordered


def test_m2_shows_results_that_are_no_text_as_json_where_the_template_shows_python() -> None:
    answer = {"role": "assistant", "content": "", "tool_calls": [call({})]}
    for item, python, written in (
        ({"output": {"a": None}}, "{'a': None}", '{"a": null}'),
        ({"a": True}, "{'a': True}", '{"a": true}'),
    ):
        messages = [QUESTION, answer, {"role": "tool", "content": [item]}]
        raw = raw_render("minimax-m2.jinja", messages)
        assert f"<response>{python}\n</response>" in raw
        assert M2.render(messages) == raw.replace(python, written)
    alone = [QUESTION, answer, {"role": "tool", "content": {"a": True}}]
    assert '<response>{"a": true}</response>' in M2.render(alone)


def test_m2_identity_is_that_of_the_release() -> None:
    assert "Your name is MiniMax-M2.5 and is built by MiniMax." in get_format(
        "minimax-m2.5"
    ).render([QUESTION])
    assert "]~b]system\nI am.[e~[" in MiniMaxM2(model_identity="I am.").render([QUESTION])


# Where M1's template is wrong.


def part(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def test_m1_takes_string_and_null_content_where_the_template_fails() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        QUESTION,
        {"role": "assistant", "content": None},
    ]
    with pytest.raises(ValueError, match="chat template failed"):
        raw_render("minimax-m1.jinja", messages)
    listed = [
        {"role": message["role"], "content": [part(message["content"] or "")]}
        for message in messages
    ]
    assert M1.render(messages) == raw_render("minimax-m1.jinja", listed)


def test_m1_reads_all_text_parts_where_the_template_reads_the_first() -> None:
    messages = [{"role": "user", "content": [part("one "), part("two")]}]
    assert "two" not in raw_render("minimax-m1.jinja", messages)
    joined = [{"role": "user", "content": [part("one two")]}]
    assert M1.render(messages) == raw_render("minimax-m1.jinja", joined)


def test_m1_writes_thinking_and_calls_where_the_template_ignores_them() -> None:
    answer = {
        "role": "assistant",
        "content": [part("c")],
        "reasoning_content": "t",
        "tool_calls": [call('{"city": "Zürich"}', name="get_weather"), call({}, "call_2", "now")],
    }
    written = (
        '<think>\nt\n</think>\nc\n<tool_calls>\n{"name": "get_weather", "arguments": '
        '{"city": "Zürich"}}\n{"name": "now", "arguments": {}}\n</tool_calls>'
    )
    assert "tool_calls" not in raw_render("minimax-m1.jinja", [answer])
    plain = [{"role": "assistant", "content": [part(written)]}]
    assert M1.render([answer]) == raw_render("minimax-m1.jinja", plain)


def test_m1_names_the_tool_of_a_string_result_by_id_then_by_order() -> None:
    answer = {
        "role": "assistant",
        "content": [part("")],
        "tool_calls": [call({}, "x", "first"), call({}, "y", "second")],
    }
    by_id = M1.render([answer, {"role": "tool", "tool_call_id": "y", "content": "R"}])
    assert by_id.endswith(
        "<beginning_of_sentence>tool name=tools\ntool name: second\ntool result: R\n\n"
        "<end_of_sentence>\n<beginning_of_sentence>ai name=assistant\n"
    )
    by_order = M1.render([answer, *({"role": "tool", "content": text} for text in "RS")])
    assert "tool name: first\ntool result: R\n" in by_order
    assert "tool name: second\ntool result: S\n" in by_order


# There and back.


MARKED_KEYS = st.sampled_from(["a>b", "a<b", "a'b", 'a"b', "a = b", "</parameter>", ">"]) | KEYS


def blank_free(text: str) -> bool:
    return not text or bool(text.strip())


CONTENT = TEXT.filter(blank_free).map(lambda text: text.lstrip("\n"))
THOUGHT = TEXT.map(lambda text: text.strip("\n"))
CALLS = st.lists(st.builds(ToolCall, NAMES, ARGUMENTS), max_size=3).map(tuple)
STRING_CALLS = st.lists(
    st.builds(ToolCall, NAMES, st.dictionaries(MARKED_KEYS, TEXT, max_size=3)), max_size=3
).map(tuple)


@settings(max_examples=MANY, deadline=None)
@given(CONTENT, THOUGHT.filter(bool), STRING_CALLS)
def test_m2_a_rendered_turn_is_parsed_back(
    content: str, thinking: str, calls: tuple[ToolCall, ...]
) -> None:
    message = Message("assistant", content, thinking, calls)
    prompt = M2.render([QUESTION])
    turn = M2.render([QUESTION, message], add_generation_prompt=False).removeprefix(prompt)
    reply = M2.parse(turn.removesuffix("[e~[\n"))
    assert reply.message() == message
    assert reply.problems == ()
    assert M2.render([QUESTION, reply.message()], add_generation_prompt=False) == prompt + turn


@settings(max_examples=MANY, deadline=None)
@given(JSON_VALUES.filter(lambda value: not isinstance(value, str)))
def test_m2_values_that_are_no_text_come_back_by_their_schema(value: Any) -> None:
    kinds = ["null", "integer", "number", "boolean", "object", "array"]
    tools = [{"name": "f", "parameters": {"properties": {"a": {"type": kinds}}}}]
    prompt = M2.render([QUESTION])
    message = Message("assistant", "", "t", (ToolCall("f", {"a": value}),))
    turn = M2.render([QUESTION, message], add_generation_prompt=False).removeprefix(prompt)
    assert M2.parse(turn.removesuffix("[e~[\n"), tools).message() == message


@settings(max_examples=MANY, deadline=None)
@given(CONTENT.map(str.rstrip), THOUGHT, CALLS)
def test_m1_a_rendered_turn_is_parsed_back(
    content: str, thinking: str, calls: tuple[ToolCall, ...]
) -> None:
    message = Message("assistant", content, thinking, calls)
    prompt = M1.render([QUESTION])
    turn = M1.render([QUESTION, message], add_generation_prompt=False).removeprefix(prompt)
    reply = M1.parse(turn.removesuffix("<end_of_sentence>\n"))
    assert reply.message() == message
    assert reply.problems == ()


@pytest.mark.parametrize("end", ["", "\n<system-reminder>more</system-reminder>\n"])
def test_a_reminder_after_results_is_no_question_and_stands_in_their_turn(end: str) -> None:
    called = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {}}}
    call = {"role": "assistant", "reasoning_content": "THOUGHT", "tool_calls": [called]}
    result = {"role": "tool", "tool_call_id": "a", "content": "3 degrees"}
    told = {"role": "user", "content": f"<system-reminder>\nhi\n</system-reminder>{end}"}
    m2 = get_format("minimax_m2")
    as_system = [{"role": "system", "content": "hi"}]
    as_system += [{"role": "system", "content": "more"}] if end else []
    asked = {"role": "user", "content": "Weather?"}
    text = m2.render([asked, call, result, told])
    assert text == m2.render([asked, call, result, *as_system])
    assert "<think>\nTHOUGHT\n</think>" in text
    question = {"role": "user", "content": f"{told['content']} And now?"}
    assert "THOUGHT" not in m2.render([asked, call, result, question])
