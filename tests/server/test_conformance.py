"""Rules that providers of MiniMax's models are held to, and traps that clients set.

What needs an engine runs on one, made to say forced texts; long texts are scripted. It is one file,
and a long one, because all of it asks the same two servers.
"""

import asyncio
import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fulmen.chat import get_format
from fulmen.llm import ScriptedModel
from fulmen.llm.scripted import ScriptedAnswer
from fulmen.server import ServerConfig, bind
from tests.server.helpers import Answer, answering, ask, byte_tokenizer, served, served_checkpoint

KEY = "a-key-of-tests"
BEARER = {"authorization": f"Bearer {KEY}"}
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
USER = {"role": "user", "content": "Hello"}
ARGUMENTS = "0123456789abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLM"
PROSE = "The quick brown fox jumps over the lazy dog, again and again. "


def call(id: str = "c1", arguments: Any = "{}", name: str = "f") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(id: str = "c1", content: Any = "ok") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def says(*calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **fields, **({"tool_calls": list(calls)} if calls else {})}


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def m2_call(name: str, **arguments: str) -> str:
    given = "".join(
        f'<parameter name="{key}">{value}</parameter>\n' for key, value in arguments.items()
    )
    block = f'<invoke name="{name}">\n{given}</invoke>'
    return f"</think>\n\n<minimax:tool_call>\n{block}\n</minimax:tool_call>"


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """Address of a tiny M2 with its engine, made to say what it is asked to."""
    said = {
        "call what history tells of": m2_call("lookup", what="this"),
        "length": "Thinking.</think>\n\n" + PROSE * 20,
    }

    def answer(text: str) -> str:
        return said.get(text, f"Thinking.</think>\n\n{text} {text}")

    with served_checkpoint("m2", answer) as url:
        yield url


@pytest.fixture(scope="module")
def script() -> Iterator[str]:
    """Address of a scripted M2 that wants a key and serves one name."""

    def answer(text: str) -> str | ScriptedAnswer:
        match text.split():
            case ["prose", length]:
                return "I write.</think>\n\n" + (PROSE * 1000)[: int(length)]
            case ["thought", length]:
                return (PROSE * 1000)[: int(length)] + "</think>\n\nDone."
            case ["argument", length]:
                return m2_call("f", text=(ARGUMENTS * 1000)[: int(length)])
            case ["fail", length]:
                return ScriptedAnswer("a" * int(length), fail_with=RuntimeError("a secret"))
        return "Thinking.</think>\n\nFine."

    model = answering("m2", answer)
    with served(model, api_keys=(KEY,), model_name="m2", strict_model_names=True) as url:
        yield url


def chat(url: str, *messages: Any, path: str = CHAT, **fields: Any) -> Answer:
    body = {"model": "m2", "messages": list(messages) or [USER], **fields}
    return ask(url, path, body, headers=BEARER)


def good(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json()


# ---- usage


def test_usage_adds_up_and_the_same_prompt_is_cached(engine: str) -> None:
    question = {"role": "user", "content": "What is in the cache the second time?" * 3}
    fields: dict[str, Any] = {"max_tokens": 30, "temperature": 0}
    replies = [good(chat(engine, question, **fields)) for _ in range(2)]
    for reply in replies:
        usage = reply["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert 0 <= cached <= usage["prompt_tokens"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] > 0
    assert replies[1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert replies[0]["choices"][0]["message"] == replies[1]["choices"][0]["message"]


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_tokens": 17}, 17),
        ({"max_completion_tokens": 19}, 19),
        ({"max_tokens": 50, "max_completion_tokens": 21}, 21),
        ({"max_tokens": 1}, 1),
    ],
)
def test_an_answer_that_length_ends_has_as_many_tokens(
    engine: str, fields: dict[str, Any], limit: int
) -> None:
    question = {"role": "user", "content": "length"}
    reply = good(chat(engine, question, **fields))
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == limit


def test_usage_of_a_stream_is_that_of_the_whole_and_comes_last(engine: str) -> None:
    whole = good(chat(engine, max_tokens=40))["usage"]
    options = {"include_usage": True}
    streamed = chat(engine, max_tokens=40, stream=True, stream_options=options)
    chunks = streamed.chunks()
    assert [chunk for chunk in chunks[:-1] if chunk.get("usage")] == []
    assert chunks[-1]["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1]["usage"][name] == whole[name]
    assert streamed.events()[-1] == (None, "[DONE]")
    without = chat(engine, max_tokens=40, stream=True).chunks()
    assert all("usage" not in chunk and chunk["choices"] for chunk in without)


# ---- what is refused, and what is not

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "result that is an object": (
        {"messages": [USER, says(call()), result(content={"a": 1})]},
        "messages[2]",
    ),
    "result of no call": ({"messages": [USER, says(call()), result("other")]}, "messages[2]"),
    "only one of two calls answered": (
        {"messages": [USER, says(call("c1"), call("c2")), result("c1")]},
        "messages[1]",
    ),
    "call without a result": ({"messages": [USER, says(call()), USER]}, "messages[1]"),
    "arguments that are no JSON": (
        {"messages": [USER, says(call(arguments="{a")), result()]},
        "messages[1]",
    ),
    "arguments that are a list": (
        {"messages": [USER, says(call(arguments="[1]")), result()]},
        "messages[1]",
    ),
    "no messages": ({"messages": []}, "messages"),
    "messages that are missing": ({"messages": None}, "messages"),
    "temperature of 5": ({"temperature": 5}, "temperature"),
    "temperature below 0": ({"temperature": -0.1}, "temperature"),
    "top_p of 2": ({"top_p": 2}, "top_p"),
    "top_p of -1": ({"top_p": -1}, "top_p"),
    "n of 0": ({"n": 0}, "n"),
    "max_tokens of -1": ({"max_tokens": -1}, "max_tokens"),
    "invalid role": ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0]"),
    "no role": ({"messages": [{"content": "a"}]}, "messages[0]"),
    "tool choice without its tool": (
        {"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_by_its_name(script: str, name: str) -> None:
    fields, place = REFUSED[name]
    body = {"model": "m2", "messages": [USER], **fields}
    for is_streamed in (False, True):
        answer = ask(script, CHAT, {**body, "stream": is_streamed}, headers=BEARER)
        assert answer.status == 400
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert place in error["message"]
        assert answer.headers["content-type"] == "application/json"


def test_a_body_that_is_no_request_is_refused(script: str) -> None:
    for data in (b"", b"{", b"[]", b"7", b"null", b'"a"', b"\xff", b'{"messages": 7}'):
        for path in (CHAT, MESSAGES):
            assert ask(script, path, data, headers=BEARER).status == 400, data


ACCEPTED: dict[str, dict[str, Any]] = {
    "assistant messages in a row": {"messages": [USER, says(content="a"), says(content="b"), USER]},
    "no content beside calls": {"messages": [USER, says(call()), result(), USER]},
    "content null beside calls": {"messages": [USER, says(call(), content=None), result()]},
    "content empty beside calls": {"messages": [USER, says(call(), content=""), result()]},
    "content of no parts": {"messages": [USER, says(call(), content=[]), result()]},
    "several system messages": {
        "messages": [
            {"role": "system", "content": "a"},
            {"role": "system", "content": "b"},
            USER,
            {"role": "system", "content": "c"},
        ]
    },
    "developer": {"messages": [{"role": "developer", "content": "a"}, USER]},
    "names with - and .": {"tools": [tool("my-tool.v1"), tool("a_b-c.d")]},
    "no parameters": {"tools": [tool("f", description="d")]},
    "no description": {"tools": [tool("f", parameters={"type": "object", "properties": {}})]},
    "thirty tools": {"tools": [tool(f"tool_{number}") for number in range(30)]},
    "a result of 50,000 characters": {
        "messages": [USER, says(call()), result(content="x" * 50_000)]
    },
    "arguments of {}": {"messages": [USER, says(call(arguments="{}")), result()]},
    "arguments of nothing": {"messages": [USER, says(call(arguments="")), result()]},
    "result of parts": {
        "messages": [USER, says(call()), result(content=[{"type": "text", "text": "a"}])]
    },
    "temperature of 0 and 2": {"temperature": 2},
    "top_p of 1": {"top_p": 1},
    "fields that say nothing": {"user": "u", "store": False, "metadata": {}, "seed": 7},
    "fields that nobody knows": {"frobnicate": [1]},
    "tools of their maker": {"tools": [tool("f"), {"type": "web_search"}]},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_clients_send_is_accepted(script: str, name: str) -> None:
    for is_streamed in (False, True):
        answer = chat(script, **{"messages": [USER], "stream": is_streamed, **ACCEPTED[name]})
        assert answer.status == 200, answer.body
        if is_streamed:
            deltas = [c["delta"] for chunk in answer.chunks() for c in chunk["choices"]]
            assert "".join(delta.get("content") or "" for delta in deltas) == "Fine."
        else:
            assert answer.json()["choices"][0]["message"]["content"] == "Fine."


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/models", "/v1/messages/count_tokens"])
def test_only_who_has_the_key_is_answered(script: str, path: str) -> None:
    body = None if path == "/v1/models" else {"model": "m2", "messages": [USER], "max_tokens": 9}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
        assert ask(script, path, body, headers=headers).status == 401
    for headers in (BEARER, {"x-api-key": KEY}):
        assert ask(script, path, body, headers=headers).status == 200


def test_an_unknown_model_is_refused(script: str) -> None:
    for path in (CHAT, MESSAGES):
        answer = chat(script, path=path, model="m3")
        assert answer.status == 404
        assert "m3" in answer.json()["error"]["message"]
    assert ask(script, "/v1/models/m3", headers=BEARER).status == 404


# ---- tools


def test_keys_of_parameters_keep_their_order(script: str) -> None:
    names = ["zebra", "apple", "mango", "Berry", "10", "9", "nested"]
    properties: dict[str, Any] = {name: {"type": "string"} for name in names[:-1]}
    properties["nested"] = {
        "type": "object",
        "properties": {"z2": {"type": "string"}, "a2": {"type": "string"}},
    }
    parameters = {"type": "object", "required": names, "properties": properties}
    reply = good(chat(script, tools=[tool("f", parameters=parameters)], return_token_ids=True))
    prompt = byte_tokenizer("m2").decode(reply["prompt_token_ids"])
    places = [prompt.index(f'"{name}": {{') for name in [*names, "z2", "a2"]]
    assert places == sorted(places)
    tokens = chat(
        script,
        path="/v1/messages/count_tokens",
        tools=[{"name": "f", "input_schema": parameters}],
    )
    assert tokens.json()["input_tokens"] == reply["usage"]["prompt_tokens"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_that_only_the_history_tells_of_may_be_called(
    engine: str, is_streamed: bool
) -> None:
    past = [USER, says(call(name="lookup", arguments='{"what": "that"}')), result()]
    question = {"role": "user", "content": "call what history tells of"}
    answer = chat(engine, *past, question, tools=[tool("other")], stream=is_streamed)
    assert answer.status == 200, answer.body
    if is_streamed:
        deltas = [c["delta"] for chunk in answer.chunks() for c in chunk["choices"]]
        parts = [one for delta in deltas for one in delta.get("tool_calls", ())]
        assert [part["id"] for part in parts if "id" in part] == [parts[0]["id"]]
        name = "".join(part["function"].get("name", "") for part in parts)
        arguments = "".join(part["function"].get("arguments", "") for part in parts)
    else:
        choice = answer.json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        (made,) = choice["message"]["tool_calls"]
        name, arguments = made["function"]["name"], made["function"]["arguments"]
    assert (name, json.loads(arguments)) == ("lookup", {"what": "this"})


# ---- streams


def deltas_of(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    return [choice["delta"] for chunk in answer.chunks() for choice in chunk["choices"]]


def test_no_emoji_is_broken_in_any_of_twenty_streams(engine: str) -> None:
    emoji = "👩‍👩‍👧‍👦🇳🇴🦩🏴󠁧󠁢󠁳󠁣󠁴󠁿é漢"

    def streamed(number: int) -> str:
        text = "a" * (number % 5) + (emoji * 2)[number % 7 :]
        answer = chat(engine, {"role": "user", "content": text}, stream=True)
        assert "\ufffd" not in answer.body.decode()
        said = "".join(delta.get("content") or "" for delta in deltas_of(answer))
        assert said == f"{text} {text}"
        return said

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(streamed, range(20)))) == 20


@pytest.mark.parametrize("asked", ["prose 3000", "thought 3000", "argument 500"])
def test_a_delta_holds_one_thing(script: str, asked: str) -> None:
    deltas = deltas_of(chat(script, {"role": "user", "content": asked}, stream=True))
    for delta in deltas:
        filled = [
            name for name in ("content", "reasoning_content", "tool_calls") if delta.get(name)
        ]
        assert len(filled) <= 1
    assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]


@pytest.mark.parametrize(
    ("asked", "field"), [("prose 4000", "content"), ("thought 4000", "reasoning_content")]
)
def test_fragments_of_text_are_neither_tiny_nor_large(script: str, asked: str, field: str) -> None:
    deltas = deltas_of(chat(script, {"role": "user", "content": asked}, stream=True))
    sizes = [len(delta[field]) for delta in deltas if delta.get(field)]
    assert sum(sizes) >= 4000
    assert sum(size < 5 for size in sizes) <= 0.05 * len(sizes)
    assert sum(5 <= size <= 200 for size in sizes) >= 0.95 * len(sizes)
    assert sum(size > 200 for size in sizes) <= 0.02 * len(sizes)


@pytest.mark.parametrize(("length", "most_large"), [(500, 0), (10_000, 0.1)])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_fragments_of_arguments_are_neither_tiny_nor_large(
    script: str, path: str, length: int, most_large: float
) -> None:
    asked = {"role": "user", "content": f"argument {length}"}
    answer = chat(script, asked, path=path, stream=True, max_tokens=20_000)
    if path == CHAT:
        parts = [one for delta in deltas_of(answer) for one in delta.get("tool_calls", ())]
        pieces = [part["function"].get("arguments", "") for part in parts]
    else:
        deltas = [chunk.get("delta", {}) for chunk in answer.chunks()]
        pieces = [delta.get("partial_json", "") for delta in deltas]
    pieces = [piece for piece in pieces if piece]
    assert json.loads("".join(pieces)) == {"text": (ARGUMENTS * 1000)[:length]}
    assert sum(len(piece) < 5 for piece in pieces) <= 0.15 * len(pieces)
    assert sum(len(piece) > 200 for piece in pieces) <= most_large * len(pieces)


# ---- traps


def test_head_and_options_are_answered(script: str) -> None:
    for path in ("/", "/api/hello", "/health", "/ready"):
        answer = ask(script, path, method="HEAD")
        assert (answer.status, answer.body) == (200, b"")
    assert ask(script, "/v1/models", method="HEAD", headers=BEARER).status == 200
    for path in (CHAT, MESSAGES, "/v1/models", "/v1/messages/count_tokens"):
        answer = ask(script, path, method="OPTIONS")
        assert answer.status == 204
        assert "OPTIONS" in answer.headers["allow"]


@pytest.mark.parametrize("name", ["claude-opus-5-5", "gpt-9", "a/b:c", "", None])
def test_any_name_of_a_model_will_do(engine: str, name: str | None) -> None:
    fields = {} if name is None else {"model": name}
    for path in (CHAT, MESSAGES):
        answer = ask(engine, path, {"messages": [USER], "max_tokens": 20, **fields})
        assert answer.status == 200, answer.body
        if name:
            assert answer.json()["model"] == name
    assert ask(engine, "/v1/models/claude-opus-5-5").status == 200


def test_a_call_for_a_title_gets_no_thought() -> None:
    with served_checkpoint("m2") as url:
        asked = {"model": "m2", "messages": [USER], "temperature": 0}
        without = [
            ask(url, CHAT, {**asked, "reasoning_effort": "none", "max_tokens": 12}),
            ask(url, CHAT, {**asked, "thinking": {"type": "disabled"}, "max_tokens": 12}),
        ]
        for answer in without:
            message = good(answer)["choices"][0]["message"]
            assert "reasoning_content" not in message
            details = answer.json()["usage"]["completion_tokens_details"]
            assert details["reasoning_tokens"] <= 1  # the tag that closes it
        low = {**asked, "reasoning_effort": "low", "max_tokens": 12}
        assert good(ask(url, CHAT, low))["choices"][0]["message"]["reasoning_content"]
        schema = {"type": "object", "properties": {"t": {"type": "boolean"}}, "required": ["t"]}
        title = {
            **asked,
            "max_tokens": 200,
            "thinking": {"type": "disabled"},
            "output_config": {
                "format": {
                    "type": "json_schema",
                    "schema": {**schema, "additionalProperties": False},
                }
            },
        }
        (block,) = good(ask(url, MESSAGES, title))["content"]
        assert isinstance(json.loads(block["text"])["t"], bool)


def test_an_error_before_the_first_byte_is_a_status(script: str) -> None:
    for path in (CHAT, MESSAGES):
        answer = chat(script, path=path, stream=True, temperature=9)
        assert answer.status == 400
        assert answer.headers["content-type"] == "application/json"
        assert "error" in answer.json()


@pytest.mark.parametrize("length", [0, 3, 300])
def test_an_error_after_the_first_byte_is_an_event(script: str, length: int) -> None:
    asked = {"role": "user", "content": f"fail {length}"}
    openai = chat(script, asked, stream=True)
    assert openai.status == 200
    *_, last, done = openai.events()
    error = json.loads(last[1])["error"]
    assert (error["type"], done) == ("api_error", (None, "[DONE]"))
    assert not any(
        choice["finish_reason"] for c in openai.chunks() for choice in c.get("choices", ())
    )
    anthropic = chat(script, asked, path=MESSAGES, stream=True, max_tokens=1000)
    name, data = anthropic.events()[-1]
    error = json.loads(data)
    assert name == error["type"] == "error"
    assert error["error"]["type"] == "api_error"
    assert error["request_id"] == anthropic.headers["request-id"]
    assert b"secret" not in openai.body + anthropic.body
    assert "message_stop" not in [name for name, _ in anthropic.events()]


@pytest.mark.parametrize("asked", ["prose 300", "argument 300", "thought 300"])
def test_events_of_messages_have_the_names_of_their_types(script: str, asked: str) -> None:
    answer = chat(
        script, {"role": "user", "content": asked}, path=MESSAGES, stream=True, max_tokens=1000
    )
    events = [(name, json.loads(data)) for name, data in answer.events()]
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events if name != "ping"]
    assert (names[0], *names[-2:]) == ("message_start", "message_delta", "message_stop")
    start = events[0][1]["message"]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert start["usage"]["input_tokens"] > 0
    usage = events[-2][1]["usage"]
    assert usage["output_tokens"] > 0
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == start["usage"][
        "input_tokens"
    ] + start["usage"].get("cache_read_input_tokens", 0)
    open_block = None
    num_blocks = 0
    for name, data in events:
        match name:
            case "content_block_start":
                assert open_block is None
                assert data["index"] == num_blocks
                open_block, num_blocks = data["index"], num_blocks + 1
            case "content_block_delta":
                assert data["index"] == open_block
            case "content_block_stop":
                assert data["index"] == open_block
                open_block = None
    assert open_block is None
    assert not any(data == "[DONE]" for _, data in answer.events())


def test_bodies_may_be_compressed(script: str) -> None:
    body = json.dumps({"model": "m2", "messages": [USER]}).encode()
    for coding, data in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        headers = {**BEARER, "content-encoding": coding}
        assert good(ask(script, CHAT, data, headers=headers))["choices"]
    refused = ask(script, CHAT, body, headers={**BEARER, "content-encoding": "br"})
    assert refused.status == 415
    broken = ask(script, CHAT, body, headers={**BEARER, "content-encoding": "gzip"})
    assert broken.status == 400


def test_many_counts_at_once(script: str) -> None:
    tools = [{"name": f"tool_{number}", "input_schema": {}} for number in range(20)]
    path = "/v1/messages/count_tokens?beta=true"
    with ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(lambda number: chat(script, path=path, tools=tools[:number]), range(20))
        )
    counts = [good(answer)["input_tokens"] for answer in answers]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_what_is_sent_is_sent_at_once() -> None:
    async def main() -> int:
        seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            seen.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bind(ServerConfig(port=0)) as bound:
            async with await asyncio.start_server(take, sock=bound):
                reader, writer = await asyncio.open_connection(*bound.getsockname())
                await reader.read()
                writer.close()
                await writer.wait_closed()
                return await seen

    assert asyncio.run(main()) == 1


def test_a_model_that_does_not_tell_its_tokens_is_served_too() -> None:
    model = ScriptedModel(get_format("minimax_m2"), ["Hm.</think>\n\nFine."] * 4)
    with served(model) as url:
        message = good(ask(url, CHAT, {"messages": [USER]}))["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("Fine.", "Hm.")
        deltas = deltas_of(ask(url, CHAT, {"messages": [USER], "stream": True}))
        assert "".join(delta.get("content") or "" for delta in deltas) == "Fine."
        counted = ask(url, "/v1/messages/count_tokens", {"messages": [USER]})
        assert counted.status == 501
        for field, value in (("return_token_ids", True), ("prefix_token_ids", [65])):
            assert ask(url, CHAT, {"messages": [USER], field: value}).status == 501


def test_a_path_that_a_route_names_is_no_id_of_another() -> None:
    model = ScriptedModel(get_format("minimax_m2"), [])
    with served(model) as url:
        for method in ("GET", "DELETE", "PUT"):
            answer = ask(url, "/v1/responses/input_tokens", method=method)
            assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS, POST")
        allowed = ask(url, "/v1/responses/input_tokens", method="OPTIONS").headers["allow"]
        assert allowed == "OPTIONS, POST"
        assert "DELETE, GET" in ask(url, "/v1/responses/resp_1", method="OPTIONS").headers["allow"]
        assert ask(url, "/v1/responses/resp_1").status == 404


def test_requests_are_counted_by_the_route_that_answers_them() -> None:
    with served(ScriptedModel(get_format("minimax_m2"), [])) as url:
        ask(url, "/v1/responses/resp_1")
        ask(url, "/v1/messages/msg_1/end_thinking", {})
        ask(url, "/nowhere")
        counters = ask(url, "/metrics").text
    for path in ("/v1/responses/{id}", "/v1/messages/{id}/end_thinking", "other"):
        assert f'path="{path}",status="404"' in counters


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHAT, {"messages": [USER], "max_tokens": "5"}, "max_tokens"),
        (CHAT, {"messages": [USER], "stream": 1}, "stream"),
        (CHAT, {"messages": [USER], "n": True}, "n"),
        (CHAT, {"messages": [USER], "stop_token_ids": ["1"]}, "stop_token_ids"),
        (MESSAGES, {"messages": [USER], "top_p": "0.5"}, "top_p"),
        ("/v1/responses", {"input": "Hi", "store": "yes"}, "store"),
        ("/v1/completions", {"prompt": "Hi", "logprobs": "1"}, "logprobs"),
        ("/tokenize", {"prompt": "Hi", "return_token_strs": "no"}, "return_token_strs"),
        ("/detokenize", {"tokens": [True]}, "tokens"),
        ("/detokenize", {"model": ""}, "tokens"),
    ],
)
def test_a_value_of_another_type_is_refused(path: str, body: dict[str, Any], name: str) -> None:
    with served(answering("m2", lambda _: "a</think>\n\nb")) as url:
        answer = ask(url, path, body)
    assert answer.status == 400
    message = answer.json()["error"]["message"]
    assert message.startswith(name)
    assert "Field required" not in message


NAMED_TOOL = {"name": "f", "input_schema": {"type": "object"}}
ANSWERED = {"role": "assistant", "content": "Hi"}


@pytest.mark.parametrize(
    ("path", "fields", "sentence"),
    [
        (CHAT, {"structured_outputs": {"choice": True}}, "structured_outputs.choice is True"),
        (CHAT, {"structured_outputs": {"regex": 5}}, "structured_outputs.regex is 5"),
        (CHAT, {"messages": [USER, {**ANSWERED, "tool_calls": {}}, USER]}, "must be a list"),
        (CHAT, {"tool_choice": {"type": "function", "name": {}}}, "no tool has that name"),
        (CHAT, {"tool_choice": "auto", "tools": [{"name": []}]}, "a name that is text"),
        (MESSAGES, {"tool_choice": {"type": "tool", "name": {}}}, "no tool has that name"),
        (MESSAGES, {"tool_choice": {"type": "tool", "name": "g"}, "tools": [{"name": {}}]}, "g"),
        (MESSAGES, {"tools": [{**NAMED_TOOL, "name": {}, "defer_loading": True}]}, "has the name"),
        ("/v1/responses", {"input": [{"type": "reasoning", "content": 5}]}, "it must be a list"),
        ("/v1/responses", {"tool_choice": {"type": "custom", "name": []}}, "no tool has that name"),
    ],
)
def test_what_stands_in_a_wrong_place_is_refused(
    path: str, fields: dict[str, Any], sentence: str
) -> None:
    asked = {"input": "Hi"} if path == "/v1/responses" else {"messages": [USER]}
    with served(answering("m2", lambda _: "a</think>\n\nb")) as url:
        answer = ask(url, path, {**asked, **fields})
    assert answer.status == 400
    assert sentence in answer.json()["error"]["message"]
