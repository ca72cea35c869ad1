"""A text that is continued as it stands: one answer through every door."""

from dataclasses import replace
from typing import Any

import pytest

from fulmen.chat import ChatRequest, Completion, Prompt, complete
from fulmen.llm import LLM, ForcedModel, LocalModel, ScriptedModel
from fulmen.sampling import SamplingParams
from tests.llm.test_local import run
from tests.tiny import write_checkpoint

PARAMS = SamplingParams(seed=3, max_tokens=12, logprobs=2, thinking_budget=4)
TAGS = "<think>a</think>\n<minimax:tool_call>"


@pytest.fixture(scope="module", params=["m1", "m2"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM.load(str(write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)))


def seen(completion: Completion) -> Any:
    """Return an answer without what depends on the cache and the clock."""
    return (
        completion.reply,
        completion.tokens,
        completion.finish_reason,
        completion.prompt_ids,
        completion.sampled,
    )


@pytest.mark.parametrize("text", ["Once upon a time", "<think>\n"])
def test_a_text_is_continued_alike_by_every_door(llm: LLM, text: str) -> None:
    ids = llm.tokenizer.encode(text)
    alone = llm.generate(text, params=PARAMS)
    assert alone.prompt_ids == tuple(ids)
    assert seen(llm.generate(ids, params=PARAMS)) == seen(alone)
    assert seen(llm.chat(text=text, params=PARAMS)) == seen(alone)
    prompt = Prompt(tuple(ids))
    assert seen(llm.chat(text="unread", prompt=prompt, params=PARAMS)) == seen(alone)

    async def work(model: LocalModel) -> None:
        request = ChatRequest(text=ids, params=PARAMS)
        assert seen(await complete(model, request)) == seen(alone)
        async with model.stream_text(text, params=PARAMS) as stream:
            assert seen(await stream.finish())[3] == alone.prompt_ids
        both = [await finished(stream) for stream in model.stream_many(request, 2)]
        next_seed = replace(PARAMS, seed=4)
        expected = [alone, llm.generate(text, params=next_seed)]
        assert [seen(one) for one in both] == [seen(one) for one in expected]

    run(llm, work)


def test_tags_in_the_continuation_of_a_text_are_content(llm: LLM) -> None:
    params = SamplingParams(seed=1, max_tokens=200)

    async def work(local: LocalModel) -> None:
        request = ChatRequest(text="Once", params=params)
        scripted = ScriptedModel(llm.format, [TAGS] * 2, tokenizer=llm.tokenizer)
        for model in (ForcedModel(local, [TAGS] * 2), scripted):
            for stream in (model.stream(request), model.stream_many(request, 1)[0]):
                completion = await finished(stream)
                assert completion.reply.content == TAGS
                assert not completion.reply.thinking
                assert llm.tokenizer.decode(completion.prompt_ids) == "Once"
                assert completion.sampled is None

    run(llm, work)


async def finished(stream: Any) -> Completion:
    async for _ in stream:
        pass
    completion: Completion = await stream.finish()
    return completion


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"text": "a", "messages": [{"role": "user", "content": "b"}]}, "a text and messages"),
        ({"text": "a", "tools": [{"name": "f"}]}, "a text and tools"),
        ({"text": b"a"}, "text of a request is of type bytes"),
        ({"text": 7}, "text of a request is of type int"),
    ],
)
def test_a_request_that_is_no_text_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ChatRequest(**fields)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [([], "prompt is empty"), ("", "prompt is empty"), ([10**6], "1000000"), ([-1], "-1")],
)
def test_a_text_without_ids_of_the_model_is_refused(llm: LLM, text: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        llm.generate(text, params=PARAMS)


def test_a_text_has_no_call_that_could_be_required(llm: LLM) -> None:
    with pytest.raises(ValueError, match="tool_choice is required, text"):
        llm.chat(text="a", params=SamplingParams(tool_choice="required"))
    assert not llm.engine.has_unfinished
