"""Answers written beforehand go the way of real ones: parser, ids, log-probabilities."""

import asyncio
from pathlib import Path

import pytest
import torch

from fulmen.chat import ChatModel, ChatRequest, Transcript, complete, get_format, sum_events
from fulmen.llm import LLM, ForcedModel, LocalModel, ScriptedModel
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
