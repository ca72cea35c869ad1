"""Messages in, Reply out: what happens between ids and text."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.chat import sum_events
from fulmen.engine import EngineConfig
from fulmen.llm import LLM, StopTexts
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
    ids = [output.token_id for output in completion.outputs]
    text = llm.tokenizer.decode(ids)
    assert llm.format.parse(text, None, llm.format.thinking_open_in_prompt) == completion.reply
    assert completion.finish_reason == "length"
    assert len(completion.outputs) == 40
    assert completion.prompt_ids == tuple(llm.format.encode(MESSAGES, tokenizer=llm.tokenizer))


def test_answers_side_by_side_equal_answers_alone(llm: LLM) -> None:
    params = [replace(SHORT, seed=seed) for seed in range(3)]
    alone = [llm.chat(MESSAGES, params=one).reply for one in params]
    streams = [llm.stream(MESSAGES, params=one) for one in params]
    running = list(streams)
    while running:
        running = [stream for stream in running if next(stream, None) is not None]
    assert [stream.finish().reply for stream in streams] == alone
    assert not llm.engine.has_unfinished


def test_a_closed_stream_frees_its_request_and_keeps_what_came(llm: LLM) -> None:
    stream = llm.stream(MESSAGES, params=SHORT)
    next(stream)
    completion = stream.finish()
    assert completion.finish_reason == "abort"
    assert 0 < len(completion.outputs) < 40
    assert not llm.engine.has_unfinished
    assert list(stream) == []


@pytest.mark.parametrize("budget", [0, 1, 7, 39])
def test_a_thought_over_its_budget_is_closed(m2: LLM, budget: int) -> None:
    # Random weights hardly ever close a thought by themselves.
    params = replace(SHORT, thinking_budget=budget, max_tokens=80)
    free = m2.chat(MESSAGES, params=replace(params, thinking_budget=None))
    assert not free.reply.is_thinking_closed
    completion = m2.chat(MESSAGES, params=params)
    forced_ids = m2.tokenizer.encode(m2.format.thinking_forced_end or "")
    ids = [output.token_id for output in completion.outputs]
    assert ids[budget : budget + len(forced_ids)] == forced_ids
    assert ids[:budget] == [output.token_id for output in free.outputs[:budget]]
    assert completion.reply.is_thinking_closed
    assert "</think>" not in completion.reply.thinking + completion.reply.content
    assert completion.num_thinking_tokens <= budget + len(forced_ids)


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(llm: LLM) -> None:
    whole = "".join(llm.complete("Hello", SHORT))
    stop = whole[10:13]
    stream = llm.complete("Hello", replace(SHORT, stop=(stop, "never there")))
    assert "".join(stream) == whole[: whole.index(stop)]
    assert stream.finish_reason == "stop"
    assert not llm.engine.has_unfinished


def test_the_end_of_turn_is_no_part_of_the_text(llm: LLM) -> None:
    free = llm.complete("Hello", SHORT)
    ids = [output.token_id for output in (list(free), free.outputs)[1]]
    last = next(n for n, token in enumerate(ids) if n > 4 and token not in ids[:n])
    stream = llm.complete("Hello", replace(SHORT, stop_token_ids=(ids[last],)))
    text = "".join(stream)
    assert [output.token_id for output in stream.outputs] == ids[: last + 1]
    assert text == llm.tokenizer.decode(ids[:last])


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
    while rest and not matcher.is_found:
        size = data.draw(st.integers(1, len(rest)))
        passed += matcher.feed(rest[:size])
        rest = rest[size:]
    if not matcher.is_found:
        passed += matcher.flush()
    assert matcher.is_found == bool(found)
    # A longer stop text that begins earlier may complete later than a shorter one inside it.
    if not found:
        assert passed == text
    else:
        assert text.startswith(passed)
        assert any(text.startswith(passed + stop) for stop in stops)


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
        m2.complete("")
