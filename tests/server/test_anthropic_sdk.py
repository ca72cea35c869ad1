"""Anthropic's own SDK over a real socket: what it sends is understood, what it reads is right."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

from fulmen.llm import ScriptedModel
from fulmen.llm.scripted import ScriptedAnswer
from tests.server.helpers import (
    answering,
    ask,
    byte_tokenizer,
    scripted,
    served,
    served_smollm2,
)

QUESTION: Any = [{"role": "user", "content": "What is 6 times 7?"}]
ANSWER = "Six sevens, hm.</think>\n\nIt is 42 🦩, of course."
THOUGHT, CONTENT = "Six sevens, hm.", "It is 42 🦩, of course."
WEATHER: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALLS = (
    "I look.</think>\n\nLet me see.\n<minimax:tool_call>\n"
    '<invoke name="weather">\n<parameter name="city">Oslo</parameter>\n</invoke>\n'
    '<invoke name="weather">\n<parameter name="city">Tromsø</parameter>\n</invoke>\n'
    "</minimax:tool_call>"
)


def client_of(url: str, **options: Any) -> Anthropic:
    return Anthropic(base_url=url, **{"api_key": "any", "max_retries": 0, **options})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Address of a model that always gives the same answer."""
    model = answering("m2", lambda _: ANSWER)
    with served(model, model_name="m2", aliases=("claude-x",)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Anthropic]:
    with client_of(url) as client:
        yield client


def create(client: Anthropic, **fields: Any) -> Any:
    return client.messages.create(
        **{"model": "any", "max_tokens": 1000, "messages": QUESTION, **fields}
    )


def stream_of(client: Anthropic, **fields: Any) -> Any:
    return client.messages.stream(
        **{"model": "any", "max_tokens": 1000, "messages": QUESTION, **fields}
    )


def test_models_are_listed_and_found(client: Anthropic) -> None:
    listed = client.models.list(limit=1000)
    assert [model.id for model in listed] == ["m2", "claude-x"]
    model = client.models.retrieve("claude-x")
    assert model == listed.data[1]
    assert model.type == "model"
    assert model.display_name == "claude-x"
    assert isinstance(model.created_at, datetime)
    assert abs((datetime.now(UTC) - model.created_at).total_seconds()) < 600
    assert model.max_input_tokens == 2**20 - 1
    assert model.capabilities is not None
    assert model.capabilities.structured_outputs.supported
    assert not model.capabilities.image_input.supported


def test_usage_counts_every_token_once(client: Anthropic) -> None:
    question = [{"role": "user", "content": "Is it counted once?"}]
    first, second = (create(client, messages=question).usage for _ in range(2))
    counted = client.messages.count_tokens(model="any", messages=question).input_tokens  # type: ignore[arg-type]
    for usage in (first, second):
        parts = (
            usage.input_tokens,
            usage.cache_read_input_tokens,
            usage.cache_creation_input_tokens,
        )
        assert sum(parts) == counted
        assert usage.output_tokens == len(byte_tokenizer("m2").encode(ANSWER)) + 1
        assert 0 < usage.output_tokens_details.thinking_tokens <= len(THOUGHT) + 1
    assert second.cache_read_input_tokens > first.cache_read_input_tokens
    marked = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Marked", "cache_control": {"type": "ephemeral"}}],
        }
    ]
    usage = create(client, messages=marked).usage
    assert usage.cache_creation_input_tokens > 0
    assert usage.cache_creation.ephemeral_5m_input_tokens == usage.cache_creation_input_tokens


def test_a_stream_says_what_the_whole_message_says(client: Anthropic) -> None:
    whole = create(client)
    with stream_of(client) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert {"thinking", "signature", "text", "content_block_stop", "message_delta"} <= set(kinds)
    for message in (whole, streamed):
        thought, text = message.content
        assert (thought.type, thought.thinking) == ("thinking", THOUGHT)
        assert len(thought.signature) >= 32
        assert (text.type, text.text) == ("text", CONTENT)
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
        assert message.role == "assistant"
        assert message.id.startswith("msg_")
        assert message.model == "any"
    assert whole._request_id
    assert whole.content[0].signature != streamed.content[0].signature
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    raw = create(client, stream=True)
    texts = [
        event.delta.text
        for event in raw
        if getattr(event, "delta", None)
        and event.type == "content_block_delta"
        and event.delta.type == "text_delta"
    ]
    assert "".join(texts) == CONTENT
    assert max(map(len, texts)) <= 200


def test_the_asynchronous_client_reads_the_same() -> None:
    async def main(url: str) -> None:
        async with AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client:

            async def text_of(number: int) -> str:
                message = await client.messages.create(
                    model="any",
                    max_tokens=100,
                    messages=[{"role": "user", "content": str(number)}],
                )
                assert message.content[1].type == "text"
                return message.content[1].text

            texts = await asyncio.gather(*map(text_of, range(12)))
            assert texts == [f"answer {number} é" for number in range(12)]
            async with client.messages.stream(
                model="any", max_tokens=100, messages=QUESTION
            ) as stream:
                pieces = [piece async for piece in stream.text_stream]
            assert "".join(pieces) == "answer What is 6 times 7? é"

    with served(answering("m2", lambda text: f"a</think>\n\nanswer {text} é")) as url:
        asyncio.run(main(url))


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("drops_thought", [False, True])
def test_calls_and_their_results_go_there_and_back(is_streamed: bool, drops_thought: bool) -> None:
    model = scripted("m2", CALLS, "I know.</think>\n\nCold, and colder.")
    messages: list[Any] = [{"role": "user", "content": "How cold are Oslo and Tromsø?"}]
    with served(model) as url, client_of(url) as client:
        if is_streamed:
            with stream_of(client, messages=messages, tools=[WEATHER]) as stream:
                first = stream.get_final_message()
        else:
            first = create(client, messages=messages, tools=[WEATHER])
        assert first.stop_reason == "tool_use"
        assert [block.type for block in first.content] == [
            "thinking",
            "text",
            "tool_use",
            "tool_use",
        ]
        calls = first.content[2:]
        assert [call.input for call in calls] == [{"city": "Oslo"}, {"city": "Tromsø"}]
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": text}
            for call, text in zip(calls, ("-3", "-9"), strict=True)
        ]
        said = first.content[1:] if drops_thought else first.content
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": results}]
        last = create(client, messages=messages, tools=[WEATHER])
    assert last.content[1].text == "Cold, and colder."
    (turn,) = last.fulmen["turns"]
    assert turn["state"] == ("restored" if drops_thought else "matched")
    assert (turn["by"], turn["id"]) == ("tool_call_id", first.id)
    seen = model.requests[-1].prompt
    assert seen is not None
    text = byte_tokenizer("m2").decode(seen.ids)
    assert CALLS in text
    assert text.index("-3") < text.index("-9")
    assert last.usage.cache_read_input_tokens > len(CALLS)


def test_a_thought_is_found_by_its_signature() -> None:
    model = scripted("m2", ANSWER, ANSWER)
    with served(model) as url, client_of(url) as client:
        first = create(client, thinking={"type": "adaptive", "display": "omitted"})
        thought = first.content[0]
        assert thought.thinking == ""
        messages = [
            *QUESTION,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": "Sure?"},
        ]
        keep: Any = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
        second = create(client, messages=messages, extra_body={"context_management": keep})
    (turn,) = second.fulmen["turns"]
    assert (turn["state"], turn["by"]) == ("restored", "signature")
    seen = model.requests[-1].prompt
    assert seen is not None
    assert ANSWER in byte_tokenizer("m2").decode(seen.ids)


class City(BaseModel):
    """A place."""

    name: str
    country: str


def test_parsed_answers() -> None:
    text = 'Hm.</think>\n\n{"name": "Tromsø", "country": "Norway"}'
    model = answering("m2", lambda _: text)
    with served(model) as url, client_of(url) as client:
        parsed = client.messages.parse(
            model="any", max_tokens=1000, messages=QUESTION, output_format=City
        )
        assert parsed.parsed_output == City(name="Tromsø", country="Norway")
        with stream_of(client, output_format=City) as stream:
            assert stream.get_final_message().parsed_output == parsed.parsed_output
    params = model.requests[0].params
    assert params is not None
    assert params.json_schema is not None
    assert json.loads(params.json_schema)["required"] == ["name", "country"]


def test_stop_reasons(client: Anthropic) -> None:
    stopped = create(client, stop_sequences=["zzz", " of"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " of")
    assert stopped.content[-1].text == "It is 42 🦩,"
    with stream_of(client, stop_sequences=["zzz", " of"]) as stream:
        streamed = stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", " of")
    cut = create(client, max_tokens=20)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 20)
    room = 90
    with (
        served(answering("m2", lambda _: ANSWER * 9, max_model_len=room)) as url,
        client_of(url) as small,
    ):
        full = create(small)
        assert full.stop_reason == "model_context_window_exceeded"
        count = client.messages.count_tokens(model="any", messages=QUESTION).input_tokens
        assert full.usage.output_tokens == room - count


def test_a_call_that_is_cut_says_so() -> None:
    with (
        served(answering("m2", lambda _: CALLS.partition("Tromsø")[0])) as url,
        client_of(url) as client,
    ):
        whole = create(client, tools=[WEATHER])
        assert whole.stop_reason == "max_tokens"
        assert [block.input for block in whole.content if block.type == "tool_use"] == [
            {"city": "Oslo"}
        ]
        with stream_of(client, tools=[WEATHER]) as stream:
            assert stream.get_final_message().stop_reason == "max_tokens"


def test_tokens_are_counted_as_the_prompt_has_them(client: Anthropic) -> None:
    fields: dict[str, Any] = {
        "system": [{"type": "text", "text": "Be kind."}],
        "tools": [WEATHER],
        "messages": [*QUESTION, {"role": "assistant", "content": "42"}, *QUESTION],
    }
    counted = client.messages.count_tokens(model="any", **fields).input_tokens
    usage = create(client, **fields).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens
    assert counted > client.messages.count_tokens(model="any", messages=QUESTION).input_tokens


# ---- what is wrong


def test_errors_are_the_sdks_own() -> None:
    settings: dict[str, Any] = {"api_keys": ("secret-key",), "strict_model_names": True}
    with (
        served(answering("m2", lambda _: ANSWER), model_name="m2", **settings) as url,
        client_of(url, api_key="secret-key") as client,
        client_of(url, api_key="wrong") as stranger,
    ):
        assert create(client, model="m2").content[1].text == CONTENT
        headers = {"x-api-key": "secret-key", "anthropic-version": "2023-06-01"}
        assert ask(url, "/v1/models", headers=headers).status == 200
        with pytest.raises(anthropic.AuthenticationError, match="not known") as unknown:
            create(stranger, model="m2")
        assert unknown.value.status_code == 401
        with pytest.raises(anthropic.AuthenticationError):
            stranger.models.list()
        with pytest.raises(anthropic.NotFoundError, match="claude-9") as missing:
            create(client, model="claude-9")
        body: Any = missing.value.body
        assert body["type"] == "error"
        assert body["error"]["type"] == "not_found_error"
        assert body["request_id"] == missing.value.request_id
        with pytest.raises(anthropic.NotFoundError):
            client.models.retrieve("claude-9")
        with pytest.raises(anthropic.NotFoundError, match="no route"):
            client.get("/v1/nowhere", cast_to=object)
        with pytest.raises(anthropic.BadRequestError, match="temperature"):
            create(client, model="m2", extra_body={"temperature": 5})
        with pytest.raises(anthropic.BadRequestError, match="messages is empty"):
            create(client, model="m2", messages=[])
        with pytest.raises(anthropic.BadRequestError, match="type"):
            create(client, model="m2", tool_choice={"type": "sometimes"})
    with (
        served(answering("m2", lambda _: ANSWER, max_model_len=64)) as small_url,
        client_of(small_url) as small,
        pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 63 max"),
    ):
        create(small, messages=[{"role": "user", "content": "a" * 100}])


def slow(*script: Any, **options: Any) -> ScriptedModel:
    return scripted("m2", *script, delay_seconds=0.01, **options)


def test_too_many_requests_and_a_place_that_is_freed() -> None:
    model = slow(*["long " * 200] * 9, piece_chars=4)
    with served(model, max_queued=0) as url, client_of(url) as client:
        streams = [create(client, stream=True) for _ in range(8)]
        with pytest.raises(anthropic.RateLimitError, match="8 answers run") as full:
            create(client)
        body: Any = full.value.body
        assert body["error"]["type"] == "rate_limit_error"
        for stream in streams:
            assert next(iter(stream)).type == "message_start"
            stream.close()
        until = time.monotonic() + 10
        while model.stats.num_running and time.monotonic() < until:
            time.sleep(0.01)
        assert model.stats.num_running == 0


def test_an_error_in_a_stream_is_an_error_of_the_sdk() -> None:
    broken = ScriptedAnswer("Thinking.</think>\n\nHalf of", fail_with=RuntimeError("secret"))
    with served(scripted("m2", broken, broken, ANSWER)) as url, client_of(url) as client:
        with (
            stream_of(client) as stream,
            pytest.raises(anthropic.APIStatusError, match="the server failed") as failed,
        ):
            for _ in stream:
                pass
        body: Any = failed.value.body
        assert body["error"]["type"] == "api_error"
        assert "secret" not in str(failed.value)
        with pytest.raises(anthropic.InternalServerError):
            create(client)
        assert create(client).content[1].text == CONTENT


def test_a_running_thought_is_ended() -> None:
    model = slow("Thinking on. " * 100 + "</think>\n\nDone.", piece_chars=4)
    with served(model) as url, client_of(url) as client:
        ended: Any = None
        with stream_of(client) as stream:
            for event in stream:
                if event.type == "thinking" and ended is None:
                    id = stream.current_message_snapshot.id
                    ended = client.post(f"/v1/messages/{id}/end_thinking", cast_to=object)
            message = stream.get_final_message()
        assert ended == {"id": message.id, "ended": True}
        assert message.content[1].text == "Done."
        assert 0 < len(message.content[0].thinking) < 900
        with pytest.raises(anthropic.NotFoundError, match="no answer with the id"):
            client.post(f"/v1/messages/{message.id}/end_thinking", cast_to=object)


# ---- every route


def checked(reply: Any) -> Any:
    """Return a reply of the SDK, which it reads without a check, once it is what its type says."""
    type(reply).model_validate(reply.to_dict(mode="json"))
    return reply


def test_every_route_is_called_through_the_sdk(url: str, client: Anthropic) -> None:
    asked: dict[str, Any] = {"model": "any", "max_tokens": 1000, "messages": QUESTION}
    calls: dict[str, Callable[[], Any]] = {
        "POST /v1/messages": lambda: client.messages.create(**asked),
        "POST /v1/messages/count_tokens": lambda: client.messages.count_tokens(
            model="any", messages=QUESTION
        ),
        "GET /v1/models": lambda: client.models.list().data[0],
        "GET /v1/models/{name}": lambda: client.models.retrieve("claude-x"),
    }
    for call in calls.values():
        checked(call())
    checked(client.beta.messages.create(**asked))
    checked(client.beta.messages.count_tokens(model="any", messages=QUESTION))
    checked(client.beta.models.retrieve("claude-x"))
    for event in client.messages.create(**asked, stream=True):
        checked(event)
    with client.beta.messages.stream(**asked) as stream:
        checked(stream.get_final_message())
    routes = {
        f"{method.upper()} {path}"
        for path, operations in ask(url, "/openapi.json").json()["paths"].items()
        if path.startswith(("/v1/messages", "/v1/models"))
        for method in operations
    }
    by_post = {"POST /v1/messages/{id}/end_thinking"}  # the SDK has no method for it
    assert routes - by_post == set(calls)


def test_the_tool_runner_calls_tools_until_the_answer() -> None:
    asked: list[str] = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Tell the weather of a city.

        Args:
            city: Its name.
        """
        asked.append(city)
        return f"{city}: cold"

    model = scripted("m2", CALLS, "I know.</think>\n\nCold, both.")
    with served(model) as url, client_of(url) as client:
        runner = client.beta.messages.tool_runner(
            model="any", max_tokens=1000, messages=QUESTION, tools=[weather]
        )
        last = runner.until_done()
    assert asked == ["Oslo", "Tromsø"]
    assert last.stop_reason == "end_turn"
    assert [block.text for block in last.content if block.type == "text"] == ["Cold, both."]
    seen = model.requests[-1].prompt
    assert seen is not None
    assert "Tromsø: cold" in byte_tokenizer("m2").decode(seen.ids)


def test_batches_are_the_sdks_error(client: Anthropic) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: client.messages.batches.list(),
        lambda: client.messages.batches.create(
            requests=[{"custom_id": "a", "params": {"model": "m", "max_tokens": 9, "messages": []}}]
        ),
        lambda: client.beta.messages.batches.list(),
    ]
    for call in calls:
        with pytest.raises(anthropic.InternalServerError, match="answers a file") as caught:
            call()
        assert caught.value.status_code == 501


def test_a_conversation_with_smollm2() -> None:
    with served_smollm2() as url, client_of(url) as client:
        messages: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
        options: dict[str, Any] = {"max_tokens": 24, "extra_body": {"temperature": 0}}
        first = create(client, messages=messages, **options)
        with stream_of(client, messages=messages, **options) as stream:
            streamed = stream.get_final_message()
        (block,) = first.content
        assert "Paris" in block.text
        assert streamed.content[0].text == block.text
        messages += [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": "And of Italy?"},
        ]
        second = create(client, messages=messages, **options)
        assert "Rome" in second.content[0].text
        assert second.usage.cache_read_input_tokens > 0
        (turn,) = second.fulmen["turns"]
        assert turn["state"] == "matched"
