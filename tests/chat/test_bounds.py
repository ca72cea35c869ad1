"""Whatever a checkpoint's file or a caller's message holds: read, or refused in one sentence."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import (
    ChatFormat,
    Message,
    TemplateFormat,
    Tokenizer,
    Tool,
    ToolCall,
    Vocabulary,
    load_format,
    read_messages,
    read_tools,
)
from fulmen.chat.arguments import check_depth, dump_json
from fulmen.files import MAX_JSON_DEPTH
from tests.chat.helpers import M1, M2
from tests.chat.test_tokenizer import small_tokenizer
from tests.examples import examples

TEMPLATE = TemplateFormat("{{ messages | tojson }}{{ tools | tojson }}")
FILES = ("config.json", "tokenizer_config.json", "chat_template.json", "generation_config.json")
BAD_JSON = {
    "deep arrays": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"x": ' * 100_000 + b"1" + b"}" * 100_000,
    "unfinished depth": b'{"x": ' * 100_000,
    "deep root": b"[" * 1_000_000,
    "an array": b"[]",
    "no UTF-8": b'{"x": "\xff"}',
    "half a pair": b'{"chat_template": "\\ud800"}',
    "a huge integer": b'{"x": ' + b"9" * 5_000 + b"}",
    "nothing": b"",
    "zeros": bytes(1_000_000),
}


def checkpoint(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "minimax_m2"}')
    small_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def refusal(read: Callable[[], object]) -> str:
    """Return the one sentence that a reader refuses with, at once."""
    start = time.monotonic()
    with pytest.raises(ValueError) as failed:  # noqa: PT011, each has its own
        read()
    assert time.monotonic() - start < 10
    sentence = str(failed.value)
    assert "\n" not in sentence
    assert len(sentence) < 600
    return sentence


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON)
@pytest.mark.parametrize("name", [*FILES, "tokenizer.json"])
def test_a_bad_json_file_is_one_sentence_that_names_it(
    tmp_path: Path, name: str, text: bytes
) -> None:
    (checkpoint(tmp_path) / name).write_bytes(text)

    def read() -> None:
        load_format(tmp_path)
        Tokenizer.from_folder(tmp_path)

    assert str(tmp_path / name) in refusal(read)


IDS = [10**9, 10**30, -1, 1.5, True, "1", {"a": 1}, [1, [2]], [None], float("1e400")]


@pytest.mark.parametrize("value", IDS, ids=repr)
def test_an_eos_token_id_is_an_id(tmp_path: Path, value: object) -> None:
    path = checkpoint(tmp_path) / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": value}))
    assert "eos_token_id" in refusal(lambda: Tokenizer.from_folder(tmp_path))


def test_an_eos_token_id_beyond_the_model_is_refused_by_a_grammar() -> None:
    tokenizer = Tokenizer(small_tokenizer())
    assert "eos_token_id is (500,)" in refusal(
        lambda: Vocabulary(tokenizer, vocab_size=300, eos_token_ids=[500])
    )


def test_a_tokenizer_is_bounded(tmp_path: Path) -> None:
    path = checkpoint(tmp_path) / "tokenizer.json"
    whole = json.loads(path.read_text())
    with path.open("wb") as file:
        file.truncate(3 * 2**30)
    assert "bytes" in refusal(lambda: Tokenizer.from_folder(tmp_path))
    path.write_text("[" + "0," * 6_000_000 + "0]")
    assert "values" in refusal(lambda: Tokenizer.from_folder(tmp_path))
    for huge in (2**22, 2**32 - 1):
        vocab = whole["model"]["vocab"] | {"new": huge}
        path.write_text(json.dumps(whole | {"model": whole["model"] | {"vocab": vocab}}))
        assert f"{huge}" in refusal(lambda: Tokenizer.from_folder(tmp_path))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [{"id": 300 + i, "content": f"<{i}>", **flags} for i in range(100_001)]
    path.write_text(json.dumps(whole | {"added_tokens": added}))
    assert "added tokens" in refusal(lambda: Tokenizer.from_folder(tmp_path))


@pytest.mark.parametrize("text", [b"\xff\xfe", b"a" * 1_000_001, "é".encode("latin-1")])
def test_a_bad_template_is_one_sentence_that_names_its_file(tmp_path: Path, text: bytes) -> None:
    path = checkpoint(tmp_path) / "chat_template.jinja"
    path.write_bytes(text)
    assert str(path) in refusal(lambda: load_format(tmp_path))


@settings(max_examples=examples(60), deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["name", "template", "default", "content", "eos_token"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=6,
    )
)
def test_any_value_for_a_template_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    folder = checkpoint(tmp_path_factory.mktemp("any"))
    names = ("chat_template", "eos_token", "bos_token")
    text = json.dumps(dict.fromkeys(names, value))
    for name in ("tokenizer_config.json", "chat_template.json"):
        (folder / name).write_text(text)
    try:
        load_format(folder)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017, either is right
    Tokenizer.from_folder(folder)


def nested(depth: int, kind: type) -> Any:
    value: Any = kind()
    for _ in range(depth - 1):
        value = {"a": value} if kind is dict else kind([value])
    return value


def in_a_call(value: Any) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": {"a": value}}
    return [{"role": "assistant", "tool_calls": [{"function": function}]}]


def in_a_result(content: Any) -> list[dict[str, Any]]:
    return [*in_a_call(1), {"role": "tool", "content": content}]


PLACES: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "arguments": lambda value: (in_a_call(value), None),
    "arguments of our type": lambda value: (
        [Message("assistant", tool_calls=(ToolCall("f", {"a": value}),))],
        None,
    ),
    "a result": lambda value: (in_a_result({"a": value}), None),
    "an output": lambda value: (in_a_result([{"output": {"a": value}}]), None),
    "a part": lambda value: (in_a_result([{"a": value}]), None),
    "a schema": lambda value: ([], [{"name": "f", "parameters": {"a": value}}]),
    "a tool's key": lambda value: ([], [{"name": "f", "x": value}]),
    "a schema of our type": lambda value: ([], [Tool("f", "", {"a": value})]),
    "a name": lambda value: ([], [{"name": value}]),
    "a call's name": lambda value: (
        [{"role": "assistant", "tool_calls": [{"function": {"name": value}}]}],
        None,
    ),
    "a call's id": lambda value: (
        [{"role": "assistant", "tool_calls": [{"id": value, "function": {"name": "f"}}]}],
        None,
    ),
    "all arguments": lambda value: (
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": value}}]}],
        None,
    ),
}
NATIVE_PLACES: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "a role": lambda value: ([{"role": value}], None),
    "a user's name": lambda value: ([{"role": "user", "name": value}], None),
    "content": lambda value: ([{"role": "user", "content": value}], None),
    "a content's part": lambda value: ([{"role": "user", "content": [value]}], None),
    "a part's type": lambda value: ([{"role": "user", "content": [{"type": value}]}], None),
    "a part's text": lambda value: ([{"role": "user", "content": [{"text": value}]}], None),
}


@pytest.mark.parametrize("kind", [dict, list])
@pytest.mark.parametrize("format_", [M1, M2, TEMPLATE], ids=lambda format_: format_.name)
@pytest.mark.parametrize("place", PLACES)
def test_deep_nesting_is_one_sentence(place: str, format_: ChatFormat, kind: type) -> None:
    messages, tools = PLACES[place](nested(30_000, kind))
    refusal(lambda: format_.render(messages, tools))


@pytest.mark.parametrize("kind", [dict, list])
@pytest.mark.parametrize("place", NATIVE_PLACES)
def test_deep_nesting_in_a_message_is_one_sentence(place: str, kind: type) -> None:
    messages, tools = NATIVE_PLACES[place](nested(30_000, kind))
    for format_ in (M1, M2):
        if place != "content" or kind is dict:
            refusal(lambda format_=format_: format_.render(messages, tools))  # type: ignore[misc]


def test_deep_json_in_text_is_one_sentence() -> None:
    text = '{"a": ' * 100_000 + "1" + "}" * 100_000
    call = {"function": {"name": "f", "arguments": text}}
    refusal(lambda: read_messages([{"role": "assistant", "tool_calls": [call]}]))
    for format_ in (M1, M2):
        for written in (f'<tool_calls>\n{{"name": "f", "arguments": {text}}}\n</tool_calls>', text):
            format_.parse(written, thinking_open=False)


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_a_value_may_be_as_deep_as_the_bound(kind: type) -> None:
    check_depth(nested(MAX_JSON_DEPTH, kind))
    dump_json(nested(MAX_JSON_DEPTH, kind))
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        check_depth(nested(MAX_JSON_DEPTH + 1, kind))


def test_a_value_that_holds_itself_is_one_sentence() -> None:
    loop: dict[str, Any] = {}
    loop |= {"a": loop, "b": loop}
    refusal(lambda: dump_json(loop))
    refusal(lambda: read_tools([{"name": "f", "parameters": loop}]))
    refusal(lambda: read_messages(in_a_call(loop)))
    refusal(lambda: TEMPLATE.render(in_a_call(loop)))
