"""Messages in, Reply out: what happens between ids and text."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.catalog import recommended_sampling
from fulmen.chat import Completion, StopTexts, as_request, sum_events
from fulmen.engine import EngineConfig, Runner
from fulmen.llm import LLM
from fulmen.sampling import SamplingParams
from tests.tiny import write_checkpoint

MESSAGES = [{"role": "user", "content": "Hello"}]
SHORT = SamplingParams(seed=3, max_tokens=40)


@pytest.fixture(scope="module", params=["m1", "m2"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    return LLM.load(str(folder), engine_config=EngineConfig(max_num_seqs=4))


@pytest.fixture(scope="module")
def m2(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM.load(str(write_checkpoint(tmp_path_factory.mktemp("m2-only"), "m2")))


def test_the_recommended_sampling_comes_from_the_checkpoint(llm: LLM) -> None:
    assert (llm.defaults.temperature, llm.defaults.top_p, llm.defaults.top_k) == (0.7, 0.9, 30)


def test_events_add_up_to_the_reply_and_ids_to_its_text(llm: LLM) -> None:
    stream = llm.stream(MESSAGES, params=SHORT)
    events = list(stream)
    completion = stream.finish()
    assert sum_events(events) == completion.reply
    ids = [token.token_id for token in completion.tokens]
    text = llm.tokenizer.decode(ids)
    assert llm.format.parse(text) == completion.reply
    assert completion.finish_reason == "length"
    assert len(completion.tokens) == 40
    assert completion.prompt_ids == tuple(llm.format.encode(MESSAGES, tokenizer=llm.tokenizer))


@pytest.mark.parametrize("order", ["lockstep", "forwards", "backwards"])
def test_answers_side_by_side_equal_answers_alone(llm: LLM, order: str) -> None:
    params = [
        SHORT,
        replace(SHORT, seed=1, max_tokens=9),
        replace(SHORT, seed=2, thinking_budget=3, max_tokens=60),
        replace(SHORT, seed=4, stop=("e", "a")),
    ]
    alone = [llm.chat(MESSAGES, params=one) for one in params]
    streams = [llm.stream(MESSAGES, params=one) for one in params]
    if order == "lockstep":
        running = [iter(stream) for stream in streams]
        while running:
            running = [events for events in running if next(events, None) is not None]
    for stream in streams if order == "forwards" else reversed(streams):
        list(stream)
    together = [stream.finish() for stream in streams]
    assert [one.reply for one in together] == [one.reply for one in alone]
    assert [one.finish_reason for one in together] == [one.finish_reason for one in alone]
    assert not llm.engine.has_unfinished


def test_a_closed_stream_frees_its_request_and_keeps_what_came(llm: LLM) -> None:
    with llm.stream(MESSAGES, params=SHORT) as stream:
        next(iter(stream))
        completion = stream.finish()
    assert completion.finish_reason == "abort"
    assert 0 < len(completion.tokens) < 40
    assert not llm.engine.has_unfinished
    assert list(stream) == []


def test_an_interrupted_step_ends_the_requests_in_it_and_no_others(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = llm.chat(MESSAGES, params=SHORT).reply
    streams = [llm.stream(MESSAGES, params=SHORT) for _ in range(2)]
    llm.step()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            list(streams[0])
    assert [stream.finish().finish_reason for stream in streams] == ["abort", "abort"]
    assert not llm.engine.has_unfinished
    assert llm.chat(MESSAGES, params=SHORT).reply == expected


def test_updates_come_after_every_step_also_while_the_prompt_is_read(llm: LLM) -> None:
    long = [{"role": "user", "content": "x" * 700}]
    small = EngineConfig(max_num_batched_tokens=100)
    other = LLM(llm.engine.model, llm.tokenizer, llm.format, engine_config=small)
    with other.stream(long, params=SHORT) as stream:
        updates = stream.updates()
        assert [next(updates) for _ in range(6)] == [[]] * 6
        assert list(stream.tokens) == []


def answer_with(llm: LLM, text: str, params: SamplingParams) -> Completion:
    """An answer that the engine is made to write."""
    return llm.chat(MESSAGES, params=params, forced_ids=llm.tokenizer.encode(text))


def test_a_thought_is_told_from_the_answer_and_counted(llm: LLM) -> None:
    opening = "" if llm.format.thinking_open_in_prompt else "<think>\n"
    text = f"{opening}Hmm, 2+2.\n</think>\n\nIt is 4."
    params = replace(SHORT, max_tokens=len(llm.tokenizer.encode(text)))
    completion = answer_with(llm, text, params)
    assert completion.reply.thinking == "Hmm, 2+2."
    assert completion.reply.content == "It is 4."
    assert completion.usage.num_thinking_tokens >= len(llm.tokenizer.encode("Hmm, 2+2.\n"))


def test_a_thought_that_the_model_opens_itself_has_a_budget_too(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    m1 = LLM.load(str(write_checkpoint(tmp_path_factory.mktemp("m1-only"), "m1")))
    opening = m1.tokenizer.encode("<think>\n")
    forced_ids = m1.tokenizer.encode(m1.format.thinking_forced_end or "")
    params = replace(SHORT, thinking_budget=5, max_tokens=80)
    completion = answer_with(m1, "<think>\n", params)
    ids = [token.token_id for token in completion.tokens]
    start = next(n for n in range(len(ids)) if ids[n : n + len(forced_ids)] == forced_ids)
    assert len(opening) <= start <= len(opening) + 5
    assert completion.reply.is_thinking_closed
    assert completion.reply.thinking


@pytest.mark.parametrize("budget", [0, 1, 7, 39])
def test_a_thought_over_its_budget_is_closed(m2: LLM, budget: int) -> None:
    # Random weights hardly ever close a thought by themselves.
    params = replace(SHORT, thinking_budget=budget, max_tokens=80)
    free = m2.chat(MESSAGES, params=replace(params, thinking_budget=None))
    assert not free.reply.is_thinking_closed
    completion = m2.chat(MESSAGES, params=params)
    forced_ids = m2.tokenizer.encode(m2.format.thinking_forced_end or "")
    ids = [token.token_id for token in completion.tokens]
    assert ids[budget : budget + len(forced_ids)] == forced_ids
    assert ids[:budget] == [token.token_id for token in free.tokens[:budget]]
    assert completion.reply.is_thinking_closed
    assert "</think>" not in completion.reply.thinking + completion.reply.content
    assert completion.usage.num_thinking_tokens <= budget + len(forced_ids)


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(llm: LLM) -> None:
    whole = "".join(llm.stream_text("Hello", params=SHORT).texts())
    stop = whole[10:13]
    stream = llm.stream_text("Hello", params=replace(SHORT, stop=(stop, "never there")))
    assert "".join(stream.texts()) == whole[: whole.index(stop)]
    assert stream.finish_reason == "stop"
    assert not llm.engine.has_unfinished


def test_the_end_of_turn_is_no_part_of_the_text(llm: LLM) -> None:
    ids = list(llm.generate("Hello", params=SHORT).answer_ids)
    last = next(n for n, token in enumerate(ids) if n > 4 and token not in ids[:n])
    completion = llm.generate("Hello", params=replace(SHORT, stop_token_ids=(ids[last],)))
    assert list(completion.answer_ids) == ids[: last + 1]
    assert completion.reply.content == llm.tokenizer.decode(ids[:last])


@given(
    st.text(alphabet="ab<", max_size=30),
    st.lists(st.text(alphabet="ab<", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_stop_texts_cut_at_the_first_one_however_the_text_is_cut(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    found = [text.index(stop) for stop in stops if stop in text]
    matcher = StopTexts(stops)
    passed, rest = "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        passed += matcher.feed(rest[:size])
        rest = rest[size:]
    passed += matcher.feed("", is_last=True)
    assert matcher.is_found == bool(found)
    assert passed == text[: min(found, default=len(text))]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0.3, "top_k": None}, {"temperature": 0.3, "top_p": 1.0, "top_k": None}),
        ({"top_k": 0, "top_p": 0.5}, {"top_k": None, "top_p": 0.5, "temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0}),
        ({"eos_token_id": 3}, {"top_k": 40, "top_p": 0.95}),
        ({}, {"top_k": 40, "top_p": 0.95}),
    ],
)
def test_generation_config_is_read_as_the_hub_writes_it(
    given: dict[str, object], expected: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(given))
    params = recommended_sampling("somewhere", tmp_path, "minimax_m2")
    assert {name: getattr(params, name) for name in expected} == expected


def test_m1_is_sampled_without_top_k_where_nothing_is_said(tmp_path: Path) -> None:
    assert recommended_sampling("m1", tmp_path, "minimax_m1").top_k is None
    assert recommended_sampling("other", tmp_path, "minimax_m2").top_k == 40
    assert recommended_sampling("smollm2", tmp_path, "minimax_m2").temperature == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"temperature": "hot"}', "temperature is 'hot', it must be a number, see .*config.json"),
        ('{"top_k": 40.5}', "top_k is 40.5, it must be a whole number or none, see"),
        ('{"top_p": true}', "top_p is True, it must be a number, see"),
        ("[]", "generation_config.json must hold a JSON object"),
        ("{", "generation_config.json is not valid JSON"),
    ],
)
def test_a_broken_generation_config_is_one_sentence(
    content: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        recommended_sampling("somewhere", tmp_path, "minimax_m2")


def test_the_formats_end_of_turn_ends_an_answer_of_any_checkpoint(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "m1")
    (folder / "tokenizer_config.json").unlink()
    (folder / "generation_config.json").unlink()
    llm = LLM.load(str(folder))
    completion = answer_with(llm, "Yes.<end_of_sentence>and on", replace(SHORT, max_tokens=30))
    assert completion.finish_reason == "stop"
    assert completion.reply.content == "Yes."


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no-such-model", "no-such-model is no path on this machine"),
        ("weights.bin", "is a pickle"),
        ("file.gguf", "file.gguf is no GGUF|file.gguf is not a GGUF|GGUF"),
        ("file.txt", "is a file, a checkpoint folder or a GGUF is needed"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_sentence(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.gguf").touch()
    (tmp_path / "file.txt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        LLM.load(name)


def test_a_prompt_longer_than_the_context_is_one_sentence(m2: LLM) -> None:
    with pytest.raises(ValueError, match=r"the prompt has \d+ tokens, the context holds 1024"):
        m2.chat([{"role": "user", "content": "x" * 2000}])
    with pytest.raises(ValueError, match="the prompt is empty"):
        m2.generate("")


@pytest.mark.parametrize(
    ("messages", "kind"),
    [("Hi", "str"), (b"Hi", "bytes"), ({"role": "user", "content": "Hi"}, "dict"), (5, "int")],
)
def test_messages_that_are_no_list_are_answered_with_an_example(messages: Any, kind: str) -> None:
    sentence = (
        f"messages is of type {kind}, it must be a list, such as "
        '[{"role": "user", "content": "Hello"}]'
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        as_request(messages)


def test_a_schema_that_is_no_text_is_told_how_to_become_one() -> None:
    schema: Any = {"type": "integer"}
    with pytest.raises(
        ValueError, match=r"must be text or none; json\.dumps writes a schema as text"
    ):
        SamplingParams(json_schema=schema)
    assert SamplingParams(json_schema=json.dumps(schema)).is_constrained
