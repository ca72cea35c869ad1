"""A model at a URL answers as the model behind it does: the same text, calls, ids and numbers,
whichever dialect carries them."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fulmen.chat import ChatRequest, Completion, Message, Tool, ToolCall, complete, sum_events
from fulmen.llm import LLM, LocalModel, RemoteCompletion, RemoteModel
from fulmen.sampling import SamplingParams
from tests.server.helpers import answering, served
from tests.tiny import write_checkpoint

MESSAGES = [Message("user", "Hello")]
PARAMETERS = {"type": "object", "properties": {"what": {}}}
TOOLS = [Tool("look", "Look something up.", PARAMETERS)]
FLAT = {"name": "look", "description": "Look something up.", "parameters": PARAMETERS}
TOOLS_OF: dict[str, Any] = {
    "openai": [{"type": "function", "function": FLAT}],
    "anthropic": [FLAT],
}
"""A tool in each dialect's own form: M1's template prints a tool as it was given"""
PARAMS = SamplingParams(seed=3, max_tokens=40)


@pytest.fixture(scope="module", params=["m1", "m2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    local = LocalModel(LLM.load(str(folder)))
    yield local
    asyncio.run(local.close())


@pytest.fixture(scope="module")
def url(model: LocalModel) -> Iterator[str]:
    with served(model, answer_share=0) as address:  # no thought is cut to leave room
        yield address


def ask_both(
    model: LocalModel, url: str, request: ChatRequest, **options: Any
) -> tuple[Completion, RemoteCompletion]:
    """Ask the model here, and at its URL; its events there add up to its reply."""

    async def work() -> tuple[Completion, RemoteCompletion]:
        here = await complete(model, request)
        async with RemoteModel(url, **options) as remote, remote.stream(request) as stream:
            events = [event async for event in stream]
            there = await stream.finish()
        assert sum_events(events) == there.reply
        return here, there

    return asyncio.run(asyncio.wait_for(work(), 60))


def check_same(here: Completion, there: RemoteCompletion) -> None:
    assert there.reply == here.reply
    assert there.reply.is_call_open == here.reply.is_call_open
    assert there.finish_reason == here.finish_reason
    assert there.usage.num_prompt_tokens == here.usage.num_prompt_tokens
    assert there.usage.num_new_tokens == here.usage.num_new_tokens
    assert there.usage.num_thinking_tokens == here.usage.num_thinking_tokens


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.0},
        {"top_k": None, "min_p": 0.05, "top_p": 0.9, "seed": 7},
        {"thinking_budget": 12},
        {"thinking_budget": 0},
        {"stop": ("e", "a")},
        {"choice": ("yes", "no"), "thinking_budget": 5},
        {"regex": "[0-9]{3}", "thinking_budget": 5},
        {"json_schema": '{"type": "boolean"}', "thinking_budget": 5},
        {"ignore_eos": True, "stop_token_ids": (5, 6, 7)},
    ],
    ids=str,
)
def test_openai_dialect_carries_text_ids_and_log_probabilities(
    model: LocalModel, url: str, fields: dict[str, Any]
) -> None:
    params = replace(PARAMS, logprobs=3, **fields)
    request = ChatRequest(messages=MESSAGES, params=params)
    here, there = ask_both(model, url, request, dialect="openai")
    check_same(here, there)
    assert there.prompt_ids == here.prompt_ids
    assert [token.token_id for token in there.tokens] == [each.token_id for each in here.tokens]
    assert [token.logprob for token in there.tokens] == [each.logprob for each in here.tokens]
    assert [token.top_logprobs for token in there.tokens] == [
        each.top_logprobs for each in here.tokens
    ]
    assert there.sampled is None


@pytest.mark.parametrize("prompt", ["Once upon", (5, 6, 7)], ids=["text", "ids"])
def test_a_text_goes_on_as_it_stands(model: LocalModel, url: str, prompt: Any) -> None:
    request = ChatRequest(text=prompt, params=replace(PARAMS, logprobs=2))
    here, there = ask_both(model, url, request)
    check_same(here, there)
    assert there.prompt_ids == here.prompt_ids
    assert [(token.token_id, token.logprob) for token in there.tokens] == [
        (token.token_id, token.logprob) for token in here.tokens
    ]


@pytest.mark.parametrize(
    "fields", [{"top_p": 1e-9}, {"temperature": 0.0, "top_k": 5}, {"thinking_budget": 12}], ids=str
)
def test_anthropic_dialect_carries_the_same_text(
    model: LocalModel, url: str, fields: dict[str, Any]
) -> None:
    # Its requests have no seed, so what is drawn must not depend on one.
    params = SamplingParams(max_tokens=40, top_p=1e-9)
    request = ChatRequest(messages=MESSAGES, params=replace(params, **fields))
    here, there = ask_both(model, url, request, dialect="anthropic")
    check_same(here, replace(there, reply=_with_blanks_of(here, there)))


def _with_blanks_of(here: Completion, there: Completion) -> Any:
    """Return a reply with the white space around its content that no block of the dialect holds."""
    content = there.reply.content
    assert content.strip() == here.reply.content.strip()
    return replace(there.reply, content=here.reply.content)


HISTORY = [
    Message("system", "Be brief."),
    Message("user", "What is it?"),
    Message("assistant", "Let me look.", "I look it up.", (ToolCall("look", {"what": "it"}, "a"),)),
    Message("tool", "It is one.", tool_call_id="a"),
    Message("assistant", "One.", "Known."),
    Message("system", "Now be verbose."),
    Message("user", "And then?"),
]


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("has_ids", [True, False])
def test_a_whole_history_makes_the_same_prompt(
    model: LocalModel, url: str, dialect: Any, has_ids: bool
) -> None:
    messages = [
        message
        if has_ids
        else replace(
            message,
            tool_call_id=None,
            tool_calls=tuple(replace(call, id=None) for call in message.tool_calls),
        )
        for message in HISTORY
    ]
    params = SamplingParams(max_tokens=3, temperature=0.0)
    request = ChatRequest(messages=messages, tools=TOOLS_OF[dialect], params=params)
    here, there = ask_both(model, url, request, dialect=dialect)
    assert there.usage.num_prompt_tokens == here.usage.num_prompt_tokens
    assert there.reply.thinking == here.reply.thinking


def m2_call(what: str) -> str:
    call = f'<invoke name="look">\n<parameter name="what">{what}</parameter>\n</invoke>'
    return f"<minimax:tool_call>\n{call}\n{call}\n</minimax:tool_call>"


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_thoughts_and_calls_go_there_and_back(dialect: Any) -> None:
    said = {
        "one": f"I think.</think>\n\nI look.\n\n{m2_call('ä ☃ this')}",
        "found": "Not long.</think>\n\nDone.",
        "cut": "Hm.</think>\n\n" + m2_call("x" * 300),
    }

    async def work(url: str) -> None:
        async with RemoteModel(url, dialect=dialect) as remote:
            asked = ChatRequest(messages=[Message("user", "one")], tools=TOOLS)
            first = await complete(remote, asked)
            assert first.reply.thinking == "I think."
            assert first.reply.content.strip() == "I look."
            assert first.reply.tool_calls == (ToolCall("look", {"what": "ä ☃ this"}),) * 2
            ids = [call.id for call in first.reply.tool_calls]
            assert len(set(ids)) == 2
            assert first.finish_reason == "stop"
            results = [Message("tool", "found", tool_call_id=id) for id in ids]
            history = [*asked.messages, first.message, *results]
            second = await complete(remote, replace(asked, messages=history))
            assert (second.reply.thinking, second.reply.content) == ("Not long.", "Done.")
            # The server knows its first answer again, thought included.
            assert second.usage.num_cached_tokens >= first.usage.num_prompt_tokens
            limit = SamplingParams(max_tokens=150)
            cut = await complete(
                remote, replace(asked, messages=[Message("user", "cut")], params=limit)
            )
            assert cut.finish_reason == "length"
            assert cut.reply.is_call_open
            assert not cut.reply.tool_calls

    with served(answering("m2", said.__getitem__, piece_chars=3)) as url:
        asyncio.run(asyncio.wait_for(work(url), 60))


def test_stop_texts_and_signatures_are_told() -> None:
    async def work(url: str) -> None:
        params = SamplingParams(stop=("STOP",), temperature=0.0)
        request = ChatRequest(messages=[Message("user", "x")], params=params)
        async with RemoteModel(url, dialect="anthropic") as remote:
            completion = await complete(remote, request)
        assert completion.stop_text == "STOP"
        assert completion.reply.content == "Go on, "
        assert completion.message.signatures

    with served(answering("m2", lambda text: "Hm.</think>\n\nGo on, STOP there.")) as url:
        asyncio.run(asyncio.wait_for(work(url), 60))


def test_many_answers_run_at_once_whoever_reads_first(model: LocalModel, url: str) -> None:
    async def work() -> None:
        requests = [
            ChatRequest(messages=MESSAGES, params=replace(PARAMS, seed=seed)) for seed in range(6)
        ]
        alone = [await complete(model, request) for request in requests]
        async with RemoteModel(url) as remote:
            streams = [remote.stream(request) for request in requests]
            for stream in streams:
                await stream.__aenter__()
            for stream, expected in reversed(list(zip(streams, alone, strict=True))):
                async for _ in stream:
                    pass
                assert (await stream.finish()).reply == expected.reply

    asyncio.run(asyncio.wait_for(work(), 60))


def test_an_answer_that_is_left_is_given_up(model: LocalModel, url: str) -> None:
    endless = SamplingParams(max_tokens=900, ignore_eos=True, seed=1)

    async def work() -> None:
        request = ChatRequest(messages=MESSAGES, params=endless)
        async with RemoteModel(url) as remote, remote.stream(request) as stream:
            async for _ in stream:
                break
            completion = await stream.finish()
        assert completion.finish_reason == "abort"
        assert 0 < len(completion.reply.thinking + completion.reply.content) < 900
        async with asyncio.timeout(20):
            while model.stats.num_running:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(work(), 60))
