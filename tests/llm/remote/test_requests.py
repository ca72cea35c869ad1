"""Requests to a server: where they go, with which key, in which words; and what is refused."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from fulmen.chat import ChatRequest, Message, Prompt, TokenBudget, Tool, ToolCall, complete
from fulmen.llm import RemoteModel
from fulmen.llm.remote import model as model_file
from fulmen.sampling import SamplingParams
from tests.llm.remote.fakes import HELLO, Fake, answer_of, delta, listed, named_sse, sse
from tests.server.helpers import answering, served

DONE = [sse(delta("stop", content="Hi"), "[DONE]")]
STOPPED = [named_sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}})]
TOOL = Tool("look", "", {"type": "object"})


def body_of(
    request: ChatRequest, owner: str = "vllm", dialect: Any = "openai", **options: Any
) -> dict[str, Any]:
    fake = Fake(DONE if dialect == "openai" else STOPPED, models=listed(owner))
    _, _, error = answer_of(fake, request, dialect=dialect, **options)
    assert error is None
    ((_, body),) = fake.asked
    return body


@pytest.mark.parametrize(
    ("url", "dialect", "path"),
    [
        ("http://fake", "auto", "/v1/chat/completions"),
        ("http://fake/", "auto", "/v1/chat/completions"),
        ("http://fake/v1/", "auto", "/v1/chat/completions"),
        ("http://fake/v1/chat/completions", "auto", "/v1/chat/completions"),
        ("http://fake/openai/v9", "openai", "/openai/v9/chat/completions"),
        ("http://fake/v1/messages", "auto", "/v1/messages"),
        ("http://fake/anthropic", "auto", "/anthropic/v1/messages"),
        ("http://fake", "anthropic", "/v1/messages"),
        ("https://api.anthropic.com", "auto", "/v1/messages"),
    ],
)
def test_a_url_is_taken_as_any_client_would_have_it(url: str, dialect: str, path: str) -> None:
    fake = Fake(STOPPED if "messages" in path else DONE)
    _, _, error = answer_of(fake, url=url, dialect=dialect)
    assert error is None
    assert [asked for asked, _ in fake.asked] == [path]


def test_a_server_that_lists_its_models_as_anthropic_does_speaks_that() -> None:
    models = {"data": [{"id": "claude", "type": "model", "display_name": "C"}], "has_more": False}
    fake = Fake(STOPPED, models=models)
    _, completion, error = answer_of(fake, api_key="k")
    assert error is None
    assert completion.finish_reason == "stop"
    ((path, body),) = fake.asked
    assert (path, body["model"]) == ("/v1/messages", "claude")
    assert fake.headers[-1]["x-api-key"] == "k"
    assert "anthropic-version" in fake.headers[-1]


@pytest.mark.parametrize(
    ("url", "dialect", "names"),
    [
        ("http://fake", "openai", {"authorization"}),
        ("http://fake", "anthropic", {"authorization", "x-api-key"}),  # vLLM reads only the first
        ("https://api.anthropic.com", "auto", {"x-api-key"}),
    ],
)
def test_a_key_goes_where_servers_look_for_it(url: str, dialect: Any, names: set[str]) -> None:
    fake = Fake(STOPPED if names != {"authorization"} else DONE)
    answer_of(fake, url=url, dialect=dialect, api_key="secret")
    for headers in fake.headers:
        assert {"authorization", "x-api-key"} & set(headers) == names
        assert all("secret" in headers[name] for name in names)


def test_a_key_with_a_line_break_is_refused() -> None:
    async def work() -> None:
        with pytest.raises(ValueError, match="line break"):
            RemoteModel("http://fake", api_key="a\nb")

    asyncio.run(work())


def test_a_server_without_a_list_is_asked_if_all_is_named() -> None:
    fake = Fake(DONE, models=httpx2.Response(404, json={}))
    _, completion, error = answer_of(fake, model="m", dialect="openai")
    assert error is None
    assert completion.reply.content == "Hi"


def test_only_what_is_given_is_sent() -> None:
    params = SamplingParams(temperature=0.25, seed=0)
    assert "temperature" not in body_of(HELLO)
    everything = body_of(replace(HELLO, params=params))
    assert (
        everything.items() >= {"temperature": 0.25, "top_p": 0.95, "top_k": 40, "seed": 0}.items()
    )
    assert everything["min_p"] == 0  # llama.cpp has another default
    some = body_of(replace(HELLO, params=params), sends=frozenset({"temperature"}))
    assert "top_k" not in some
    assert some["temperature"] == 0.25


@pytest.mark.parametrize(
    ("owner", "budget", "fields"),
    [
        ("vllm", 100, {"thinking_token_budget": 100}),
        ("vllm", 0, {"thinking_token_budget": 0}),
        ("llamacpp", 100, {"reasoning_budget_tokens": 100, "thinking_budget_tokens": 100}),
        (
            "sglang",
            0,
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
        ),
        ("openai", 0, {"reasoning_effort": "none"}),
    ],
)
def test_a_budget_of_thought_is_said_in_the_servers_words(
    owner: str, budget: int, fields: dict[str, Any]
) -> None:
    params = SamplingParams(thinking_budget=budget)
    request = replace(HELLO, params=params)
    body = body_of(request, owner, sends=frozenset({"thinking_budget"}))
    assert body.items() >= fields.items()


@pytest.mark.parametrize(
    ("owner", "fields", "expected"),
    [
        ("vllm", {"regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
        ("sglang", {"regex": "a+"}, {"regex": "a+"}),
        ("fulmen", {"choice": ("a",)}, {"structured_outputs": {"choice": ["a"]}}),
        (
            "someone",
            {"json_schema": "{}"},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {}, "strict": True},
                }
            },
        ),
    ],
)
def test_a_constraint_is_said_in_the_servers_words(
    owner: str, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    request = replace(HELLO, params=SamplingParams(**fields))
    assert body_of(request, owner).items() >= expected.items()


@pytest.mark.parametrize(
    ("fields", "openai", "anthropic"),
    [
        ({"tool_choice": "none"}, {"tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
        (
            {"tool_choice": "required", "max_calls": 1},
            {"tool_choice": "required", "parallel_tool_calls": False},
            {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        ),
        (
            {"tool_choice": "required", "allowed_tools": ("look",)},
            {"tool_choice": {"type": "function", "function": {"name": "look"}}},
            {"tool_choice": {"type": "tool", "name": "look"}},
        ),
        (
            {"strict_tools": True},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "look",
                            "description": "",
                            "parameters": {"type": "object"},
                            "strict": True,
                        },
                    }
                ]
            },
            {
                "tools": [
                    {
                        "name": "look",
                        "description": "",
                        "input_schema": {"type": "object"},
                        "strict": True,
                    }
                ]
            },
        ),
    ],
)
def test_tools_are_said_in_both_dialects(
    fields: dict[str, Any], openai: dict[str, Any], anthropic: dict[str, Any]
) -> None:
    request = replace(HELLO, tools=[TOOL], params=SamplingParams(**fields))
    assert body_of(request).items() >= openai.items()
    assert body_of(request, dialect="anthropic").items() >= anthropic.items()


def test_a_history_goes_out_with_its_thoughts() -> None:
    messages = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "", "Hm.", (ToolCall("look", {"a": 1}),), signatures=("sig",)),
        Message("tool", "one"),
        Message("user", "Go on"),
    ]
    request = replace(HELLO, messages=messages)
    said = body_of(request)["messages"]
    assert said[2]["reasoning_content"] == "Hm."
    assert said[3]["tool_call_id"] == said[2]["tool_calls"][0]["id"]
    assert "reasoning_content" not in body_of(request, "openai")["messages"][2]
    body = body_of(request, dialect="anthropic")
    assert body["system"] == "Be brief."
    thought, used = body["messages"][1]["content"]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": "sig"}
    assert body["messages"][2]["content"][0]["tool_use_id"] == used["id"]
    minimax = Fake(DONE)
    answer_of(minimax, request, url="https://api.minimax.io/v1")
    ((_, body),) = minimax.asked
    assert body["reasoning_split"] is True
    assert body["messages"][2]["reasoning_details"][0]["text"] == "Hm."


def test_blocks_of_thought_go_back_as_they_came() -> None:
    blocks: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "One.", "signature": "s1"},
        {"type": "redacted_thinking", "data": "d2"},
        {"type": "thinking", "thinking": "Three.", "signature": "s3"},
    ]
    stream = named_sse(
        *(
            event
            for index, block in enumerate(blocks)
            for event in (
                {"type": "content_block_start", "index": index, "content_block": block},
                *(
                    {
                        "type": "content_block_delta",
                        "index": index,
                        "delta": {"type": "signature_delta", "signature": block[name]},
                    }
                    for name in ("signature",)
                    if name in block
                ),
                {"type": "content_block_stop", "index": index},
            )
        ),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    )
    fake = Fake([stream])

    async def work() -> None:
        async with RemoteModel("http://fake/anthropic", transport=fake) as model:
            first = await complete(model, HELLO)
            assert first.reply.thinking == "One.Three."
            await complete(model, replace(HELLO, messages=[*HELLO.messages, first.message]))

    asyncio.run(asyncio.wait_for(work(), 20))
    assert fake.asked[1][1]["messages"][1]["content"] == blocks


def test_thoughts_that_are_kept_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "_MAX_THOUGHT_CHARS", 100)

    async def work() -> None:
        async with RemoteModel("http://fake", transport=Fake(DONE)) as model:
            for number in range(30):
                model.remember({f"s{number}": {"thinking": "x" * 10}})
            assert list(model.thoughts) == [f"s{number}" for number in range(20, 30)]
            model.remember({"s20": {"thinking": "x" * 10}, "large": {"thinking": "x" * 80}})
            assert list(model.thoughts) == ["s29", "s20", "large"]

    asyncio.run(work())


def test_a_connection_serves_again_after_an_answer() -> None:
    async def work(url: str) -> None:
        async with RemoteModel(url) as model:
            for _ in range(4):
                await complete(model, HELLO)
            pool = (await model.connect()).peer._client._transport._pool  # type: ignore[attr-defined]
            assert len(pool.connections) == 1

    with served(answering("m2", lambda text: "Hm.</think>\n\nYes.")) as url:
        asyncio.run(asyncio.wait_for(work(url), 30))


@pytest.mark.parametrize(
    ("request_fields", "params", "owner", "dialect", "sentence"),
    [
        ({"prefix_ids": (1,)}, {}, "vllm", "openai", "the request has prefix_ids"),
        ({"forced_ids": (1,)}, {}, "vllm", "openai", "the request has forced_ids"),
        ({"budget": TokenBudget(5)}, {}, "vllm", "openai", "the request has budget"),
        ({"messages": (), "prompt": Prompt((1,))}, {}, "vllm", "openai", "a prompt of ids alone"),
        ({"messages": ()}, {}, "vllm", "openai", "no messages"),
        ({}, {"repetition_window": 5}, "vllm", "openai", "repetition_window is 5"),
        ({}, {"prompt_logprobs": 0}, "vllm", "openai", "prompt_logprobs is 0"),
        ({}, {}, "openai", "openai", "top_k is 40, OpenAI has no such option"),
        ({}, {"thinking_budget": 9}, "sglang", "openai", "SGLang has no such limit on thoughts"),
        ({}, {"choice": ("a",)}, "llamacpp", "openai", "llama.cpp has no such option"),
        ({}, {"seed": 0}, "vllm", "anthropic", "seed is 0, Anthropic's dialect has no such"),
        ({}, {"logprobs": 0}, "vllm", "anthropic", "logprobs is 0"),
        ({"messages": (), "text": "a"}, {}, "vllm", "anthropic", "takes only messages"),
        (
            {},
            {"thinking_budget": 9, "thinking_soft_end": 0.0},
            "vllm",
            "openai",
            "thinking_soft_end is 0.0",
        ),
        ({"tools": [TOOL]}, {"max_calls": 3}, "vllm", "openai", "max_calls is 3"),
        (
            {"tools": [TOOL]},
            {"allowed_tools": ("look",)},
            "vllm",
            "anthropic",
            "can only require one tool",
        ),
    ],
)
def test_what_would_be_lost_on_the_way_is_refused(
    request_fields: dict[str, Any],
    params: dict[str, Any],
    owner: str,
    dialect: Any,
    sentence: str,
) -> None:
    request = replace(HELLO, params=SamplingParams(**params), **request_fields)
    fake = Fake(DONE, models=listed(owner))
    with pytest.raises(ValueError, match=sentence):
        answer_of(fake, request, dialect=dialect)
    assert not fake.asked
