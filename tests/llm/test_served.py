"""What a server asks of a running answer: progress, a soft end, many answers, and why it ended."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fulmen.chat import ChatRequest, Completion, TokenBudget, Tool, complete, sum_events
from fulmen.engine import EngineConfig
from fulmen.llm import LLM, LocalModel
from fulmen.sampling import SamplingParams
from tests.chat.test_grammar import said
from tests.llm.test_local import ask, run, told
from tests.tiny import write_checkpoint

MESSAGES = [{"role": "user", "content": "Hello"}]
ENDLESS = SamplingParams(seed=1, max_tokens=900, ignore_eos=True)
TOOLS = [Tool("stop")]


@pytest.fixture(scope="module", params=["m1", "m2"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder: Path = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64, num_draft_tokens=3)
    return LLM.load(str(folder), engine_config=config)


def thinking(llm: LLM, **fields: Any) -> ChatRequest:
    """A request whose answer thinks for long."""
    opening = "" if llm.format.thinking_open_in_prompt else "<think>\n"
    forced = llm.tokenizer.encode(f"{opening}Hm")
    params = replace(SamplingParams(seed=2, max_tokens=1500, top_k=20), **fields)
    return ChatRequest(messages=MESSAGES, tools=TOOLS, params=params, forced_ids=forced)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 700},
        {"max_tokens": 700, "thinking_budget": 600},
        {"choice": ("yes", "no")},
        {"tool_choice": "required", "max_calls": 1, "strict_tools": True},
        {"json_schema": '{"type": "boolean"}', "thinking_budget": 1400},
    ],
)
def test_a_thought_that_is_ended_gets_its_last_phrase_and_the_answer_holds(
    llm: LLM, fields: dict[str, Any]
) -> None:
    phrase = llm.format.thinking_last_phrase.strip()

    async def work(model: LocalModel) -> None:
        num_ended = 0
        for seed in range(3):
            request = thinking(llm, seed=seed, **fields)
            async with model.stream(request) as stream:
                assert not await stream.end_thinking() or stream.num_read_tokens >= 0
                events = []
                async for event in stream:
                    events.append(event)
                    if len(events) == 3:
                        is_running = await stream.end_thinking()
                        num_ended += is_running
                completion = await stream.finish()
            reply = completion.reply
            assert sum_events(events) == reply
            if phrase in reply.thinking:
                assert reply.thinking.endswith(f"\n\n{phrase}")
                assert reply.is_thinking_closed
            if completion.finish_reason == "stop" and reply.is_thinking_closed:
                assert reply.content in fields.get("choice", (reply.content,))
                if "json_schema" in fields:
                    assert reply.content in ("true", "false")
                if "tool_choice" in fields:
                    assert [call.name for call in reply.tool_calls] == ["stop"]
        assert num_ended or "max_tokens" in fields

    run(llm, work)


def test_an_ended_thought_ends_once_and_no_other_begins(llm: LLM) -> None:
    phrase = llm.format.thinking_last_phrase.strip()
    request = thinking(llm, max_tokens=300, ignore_eos=True)
    with llm.stream(request) as stream:
        while len(stream.tokens) < 14:
            llm.step()
        answer = stream._answer
        assert answer.end_thinking()
        assert answer.end_thinking()  # already on its way
        completion = stream.read()
        assert not answer.end_thinking()
    assert completion.reply.thinking.endswith(phrase)
    assert completion.reply.thinking.count(phrase) == 1
    text = llm.tokenizer.decode(completion.answer_ids)
    assert text.count("</think>") >= 1
    forced = [token.is_forced for token in completion.tokens[len(request.forced_ids) :]]
    assert sum(forced) == len(
        llm.tokenizer.encode(
            f"\n\n{llm.format.thinking_last_phrase}{llm.format.thinking_forced_end}"
        )
    )
    assert completion.usage.num_thinking_tokens < 100


def test_a_thought_is_cut_where_its_budget_has_no_room_for_the_phrase(llm: LLM) -> None:
    phrase = llm.format.thinking_last_phrase.strip()
    budget = TokenBudget(25)
    for fields in ({"thinking_budget": 25}, {"thinking_soft_end": 0.0}, {}):
        request = thinking(llm, max_tokens=300, **fields)
        request = replace(request, budget=None if fields else budget)
        with llm.stream(request) as stream:
            while len(stream.tokens) < 14:
                llm.step()
            assert stream._answer.end_thinking()
            completion = stream.read()
        assert phrase not in completion.reply.thinking
        assert completion.reply.is_thinking_closed
        assert completion.usage.num_thinking_tokens <= 25
    assert budget.num_left == 25 - completion.usage.num_thinking_tokens


def test_progress_can_be_read_while_a_prompt_is_read(llm: LLM) -> None:
    prompt = "word " * 200

    async def work(model: LocalModel) -> None:
        stream = model.stream_text(prompt, params=replace(ENDLESS, max_tokens=20))
        assert (stream.num_prompt_tokens, stream.num_read_tokens, stream.tokens) == (0, 0, ())
        found = set()
        async with stream:
            while not stream.tokens:
                found.add(stream.num_read_tokens)
                assert stream.num_prompt_tokens == 1000
                await asyncio.sleep(0.0005)
            async for _ in stream:
                pass
            completion = await stream.finish()
        assert sorted(found) == list(dict.fromkeys(sorted(found)))
        assert max(found) <= 1000
        assert len(found) > 2
        assert stream.num_read_tokens == 1000
        assert tuple(stream.tokens) == completion.tokens

    run(llm, work)


def test_the_stop_that_ended_an_answer_is_told(llm: LLM) -> None:
    free = llm.generate("Hi", params=SamplingParams(seed=1, max_tokens=60, temperature=0))
    text = free.reply.content
    stops = (text[20:24], text[20:22], "never")
    stopped = llm.generate("Hi", params=replace(free.params, stop=stops))
    assert stopped.finish_reason == "stop"
    assert stopped.stop_text in stops
    assert text.startswith(stopped.reply.content + str(stopped.stop_text))
    assert stopped.stop_text != text[20:24]  # the shorter ends first
    assert free.stop_text is None
    ended = llm.generate(
        "Hi", params=replace(free.params, stop_token_ids=(free.tokens[4].token_id,))
    )
    assert (ended.finish_reason, ended.stop_text) == ("stop", None)


def test_a_full_context_is_told_from_max_tokens(llm: LLM) -> None:
    size = llm.engine.max_model_len
    ids = [5] * (size - 6)
    for most, is_full in ((None, True), (7, True), (6, False), (5, False)):
        params = SamplingParams(seed=1, max_tokens=most, ignore_eos=True)
        completion = llm.generate(ids, params=params)
        assert completion.finish_reason == "length"
        assert completion.is_context_full == is_full, most
        again = llm.generate(ids, params=params, prefix_ids=completion.answer_ids[:2])
        assert again.is_context_full == is_full
    assert not llm.generate("Hi", params=replace(ENDLESS, max_tokens=3)).is_context_full


def test_an_answers_times_add_up(llm: LLM) -> None:
    completion = llm.chat(MESSAGES, params=replace(ENDLESS, max_tokens=40))
    timing = completion.timing
    assert timing is not None
    assert timing.queue_seconds >= 0
    assert timing.prompt_seconds > 0
    assert timing.decode_seconds > 0
    with llm.stream(MESSAGES, params=ENDLESS) as stream:
        assert stream.finish().timing is None


@pytest.mark.parametrize("seed", [7, None, 2**64 - 1])
def test_many_answers_of_one_prompt_equal_answers_alone_and_read_it_once(
    llm: LLM, seed: int | None
) -> None:
    long = [{"role": "user", "content": "word " * 150}]

    async def work(model: LocalModel) -> None:
        params = SamplingParams(seed=seed, max_tokens=25, logprobs=2)
        request = ChatRequest(messages=long, params=params)
        before = model.stats.num_fed_tokens

        async def one(stream: Any) -> Completion:
            async with stream:
                async for _ in stream:
                    pass
                completion: Completion = await stream.finish()
                return completion

        found = await asyncio.gather(*map(one, model.stream_many(request, 6)))
        num_fed = model.stats.num_fed_tokens - before
        num_prompt = len(found[0].prompt_ids)
        assert num_fed < num_prompt + 6 * (128 + 4 * 25)
        seeds = [one.params.seed for one in found]
        if seed is not None:
            assert seeds == [(seed + i) % 2**64 for i in range(6)]
        assert len(set(seeds)) == 6
        for completion in found:
            alone = await complete(model, replace(request, params=completion.params))
            assert said(alone) == said(completion)
            assert told(alone) == told(completion)
        with pytest.raises(ValueError, match="n is 0, it must be 1 or more"):
            model.stream_many(request, 0)
        for stream in model.stream_many(replace(request, messages=[]), 3):
            with pytest.raises(ValueError, match="has no messages"):
                await stream.__aenter__()

    llm.engine.prefixes.clear()
    run(llm, work)


def test_closing_one_of_many_answers_leaves_the_rest(llm: LLM) -> None:
    long = [{"role": "user", "content": "word " * 150}]
    request = ChatRequest(messages=long, params=replace(ENDLESS, max_tokens=20))

    async def work(model: LocalModel) -> None:
        llm.engine.prefixes.clear()
        streams = model.stream_many(request, 5)
        for stream in streams:
            await stream.__aenter__()
        await streams[0].close()  # it reads the prompt
        await streams[3].close()  # it waits
        for number in (1, 2, 4):
            async for _ in streams[number]:
                pass
            whole = await streams[number].finish()
            assert whole.finish_reason == "length"
            assert said(whole) == said(llm_alone[number])
        for number in (0, 3):
            assert (await streams[number].finish()).finish_reason == "abort"

    llm_alone = [
        llm.chat(replace(request, params=replace(ENDLESS, max_tokens=20, seed=1 + number)))
        for number in range(5)
    ]
    run(llm, work)


def test_closing_the_model_ends_answers_that_wait_for_their_prompt(llm: LLM) -> None:
    async def main() -> None:
        model = LocalModel(llm)
        request = ChatRequest(messages=[{"role": "user", "content": "word " * 170}], params=ENDLESS)
        streams = model.stream_many(request, 4)
        for stream in streams:
            await stream.__aenter__()
        await model.close()
        for stream in streams:
            assert (await stream.finish()).finish_reason == "abort"
            assert [event async for event in stream] == [] or stream is streams[0]

    asyncio.run(main())
    assert not llm.engine.has_unfinished


def test_statistics_count_what_happened(llm: LLM) -> None:
    llm.engine.prefixes.clear()
    before = llm.engine.stats
    assert (before.num_running, before.num_waiting, before.kv_cache_usage) == (0, 0, 0)
    with llm.stream(MESSAGES, params=replace(ENDLESS, max_tokens=200)) as stream:
        assert llm.engine.stats.num_waiting == 1
        llm.step()
        now = llm.engine.stats
        assert (now.num_running, now.num_waiting) == (1, 0)
        assert 0 < now.kv_cache_usage < 1
        stream.finish()
    llm.chat(MESSAGES, params=replace(ENDLESS, max_tokens=70))
    after = llm.engine.stats
    finished = {
        reason: number - before.num_finished[reason]
        for reason, number in after.num_finished.items()
    }
    assert finished == {"stop": 0, "length": 1, "repetition": 0, "abort": 1, "error": 0}
    assert after.kv_cache_usage == 0
    assert after.num_known_tokens > 0
    assert after.num_queried_tokens - before.num_queried_tokens > 0
    num_fed = after.num_fed_tokens - before.num_fed_tokens
    num_hit = after.num_hit_tokens - before.num_hit_tokens
    num_prompt = after.num_prompt_tokens - before.num_prompt_tokens
    assert num_fed >= num_prompt - num_hit + 69


def test_known_tokens_that_make_room_are_counted(llm: LLM) -> None:
    page_bytes = llm.engine.model.page_bytes(None)
    if not page_bytes:
        pytest.skip("a model without keys and values")
    config = EngineConfig(max_num_seqs=1, kv_cache_bytes=8 * page_bytes)
    small = LLM(llm.engine.model, llm.tokenizer, llm.format, engine_config=config)
    for first in range(6):
        small.generate([first + 1] * 200, params=replace(ENDLESS, max_tokens=3))
    stats = small.engine.stats
    assert stats.num_evicted_tokens >= 6 * 192 - 8 * 64
    assert stats.num_evicted_tokens % 64 == 0


def test_a_storm_of_cancels_leaves_nothing_and_the_model_answers(llm: LLM) -> None:
    random_ = random.Random(3)

    async def one(model: LocalModel, stream: Any, seconds: float, kind: int) -> None:
        async def read() -> None:
            async with stream:
                async for _ in stream:
                    if kind == 1:
                        await stream.end_thinking()
                await stream.finish()

        task = asyncio.create_task(read())
        await asyncio.sleep(seconds)
        assert model.stats.num_running <= 4
        if kind == 2:
            await stream.close()
        else:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def work(model: LocalModel) -> None:
        streams = []
        for number in range(16):
            request = thinking(llm, seed=number, max_tokens=900, ignore_eos=True)
            if number % 4 == 0:
                streams += model.stream_many(request, 4)
            elif number % 4 == 1:
                streams += [model.stream_text("word " * number, params=ENDLESS) for _ in range(4)]
            else:
                streams += [model.stream(request) for _ in range(4)]
        random_.shuffle(streams)
        assert len(streams) == 64
        await asyncio.gather(
            *(
                one(model, stream, random_.choice((0, 0.001, 0.1, 1)) * random_.random(), i % 3)
                for i, stream in enumerate(streams)
            )
        )
        assert not llm.engine.has_unfinished
        assert not model._waiting
        short = replace(ENDLESS, max_tokens=12)
        assert (await complete(model, ask(short))).finish_reason == "length"

    for _ in range(3):
        run(llm, work)
