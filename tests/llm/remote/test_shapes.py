"""Streams as the servers of each dialect shape them, however their bytes are cut."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.chat import ToolCall, sum_events
from fulmen.llm.remote.answer import TokenText
from fulmen.llm.remote.model import Dialect
from tests.llm.remote.fakes import Fake, answer_of, cut, delta, listed, named_sse, read_all, sse

USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def call(index: int | None = 0, id: str | None = None, **function: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"function": function}
    if index is not None:
        found["index"] = index
    if id is not None:
        found |= {"id": id, "type": "function"}
    return found


VLLM = sse(
    {**delta(role="assistant", content=""), "prompt_token_ids": [1, 2, 3]},
    delta(reasoning="I thi"),
    delta(reasoning="nk."),
    delta(tool_calls=[call(0, "call_1", name="look", arguments="")]),
    delta(tool_calls=[call(0, arguments='{"what": ')]),
    delta(tool_calls=[call(0, arguments='"ä"}')]),
    delta(tool_calls=[call(1, "call_2", name="rest")]),
    delta("tool_calls", tool_calls=[call(1, arguments="{}")]),
    {"choices": [], "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}},
    "[DONE]",
)
SGLANG = sse(
    delta(role="assistant", content="", reasoning_content=None, tool_calls=None),
    delta(content=None, reasoning_content="I think.", tool_calls=None),
    # Its calls have an index, and their names come once.
    delta(tool_calls=[call(0, "call_1", name="look", arguments="")]),
    delta(tool_calls=[call(0, None, name=None, arguments='{"what": "ä"}')]),
    delta(tool_calls=[call(1, "call_2", name="rest", arguments="{}")]),
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls", "matched_stop": 7}]},
    {"choices": [], "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}},
    "[DONE]",
)
LLAMA_CPP = sse(
    delta(role="assistant", content=None),
    delta(reasoning_content="I think."),
    delta(tool_calls=[call(0, "a", name="look", arguments='{"what"')]),
    delta(tool_calls=[call(0, arguments=': "ä"}')]),
    delta(tool_calls=[call(1, "b", name="rest", arguments="{}")]),
    delta("tool_calls"),
    {
        "choices": [],
        "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 8}},
        "timings": {"cache_n": 8},
    },
    "[DONE]",
)
WITHOUT_INDEX = sse(
    delta(role="assistant", content="", reasoning_details=[{"text": "I think.", "index": 0}]),
    delta(tool_calls=[call(None, "a", name="look", arguments='{"what": ')]),
    delta(tool_calls=[call(None, arguments='"ä"}')]),
    delta(tool_calls=[call(None, "b", name="rest", arguments={})]),
    {**delta("stop"), "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}},
)
SAME_INDEX = sse(
    delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "I think."}]}]),
    delta(tool_calls=[call(0, "a", name="look", arguments='{"what": "ä"}')]),
    delta(tool_calls=[call(0, "b", name="rest", arguments="")]),
    {**delta("tool_calls"), "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}},
)
WITHOUT_ID = sse(
    delta(reasoning_content="I think."),
    delta(tool_calls=[call(None, name="look", arguments='{"what": ')]),
    delta(tool_calls=[call(None, name="look", arguments='"ä"}')]),
    delta(tool_calls=[call(None, name="look", arguments="")]),
    delta(tool_calls=[call(None, name="rest", arguments="{}")]),
    {**delta("tool_calls"), "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}},
)
LATE = sse(
    delta(reasoning_content="I think."),
    delta(tool_calls=[call(0, "a", arguments="")]),  # the name comes later
    delta(tool_calls=[call(0, name="look", arguments='{"what": "ä"}')]),
    delta(tool_calls=[call(1, "b")]),
    delta(tool_calls=[call(1, name="rest", arguments="{}")]),
    delta(tool_calls=[call(0, arguments="")]),  # of the first, which the second ended
    {**delta("tool_calls"), "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}},
)
ANTHROPIC = named_sse(
    {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 1, "cache_read_input_tokens": 8, "output_tokens": 1}},
    },
    {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "thinking", "thinking": "", "signature": ""},
    },
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "thinking_delta", "thinking": "I think."},
    },
    {"type": "ping"},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "signature_delta", "signature": "sig"},
    },
    {"type": "content_block_stop", "index": 0},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "a", "name": "look", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "input_json_delta", "partial_json": '{"what": "ä"}'},
    },
    {"type": "content_block_stop", "index": 1},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "b", "name": "rest", "input": {}},
    },
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
)
STREAMS: dict[str, tuple[bytes, Dialect]] = {
    "vllm": (VLLM, "openai"),
    "sglang": (SGLANG, "openai"),
    "llamacpp": (LLAMA_CPP, "openai"),
    "without index": (WITHOUT_INDEX, "openai"),
    "same index": (SAME_INDEX, "openai"),
    "without id": (WITHOUT_ID, "openai"),
    "late": (LATE, "openai"),
    "anthropic": (ANTHROPIC, "anthropic"),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_thoughts_calls_and_counts_are_read_whoever_sends_them(kind: str) -> None:
    stream, dialect = STREAMS[kind]
    events, completion, error = answer_of(Fake([stream]), dialect=dialect)
    assert error is None
    reply = completion.reply
    assert sum_events(events) == reply
    assert (reply.thinking, reply.content, reply.problems) == ("I think.", "", ())
    assert reply.tool_calls == (ToolCall("look", {"what": "ä"}), ToolCall("rest", {}))
    assert all(call.id for call in reply.tool_calls)
    assert completion.finish_reason == "stop"
    usage = completion.usage
    assert (usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_new_tokens) == (9, 8, 5)


@pytest.mark.parametrize("kind", STREAMS)
@given(places=st.lists(st.integers(0, 2000), max_size=20))
def test_a_stream_is_read_the_same_however_it_is_cut(kind: str, places: list[int]) -> None:
    stream, dialect = STREAMS[kind]
    events, whole = read_all(dialect, [stream])
    pieces, answer = read_all(dialect, cut(stream, places))
    assert pieces == events
    assert answer.reply() == whole.reply()
    assert answer.usage() == whole.usage()


def test_ids_and_log_probabilities_are_read_where_vllm_tells_them() -> None:
    def one(token_id: int, logprob: float, *top: tuple[int, float]) -> dict[str, Any]:
        shown = [{"token": f"token_id:{id}", "logprob": value} for id, value in top]
        return {"token": f"token_id:{token_id}", "logprob": logprob, "top_logprobs": shown}

    def chunk(text: str, ids: list[int], entries: list[Any]) -> dict[str, Any]:
        found = delta(content=text)
        found["choices"][0] |= {"token_ids": ids, "logprobs": {"content": entries}}
        return found

    stream = sse(
        {**delta(role="assistant"), "prompt_token_ids": [1, 2]},
        chunk("Hi", [5], [one(5, -0.5, (5, -0.5), (6, -1.5))]),
        chunk(" there", [7, 8], [one(7, -9999.0, (9, 0.0)), one(8, 0.0, (8, 0.0))]),
        delta("stop"),
        "[DONE]",
    )
    fake = Fake([stream], models=listed("vllm"))
    _, completion, error = answer_of(fake)
    assert error is None
    assert completion.prompt_ids == (1, 2)
    assert [token.token_id for token in completion.tokens] == [5, 7, 8]
    assert [token.logprob for token in completion.tokens] == [-0.5, -math.inf, 0.0]
    assert completion.tokens[0].top_logprobs == ((5, -0.5), (6, -1.5))
    assert completion.usage.num_new_tokens == 3


def test_tokens_without_ids_are_texts() -> None:
    entry = {
        "token": "\ufffd",
        "logprob": -0.5,
        "bytes": [195],
        "top_logprobs": [{"token": "a", "logprob": -0.25, "bytes": [97]}],
    }
    chunk = delta(content="ä")
    chunk["choices"][0]["logprobs"] = {"content": [entry], "refusal": None}
    _, completion, _ = answer_of(Fake([sse(chunk, delta("stop"))]))
    assert completion.tokens == ()
    top = TokenText("a", -0.25)
    assert completion.token_texts == (TokenText("\ufffd", -0.5, None, b"\xc3", (top,)),)


def test_tokens_of_llama_cpp_have_their_ids() -> None:
    entry = {"id": 5, "token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    chunk = delta(content="a")
    chunk["choices"][0]["logprobs"] = {"content": [entry]}
    _, completion, _ = answer_of(Fake([sse(chunk, delta("stop"))], models=listed("llamacpp")))
    assert [(token.token_id, token.logprob) for token in completion.tokens] == [(5, -0.5)]


def test_ids_that_do_not_fit_the_log_probabilities_are_not_taken() -> None:
    entry = {"id": 5, "token": "a", "logprob": -0.5}
    chunk = delta(content="a")
    chunk["choices"][0] |= {"logprobs": {"content": [entry]}, "token_ids": [6]}
    _, completion, _ = answer_of(Fake([sse(chunk, delta("stop"))]))
    assert completion.tokens == ()


def test_a_stop_text_is_told() -> None:
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"}]}
    _, completion, _ = answer_of(Fake([sse(delta(content="a"), end)]))
    assert completion.stop_text == "END"


@pytest.mark.parametrize(
    ("word", "reason"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "stop"), ("eos", "stop")],
)
def test_a_call_that_was_cut_does_not_count(word: str, reason: str) -> None:
    begun = delta(tool_calls=[call(0, "a", name="look", arguments='{"what": "an')])
    _, completion, error = answer_of(Fake([sse(begun, delta(word), "[DONE]")]))
    assert error is None
    assert completion.finish_reason == reason
    assert completion.reply.tool_calls == ()
    assert completion.reply.is_call_open == (word == "length")
    assert any("look" in problem for problem in completion.reply.problems) == (word != "length")


def test_a_cut_block_of_anthropic_is_a_call_that_does_not_count() -> None:
    block = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
    piece = {"type": "input_json_delta", "partial_json": '{"what": "an'}
    stream = named_sse(
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": piece},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}},
        {"type": "message_stop"},
    )
    _, completion, _ = answer_of(Fake([stream]), dialect="anthropic")
    assert completion.finish_reason == "length"
    assert completion.reply.is_call_open
    assert not completion.reply.tool_calls
    assert not completion.reply.problems


def test_minimax_says_all_of_it_once_more_at_the_end() -> None:
    message = {"role": "assistant", "content": "Hello", "reasoning_content": "Hm."}
    end = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "base_resp": {"status_code": 0, "status_msg": ""},
    }
    said = [delta(reasoning_content="Hm."), delta(content="Hello")]
    for stream in (sse(*said, end), sse(end)):
        _, completion, _ = answer_of(Fake([stream]))
        assert (completion.reply.thinking, completion.reply.content) == ("Hm.", "Hello")


def test_minimax_counts_the_prompt_at_the_end() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 0}}}
    end = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"input_tokens": 12, "output_tokens": 3},
    }
    _, completion, _ = answer_of(Fake([named_sse(start, end)]), dialect="anthropic")
    assert completion.usage.num_prompt_tokens == 12
