"""OpenAI's Completions: texts and ids continued as they stand, one and many, whole and streamed."""

import json
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import openai
import pytest
import tokenizers

from fulmen.chat import ChatRequest, Tokenizer, get_format
from fulmen.llm import LLM, ScriptedModel
from fulmen.sampling import SamplingParams
from fulmen.server.completions_reply import shown_token
from tests.server.helpers import ask, byte_tokenizer, scripted, served, served_checkpoint
from tests.server.test_openai_sdk import client_of
from tests.tiny import write_checkpoint

PATH = "/v1/completions"
TAGS = "<think>hm</think> is text 🦩, all of it."
ONCE = "Once upon a time 🦩"


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """Address of a tiny M2 with its engine."""
    with served_checkpoint("m2", model_name="m2", max_queued=24) as url:
        yield url


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Return the same model without a server."""
    return LLM.load(str(write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")))


def asked(url: str, **body: Any) -> Any:
    """Return the reply to a request that is answered."""
    answer = ask(url, PATH, {"model": "m2", "temperature": 0, **body})
    assert answer.status == 200, answer.body
    return answer.chunks() if body.get("stream") else answer.json()


def joined(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """Return the choices that the chunks of a stream add up to, by index."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for piece in chunk["choices"]:
            whole = choices.setdefault(
                piece["index"], {"index": piece["index"], "text": "", "logprobs": None}
            )
            assert "finish_reason" not in whole, "a piece came after the end"
            whole["text"] += piece["text"]
            for name in ("token_ids", "prompt_token_ids"):
                if name in piece:
                    whole[name] = whole.get(name, []) + piece[name]
            if piece["logprobs"]:
                columns = whole["logprobs"] or {name: [] for name in piece["logprobs"]}
                whole["logprobs"] = {
                    name: column + piece["logprobs"][name] for name, column in columns.items()
                }
            if piece["finish_reason"] is not None:
                whole["finish_reason"] = piece["finish_reason"]
    return choices


# ---- one prompt


@pytest.mark.parametrize("prompt", [ONCE, "<think>\n", "]~b]user\nHi[e~[\n"])
def test_a_text_is_continued_as_the_engine_continues_it(engine: str, llm: LLM, prompt: str) -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9, top_k=30, seed=5, max_tokens=20)
    alone = llm.generate(prompt, params=params)
    ids = llm.tokenizer.encode(prompt)
    for given in (prompt, [prompt], ids, [ids]):
        reply = asked(engine, prompt=given, temperature=0.7, seed=5, max_tokens=20)
        (choice,) = reply["choices"]
        assert choice["text"] == alone.reply.content
        assert choice["finish_reason"] == alone.finish_reason
        assert reply["object"] == "text_completion"
        assert reply["usage"]["prompt_tokens"] == len(ids)
        assert reply["usage"]["completion_tokens"] == len(alone.tokens)


def test_sixteen_tokens_come_unless_the_request_says_more(engine: str) -> None:
    reply = asked(engine, prompt="Hi", ignore_eos=True)
    assert reply["usage"]["completion_tokens"] == 16
    assert reply["choices"][0]["finish_reason"] == "length"
    assert asked(engine, prompt="Hi", ignore_eos=True, max_tokens=17)["usage"]["total_tokens"] == 19


def test_tags_are_text_here() -> None:
    with served(scripted("m2", *[TAGS] * 2)) as url:
        assert asked(url, prompt="a", max_tokens=99)["choices"][0]["text"] == TAGS
        chunks = asked(url, prompt="a", max_tokens=99, stream=True)
        assert joined(chunks)[0]["text"] == TAGS


def test_an_answer_follows_its_grammar_and_stops(engine: str) -> None:
    for fields in (
        {"guided_choice": ["yes", "no"]},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"guided_regex": "yes|no"},
    ):
        reply = asked(engine, prompt="Well? ", max_tokens=9, **fields)
        assert reply["choices"][0]["text"] in ("yes", "no")
    with served(scripted("m2", TAGS)) as url:
        (choice,) = asked(url, prompt="a", max_tokens=99, stop=[" is", "zzz"])["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("<think>hm</think>", "stop")


# ---- many prompts


@pytest.mark.parametrize("is_streamed", [False, True])
def test_prompts_of_one_request_are_answered_as_alone_and_numbered_prompt_by_prompt(
    engine: str, is_streamed: bool
) -> None:
    prompts = ["One", ONCE, "Three and more"]
    fields = {"max_tokens": 12, "logprobs": 2, "temperature": 0.9, "seed": 7, "echo": False}
    alone = [
        asked(engine, prompt=prompt, n=2, **fields)["choices"][j]
        for prompt in prompts
        for j in range(2)
    ]
    ids = [byte_tokenizer("m2").encode(prompt) for prompt in prompts]
    for given in (prompts, ids):
        found = asked(engine, prompt=given, n=2, stream=is_streamed, **fields)
        choices = joined(found) if is_streamed else dict(enumerate(found["choices"]))
        assert sorted(choices) == list(range(6))
        for index, choice in choices.items():
            assert choice["index"] == index
            assert choice == {**alone[index], "index": index}
        if not is_streamed:
            assert found["usage"]["prompt_tokens"] == sum(map(len, ids))
            assert found["usage"]["completion_tokens"] == sum(
                len(choice["logprobs"]["tokens"]) for choice in choices.values()
            )


def test_more_answers_than_may_run_and_wait_are_refused_at_once(engine: str) -> None:
    answer = ask(engine, PATH, {"prompt": ["a"] * 33})
    assert answer.status == 400
    assert answer.json()["error"]["message"] == (
        "the request wants 33 answers, at most 32 may run and wait here"
    )
    assert len(asked(engine, prompt=["a"] * 32, max_tokens=1)["choices"]) == 32


# ---- what comes with the text


@pytest.mark.parametrize("is_streamed", [False, True])
def test_columns_of_logprobs_cover_every_token(engine: str, is_streamed: bool) -> None:
    fields: Any = {
        "prompt": ONCE,
        "max_tokens": 40,
        "temperature": 1.0,
        "seed": 11,
        "ignore_eos": True,
    }
    found = asked(engine, logprobs=3, return_token_ids=True, stream=is_streamed, **fields)
    choice = joined(found)[0] if is_streamed else found["choices"][0]
    columns, tokenizer = choice["logprobs"], byte_tokenizer("m2")
    assert choice["prompt_token_ids"] == tokenizer.encode(ONCE)
    ids = choice["token_ids"]
    assert {len(column) for column in columns.values()} == {len(ids)} == {40}
    text = choice["text"]
    for place, token in enumerate(columns["tokens"]):
        data = tokenizer.token_bytes(ids[place])
        is_whole = data.decode(errors="ignore").encode() == data
        shown = data.decode() if is_whole else f"bytes:\\x{data[0]:02x}"
        assert token == shown
        top = columns["top_logprobs"][place]
        assert top[token] == columns["token_logprobs"][place]
        assert 3 <= len(top) <= 4
        assert list(top.values())[:3] == sorted(list(top.values())[:3], reverse=True)
        offset = columns["text_offset"][place]
        if is_whole:
            assert text[offset : offset + len(token)] == token
    assert columns["text_offset"] == sorted(columns["text_offset"])
    no_others = asked(engine, logprobs=0, **fields)["choices"][0]["logprobs"]
    assert no_others["token_logprobs"] == columns["token_logprobs"]
    assert [list(top) for top in no_others["top_logprobs"]] == [
        [token] for token in columns["tokens"]
    ]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_echo_puts_the_prompt_first(engine: str, is_streamed: bool) -> None:
    prompts: Any = [ONCE, "Two"]
    plain = asked(engine, prompt=prompts, max_tokens=5, n=2)["choices"]
    expected = [prompts[i // 2] + choice["text"] for i, choice in enumerate(plain)]
    for given in (prompts, [byte_tokenizer("m2").encode(prompt) for prompt in prompts]):
        found = asked(engine, prompt=given, max_tokens=5, n=2, echo=True, stream=is_streamed)
        choices = joined(found) if is_streamed else dict(enumerate(found["choices"]))
        assert [choices[i]["text"] for i in range(4)] == expected
    found = asked(engine, prompt=prompts, max_tokens=0, echo=True, stream=is_streamed)
    choices = joined(found) if is_streamed else dict(enumerate(found["choices"]))
    assert [choices[i]["text"] for i in range(2)] == prompts
    assert {choices[i]["finish_reason"] for i in range(2)} == {"length"}
    if not is_streamed:
        assert found["usage"]["completion_tokens"] == 0
        assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"]


def test_a_stream_ends_with_the_usage_of_the_whole(engine: str) -> None:
    fields: Any = {"prompt": ["One", "Two"], "max_tokens": 6}
    whole = asked(engine, **fields)
    chunks = asked(engine, stream=True, stream_options={"include_usage": True}, **fields)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    last, total = chunks[-1]["usage"], whole["usage"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last[name] == total[name]
    answer = ask(engine, PATH, {**fields, "stream": True})
    assert answer.text.endswith("data: [DONE]\n\n")


def test_the_sdk_reads_whole_and_streamed_alike(engine: str) -> None:
    with client_of(engine) as client:
        fields: Any = {"model": "any", "prompt": ONCE, "max_tokens": 12, "temperature": 0}
        whole = client.completions.create(**fields, logprobs=1)
        text = "".join(
            choice.text
            for chunk in client.completions.create(**fields, stream=True)
            for choice in chunk.choices
        )
        assert text == whole.choices[0].text
        assert whole.choices[0].logprobs is not None
        assert len(whole.choices[0].logprobs.token_logprobs or ()) == 12
        with pytest.raises(openai.BadRequestError, match="suffix"):
            client.completions.create(**fields, suffix="the end")


# ---- log-probabilities of the prompt


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("prompts", [[ONCE], ["One", "]~b]user\nTwo"]])
def test_echo_with_logprobs_tells_what_the_model_thinks_of_a_prompt(
    engine: str, llm: LLM, prompts: list[str], is_streamed: bool
) -> None:
    fields: Any = {"max_tokens": 6, "logprobs": 2, "n": 2, "temperature": 1.0, "seed": 4}
    plain = asked(engine, prompt=prompts, **fields)["choices"]
    ids = [llm.tokenizer.encode(prompt) for prompt in prompts]
    for given in (prompts, ids):
        found = asked(engine, prompt=given, echo=True, stream=is_streamed, **fields)
        choices = joined(found) if is_streamed else dict(enumerate(found["choices"]))
        assert sorted(choices) == list(range(2 * len(prompts)))
        for index, choice in choices.items():
            text, columns = prompts[index // 2], choice["logprobs"]
            assert choice["text"] == text + plain[index]["text"]
            count = len(ids[index // 2])
            new = {name: column[count:] for name, column in columns.items()}
            shift = len(text)
            new["text_offset"] = [offset - shift for offset in new["text_offset"]]
            assert new == plain[index]["logprobs"]
            check_prompt(llm, ids[index // 2], text, columns)


def check_prompt(llm: LLM, ids: list[int], text: str, columns: Any) -> None:
    """Compare the columns of a prompt with what the engine tells of the same ids, forced."""
    params = SamplingParams(max_tokens=len(ids) - 1, logprobs=2, ignore_eos=True)
    forced = llm.chat(text=ids[:1], forced_ids=ids[1:], params=params).tokens
    assert [token.token_id for token in forced] == ids[1:]
    tokenizer = llm.tokenizer
    assert (columns["token_logprobs"][0], columns["top_logprobs"][0]) == (None, None)
    assert columns["token_logprobs"][1 : len(ids)] == [token.logprob for token in forced]
    for token, top in zip(forced, columns["top_logprobs"][1 : len(ids)], strict=True):
        best = {shown_token(tokenizer, id): logprob for id, logprob in token.top_logprobs}
        assert top == {shown_token(tokenizer, token.token_id): token.logprob} | best
        assert list(top)[:2] == list(best)
    place = 0
    for id, offset in zip(ids, columns["text_offset"], strict=False):
        assert offset == place
        place += len(tokenizer.token_bytes(id).decode(errors="ignore"))
        if place < len(text) and text[place] == "🦩":
            break


def test_a_prompt_alone_can_be_scored(engine: str, llm: LLM) -> None:
    ids = llm.tokenizer.encode(ONCE)
    reply = asked(engine, prompt=[ONCE, "a"], echo=True, logprobs=2, max_tokens=0)
    first, second = reply["choices"]
    assert (first["text"], second["text"]) == (ONCE, "a")
    check_prompt(llm, ids, ONCE, first["logprobs"])
    assert {len(column) for column in first["logprobs"].values()} == {len(ids)}
    assert second["logprobs"] == {
        "tokens": ["a"],
        "token_logprobs": [None],
        "top_logprobs": [None],
        "text_offset": [0],
    }
    assert reply["usage"]["completion_tokens"] == 0


def test_a_prompt_that_a_model_does_not_score_has_no_logprobs() -> None:
    with served(scripted("m2", "so")) as url:
        (choice,) = asked(url, prompt="abc", echo=True, logprobs=1, max_tokens=9)["choices"]
    columns = choice["logprobs"]
    assert columns["tokens"][:5] == ["a", "b", "c", "s", "o"]
    assert columns["token_logprobs"][:5] == [None, None, None, 0.0, 0.0]
    assert len({len(column) for column in columns.values()}) == 1


# ---- special tokens


def bos_model(num_answers: int) -> ScriptedModel:
    """Return a model whose tokenizer puts a BOS token before every text."""
    tokenizer = byte_tokenizer("m1")
    definition = json.loads(tokenizer.to_json())
    bos = "<begin_of_document>"
    part = {"SpecialToken": {"id": bos, "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    pair = {"Sequence": {"id": "B", "type_id": 1}}
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [part, sequence],
        "pair": [part, sequence, pair],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.token_id(bos)], "tokens": [bos]}},
    }
    with_bos = Tokenizer(
        tokenizers.Tokenizer.from_str(json.dumps(definition)),
        special_tokens={"bos_token": bos, "eos_token": "<end_of_sentence>"},
    )
    return ScriptedModel(get_format("minimax_m1"), ["so"] * num_answers, tokenizer=with_bos)


def test_a_text_gets_the_tokens_that_its_tokenizer_puts_around_it() -> None:
    model = bos_model(3)
    bos = model.tokenizer.bos_token_id
    ids = model.tokenizer.encode("Hi")
    assert bos not in ids
    with served(model) as url:
        asked(url, prompt="Hi", max_tokens=9)
        asked(url, prompt="Hi", max_tokens=9, add_special_tokens=False)
        asked(url, prompt=ids, max_tokens=9)
    seen = [request.prompt and request.prompt.ids for request in model.requests]
    assert seen == [(bos, *ids), tuple(ids), tuple(ids)]


# ---- refusals


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "prompt is missing"),
        ({"prompt": []}, "prompt is [], it must be"),
        ({"prompt": ""}, "prompt has no token"),
        ({"prompt": ["a", ""]}, "prompt[1] has no token"),
        ({"prompt": {"a": 1}}, "prompt is {'a': 1}, it must be"),
        ({"prompt": ["a", 7]}, "prompt[1] is 7, it must be a text or a list of token ids"),
        ({"prompt": [1, "a"]}, "prompt[0] is 1"),
        ({"prompt": [[1], []]}, "prompt[1] is []"),
        ({"prompt": [True]}, "prompt[0] is True"),
        ({"prompt": [1, 10**9]}, "prompt has 1000000000 in it, it must hold ids from 0 to"),
        ({"prompt": [[1], [-1]]}, "prompt[1] has -1 in it"),
        ({"prompt": "a", "best_of": 2}, "best_of is 2, it must be as many as n: 1"),
        ({"prompt": "a", "n": 2, "best_of": 1}, "best_of is 1, it must be as many as n: 2"),
        ({"prompt": "a", "n": 17}, "n is 17, it must be at most 16"),
        ({"prompt": "a", "suffix": "b"}, "suffix is 'b'"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0, that goes only with echo"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "temperature": 3}, "temperature is 3"),
        ({"prompt": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "a", "guided_json": "{", "max_tokens": 3}, "json_schema is not JSON"),
    ],
)
def test_what_is_wrong_is_named(engine: str, fields: dict[str, Any], sentence: str) -> None:
    for is_streamed in (False, True):
        answer = ask(engine, PATH, {**fields, "stream": is_streamed})
        assert answer.status == 400, answer.body
        assert sentence in answer.json()["error"]["message"]


def test_a_prompt_that_leaves_no_room_is_refused(engine: str, llm: LLM) -> None:
    size = llm.engine.max_model_len
    answer = ask(engine, PATH, {"prompt": ["a", "b" * size]})
    assert answer.status == 400
    error = answer.json()["error"]
    assert error["message"] == f"prompt is too long: {size} tokens > {size - 1} maximum"
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


def test_without_ids_texts_are_continued_and_what_needs_ids_is_not_there() -> None:
    model = ScriptedModel(get_format("minimax_m2"), ["so it goes", "on", "and on"])
    with served(model) as url:
        assert asked(url, prompt="a")["choices"][0]["text"] == "so it goes"
        assert [c["text"] for c in asked(url, prompt=["a", "b"])["choices"]] == ["on", "and on"]
        assert [request.text for request in model.requests] == ["a", "a", "b"]
        for fields in ({"prompt": [1]}, {"prompt": "a", "logprobs": 1}):
            assert ask(url, PATH, fields).status == 501


def test_no_answer_here_is_one_of_a_history(tmp_path: Path) -> None:
    def write(request: ChatRequest) -> str:
        return "again" if request.text is not None else "</think>\n\nagain"

    log = tmp_path / "log.sqlite3"
    model = ScriptedModel(get_format("minimax_m2"), [write] * 3, tokenizer=byte_tokenizer("m2"))
    with served(model, transcripts=log) as url:
        asked(url, prompt="Hi", max_tokens=99)
        history = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "again"},
            {"role": "user", "content": "More"},
        ]
        reply = ask(url, "/v1/chat/completions", {"messages": history}).json()
        assert [turn["state"] for turn in reply["fulmen"]["turns"]] == ["rendered"]


def test_a_client_that_goes_away_frees_the_places_of_all_its_prompts() -> None:
    model = scripted("m2", *["word " * 200] * 40, delay_seconds=0.02)
    with served(model, max_queued=0) as url, client_of(url, timeout=60) as client:
        stream = client.completions.create(
            model="any", prompt=["a"] * 8, max_tokens=500, stream=True
        )
        next(iter(stream))
        assert ask(url, PATH, {"prompt": "b"}).status == 429
        stream.close()
        for _ in range(100):
            answer = ask(url, PATH, {"prompt": "b", "max_tokens": 1})
            if answer.status == 200:
                break
            time.sleep(0.1)
        assert answer.status == 200
        assert model.stats.num_running == 0


def test_offsets_add_up() -> None:
    text = "Hi 🦩!"
    with served(scripted("m2", text)) as url:
        (choice,) = asked(url, prompt="a", logprobs=0, max_tokens=99)["choices"]
    columns = choice["logprobs"]
    lengths = [len(data) for data in (t for t in columns["tokens"] if "bytes" not in t)]
    assert columns["text_offset"][:4] == list(accumulate([0, *lengths[:3]]))
    assert columns["text_offset"][-1] == len(text)
