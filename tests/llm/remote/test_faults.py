"""Servers that break off, stall, refuse or send garbage: one sentence, and what came is kept."""

import asyncio
import json
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.chat import ChatRequest, complete, sum_events
from fulmen.llm import RemoteModel
from fulmen.llm.http import PeerError
from fulmen.llm.remote import answer as answer_file
from tests.llm.remote.fakes import (
    HELLO,
    QUICK,
    Fake,
    answer_of,
    delta,
    listed,
    named_sse,
    read_all,
    sse,
)

BEGUN = sse(delta(reasoning_content="Hm."), delta(content="Hel"))
BEGUN_MESSAGE = named_sse(
    {"type": "message_start", "message": {}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hel"}},
)


def html(status: int) -> httpx2.Response:
    return httpx2.Response(status, html="<html><body>Bad gateway</body></html>")


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        ([], "ended before the answer did"),
        ([None], "sent nothing more within 0.2 s"),
        ([b"data: {]\n\n"], "is not valid JSON"),
        ([b"data: [1]\n\n"], "object"),
        ([b'data: {"hello": 1}\n\n'], "in place of a chunk"),
        ([sse({"error": {"message": "out of memory", "code": 500}})], "out of memory"),
        ([sse({"error": "out of memory"})], "out of memory"),
        ([sse({"base_resp": {"status_code": 1, "status_msg": "no money"}})], "no money"),
        ([sse({"object": "error", "message": "out of memory"})], "out of memory"),
        ([sse(delta("error"))], "ended the answer with an error"),
        (
            [sse(delta(tool_calls=[{"index": 0, "function": {"arguments": "{"}}]))],
            "a call without a name",
        ),
        ([b"data: " + b"x" * (9 * 2**20)], "an event of more than"),
    ],
)
def test_a_broken_stream_is_an_error_and_what_came_is_kept(
    rest: list[bytes | None], sentence: str
) -> None:
    events, completion, error = answer_of(Fake([BEGUN, *rest]))
    assert isinstance(error, PeerError)
    assert sentence in str(error)
    assert "\n" not in str(error)
    assert completion.finish_reason == "error"
    assert (completion.reply.thinking, completion.reply.content) == ("Hm.", "Hel")
    assert sum_events(events) == completion.reply


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        (b"", "ended before the answer did"),
        (
            named_sse({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}),
            "busy",
        ),
        (
            named_sse(
                {
                    "type": "content_block_delta",
                    "index": 5,
                    "delta": {"type": "input_json_delta", "partial_json": "{"},
                }
            ),
            "a call that did not begin",
        ),
    ],
)
def test_a_broken_stream_of_messages_is_an_error(rest: bytes, sentence: str) -> None:
    _, completion, error = answer_of(Fake([BEGUN_MESSAGE, rest]), dialect="anthropic")
    assert sentence in str(error)
    assert completion.reply.content == "Hel"
    assert completion.finish_reason == "error"


@pytest.mark.parametrize(
    ("response", "status", "sentence"),
    [
        (httpx2.Response(400, json={"error": {"message": "too long"}}), 400, "too long"),
        (httpx2.Response(400, json={"object": "error", "message": "too long"}), 400, "too long"),
        (httpx2.Response(422, json={"detail": [{"msg": "too long"}]}), 400, "too long"),
        (
            httpx2.Response(400, json={"type": "error", "error": {"message": "too long"}}),
            400,
            "too long",
        ),
        (html(502), 502, "a page of HTML"),
        (html(200), 502, "a page of HTML"),
        (httpx2.Response(200, json={"choices": []}), 502, "in place of a stream"),
        (httpx2.Response(302, headers={"location": "http://other/"}), 502, "http://other/"),
        (httpx2.Response(500, text=""), 502, "500"),
    ],
)
def test_a_refusal_is_one_sentence(response: httpx2.Response, status: int, sentence: str) -> None:
    events, completion, error = answer_of(Fake(response))
    assert events == []
    assert isinstance(error, PeerError)
    assert error.status == status
    assert sentence in str(error)
    assert completion.finish_reason == "error"


def test_a_refusal_that_may_pass_is_asked_again() -> None:
    busy = httpx2.Response(429, headers={"retry-after": "0"}, json={"error": {"message": "busy"}})
    fake = Fake(busy, [sse(delta("stop", content="Hi"))])
    _, completion, error = answer_of(fake)
    assert error is None
    assert completion.reply.content == "Hi"
    assert len(fake.asked) == 2


def test_a_server_that_is_not_there_is_named() -> None:
    async def work() -> None:
        async with RemoteModel("http://127.0.0.1:9", config=QUICK) as model:
            with pytest.raises(PeerError, match=r"http://127.0.0.1:9.* cannot be reached"):
                await complete(model, HELLO)

    asyncio.run(asyncio.wait_for(work(), 20))


def test_an_endless_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_file, "MAX_ANSWER_CHARS", 10_000)
    fake = Fake([sse(delta(content="x" * 1000))] * 20)
    _, completion, error = answer_of(fake)
    assert "more than 10,000 characters" in str(error)
    assert len(completion.reply.content) == 10_000


def test_calls_without_number_end() -> None:
    calls = [
        {"index": number, "id": f"c{number}", "function": {"name": "f", "arguments": "{}"}}
        for number in range(2000)
    ]
    _, completion, error = answer_of(Fake([sse(delta(tool_calls=calls))]))
    assert "more than 1,024 calls" in str(error)
    assert len(completion.reply.tool_calls) == 1023  # the last of them may go on


def test_a_closed_model_says_so() -> None:
    async def work() -> None:
        model = RemoteModel("http://fake", transport=Fake([BEGUN]), config=QUICK)
        await model.close()
        with pytest.raises(RuntimeError, match="closed"):
            await complete(model, HELLO)

    asyncio.run(work())


def test_an_answer_that_is_given_up_before_it_began_leaves_nothing() -> None:
    async def work() -> None:
        async with RemoteModel("http://fake", transport=Fake([None]), config=QUICK) as model:
            stream = model.stream(HELLO)
            await stream.close()
            async with model.stream(HELLO) as stream:
                reading = asyncio.ensure_future(anext(aiter(stream)))
                await asyncio.sleep(0)
                reading.cancel()
                await asyncio.wait([reading])
            assert len(asyncio.all_tasks()) <= 2

    asyncio.run(asyncio.wait_for(work(), 20))


KEYS = st.sampled_from(
    [
        *("choices", "index", "delta", "finish_reason", "content", "tool_calls", "function"),
        *("id", "name", "arguments", "usage", "logprobs", "token", "logprob", "top_logprobs"),
        *("token_ids", "type", "content_block", "message", "reasoning_content", "text", "bytes"),
        *("partial_json", "signature", "thinking", "stop_reason", "prompt_token_ids", "input"),
    ]
)
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, -1, 0, 1, 10**400, 0.5, "", "a", "{}", "stop", "length", [], {}, [[]], [{}]),
        *("content_block_start", "content_block_delta", "content_block_stop", "message_delta"),
        *("text_delta", "input_json_delta", "thinking_delta", "tool_use", "token_id:5"),
    ]
)
OBJECTS = st.recursive(
    st.dictionaries(KEYS, VALUES, min_size=1, max_size=4),
    lambda inner: st.dictionaries(KEYS, VALUES | inner | st.lists(inner, max_size=2), max_size=4),
    max_leaves=6,
)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@given(values=st.lists(OBJECTS, max_size=4))
def test_garbage_is_read_or_is_one_sentence(dialect: Any, values: list[Any]) -> None:
    pieces = [b"data: %s\n\n" % json.dumps(value).encode() for value in values]
    try:
        events, answer = read_all(dialect, pieces)
    except PeerError:
        return
    assert sum_events(events) == answer.reply()
    assert answer.usage().num_new_tokens >= 0
    assert len(answer.tokens()) <= len(answer.token_texts)


def test_a_list_of_models_that_fails_once_is_asked_for_again() -> None:
    async def work() -> None:
        fake = Fake([BEGUN], models=httpx2.Response(503))
        async with RemoteModel(
            "http://fake", "m", dialect="openai", transport=fake, config=QUICK
        ) as model:
            with pytest.raises(PeerError, match=r"answered with 503: nothing else$"):
                await model.connect()
            fake.models = listed("vllm")
            assert (await model.connect()).server.name == "vLLM"

    asyncio.run(work())


@pytest.mark.parametrize(
    ("options", "models", "sentence"),
    [
        ({}, listed("vllm", "a", "b"), "has 2 models, name one: a, b"),
        ({}, {"object": "list", "data": []}, "lists no models"),
        ({"dialect": "openai"}, {"object": "list", "data": []}, "lists no models"),
        ({}, httpx2.Response(404, json={"error": "no such route"}), "the dialect and the model"),
        ({"model": "m"}, httpx2.Response(404), "name the dialect"),
        ({}, httpx2.Response(401, json={"error": {"message": "no key"}}), "is the key right"),
        ({}, html(200), "the answer of http://fake/v1/models"),
    ],
)
def test_what_is_not_told_has_to_be_named(
    options: dict[str, Any], models: Any, sentence: str
) -> None:
    async def work() -> None:
        fake = Fake([BEGUN], models=models)
        model = RemoteModel("http://fake", transport=fake, config=QUICK, **options)
        async with model:
            with pytest.raises((PeerError, ValueError), match=sentence):
                await complete(model, ChatRequest(messages=HELLO.messages))

    asyncio.run(asyncio.wait_for(work(), 20))
