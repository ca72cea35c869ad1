"""Answers written beforehand go the way of real ones: parser, ids, log-probabilities."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.chat import (
    ChatModel,
    ChatRequest,
    Completion,
    ContentDelta,
    Transcript,
    complete,
    get_format,
    sum_events,
)
from fulmen.llm import LLM, ForcedModel, LocalModel, ScriptedAnswer, ScriptedModel, ServedModel
from fulmen.llm.scripted import ScriptedStream
from fulmen.sampling import SamplingParams
from tests.tiny import write_checkpoint

MESSAGES = [{"role": "user", "content": "Weather?"}]
TOOLS = [{"name": "f", "parameters": {"properties": {"city": {"type": "string"}}}}]
CALL = (
    "I need it.\n</think>\n\nLet me see.\n<minimax:tool_call>\n"
    '<invoke name="f">\n<parameter name="city">Oslo</parameter>\n</invoke>\n</minimax:tool_call>'
)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder: Path = write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")
    return LLM.load(str(folder))


@pytest.mark.parametrize("piece_chars", [1, 7, 1000])
def test_a_script_goes_through_the_real_parser(piece_chars: int) -> None:
    format = get_format("minimax_m2")

    async def main() -> None:
        model = ScriptedModel(
            format, [CALL, lambda r: f"ok {len(r.messages)}"], piece_chars=piece_chars
        )
        async with model.stream(ChatRequest(messages=MESSAGES, tools=TOOLS)) as stream:
            events = [event async for event in stream]
            completion = await stream.finish()
        assert sum_events(events) == completion.reply == format.parse(CALL, TOOLS)
        assert completion.finish_reason == "stop"
        (call,) = completion.reply.tool_calls
        assert (call.name, call.arguments) == ("f", {"city": "Oslo"})
        second = await complete(model, ChatRequest(messages=MESSAGES * 2))
        assert second.reply.thinking == "ok 2"
        assert [len(request.messages) for request in model.requests] == [1, 2]
        with pytest.raises(ValueError, match="the script ended after 2 answers"):
            await complete(model, ChatRequest(messages=MESSAGES))

    asyncio.run(main())


def test_a_script_that_is_not_read_to_its_end_is_aborted() -> None:
    async def main() -> None:
        model = ScriptedModel(get_format("minimax_m2"), ["abcdefgh" * 9])
        async with model.stream(ChatRequest(messages=MESSAGES)) as stream:
            async for _ in stream:
                break
            completion = await stream.finish()
        assert completion.finish_reason == "abort"
        assert 0 < len(completion.reply.thinking) < 72

    asyncio.run(main())


def test_an_engine_is_made_to_say_a_script_with_the_models_own_log_probabilities(llm: LLM) -> None:
    async def main() -> None:
        async with LocalModel(llm) as local:
            model: ChatModel = ForcedModel(
                local, [CALL], tokenizer=llm.tokenizer, format=llm.format
            )
            params = SamplingParams(max_tokens=400)
            request = ChatRequest(messages=MESSAGES, tools=TOOLS, params=params)
            completion = await complete(model, request)
        assert completion.reply == llm.format.parse(CALL, TOOLS)
        assert completion.finish_reason == "stop"
        assert all(token.is_forced for token in completion.tokens)
        ids = [*completion.prompt_ids, *completion.answer_ids]
        with torch.inference_mode():
            logprobs = llm.engine.model(torch.tensor([ids])).log_softmax(-1)[0]
        start = len(completion.prompt_ids)
        for place, token in enumerate(completion.tokens, start - 1):
            assert token.logprob == pytest.approx(float(logprobs[place, token.token_id]), abs=1e-4)
        # The next prompt holds it as ids.
        transcript = Transcript(llm.format, llm.tokenizer)
        turn = transcript.add(request.messages, completion, TOOLS)
        assert turn.forced == tuple(range(len(completion.tokens)))

    asyncio.run(main())


def test_a_scripted_answer_has_ids_if_it_has_a_tokenizer(llm: LLM) -> None:
    async def main() -> None:
        model = ScriptedModel(llm.format, [CALL], tokenizer=llm.tokenizer)
        completion = await complete(model, ChatRequest(messages=MESSAGES, tools=TOOLS))
        assert llm.tokenizer.decode(completion.answer_ids[:-1]) == CALL
        assert completion.sampled is not None
        kinds = [span.kind for span in completion.sampled.spans]
        assert kinds == ["thinking", "content", "tool_calls"]

    asyncio.run(main())


def scripted(llm: LLM, *script: Any, **options: Any) -> ScriptedModel:
    return ScriptedModel(llm.format, script, tokenizer=llm.tokenizer, **options)


def request(**fields: Any) -> ChatRequest:
    return ChatRequest(messages=MESSAGES, tools=TOOLS, params=SamplingParams(**fields))


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(work(), 60)

    asyncio.run(main())


def as_told(completion: Completion) -> Completion:
    """Return an answer without what only an engine can know."""
    tokens = tuple(
        replace(one, logprob=0.0, top_logprobs=(), policy_version=None) for one in completion.tokens
    )
    usage = replace(completion.usage, num_cached_tokens=0)
    return replace(completion, tokens=tokens, usage=usage)


TEXTS = (
    CALL,
    "</think>\n\nHi",
    "No end of the thought",
    "Hm.\n</think>\n\nÉ 🌍🌍 STOP here",
    "",
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 30},
        {"max_tokens": 14},
        {"stop": ("STOP", "see")},
        {"stop_token_ids": (41,)},
    ],
)
def test_a_script_tells_what_an_engine_tells_that_is_made_to_say_it(
    llm: LLM, text: str, fields: dict[str, Any]
) -> None:
    async def work() -> None:
        async with LocalModel(llm) as local:
            params: dict[str, Any] = {"seed": 1, "max_tokens": 600, **fields}
            forced: ServedModel = ForcedModel(local, [text])
            expected = await complete(forced, request(**params))
            for piece_chars in (1, 7, 1000):
                model: ServedModel = scripted(llm, text, piece_chars=piece_chars)
                async with model.stream(request(**params)) as stream:
                    events = []
                    async for event in stream:
                        events.append(event)
                        assert len(stream.tokens) > 0
                    found = await stream.finish()
                assert sum_events(events) == found.reply
                assert as_told(found) == as_told(expected)
                assert tuple(stream.tokens) == found.tokens
                assert stream.num_prompt_tokens == stream.num_read_tokens == len(found.prompt_ids)

    run(work)


def test_what_cannot_be_asked_of_a_model_cannot_be_asked_of_a_script(llm: LLM) -> None:
    async def work() -> None:
        model = scripted(llm, *["x"] * 9, max_model_len=400)
        for wrong, sentence in (
            (replace(request(), messages=[]), "has no messages"),
            (replace(request(tool_choice="required"), tools=()), "no tool is declared"),
            (request(allowed_tools=("g",)), "allowed_tools has 'g' in it, only f are declared"),
            (replace(request(), messages=MESSAGES * 60), "the context holds 400 including"),
            (replace(request(), forced_ids=(1,)), "does not know prefix_ids and forced_ids"),
        ):
            with pytest.raises(ValueError, match=sentence):
                async with model.stream(wrong):
                    pass
        assert not model.requests
        with pytest.raises(ValueError, match="has no tokenizer"):
            print(ScriptedModel(llm.format, []).tokenizer)

    run(work)


def test_a_script_fails_fills_the_context_and_stops_short_where_it_is_told_to(llm: LLM) -> None:
    async def work() -> None:
        error = RuntimeError("the machine is on fire")
        script = (error, ScriptedAnswer("So</think>Hi", fail_with=error), lambda _: error)
        model = scripted(llm, *script, ScriptedAnswer("So", finish_reason="length"), "x" * 99)
        for text in ("", "Hi", ""):
            said: list[str] = []

            async def read(stream: ScriptedStream, said: list[str]) -> None:
                async for event in stream:
                    said += [event.text] if isinstance(event, ContentDelta) else []

            stream = model.stream(request())
            with pytest.raises(RuntimeError, match="on fire"):
                await read(stream, said)
            assert "".join(said) == text
            with pytest.raises(RuntimeError, match="on fire"):
                await stream.finish()
        assert (await complete(model, request())).finish_reason == "length"
        num_prompt = (await complete(model, request())).usage.num_prompt_tokens
        model = scripted(llm, "x" * 99, max_model_len=num_prompt + 20)
        full = await complete(model, request())
        assert (full.finish_reason, full.is_context_full, len(full.tokens)) == ("length", True, 20)
        assert model.stats.num_finished["length"] == 1
        assert model.stats.num_running == 0

    run(work)


def test_a_thought_of_a_script_can_be_ended(llm: LLM) -> None:
    async def work() -> None:
        phrase = llm.format.thinking_last_phrase.strip()
        for tokenizer in (llm.tokenizer, None):
            model = ScriptedModel(
                llm.format, ["long " * 50 + "</think>\n\nHi"] * 2, tokenizer=tokenizer
            )
            async with model.stream(request()) as stream:
                async for _ in stream:
                    await stream.end_thinking()
                    break
                async for _ in stream:
                    pass
                assert not await stream.end_thinking()
                reply = (await stream.finish()).reply
            assert reply.thinking.endswith(phrase)
            assert len(reply.thinking) < 100
            assert reply.content == "Hi"

    run(work)


def test_a_script_takes_its_time_and_can_be_closed_meanwhile(llm: LLM) -> None:
    async def work() -> None:
        model = scripted(llm, "word " * 1000, "Hm", delay_seconds=0.01)
        async with model.stream(request()) as stream:

            async def read() -> list[Any]:
                return [event async for event in stream]

            task = asyncio.create_task(read())
            await asyncio.sleep(0.05)
            assert 0 < len(stream.tokens) < 400
            assert model.stats.num_running == 1
            await stream.close()
            await task
            assert (await stream.finish()).finish_reason == "abort"
        timing = (await complete(model, request())).timing
        assert timing is not None

    run(work)


def test_a_script_counts_what_an_earlier_prompt_had_as_cached(llm: LLM) -> None:
    async def work() -> None:
        model = scripted(llm, "a</think>b", "c</think>d", "e</think>f", "g</think>h")
        first = await complete(model, request())
        again = await complete(model, request())
        assert first.usage.num_cached_tokens == 0
        assert again.usage.num_cached_tokens == len(first.prompt_ids) - 1
        several = model.stream_many(request(), 2)
        assert [(await complete_of(one)).reply.content for one in several] == ["f", "h"]
        assert await model.call(lambda: 7) == 7

    run(work)


async def complete_of(stream: Any) -> Completion:
    async for _ in stream:
        pass
    completion: Completion = await stream.finish()
    return completion


def test_a_script_continues_a_text(llm: LLM) -> None:
    async def work() -> None:
        model = scripted(llm, "<think> is text", "so")
        found = await complete_of(model.stream_text("Once", params=SamplingParams(max_tokens=99)))
        assert found.reply.content == "<think> is text"
        assert llm.tokenizer.decode(found.prompt_ids) == "Once"
        assert (await complete_of(model.stream_text([1, 2]))).prompt_ids == (1, 2)

    run(work)


def test_forced_answers_are_served_and_beat_every_limit(llm: LLM) -> None:
    async def work() -> None:
        async with LocalModel(llm) as local:
            model: ServedModel = ForcedModel(local, [CALL] * 3 + ["More"])
            assert model.tokenizer is llm.tokenizer
            assert model.max_model_len == local.max_model_len
            assert (model.format, model.defaults) == (local.format, local.defaults)
            assert await model.call(lambda: 3) == 3
            for fields in (
                {"tool_choice": "none"},
                {"tool_choice": "required", "allowed_tools": ("f",), "strict_tools": True},
                {"max_calls": 1, "thinking_budget": 0},
            ):
                completion = await complete(model, request(seed=1, max_tokens=400, **fields))
                assert completion.finish_reason == "stop"
                assert completion.reply == llm.format.parse(CALL, TOOLS)
            params = SamplingParams(max_tokens=99)
            text = await complete_of(model.stream_text("Once", params=params))
            assert (text.reply.content, text.finish_reason) == ("More", "stop")
            assert model.stats.num_finished["stop"] >= 4
            many = ForcedModel(local, ["a</think>b", "c</think>d"]).stream_many(request(), 2)
            assert [(await complete_of(one)).reply.content for one in many] == ["b", "d"]

    run(work)
