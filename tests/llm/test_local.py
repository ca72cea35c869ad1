"""Many callers in one event loop: each gets what it would get alone, and who goes away is gone."""

import asyncio
import copy
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from fulmen.chat import ChatRequest, Completion, ContentDelta, complete, sum_events
from fulmen.checkpoints import load_model
from fulmen.engine import EngineConfig
from fulmen.llm import LLM, LocalModel, LocalStream
from fulmen.models import Model
from fulmen.sampling import SamplingParams
from tests.engine.helpers import assert_nothing_is_owned
from tests.models.helpers import random_model, tiny_m2
from tests.tiny import write_checkpoint

MESSAGES = [{"role": "user", "content": "Hello"}]
SHORT = SamplingParams(seed=3, max_tokens=30)


@pytest.fixture(scope="module", params=["m1", "m2"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder: Path = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    return LLM.load(str(folder), engine_config=EngineConfig(max_num_seqs=4))


def told(completion: Completion) -> Completion:
    """Return what an answer says, whatever was in the cache."""
    return replace(completion, usage=replace(completion.usage, num_cached_tokens=0))


def ask(params: SamplingParams) -> ChatRequest:
    return ChatRequest(messages=MESSAGES, params=params)


def run(llm: LLM, work: Callable[[LocalModel], Awaitable[None]]) -> None:
    """Does the work in an event loop; then nothing runs and nothing is owned."""

    async def main() -> None:
        async with LocalModel(llm) as model:
            await asyncio.wait_for(work(model), 60)

    asyncio.run(main())
    assert not llm.engine.has_unfinished
    assert_nothing_is_owned(llm.engine)
    assert not any(thread.name == "fulmen-engine" for thread in threading.enumerate())


def test_answers_side_by_side_equal_answers_alone(llm: LLM) -> None:
    params = [replace(SHORT, seed=seed, max_tokens=10 + 5 * seed) for seed in range(6)]
    alone = [llm.chat(MESSAGES, params=one) for one in params]

    async def work(model: LocalModel) -> None:
        async def one(number: int) -> None:
            await asyncio.sleep(0.005 * number)
            events = []
            async with model.stream(ask(params[number])) as stream:
                async for event in stream:
                    events.append(event)
                completion = await stream.finish()
            assert sum_events(events) == completion.reply
            assert told(completion) == told(alone[number])

        await asyncio.gather(*map(one, range(len(params))))
        assert told(await complete(model, ask(params[2]))) == told(alone[2])
        events = [event async for event in model.stream_text("Hi", params=SHORT)]
        text = "".join(event.text for event in events if isinstance(event, ContentDelta))
        with llm.stream_text("Hi", params=SHORT) as stream:  # nothing runs: the thread waits
            assert text == "".join(stream.texts())

    run(llm, work)


def test_a_caller_that_goes_away_frees_its_place(llm: LLM) -> None:
    async def work(model: LocalModel) -> None:
        endless = SamplingParams(seed=1, max_tokens=900, ignore_eos=True)
        tasks = [asyncio.create_task(complete(model, ask(endless))) for _ in range(3)]
        async with model.stream(ask(endless)) as stream:
            async for _ in stream:
                break
        tasks[0].cancel()  # it runs
        await asyncio.sleep(0.02)
        late = asyncio.create_task(complete(model, ask(endless)))
        await asyncio.sleep(0)
        late.cancel()  # it has not begun
        for task in tasks[1:]:
            task.cancel()
        found = await asyncio.gather(*tasks, late, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in found)
        assert (await complete(model, ask(SHORT))).finish_reason == "length"

    run(llm, work)


def test_a_caller_that_goes_away_while_its_request_begins_leaves_nothing(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(model: LocalModel) -> None:
        begun, may_go_on = threading.Event(), threading.Event()
        prepare = llm.prepare

        def slow(*args: Any, **rest: Any) -> Any:
            begun.set()
            may_go_on.wait(30)
            return prepare(*args, **rest)

        with monkeypatch.context() as patch:
            patch.setattr(llm, "prepare", slow)
            task = asyncio.create_task(complete(model, ask(replace(SHORT, max_tokens=900))))
            await asyncio.to_thread(begun.wait, 30)
            task.cancel()
            await asyncio.sleep(0.01)
            may_go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not llm.engine.has_unfinished

    run(llm, work)


def test_wrong_requests_are_told_to_their_caller_alone(llm: LLM) -> None:
    async def work(model: LocalModel) -> None:
        good = asyncio.create_task(complete(model, ask(SHORT)))
        with pytest.raises(ValueError, match="the prompt is empty"):
            async with model.stream_text([], params=SHORT):
                pass
        assert (await good).finish_reason == "length"

    run(llm, work)


def test_a_failed_step_ends_those_who_took_part(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(model: LocalModel) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(llm.engine._runner, "run", fail)
            with pytest.raises(RuntimeError, match="no memory"):
                await complete(model, ask(SHORT))
        assert (await complete(model, ask(SHORT))).finish_reason == "length"

    run(llm, work)


def test_closing_ends_what_runs(llm: LLM) -> None:
    async def main() -> None:
        model = LocalModel(llm)
        endless = SamplingParams(seed=1, max_tokens=900, ignore_eos=True)
        stream = model.stream(ask(endless))
        events = []
        async for event in stream:
            events.append(event)
            if len(events) == 1:
                await model.close()
        assert (await stream.finish()).finish_reason == "abort"
        with pytest.raises(RuntimeError, match="the engine is closed"):
            await complete(model, ask(SHORT))

    asyncio.run(main())
    assert not llm.engine.has_unfinished


def test_a_model_is_loaded_while_the_event_loop_goes_on(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path, "m2"))

    async def main() -> Completion:
        loading = asyncio.ensure_future(LocalModel.load(folder, ignore_config_fields=["none"]))
        num_steps = 0
        while not loading.done():
            num_steps += 1
            await asyncio.sleep(0.001)
        assert num_steps > 1
        async with await loading as model:
            return await complete(model, ask(SHORT))

    assert asyncio.run(main()).reply == LLM.load(folder).chat(MESSAGES, params=SHORT).reply


def test_a_conversation_without_messages_is_refused(llm: LLM) -> None:
    with pytest.raises(ValueError, match="the conversation has no messages, at least one is need"):
        llm.chat([])

    async def work(model: LocalModel) -> None:
        with pytest.raises(ValueError, match="the conversation has no messages"):
            await complete(model, ChatRequest())

    run(llm, work)


@pytest.mark.parametrize("running", ["end", "continue"])
def test_new_weights_reach_answers_that_run(
    tmp_path: Path, running: Literal["end", "continue"]
) -> None:
    folder = write_checkpoint(tmp_path, "m1")
    llm = LLM.load(str(folder), engine_config=EngineConfig(max_num_seqs=2))
    origin = llm.origin
    new = load_model(folder, trainable=True)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.mul_(1.2)
    params = replace(SHORT, max_tokens=300, top_p=1.0, top_k=None, ignore_eos=True)

    async def work(model: LocalModel) -> None:
        streams = [*model.stream_many(ask(params), 2), model.stream(ask(params))]
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(finished(stream)) for stream in streams]
            while len(streams[0].tokens) < 5:
                await asyncio.sleep(0.001)
            assert await model.load_weights(new, running=running) == 1
        for completion in (answer.result() for answer in answers):
            versions = [token.policy_version for token in completion.tokens]
            if running == "end":
                assert completion.finish_reason == "abort"
                assert set(versions) <= {0}
            else:
                assert completion.finish_reason == "length"
                assert versions == sorted(versions)  # type: ignore[type-var]
                assert versions[-1] == 1
        assert {one.policy_version for one in answers[0].result().tokens} >= {0}
        again = await complete(model, ask(SHORT))
        assert {token.policy_version for token in again.tokens} == {1}
        with pytest.raises(ValueError, match="the new weights are those of M2"):
            await model.load_weights(random_model(tiny_m2()))
        expected = LLM(load_model_of(new), llm.tokenizer, llm.format, defaults=llm.defaults).chat(
            MESSAGES, params=SHORT
        )
        assert again.answer_ids == expected.answer_ids

    run(llm, work)
    assert llm.origin.model != origin.model  # no session takes up states of other weights
    assert llm.origin == llm.origin


async def finished(stream: LocalStream) -> Completion:
    async with stream:
        async for _ in stream:
            pass
        return await stream.finish()


def load_model_of(model: Model) -> Model:
    """Return a packed copy."""
    model = copy.deepcopy(model)
    model.pack()
    return model
