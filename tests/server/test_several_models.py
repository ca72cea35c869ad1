"""Several models in one server: listed, chosen by name, each with what is its own."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import anthropic
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from fulmen.engine import EngineConfig
from fulmen.llm import LLM, LocalModel
from fulmen.server import ApiKey, ServerConfig
from tests.server.conversing import CHAT, MESSAGES, bits, chat, shown, user
from tests.server.helpers import answering, ask, served
from tests.tiny import write_checkpoint

QUESTION: Any = [{"role": "user", "content": "What is 6 times 7?"}]
ALICE = "sk-alice-0123"
NAMES = ("one", "two")
MOST_AT_ONCE = 8


@contextmanager
def local_models(folder: Path) -> Iterator[dict[str, LocalModel]]:
    """Load a tiny model of each kind: one is an M1, two an M2."""
    models = {}
    config = EngineConfig(kv_cache_bytes=2**26, max_num_seqs=MOST_AT_ONCE)
    for name, kind, length in (("one", "m1", 4096), ("two", "m2", 8192)):
        checkpoint = write_checkpoint(folder / kind, kind, max_position_embeddings=length)
        llm = LLM.load(str(checkpoint), engine_config=config)
        models[name] = LocalModel(llm)
    try:
        yield models
    finally:
        for model in models.values():
            asyncio.run(model.close())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LocalModel]]:
    with local_models(tmp_path_factory.mktemp("models")) as models:
        yield models


@pytest.fixture(scope="module")
def url(models: dict[str, LocalModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server of both."""
    sessions = tmp_path_factory.mktemp("sessions")
    aliases = ("gpt-4o", "claude-x=two")
    with served(models, aliases=aliases, sessions=sessions) as url:
        yield url


def speaking(**says: str) -> dict[str, Any]:
    """Return models that always say the same, by their names."""

    def saying(text: str) -> Any:
        return answering("m2", lambda _: text)

    return {name: saying(text) for name, text in says.items()}


def openai_of(url: str, key: str = "any") -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def anthropic_of(url: str, key: str = "any") -> Anthropic:
    return Anthropic(base_url=url, api_key=key, max_retries=0)


# ---- names


def test_both_sdks_list_all_models_and_find_each(url: str) -> None:
    expected = ["one", "gpt-4o", "two", "claude-x"]
    with openai_of(url) as client:
        assert [model.id for model in client.models.list()] == expected
        found = [client.models.retrieve(name) for name in expected]
        lengths = {model.id: model.max_model_len for model in found}  # type: ignore[attr-defined]
    with anthropic_of(url) as client:
        assert [model.id for model in client.models.list()] == expected
        assert client.models.retrieve("claude-x").display_name == "claude-x"
    assert lengths == {"one": 4096, "gpt-4o": 4096, "two": 8192, "claude-x": 8192}
    roots = {model["id"]: model["root"] for model in ask(url, "/v1/models").json()["data"]}
    assert roots == {"one": "one", "gpt-4o": "one", "two": "two", "claude-x": "two"}
    assert ask(url, "/").json()["models"] == expected
    assert ask(url, "/ready").json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("asked", "answers"),
    [("one", 1), ("two", 2), ("gpt-4o", 1), ("claude-x", 2), ("claude-haiku-4-5", 1), ("", 1)],
)
def test_a_request_names_its_model_and_the_first_answers_to_other_names(
    asked: str, answers: int
) -> None:
    models = speaking(one="I.</think>\n\nnumber 1", two="I.</think>\n\nnumber 2")
    with served(models, aliases=("gpt-4o", "claude-x=two")) as url:
        with openai_of(url) as client:
            reply = client.chat.completions.create(model=asked, messages=QUESTION)
            assert reply.choices[0].message.content == f"number {answers}"
            assert reply.model == (asked or "one")
            response = client.responses.create(model=asked, input="Hi")
            assert response.output_text == f"number {answers}"
        with anthropic_of(url) as sender:
            message = sender.messages.create(model=asked, max_tokens=99, messages=QUESTION)
            assert message.content[-1].text == f"number {answers}"  # type: ignore[union-attr]


def test_a_strict_server_names_what_it_serves(
    models: dict[str, LocalModel], tmp_path: Path
) -> None:
    sentence = "the model 'three' is not served here, one, two are"
    with served(models, strict_model_names=True, sessions=tmp_path) as url:
        with openai_of(url) as client:
            with pytest.raises(openai.NotFoundError, match=sentence):
                client.chat.completions.create(model="three", messages=QUESTION)
            with pytest.raises(openai.NotFoundError, match=sentence):
                client.models.retrieve("three")
        with anthropic_of(url) as sender, pytest.raises(anthropic.NotFoundError, match=sentence):
            sender.messages.create(model="three", max_tokens=9, messages=QUESTION)
        assert ask(url, "/tokenizer_info?model=three").status == 404
        assert ask(url, "/tokenizer_info").status == 200
        assert ask(url, "/v1/sessions", {"name": "a", "model": "three"}).status == 404
        assert ask(url, "/v1/sessions", {"name": "a"}).json()["served_as"] == "one"


@pytest.mark.parametrize(
    ("aliases", "sentence"),
    [
        (("a=three",), "aliases has 'a=three', it must be NAME, or NAME=MODEL with one of one"),
        (("=one",), "it must be NAME, or NAME=MODEL with one of one, two"),
        (("a", "a=two"), "a is a name of one already"),
        (("two",), "two is a name of two already"),
    ],
)
def test_names_that_fit_no_model_are_refused(aliases: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ServerConfig(aliases=aliases).of_models(NAMES)
    with pytest.raises(ValueError, match="two models are called one"):
        ServerConfig().of_models(("one", "one"))


# ---- what each has of its own


def test_tokens_are_those_of_the_named_models_vocabulary(
    url: str, models: dict[str, LocalModel]
) -> None:
    for name, model in models.items():
        body = {"model": name, "messages": QUESTION}
        told = ask(url, "/tokenize", body).json()
        assert model.tokenizer.decode(told["tokens"]).startswith(
            {"one": "<begin_of_document>", "two": "]~!b["}[name]
        )
        back = ask(url, "/detokenize", {"model": name, "tokens": told["tokens"]}).json()
        assert back["prompt"] == model.tokenizer.decode(told["tokens"])
        info = ask(url, f"/tokenizer_info?model={name}").json()
        assert info["vocab_size"] == model.tokenizer.vocab_size
    with anthropic_of(url) as client:
        counts = [
            client.messages.count_tokens(model=name, messages=QUESTION).input_tokens
            for name in NAMES
        ]
    assert counts[0] != counts[1]


def asked(url: str, name: str, seed: int) -> Any:
    body = {"model": name, "messages": QUESTION, "max_tokens": 60, "seed": seed, "logprobs": True}
    answer = ask(url, CHAT, {**body, "return_token_ids": True, "temperature": 1})
    assert answer.status == 200, answer.text
    return bits(answer.json())


def test_both_asked_at_once_give_the_same_bits_as_each_alone(url: str) -> None:
    jobs = [(name, seed) for seed in range(4) for name in NAMES]
    alone = {job: asked(url, *job) for job in jobs}
    for _ in range(2):
        start = Barrier(len(jobs))

        def at_once(job: tuple[str, int], start: Barrier = start) -> Any:
            start.wait(20)
            return asked(url, *job)

        with ThreadPoolExecutor(len(jobs)) as pool:
            assert dict(zip(jobs, pool.map(at_once, jobs), strict=True)) == alone


def test_two_streams_run_at_once(url: str) -> None:
    """Each says what it says alone, and neither waits for the other's end."""

    def stream(name: str, begun: Event, other: Event) -> tuple[str, bool]:
        with openai_of(url) as client:
            events = client.chat.completions.create(
                model=name, messages=QUESTION, stream=True, seed=5, max_tokens=200
            )
            text, both = "", False
            for event in events:
                begun.set()
                both = both or other.wait(20)
                delta = event.choices[0].delta
                text += (delta.content or "") + (getattr(delta, "reasoning_content", "") or "")
            return text, both

    first, second = Event(), Event()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(stream, "one", first, second)
        two = pool.submit(stream, "two", second, first)
        found = [one.result(60), two.result(60)]
    ready = Event()
    ready.set()
    assert found == [stream("one", Event(), ready), stream("two", Event(), ready)]
    assert found[0][0] != found[1][0]


def value_of(url: str, metric: str, model: str, **labels: str) -> float:
    text = ask(url, "/metrics", headers={"x-api-key": ALICE}).text
    for line in text.splitlines():
        found = re.fullmatch(rf"fulmen:{metric}{{(.*)}} (\S+)", line)
        if found and dict(re.findall(r'(\w+)="(.*?)"', found[1])) == {
            "model_name": model,
            **labels,
        }:
            return float(found[2])
    raise AssertionError(f"{metric} of {model} is not there")


def test_metrics_and_usage_are_told_by_model_and_limits_hold_for_all_together(
    models: Mapping[str, Any],
) -> None:
    keys = (ApiKey(name="alice", key=ALICE, requests_per_minute=3),)
    body = {"messages": QUESTION, "max_tokens": 5, "ignore_eos": True}
    sent = {"x-api-key": ALICE}
    with served(models, keys=keys) as url:
        before = {name: value_of(url, "generation_tokens_total", name) for name in NAMES}
        for name in ("one", "two", "two"):
            assert ask(url, CHAT, {**body, "model": name}, headers=sent).status == 200
        refused = ask(url, MESSAGES, {**body, "model": "two"}, headers=sent)
        assert (refused.status, "alice has had 3 requests" in refused.text) == (429, True)
        assert ask(url, CHAT, body).status == 401
        for name, count in (("one", 1), ("two", 2)):
            told = value_of(url, "generation_tokens_total", name)
            assert told - before[name] == 5 * count
            ended = "request_success_total"
            assert value_of(url, ended, name, finished_reason="length") == count
            assert value_of(url, "key_requests_total", name, key="alice") == count
            path = {"method": "POST", "path": CHAT, "status": "200"}
            assert value_of(url, "http_requests_total", name, **path) == count
        rejected = "admission_rejections_total"
        assert value_of(url, rejected, "two", status="429") == 1
        assert value_of(url, rejected, "", status="401") == 1
        usage = ask(url, "/v1/usage", headers=sent).json()
        assert (usage["requests"], usage["new_tokens"], usage["refused_requests"]) == (3, 15, 1)


def test_one_models_queue_does_not_fill_the_others(models: Mapping[str, Any]) -> None:
    body = {"messages": QUESTION, "max_tokens": 4}
    with served(models, max_queued=0) as url, openai_of(url) as client:
        running = client.chat.completions.create(
            model="one", messages=QUESTION, n=MOST_AT_ONCE, stream=True, max_tokens=3000
        )
        next(iter(running))
        refused = ask(url, CHAT, {**body, "model": "one"})
        assert (refused.status, f"{MOST_AT_ONCE} answers run" in refused.text) == (429, True)
        assert ask(url, CHAT, {**body, "model": "two"}).status == 200
        running.close()


# ---- sessions


def test_a_session_belongs_to_its_model(url: str) -> None:
    messages: list[Any] = [user("Hello there")]
    chat(url, messages, "of-two", model="two")
    told = shown(url, "of-two")
    assert (told["model"], told["served_as"]) == ("two", "two")
    refused = ask(url, CHAT, {"model": "one", "messages": messages}, headers=named("of-two"))
    assert refused.status == 409
    said = refused.json()["error"]["message"]
    assert said == "session 'of-two' belongs to another model, it was begun with two"
    messages.append(user("And again"))
    chat(url, messages, "of-two", model="two")
    assert len(shown(url, "of-two")["turns"]) == 2
    fork = ask(url, "/v1/sessions/of-two/fork", {"name": "of-two-fork", "turn": 1}).json()
    assert fork["served_as"] == "two"
    tokens = ask(url, "/v1/sessions/of-two/tokens?turn=1&top=2").json()["data"]
    assert len(tokens) == told["turns"][0]["answer_tokens"]
    assert all(len(token["top"]) == 2 for token in tokens)


def test_a_session_is_created_with_the_named_model(url: str) -> None:
    history = [user("Hi"), {"role": "assistant", "content": "Hello."}]
    for name, body in (("two", {"model": "two"}), ("one", {})):
        made = ask(url, "/v1/sessions", {"name": f"made-{name}", "messages": history, **body})
        assert made.json()["served_as"] == name
    listed = {each["id"]: each["served_as"] for each in ask(url, "/v1/sessions").json()["data"]}
    assert (listed["made-one"], listed["made-two"]) == ("one", "two")
    chat(url, [*history, user("Again")], "made-two", model="two")
    assert len(shown(url, "made-two")["turns"]) == 2


def test_a_session_of_a_model_that_is_gone_is_told_so(
    models: dict[str, LocalModel], tmp_path: Path
) -> None:
    with served(models, sessions=tmp_path) as url:
        chat(url, [user("Hello")], "kept", model="two")
        shown(url, "kept")
    with served({"one": models["one"]}, sessions=tmp_path) as url:
        detail = ask(url, "/v1/sessions/kept").json()
        assert (detail["model"], detail["served_as"]) == ("two", None)
        assert ask(url, "/v1/sessions/kept/tokens?turn=1").status == 409
    with served({"other": models["two"]}, sessions=tmp_path) as url:
        assert ask(url, "/v1/sessions/kept").json()["served_as"] == "other"


def named(session: str) -> dict[str, str]:
    return {"Fulmen-Session": session}


# ---- answers


def test_a_thought_is_ended_whichever_model_has_it(url: str) -> None:
    assert ask(url, f"{CHAT}/control", {"id": "none", "action": "reasoning_end"}).status == 404
    with openai_of(url) as client:
        stream = client.chat.completions.create(
            model="two", messages=QUESTION, stream=True, max_tokens=2000, seed=1
        )
        first = next(iter(stream))
        ended = ask(url, f"{CHAT}/control", {"id": first.id, "action": "reasoning_end"})
        assert (ended.status, ended.json()["ended"]) == (200, True)
        stream.close()


def test_a_history_that_one_said_is_found_by_that_one_alone(url: str) -> None:
    messages: list[Any] = [user("Tell me")]
    chat(url, messages, model="two")
    messages.append(user("More"))
    body = {"messages": messages, "max_tokens": 4}
    states = {
        name: ask(url, CHAT, {**body, "model": name}).json()["fulmen"]["turns"][0]["state"]
        for name in NAMES
    }
    assert (states["one"], states["two"] in ("matched", "restored")) == ("rendered", True)
