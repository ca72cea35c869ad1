"""Formats by name and by a checkpoint's folder, and other checkpoints' templates."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fulmen.chat import (
    ContentDelta,
    Message,
    TemplateFormat,
    Tokenizer,
    ToolCall,
    get_format,
    load_format,
)
from fulmen.chat.m1 import MiniMaxM1
from fulmen.chat.m2 import MiniMaxM2
from tests.chat.helpers import TOOLS, stream, template
from tests.chat.test_tokenizer import small_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTION = {"role": "user", "content": "q"}


@pytest.mark.parametrize("name", ["minimax_m2", "minimax-m2", "MiniMax-M2", "MINIMAX_M2"])
def test_a_format_is_found_in_any_spelling(name: str) -> None:
    assert isinstance(get_format(name), MiniMaxM2)
    assert isinstance(get_format(name.replace("2", "1")), MiniMaxM1)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"format qwen is not known, .* minimax_m1, minimax_m2"):
        get_format("qwen")


def test_formats_say_how_thoughts_and_turns_end() -> None:
    m1, m2 = get_format("minimax_m1"), get_format("minimax_m2")
    assert (m2.thinking_open_in_prompt, m2.end_of_turn) == (True, "[e~[")
    assert (m1.thinking_open_in_prompt, m1.end_of_turn) == (False, "<end_of_sentence>")
    for format_ in (m1, m2):
        assert format_.thinking_end
        assert format_.thinking_end in (format_.thinking_forced_end or "")
        assert bool(format_.thinking_forced_start) != format_.thinking_open_in_prompt
        reply = format_.parse(
            f"{format_.thinking_forced_start}half a th{format_.thinking_forced_end}answer"
        )
        assert (reply.thinking, reply.content) == ("half a th", "answer")


def checkpoint(
    folder: Path,
    model_type: str | None,
    chat_template: Any = None,
    jinja: str | None = None,
    **config_fields: Any,
) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **config_fields}))
    config = {"eos_token": "<|im_end|>", "chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("minimax_m1", MiniMaxM1),
        ("MiniMaxM1", MiniMaxM1),
        ("minimax_text_01", MiniMaxM1),
        ("minimax_m2", MiniMaxM2),
    ],
)
def test_a_checkpoint_without_a_template_has_the_format_of_its_model_type(
    tmp_path: Path, model_type: str, expected: type
) -> None:
    assert isinstance(load_format(checkpoint(tmp_path, model_type)), expected)


def test_a_minimax_template_means_the_backend_format(tmp_path: Path) -> None:
    for name, expected in (("minimax-m1.jinja", MiniMaxM1), ("minimax-m2.jinja", MiniMaxM2)):
        assert isinstance(load_format(checkpoint(tmp_path, None, template(name))), expected)


@pytest.mark.parametrize("model_type", ["minimax", "minimax_m1", "llama", None])
@pytest.mark.parametrize("name", ["minimax-m2.jinja", None])
def test_architectures_decide_before_the_model_type(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model_type: str | None, name: str | None
) -> None:
    for architecture in ("MiniMaxM2ForCausalLM", "MiniMaxM2"):
        source = template(name) if name else None
        folder = checkpoint(tmp_path, model_type, source, architectures=[architecture])
        assert isinstance(load_format(folder), MiniMaxM2)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("architectures", "chat_template", "expected"),
    [
        (None, "minimax-m2.jinja", MiniMaxM2),
        (["Unheard"], "minimax-m2.jinja", MiniMaxM2),
        (None, "minimax-m1.jinja", MiniMaxM1),
        (None, None, MiniMaxM1),
        (["MiniMaxForCausalLM"], "minimax-m1.jinja", MiniMaxM1),
        (["MiniMaxForCausalLM"], None, MiniMaxM1),
    ],
)
def test_the_model_type_minimax_leaves_it_to_the_template(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    architectures: list[str] | None,
    chat_template: str | None,
    expected: type,
) -> None:
    source = template(chat_template) if chat_template else None
    folder = checkpoint(tmp_path, "minimax", source, architectures=architectures)
    assert isinstance(load_format(folder), expected)
    assert caplog.messages == []


def test_the_identity_sentence_comes_from_the_checkpoint(tmp_path: Path) -> None:
    sentence = "You are a helpful assistant. Your name is MiniMax-M2.7."
    source = template("minimax-m2.jinja").replace("You are a helpful assistant.", sentence)
    found = load_format(checkpoint(tmp_path, "minimax_m2", jinja=source))
    assert f"system\n{sentence}[e~[" in found.render([QUESTION])
    assert found.template == source


def test_another_template_in_minimax_s_container_is_kept(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": CHATML}]
    for chat_template in (CHATML, named):
        found = load_format(checkpoint(tmp_path, "minimax_m2", chat_template))
        assert isinstance(found, TemplateFormat)
        assert found.render([QUESTION]) == (
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
        )
        assert found.end_of_turn == "<|im_end|>"
        assert found.template == CHATML


def test_the_other_model_s_template_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = load_format(checkpoint(tmp_path, "minimax_m2", template("minimax-m1.jinja")))
    assert isinstance(found, MiniMaxM2)
    assert found.template is None  # it would write other prompts than the format does
    (message,) = caplog.messages
    assert "is a minimax_m2 checkpoint with the chat template of minimax_m1" in message


@pytest.mark.parametrize("model_type", ["minimax_m3", "minimax_m3_vl", "minimax_vl_01"])
def test_the_format_of_another_architecture_is_not_guessed(model_type: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, model_type, jinja=template("minimax-m2.jinja"))
    with pytest.raises(ValueError, match=f"is of {model_type}: .*; Fulmen runs MiniMax-M1"):
        load_format(folder)


def test_a_folder_that_says_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        load_format(tmp_path / "missing")
    with pytest.raises(ValueError, match="has no chat template and its model_type is None"):
        load_format(tmp_path)
    with pytest.raises(ValueError, match="is of type int, not text"):
        load_format(checkpoint(tmp_path, "minimax_m2", 5))


# Other checkpoints' templates.


def test_templates_get_plain_dicts() -> None:
    format_ = TemplateFormat(
        "{{ messages | tojson }}{{ tools | tojson }}{{ bos_token }}", {"bos_token": "B"}
    )
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    messages: list[dict[str, Any]] = [
        {"role": "ipython", "content": None, "tool_calls": [call]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]},
    ]
    decoded = {**call, "function": {"name": "f", "arguments": {"a": "é"}}}
    expected = [
        {"role": "ipython", "content": "", "tool_calls": [decoded]},
        {"role": "user", "content": "ab"},
    ]
    text = json.dumps(expected, ensure_ascii=False) + json.dumps(TOOLS, ensure_ascii=False) + "B"
    assert format_.render(messages, TOOLS) == text


ANY_FORMAT = {
    "m1": get_format("minimax_m1"),
    "m2": get_format("minimax_m2"),
    "chatml": TemplateFormat(CHATML),
    "banana": TemplateFormat("{{ messages | tojson }}banana 'banana'"),
}


@pytest.mark.parametrize("name", ANY_FORMAT)
def test_a_conversation_without_messages_is_refused_by_every_format(name: str) -> None:
    tokenizer = Tokenizer(small_tokenizer())
    for encode in (ANY_FORMAT[name].encode, ANY_FORMAT[name].encode_history):
        nothings: list[Iterable[Message]] = [[], (), iter(())]
        for nothing in nothings:
            with pytest.raises(ValueError, match="has no messages, at least one is needed"):
                encode(nothing, tokenizer=tokenizer)


@pytest.mark.parametrize("role", ["banana", "", "User", "ai", None, 5, ["user"], "x" * 10**6])
@pytest.mark.parametrize("name", ANY_FORMAT)
def test_a_role_that_nobody_knows_is_refused_by_every_format(name: str, role: object) -> None:
    with pytest.raises(ValueError, match=r"^role is .*, it must be one of system, user, ") as error:
        ANY_FORMAT[name].render([QUESTION, {"role": role, "content": "x"}])
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", ANY_FORMAT)
def test_who_rules_a_system_prompt_has_many_names(name: str) -> None:
    format = ANY_FORMAT[name]
    system = format.render([{"role": "system", "content": "rule"}, QUESTION])
    for role in ("developer", "root"):
        assert format.render([{"role": role, "content": "rule"}, QUESTION]) == system


@pytest.mark.parametrize(
    "test",
    [
        "message.role == 'root'",
        "messages[0]['role'] == \"root\"",
        "m.role=='root'",
        "m.role != 'root'",
        "m['role'] in ['x', 'root']",
        "m.role not in ('root', 'y')",
    ],
)
def test_a_role_that_the_template_compares_with_is_its_own(test: str) -> None:
    format = TemplateFormat("{{ messages[0].role }}{% if false and " + test + " %}{% endif %}")
    assert format.render([{"role": "root", "content": "x"}]) == "root"
    with pytest.raises(ValueError, match="role is 'rooted'"):
        format.render([{"role": "rooted", "content": "x"}])


@pytest.mark.parametrize("kind", ["image", "image_url", "document", "input_audio", "file"])
@pytest.mark.parametrize("name", ANY_FORMAT)
def test_pictures_sounds_and_files_are_refused_by_every_format(name: str, kind: str) -> None:
    part = {"type": kind, kind: {"url": "data:"}}
    text = {"type": "text", "text": "see"}
    call = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [text, part]}
    asked: dict[str, list[dict[str, Any]]] = {
        "user": [{"role": "user", "content": [text, part]}],
        "assistant": [QUESTION, {"role": "assistant", "content": [part]}],
        "tool": [
            QUESTION,
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ],
    }
    for role, messages in asked.items():
        with pytest.raises(ValueError, match=f"{role} message has a part of type {kind}, these m"):
            ANY_FORMAT[name].render(messages)


def test_templates_get_calls_of_our_own_type_as_dicts() -> None:
    messages = [{"role": "assistant", "tool_calls": [ToolCall("f", {"a": 1}, "x")]}]
    function = {"name": "f", "arguments": {"a": 1}}
    assert json.loads(TemplateFormat("{{ messages | tojson }}").render(messages)) == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "x", "type": "function", "function": function}],
        }
    ]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (5, "a message is of type int, it must be an object"),
        ({"role": "assistant", "tool_calls": "x"}, "tool_calls is of type str, it must be a list"),
        ({"role": "assistant", "tool_calls": 5}, "tool_calls is of type int, it must be a list"),
        (
            {"role": "assistant", "tool_calls": [1]},
            "a tool call is of type int, it must be an object",
        ),
        ({"role": "assistant", "tool_calls": [{}]}, "a tool call has the name None"),
    ],
)
def test_templates_refuse_what_is_no_message(message: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TemplateFormat(CHATML).render([message])


def test_templates_have_what_they_commonly_use() -> None:
    source = """
{%- for message in messages %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {%- generation %}{{ message.content }}{% endgeneration %}
{%- endfor %}
{{- {'b': '<é>', 'a': 1} | tojson(indent=1, sort_keys=True) }}
{{- strftime_now('%%') }}"""
    messages = [{"role": "skip", "content": "x"}, QUESTION]
    assert TemplateFormat(source).render(messages) == 'q{\n "a": 1,\n "b": "<é>"\n}%'


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            "{{ raise_exception('Roles must alternate!') }}",
            "refused the messages: Roles must alternate",
        ),
        ("{% if %}", "the chat template failed: "),
        ("{{ 'a' + 1 }}", "the chat template failed: "),
        ("{{ missing.name }}", "the chat template failed: 'missing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "the chat template failed: access to attribute"),
        ("{{ messages.append(1) }}", "the chat template failed: access to attribute"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "the chat template failed: "),
    ],
)
def test_a_template_that_fails_is_one_sentence(source: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="the chat template") as failed:
        TemplateFormat(source).render([QUESTION])
    assert sentence in str(failed.value)
    assert "\n" not in str(failed.value)
    assert failed.value.__suppress_context__


def test_with_a_template_all_text_is_content() -> None:
    events, reply = stream(TemplateFormat(CHATML), [" <think>", "a</think>\n"])
    assert events == [ContentDelta(" <think>"), ContentDelta("a</think>\n")]
    assert reply.content == TemplateFormat(CHATML).parse(reply.content).content


def test_a_template_s_prompt_is_encoded_with_its_special_tokens() -> None:
    tokenizer = Tokenizer(small_tokenizer())
    ids = TemplateFormat("]~b]{{ messages[0].content }}").encode([QUESTION], tokenizer=tokenizer)
    assert ids == [tokenizer.token_id("]~b]"), *tokenizer.encode("q")]
