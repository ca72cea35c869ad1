"""An upstream says what the model says by itself: the same ids, texts, calls and log-probabilities,
though the other server only draws tokens."""

import asyncio
import math
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fulmen.chat import ChatRequest, Completion, TokenBudget, complete, sum_events
from fulmen.engine import EngineConfig
from fulmen.llm import LLM, UpstreamModel
from fulmen.sampling import SamplingParams
from tests.llm.upstream.fakes import Fake, running
from tests.tiny import write_checkpoint

MESSAGES = [{"role": "user", "content": "Hello"}]
GREEDY = SamplingParams(temperature=0, seed=1, max_tokens=60)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
        },
    },
}


PAIRS = ("m1-vllm", "m2-vllm", "m2-sglang", "m1-incremental sglang")
"""Models, and servers that hold them"""


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest) -> list[str]:
    return str(request.param).split("-")


@pytest.fixture(scope="module")
def folder(pair: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp(pair[0]), pair[0])


@pytest.fixture(scope="module")
def bare(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder without its weights."""
    bare = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors*"))
    return bare


@pytest.fixture(scope="module")
def fake(pair: list[str], folder: Path) -> Fake:
    llm = LLM.load(str(folder), engine_config=EngineConfig(max_num_seqs=4))
    return Fake(llm, pair[1].split()[-1], is_incremental="incremental" in pair[1])


@pytest.fixture(scope="module")
def url(fake: Fake) -> Iterator[str]:
    with running(fake.app()) as url:
        yield url


@pytest.fixture(scope="module")
def alone(folder: Path) -> LLM:
    """The model by itself."""
    return LLM.load(str(folder), engine_config=EngineConfig(num_draft_tokens=0))


def run(bare: Path, url: str, work: Callable[[UpstreamModel], Awaitable[None]]) -> None:
    async def main() -> None:
        async with await UpstreamModel.connect(str(bare), url) as model:
            await asyncio.wait_for(work(model), 60)

    asyncio.run(main())


def assert_same(found: Completion, expected: Completion, *, within: float = 1e-4) -> None:
    """The answers are the same; log-probabilities as close as another batch makes them."""
    assert found.reply == expected.reply
    assert found.prompt_ids == expected.prompt_ids
    assert found.finish_reason == expected.finish_reason
    assert found.stop_text == expected.stop_text
    assert found.sampled == expected.sampled
    assert found.usage.num_thinking_tokens == expected.usage.num_thinking_tokens
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert (one.token_id, one.is_forced) == (other.token_id, other.is_forced)
        if found.params.logprobs is not None or not one.is_forced:
            assert one.logprob == pytest.approx(other.logprob, abs=within)
        assert [id for id, _ in one.top_logprobs] == [id for id, _ in other.top_logprobs]


CASES = {
    "plain": GREEDY,
    "drawn to the end": replace(GREEDY, max_tokens=150),
    "likeliest ids": replace(GREEDY, logprobs=3, prompt_logprobs=2, max_tokens=20),
    "a budget with a soft end": replace(GREEDY, thinking_budget=40, max_tokens=90),
    "a budget cut off": replace(GREEDY, thinking_budget=7, thinking_soft_end=0.0),
    "forced ids are scored": replace(GREEDY, thinking_budget=7, logprobs=2),
    "no thought": replace(GREEDY, thinking_budget=0),
    "past every end": replace(GREEDY, ignore_eos=True, max_tokens=200),
    "going in circles": replace(GREEDY, repetition_window=3, repetition_probability=0.003),
    "a schema": replace(
        GREEDY,
        thinking_budget=3,
        json_schema='{"type": "object", "properties": {"a": {"type": "boolean"}}, '
        '"required": ["a"], "additionalProperties": false}',
    ),
    "a regex": replace(GREEDY, thinking_budget=0, regex="(ab|cd){3}"),
    "a choice": replace(GREEDY, thinking_budget=0, choice=("yes", "no")),
    "no call": replace(GREEDY, tool_choice="none"),
    "a call": replace(GREEDY, thinking_budget=4, tool_choice="required", max_tokens=120),
    "one call": replace(GREEDY, thinking_budget=0, max_calls=1, strict_tools=True),
}


@pytest.mark.parametrize("name", CASES)
def test_an_upstream_answers_as_the_model_by_itself(
    name: str, alone: LLM, bare: Path, url: str
) -> None:
    params = CASES[name]
    tools = [WEATHER] if "call" in name else []
    request = ChatRequest(messages=MESSAGES, tools=tools, params=params)
    expected = alone.chat(request)

    async def work(model: UpstreamModel) -> None:
        events = []
        async with model.stream(request) as stream:
            async for event in stream:
                events.append(event)
            found = await stream.finish()
        assert sum_events(events) == found.reply
        assert_same(found, expected)
        assert len(found.prompt_tokens) == len(expected.prompt_tokens)
        for one, other in zip(found.prompt_tokens, expected.prompt_tokens, strict=True):
            assert one.token_id == other.token_id
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)

    run(bare, url, work)


def test_a_stop_text_ends_the_answer_and_its_request(
    alone: LLM, bare: Path, url: str, fake: Fake
) -> None:
    params = replace(GREEDY, ignore_eos=True, max_tokens=400, thinking_budget=0)
    text = alone.chat(MESSAGES, params=params).reply.content
    stop = text[len(text) // 2 :][:3]
    request = ChatRequest(messages=MESSAGES, params=replace(params, stop=(stop,)))
    expected = alone.chat(request)
    assert expected.stop_text == stop

    async def work(model: UpstreamModel) -> None:
        assert_same(await complete(model, request), expected)
        await until(lambda: not fake.llm.engine.has_unfinished)

    run(bare, url, work)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


def test_a_caller_that_goes_away_ends_the_request(bare: Path, url: str, fake: Fake) -> None:
    endless = replace(GREEDY, ignore_eos=True, max_tokens=900)

    async def work(model: UpstreamModel) -> None:
        async with model.stream(ChatRequest(messages=MESSAGES, params=endless)) as stream:
            async for _ in stream:
                break
            assert model.stats.num_running == 1
        assert model.stats.num_running == 0
        assert (await stream.finish()).finish_reason == "abort"
        await until(lambda: not fake.llm.engine.has_unfinished)

    run(bare, url, work)


def test_a_thought_is_ended_while_it_runs(bare: Path, url: str, alone: LLM) -> None:
    params = replace(GREEDY, ignore_eos=True, max_tokens=400)
    if not alone.format.thinking_open_in_prompt:
        pytest.skip("this model's prompt opens no thought")

    async def work(model: UpstreamModel) -> None:
        async with model.stream(ChatRequest(messages=MESSAGES, params=params)) as stream:
            async for _ in stream:
                if len(stream.tokens) >= 5:
                    break
            assert await stream.end_thinking()
            async for _ in stream:
                pass
            completion = await stream.finish()
        assert 5 <= completion.usage.num_thinking_tokens < 150
        assert completion.reply.content
        assert any(token.is_forced for token in completion.tokens)

    run(bare, url, work)


def test_many_answers_and_a_shared_budget(bare: Path, url: str, alone: LLM) -> None:
    budget = TokenBudget(30)
    request = ChatRequest(messages=MESSAGES, params=GREEDY, budget=budget)

    async def work(model: UpstreamModel) -> None:
        streams = model.stream_many(request, 3)

        async def read(stream: object) -> Completion:
            async with stream:  # type: ignore[attr-defined]
                async for _ in stream:  # type: ignore[attr-defined]
                    pass
                return await stream.finish()  # type: ignore[attr-defined,no-any-return]

        answers = await asyncio.gather(*map(read, streams))
        used = sum(answer.usage.num_thinking_tokens for answer in answers)
        assert used == 30 - budget.num_left
        assert [answer.params.seed for answer in answers] == [1, 2, 3]

    run(bare, url, work)


def test_an_answer_goes_on_from_where_it_was_cut(bare: Path, url: str, alone: LLM) -> None:
    whole = alone.chat(MESSAGES, params=GREEDY)
    begun = ChatRequest(messages=MESSAGES, params=GREEDY, prefix_ids=whole.answer_ids[:9])

    async def work(model: UpstreamModel) -> None:
        found = await complete(model, begun)
        assert found.answer_ids == whole.answer_ids
        assert found.reply == whole.reply

    run(bare, url, work)


def test_a_prompt_that_is_too_long_is_refused_here(bare: Path, url: str, fake: Fake) -> None:
    async def work(model: UpstreamModel) -> None:
        assert model.max_model_len <= fake.max_model_len
        num_before = len(fake.bodies)
        long = [0] * model.max_model_len
        with pytest.raises(ValueError, match="the context holds"):
            async with model.stream_text(long):
                pass
        with pytest.raises(ValueError, match="prompt"):
            async with model.stream_text([10**6]):
                pass
        assert len(fake.bodies) == num_before

    run(bare, url, work)


def test_drawn_answers_differ_by_seed_and_have_finite_logprobs(bare: Path, url: str) -> None:
    async def work(model: UpstreamModel) -> None:
        params = [SamplingParams(seed=seed, max_tokens=20) for seed in (1, 2)]
        one, other = [
            await complete(model, ChatRequest(messages=MESSAGES, params=each)) for each in params
        ]
        assert one.answer_ids != other.answer_ids
        assert all(math.isfinite(token.logprob) for token in one.tokens)

    run(bare, url, work)
