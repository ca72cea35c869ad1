"""OpenAI's own SDK over a real socket: what it sends is understood, what it reads is right."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from fulmen.llm import ScriptedModel
from fulmen.llm.scripted import ScriptedAnswer
from tests.server.helpers import (
    answering,
    ask,
    byte_tokenizer,
    scripted,
    served,
    served_checkpoint,
    served_smollm2,
)

QUESTION: Any = [{"role": "user", "content": "What is 6 times 7?"}]
ANSWER = "Six sevens, hm.</think>\n\nIt is 42 🦩, of course."
THOUGHT, CONTENT = "Six sevens, hm.", "It is 42 🦩, of course."
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALLS = (
    "I look.</think>\n\nLet me see.\n<minimax:tool_call>\n"
    '<invoke name="weather">\n<parameter name="city">Oslo</parameter>\n</invoke>\n'
    '<invoke name="weather">\n<parameter name="city">Tromsø</parameter>\n</invoke>\n'
    "</minimax:tool_call>"
)


def client_of(url: str, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", **{"api_key": "any", "max_retries": 0, **options})


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    """A client of a model that always gives the same answer."""
    model = answering("m2", lambda _: ANSWER)
    with served(model, model_name="m2", aliases=("gpt-4o",)) as url, client_of(url) as client:
        yield client


def test_models_are_listed_and_found(client: OpenAI) -> None:
    listed = client.models.list()
    assert [model.id for model in listed] == ["m2", "gpt-4o"]
    assert client.models.retrieve("gpt-4o") == listed.data[1]
    assert listed.data[0].object == "model"
    assert abs(listed.data[0].created - time.time()) < 600


def test_usage_counts_the_tokens_of_prompt_thought_and_answer(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="any", messages=QUESTION, extra_body={"return_token_ids": True}
    )
    tokenizer, usage = byte_tokenizer("m2"), reply.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.prompt_tokens_details is not None
    ids = reply.choices[0].model_extra["token_ids"]  # type: ignore[index]
    assert tokenizer.decode(ids[:-1]) == ANSWER
    assert usage.prompt_tokens == len(reply.prompt_token_ids)  # type: ignore[attr-defined]
    assert usage.completion_tokens == len(ids) == len(tokenizer.encode(ANSWER)) + 1
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens <= len(THOUGHT) + 1  # type: ignore[operator]
    again = client.chat.completions.create(model="any", messages=QUESTION)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert 0 < again.usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens  # type: ignore[operator]
    assert reply.id.startswith("chatcmpl-")
    assert reply.id != again.id
    assert reply._request_id


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="any", messages=QUESTION)
    with client.chat.completions.stream(
        model="any", messages=QUESTION, stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    for reply in (whole, streamed):
        message = reply.choices[0].message
        assert message.content == CONTENT
        assert message.reasoning_content == THOUGHT  # type: ignore[attr-defined]
        assert reply.choices[0].finish_reason == "stop"
    assert streamed.usage is not None
    assert whole.usage is not None
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens


def test_the_asynchronous_client_reads_the_same() -> None:
    async def main(url: str) -> None:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            replies = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="any", messages=[{"role": "user", "content": str(number)}]
                    )
                    for number in range(12)
                )
            )
            contents = [reply.choices[0].message.content for reply in replies]
            assert contents == [f"answer {number} é" for number in range(12)]
            stream = await client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": "x"}], stream=True
            )
            deltas = [chunk.choices[0].delta async for chunk in stream]
            assert "".join(delta.content or "" for delta in deltas) == "answer x é"
            async with client.chat.completions.stream(model="any", messages=QUESTION) as helper:
                final = await helper.get_final_completion()
            assert final.choices[0].message.content == "answer What is 6 times 7? é"

    with served(answering("m2", lambda text: f"a</think>\n\nanswer {text} é")) as url:
        asyncio.run(main(url))


@pytest.mark.parametrize("is_streamed", [False, True])
def test_calls_and_their_results_go_there_and_back(is_streamed: bool) -> None:
    model = scripted("m2", CALLS, "I know.</think>\n\nCold, and colder.")
    messages: list[Any] = [{"role": "user", "content": "How cold are Oslo and Tromsø?"}]
    with served(model) as url, client_of(url) as client:
        if is_streamed:
            strict: Any = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
            with client.chat.completions.stream(
                model="any", messages=messages, tools=[strict]
            ) as stream:
                done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
                reply: Any = stream.get_final_completion()
            assert [e.parsed_arguments for e in done] == [{"city": "Oslo"}, {"city": "Tromsø"}]
        else:
            reply = client.chat.completions.create(model="any", messages=messages, tools=[WEATHER])
        (choice,) = reply.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content.strip() == "Let me see."
        calls = choice.message.tool_calls
        assert [json.loads(call.function.arguments) for call in calls] == [
            {"city": "Oslo"},
            {"city": "Tromsø"},
        ]
        messages.append(choice.message)
        for call, text in zip(calls, ("-3", "-9"), strict=True):
            messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
        last = client.chat.completions.create(model="any", messages=messages, tools=[WEATHER])
    assert last.choices[0].message.content == "Cold, and colder."
    (turn,) = last.fulmen["turns"]  # type: ignore[attr-defined]
    assert (turn["state"], turn["by"], turn["id"]) == ("matched", "tool_call_id", reply.id)
    seen = model.requests[-1].prompt
    assert seen is not None
    text = byte_tokenizer("m2").decode(seen.ids)
    assert CALLS in text
    assert text.index("-3") < text.index("-9")
    assert last.usage is not None
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens > len(CALLS)  # type: ignore[operator]


class City(BaseModel):
    """A place."""

    name: str
    country: str


def test_parsed_answers() -> None:
    text = 'Hm.</think>\n\n{"name": "Tromsø", "country": "Norway"}'
    model = answering("m2", lambda _: text)
    with served(model) as url, client_of(url) as client:
        reply = client.chat.completions.parse(model="any", messages=QUESTION, response_format=City)
        assert reply.choices[0].message.parsed == City(name="Tromsø", country="Norway")
        with client.chat.completions.stream(
            model="any", messages=QUESTION, response_format=City
        ) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.parsed == City(name="Tromsø", country="Norway")
    params = model.requests[0].params
    assert params is not None
    assert params.json_schema is not None
    assert json.loads(params.json_schema)["required"] == ["name", "country"]


def test_a_constraint_holds_on_a_real_engine() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    with served_checkpoint("m2") as url, client_of(url) as client:
        reply = client.chat.completions.create(
            model="any",
            messages=QUESTION,
            max_tokens=500,
            reasoning_effort="none",
            response_format={
                "type": "json_schema",
                "json_schema": {
                    "name": "flag",
                    "schema": {**schema, "additionalProperties": False},
                },
            },
        )
        assert reply.choices[0].finish_reason == "stop"
        assert isinstance(json.loads(reply.choices[0].message.content or "")["a"], bool)

        def drawn(seed: int) -> Any:
            reply = client.chat.completions.create(
                model="any", messages=QUESTION, max_tokens=24, seed=seed, temperature=1.5
            )
            return reply.choices[0].message.model_dump()

        assert drawn(1) == drawn(1)
        assert drawn(1) != drawn(2)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_n_answers_to_one_prompt(is_streamed: bool) -> None:
    texts = [f"t{number}</think>\n\nAnswer {number}" for number in range(3)]
    with served(scripted("m2", *texts)) as url, client_of(url) as client:
        if is_streamed:
            with client.chat.completions.stream(
                model="any", messages=QUESTION, n=3, stream_options={"include_usage": True}
            ) as stream:
                reply: Any = stream.get_final_completion()
        else:
            reply = client.chat.completions.create(model="any", messages=QUESTION, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [choice.message.content for choice in reply.choices] == [
        f"Answer {number}" for number in range(3)
    ]
    assert [choice.message.reasoning_content for choice in reply.choices] == ["t0", "t1", "t2"]
    tokenizer = byte_tokenizer("m2")
    assert reply.usage.completion_tokens == sum(len(tokenizer.encode(t)) + 1 for t in texts)
    assert reply.usage.prompt_tokens < 100


@pytest.mark.parametrize("is_streamed", [False, True])
def test_logprobs_and_ids_cover_every_token(client: OpenAI, is_streamed: bool) -> None:
    extra = {"return_token_ids": True}
    entries: list[Any] = []
    ids: list[int] = []
    prompt_ids: list[int] = []
    if is_streamed:
        with client.chat.completions.create(
            model="any",
            messages=QUESTION,
            stream=True,
            logprobs=True,
            top_logprobs=2,
            extra_body=extra,
        ) as stream:
            for chunk in stream:
                prompt_ids += getattr(chunk, "prompt_token_ids", None) or []
                for choice in chunk.choices:
                    ids += getattr(choice, "token_ids", None) or []
                    if choice.logprobs is not None:
                        entries += choice.logprobs.content or []
    else:
        reply: Any = client.chat.completions.create(
            model="any", messages=QUESTION, logprobs=True, top_logprobs=2, extra_body=extra
        )
        entries, ids = reply.choices[0].logprobs.content, reply.choices[0].token_ids
        prompt_ids = reply.prompt_token_ids
    tokenizer = byte_tokenizer("m2")
    assert ids[:-1] == tokenizer.encode(ANSWER)
    assert len(entries) == len(ids)
    said = b"".join(bytes(entry.bytes) for entry in entries[:-1])
    assert said.decode() == ANSWER
    assert all(entry.logprob == 0 and len(entry.top_logprobs) == 1 for entry in entries)
    assert "What is 6 times 7?" in tokenizer.decode(prompt_ids)


@pytest.mark.parametrize("stop", ["of", ["course", " of", "zzz"]])
def test_stop_texts(client: OpenAI, stop: Any) -> None:
    reply = client.chat.completions.create(model="any", messages=QUESTION, stop=stop)
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.content in ("It is 42 🦩, ", "It is 42 🦩,")
    with client.chat.completions.stream(model="any", messages=QUESTION, stop=stop) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == reply.choices[0].message.content


def test_length(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="any", messages=QUESTION, max_tokens=20)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 20
    assert reply.choices[0].message.reasoning_content == THOUGHT  # type: ignore[attr-defined]


SHOWN = [
    ({}, {"reasoning_content": THOUGHT}, CONTENT),
    ({"include_reasoning": True}, {"reasoning_content": THOUGHT, "reasoning": THOUGHT}, CONTENT),
    ({"reasoning_split": True}, {"reasoning_content": THOUGHT}, CONTENT),
    ({"include_reasoning": False}, {}, CONTENT),
    ({"reasoning": {"exclude": True}}, {}, CONTENT),
    ({"reasoning_split": False}, {}, f"<think>\n{THOUGHT}\n</think>\n\n{CONTENT}"),
    ({"separate_reasoning": False}, {}, f"<think>\n{THOUGHT}\n</think>\n\n{CONTENT}"),
]


@pytest.mark.parametrize(("extra", "fields", "content"), SHOWN)
def test_a_thought_comes_as_it_was_asked_for(
    client: OpenAI, extra: dict[str, Any], fields: dict[str, str], content: str
) -> None:
    whole = client.chat.completions.create(model="any", messages=QUESTION, extra_body=extra)
    with client.chat.completions.stream(model="any", messages=QUESTION, extra_body=extra) as stream:
        streamed = stream.get_final_completion()
    for reply in (whole, streamed):
        message = reply.choices[0].message
        found: Any = message.model_extra or {}
        details = found.get("reasoning_details")
        texts = {name: found[name] for name in ("reasoning_content", "reasoning") if name in found}
        assert texts == fields
        assert message.content == content
        if extra.get("reasoning_split"):
            assert details is not None
            (detail,) = details
            assert (detail["type"], detail["text"]) == ("reasoning.text", THOUGHT)
        else:
            assert details is None


# ---- what is wrong


def test_errors_are_the_sdks_own() -> None:
    settings: dict[str, Any] = {"api_keys": ("secret-key",), "strict_model_names": True}
    with (
        served(answering("m2", lambda _: ANSWER), model_name="m2", **settings) as url,
        client_of(url, api_key="secret-key") as client,
        client_of(url, api_key="wrong") as stranger,
    ):

        def create(who: OpenAI = client, **fields: Any) -> Any:
            return who.chat.completions.create(**{"model": "m2", "messages": QUESTION, **fields})

        assert create().choices[0].message.content == CONTENT
        with pytest.raises(openai.AuthenticationError, match="not known") as unknown:
            create(stranger)
        assert (unknown.value.status_code, unknown.value.code) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with pytest.raises(openai.NotFoundError, match="gpt-9") as missing:
            create(model="gpt-9")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-9")
        with pytest.raises(openai.NotFoundError, match="no route"):
            client.fine_tuning.jobs.list()
        with pytest.raises(openai.InternalServerError, match="makes no embeddings") as absent:
            client.embeddings.create(model="m2", input="a")
        assert absent.value.status_code == 501
        with pytest.raises(openai.BadRequestError, match="temperature is 5") as wrong:
            create(temperature=5)
        assert wrong.value.param == "temperature"
        assert wrong.value.type == "invalid_request_error"
        with pytest.raises(openai.BadRequestError, match="messages is empty"):
            create(messages=[])
        with pytest.raises(openai.BadRequestError, match="at most 16"):
            create(n=17)
        with pytest.raises(openai.BadRequestError, match="logit_bias"):
            create(logit_bias={"1": 5})
        with (
            pytest.raises(openai.BadRequestError, match="prompt is too long"),
            served(answering("m2", lambda _: ANSWER, max_model_len=64)) as small,
            client_of(small) as small_client,
        ):
            create(small_client, messages=[{"role": "user", "content": "a" * 100}])


def slow(*script: Any, **options: Any) -> ScriptedModel:
    return scripted("m2", *script, delay_seconds=0.01, **options)


def test_too_many_requests_and_a_place_that_is_freed() -> None:
    model = slow(*["long " * 200] * 9, piece_chars=4)
    with served(model, max_queued=0) as url, client_of(url) as client:
        streams = [
            client.chat.completions.create(model="any", messages=QUESTION, stream=True)
            for _ in range(8)
        ]
        with pytest.raises(openai.RateLimitError, match="8 answers run") as full:
            client.chat.completions.create(model="any", messages=QUESTION)
        assert full.value.status_code == 429
        assert 1 <= int(full.value.response.headers["retry-after"]) <= 60
        for stream in streams:
            next(iter(stream))
            stream.close()
        until = time.monotonic() + 10
        while model.stats.num_running and time.monotonic() < until:
            time.sleep(0.01)
        assert model.stats.num_running == 0
        with client.chat.completions.create(model="any", messages=QUESTION, stream=True) as stream:
            assert next(iter(stream)).choices[0].delta.role == "assistant"


def test_an_error_in_a_stream_is_an_error_of_the_sdk() -> None:
    broken = ScriptedAnswer("Thinking.</think>\n\nHalf of", fail_with=RuntimeError("secret"))
    with served(scripted("m2", broken, broken, ANSWER)) as url, client_of(url) as client:

        def create(**fields: Any) -> Any:
            return client.chat.completions.create(model="any", messages=QUESTION, **fields)

        with (
            create(stream=True) as stream,
            pytest.raises(openai.APIError, match="the server failed") as failed,
        ):
            list(stream)
        assert "secret" not in str(failed.value)
        with pytest.raises(openai.InternalServerError) as whole:
            create()
        assert whole.value.status_code == 500
        assert "secret" not in str(whole.value)
        assert create().choices[0].message.content == CONTENT


def test_a_running_thought_is_ended() -> None:
    model = slow("Thinking on. " * 100 + "</think>\n\nDone.", piece_chars=4)
    with served(model) as url, client_of(url) as client:
        thought, content, ended = "", "", None
        with client.chat.completions.create(model="any", messages=QUESTION, stream=True) as stream:
            for chunk in stream:
                delta = chunk.choices[0].delta
                thought += getattr(delta, "reasoning_content", None) or ""
                content += delta.content or ""
                if thought and ended is None:
                    ended = client.post(
                        "/chat/completions/control",
                        cast_to=object,
                        body={"id": chunk.id, "action": "reasoning_end"},
                    )
        assert ended == {"id": chunk.id, "ended": True}
        assert content == "Done."
        assert 0 < len(thought) < 900
        with pytest.raises(openai.NotFoundError, match="no answer with the id"):
            client.post(
                "/chat/completions/control",
                cast_to=object,
                body={"id": chunk.id, "action": "reasoning_end"},
            )


# ---- every route


def checked(reply: Any) -> Any:
    """Return a reply of the SDK, which it reads without a check, once it is what its type says."""
    type(reply).model_validate(reply.to_dict(mode="json"))
    return reply


def test_every_route_is_called_through_the_sdk() -> None:
    model = scripted("m2", *[ANSWER] * 20)
    with served(model, model_name="m2") as url, client_of(url) as client:
        stored = client.responses.create(model="m2", input="Hi")
        running = client.responses.create(model="m2", input="Hi", background=True)
        calls: dict[str, Callable[[], Any]] = {
            "POST /v1/chat/completions": lambda: client.chat.completions.create(
                model="m2", messages=QUESTION
            ),
            "POST /v1/completions": lambda: client.completions.create(model="m2", prompt="Hi"),
            "POST /v1/responses": lambda: client.responses.create(model="m2", input="Hi"),
            "POST /v1/responses/input_tokens": lambda: client.responses.input_tokens.count(
                model="m2", input="Hi"
            ),
            "GET /v1/responses/{id}": lambda: client.responses.retrieve(stored.id),
            "GET /v1/responses/{id}/input_items": lambda: client.responses.input_items.list(
                stored.id
            ).data[0],
            "POST /v1/responses/{id}/cancel": lambda: client.responses.cancel(running.id),
            "GET /v1/models": lambda: client.models.list().data[0],
            "GET /v1/models/{name}": lambda: client.models.retrieve("m2"),
        }
        for call in calls.values():
            checked(call())
        client.responses.delete(stored.id)
        for chunk in client.chat.completions.create(model="m2", messages=QUESTION, stream=True):
            checked(chunk)
        for piece in client.completions.create(model="m2", prompt="Hi", stream=True):
            assert piece.object == "text_completion"  # its type knows no finish_reason of null
        for event in client.responses.create(model="m2", input="Hi", stream=True):
            checked(event)
        with client.responses.stream(model="m2", input="Hi") as stream:
            checked(stream.get_final_response())
        described = ask(url, "/openapi.json").json()["paths"]
    of_openai = re.compile(r"/v1/(chat/completions|completions|models|responses)(/.*)?")
    routes = {
        f"{method.upper()} {path}"
        for path, operations in described.items()
        if of_openai.fullmatch(path)
        for method in operations
    }
    by_post = {"POST /v1/chat/completions/control"}  # llama.cpp's, the SDK has no method for it
    assert routes - by_post == {*calls, "DELETE /v1/responses/{id}"}


def test_what_is_not_served_is_the_sdks_error(client: OpenAI) -> None:
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: client.embeddings.create(model="m2", input="Hi"), "makes no embeddings"),
        (lambda: client.moderations.create(input="Hi"), "judges no texts"),
        (lambda: client.images.generate(prompt="Hi"), "makes no pictures"),
        (lambda: client.batches.list(), "`fulmen batch` answers a file"),
        (
            lambda: client.batches.create(
                completion_window="24h", endpoint="/v1/chat/completions", input_file_id="f"
            ),
            "`fulmen batch` answers a file",
        ),
    ]
    for call, sentence in calls:
        with pytest.raises(openai.InternalServerError, match=sentence) as caught:
            call()
        assert caught.value.status_code == 501
        assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_conversation_with_smollm2() -> None:
    with served_smollm2() as url, client_of(url) as client:
        messages: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
        options: dict[str, Any] = {"model": "any", "temperature": 0, "max_tokens": 24}
        first = client.chat.completions.create(messages=messages, **options)
        with client.chat.completions.stream(messages=messages, **options) as stream:
            try:
                streamed: Any = stream.get_final_completion()
            except openai.LengthFinishReasonError as error:
                streamed = error.completion
        said = first.choices[0].message
        assert "Paris" in (said.content or "")
        assert streamed.choices[0].message.content == said.content
        messages += [said, {"role": "user", "content": "And of Italy?"}]
        second = client.chat.completions.create(messages=messages, **options)
        assert "Rome" in (second.choices[0].message.content or "")
        assert second.usage is not None
        assert first.usage is not None
        assert second.usage.prompt_tokens_details is not None
        cached = second.usage.prompt_tokens_details.cached_tokens
        assert cached is not None
        assert cached > 0
        (turn,) = second.fulmen["turns"]
        assert turn["state"] == "matched"
