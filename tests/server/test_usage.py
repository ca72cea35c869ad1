"""Usage by key: counts agree with the replies, limits refuse before any work, no key is shown."""

import contextlib
import http.client
import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.server import ApiKey
from fulmen.server.logs import LOGGER
from fulmen.server.usage import KeyUsage, LastMinute
from tests.server.helpers import Answer, answering, ask, scripted, served, served_checkpoint

ALICE, BOB, NOBODY = "sk-alice-0123", "sk-bob-45678", "sk-plain-9012"
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
COMPLETIONS = "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI, "max_tokens": 9},
    MESSAGES: {"messages": HI, "max_tokens": 9},
    RESPONSES: {"input": "Hi", "max_output_tokens": 9},
    COMPLETIONS: {"prompt": "Hi", "max_tokens": 9},
}


def headers(key: str) -> dict[str, str]:
    return {"x-api-key": key}


def usage_of(url: str, key: str) -> dict[str, Any]:
    reply = ask(url, "/v1/usage", headers=headers(key))
    assert reply.status == 200
    found: dict[str, Any] = reply.json()
    return found


def counters(url: str, key: str, name: str) -> dict[str, float]:
    """Return the counters of the key with a name, as Prometheus reads them."""
    text = ask(url, "/metrics", headers=headers(key)).text
    found = re.findall(rf'^fulmen:key_(\w+){{key="{name}",model_name="fulmen"}} (\S+)$', text, re.M)
    return {field: float(value) for field, value in found}


def said(reply: Answer) -> str:
    return str(reply.json()["error"]["message"])


# ---- the last minute


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


COMINGS = st.lists(st.tuples(st.floats(0, 20), st.integers(0, 5)), max_size=40)


@given(COMINGS, st.integers(1, 30))
def test_any_sixty_seconds_are_covered_and_the_wait_is_enough(
    comings: list[tuple[float, int]], limit: int
) -> None:
    clock = Clock()
    window, came = LastMinute(clock), list[tuple[float, int]]()
    for seconds, amount in comings:
        clock.now += seconds
        window.add(amount)
        came.append((clock.now, amount))
        within = [
            sum(each for when, each in came if clock.now - when < length) for length in (60, 61)
        ]
        assert within[0] <= window.total() <= within[1]
    wait = window.seconds_until_below(limit)
    assert 0 <= wait <= 61
    assert (wait == 0) == (window.total() < limit)
    now = clock.now
    if wait > 1:
        clock.now = now + wait - 1.5
        assert window.total() >= limit
    clock.now = now + wait
    assert window.total() < limit


def test_the_memory_of_a_minute_is_bounded() -> None:
    clock = Clock()
    window = LastMinute(clock)
    for _ in range(20_000):
        clock.now += 0.03
        window.add(1)
    assert len(window._sums) <= 62
    assert 1900 <= window.total() <= 2100


def test_a_key_may_ask_again_when_it_was_told_to() -> None:
    clock = Clock()
    usage = KeyUsage("a", ApiKey(name="a", key=ALICE, requests_per_minute=2), clock)
    for _ in range(2):
        usage.check()
        usage.begin()()
        clock.now += 10
    with pytest.raises(Exception, match="a has had 2 requests within a minute") as caught:
        usage.check()
    clock.now += caught.value.retry_after  # type: ignore[attr-defined]
    usage.check()


# ---- counts


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """Serve a real engine to three keys."""
    keys = (ApiKey(name="alice", key=ALICE), ApiKey(name="bob", key=BOB))
    with served_checkpoint("m2", keys=keys, api_keys=(NOBODY,)) as url:
        yield url


def test_the_usage_of_a_key_is_the_sum_of_what_its_replies_say(engine: str) -> None:
    total = dict.fromkeys(("prompt", "cached", "new", "thinking"), 0)
    num_requests = 0

    def add(usage: dict[str, Any], cached: int, prompt: int, thinking: int) -> None:
        total["prompt"] += prompt
        total["cached"] += cached
        total["new"] += usage.get("completion_tokens", usage.get("output_tokens", 0))
        total["thinking"] += thinking

    for _ in range(2):
        for path, more in ((CHAT, {}), (CHAT, {"n": 3}), (COMPLETIONS, {"prompt": ["One", "Two"]})):
            reply = ask(engine, path, {**BODIES[path], **more}, headers=headers(ALICE)).json()
            usage = reply["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            thinking = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
            add(usage, cached, usage["prompt_tokens"], thinking)
            num_requests += 1
        usage = ask(engine, MESSAGES, BODIES[MESSAGES], headers=headers(ALICE)).json()["usage"]
        cached = usage["cache_read_input_tokens"]
        prompt = sum(usage[name] for name in ("input_tokens", "cache_creation_input_tokens"))
        thinking = usage["output_tokens_details"]["thinking_tokens"]
        add(usage, cached, prompt + cached, thinking)
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = ask(engine, CHAT, {**BODIES[CHAT], **stream}, headers=headers(ALICE)).chunks()
        usage = chunks[-1]["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        thinking = usage["completion_tokens_details"]["reasoning_tokens"]
        add(usage, cached, usage["prompt_tokens"], thinking)
        num_requests += 2
    told = usage_of(engine, ALICE)
    assert {name: told[f"{name}_tokens"] for name in total} == total
    assert (told["key"], told["requests"], told["running"]) == ("alice", num_requests, 0)
    assert total["cached"] > 0
    assert told["last_minute"] == {
        "requests": num_requests,
        "tokens": total["prompt"] - total["cached"] + total["new"],
    }
    assert abs(told["since"] - time.time()) < 600
    counted = counters(engine, BOB, "alice")
    assert counted == {
        "requests_total": num_requests,
        "prompt_tokens_total": total["prompt"],
        "cached_tokens_total": total["cached"],
        "generation_tokens_total": total["new"],
        "thinking_tokens_total": total["thinking"],
        "rejections_total": 0,
        "answers_running": 0,
    }


def test_a_key_is_told_of_itself_alone_and_no_key_is_shown(
    engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        before = usage_of(engine, BOB)
        assert ask(engine, CHAT, BODIES[CHAT], headers=headers(NOBODY)).status == 200
        assert usage_of(engine, BOB) == before
    assert (before["key"], before["requests"]) == ("bob", 0)
    unnamed = usage_of(engine, NOBODY)
    assert (unnamed["requests"], unnamed["limits"]["max_running"]) == (1, None)
    assert re.fullmatch(r"[0-9a-f]{8}", unnamed["key"])
    lines = " ".join(record.getMessage() for record in caplog.records)
    assert "key=bob" in lines
    assert f"key={unnamed['key']}" in lines
    text = ask(engine, "/metrics", headers=headers(BOB)).text + lines + json.dumps(unnamed)
    for key in (ALICE, BOB, NOBODY):
        assert key not in text
    assert ask(engine, "/v1/usage").status == 401


def test_without_keys_the_usage_is_everyones() -> None:
    with served(answering("m2", lambda _: "Fine.")) as url:
        assert ask(url, CHAT, BODIES[CHAT]).status == 200
        told = ask(url, "/v1/usage").json()
    assert (told["key"], told["requests"]) == ("anyone", 1)
    assert told["new_tokens"] > 0


# ---- limits


@pytest.mark.parametrize("path", BODIES)
def test_requests_over_the_limit_are_refused_before_any_work(path: str) -> None:
    model = scripted("m2", *["Fine."] * 3)
    keys = (
        ApiKey(name="alice", key=ALICE, requests_per_minute=2),
        ApiKey(name="bob", key=BOB, requests_per_minute=1),
    )
    with served(model, keys=keys) as url:
        replies = [ask(url, path, BODIES[path], headers=headers(ALICE)) for _ in range(4)]
        assert [reply.status for reply in replies] == [200, 200, 429, 429]
        assert len(model.requests) == 2
        error = replies[-1].json()["error"]
        wait = int(replies[-1].headers["retry-after"])
        assert 1 <= wait <= 60
        assert error["message"] == (
            f"alice has had 2 requests within a minute, the limit is 2; try again in {wait} s"
        )
        assert error["type"] == "rate_limit_error"
        assert "x-should-retry" not in replies[-1].headers
        if path == MESSAGES:
            assert replies[-1].json()["type"] == "error"
        else:
            assert error["code"] == "rate_limit_exceeded"
        assert ask(url, path, BODIES[path], headers=headers(BOB)).status == 200
        told = usage_of(url, ALICE)
        assert (told["requests"], told["refused_requests"]) == (2, 2)
        assert told["limits"]["requests_per_minute"] == 2
        assert counters(url, BOB, "alice")["rejections_total"] == 2
        streamed = ask(url, path, {**BODIES[path], "stream": True}, headers=headers(ALICE))
        assert streamed.status == 429
        assert streamed.headers["content-type"] == "application/json"


def test_tokens_over_the_limit_hold_the_next_request_back() -> None:
    keys = (ApiKey(name="alice", key=ALICE, tokens_per_minute=60),)
    with served_checkpoint("m2", keys=keys) as url:
        body = {**BODIES[COMPLETIONS], "ignore_eos": True}
        statuses, reply = [], None
        for _ in range(12):
            reply = ask(url, COMPLETIONS, body, headers=headers(ALICE))
            statuses.append(reply.status)
        told = usage_of(url, ALICE)
        assert told["last_minute"]["tokens"] >= 60
        assert told["last_minute"]["tokens"] < 60 + 12
        assert statuses == sorted(statuses)
        assert set(statuses) == {200, 429}
        assert reply is not None
        assert re.search(r"alice has had \d+ tokens within a minute, the limit is 60", said(reply))


@contextlib.contextmanager
def streaming(url: str, key: str) -> Iterator[http.client.HTTPResponse]:
    """Begin a streamed answer, and go away from it in the end."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    body = json.dumps({"messages": HI, "stream": True})
    connection.request("POST", CHAT, body, {"content-type": "application/json", **headers(key)})
    response = connection.getresponse()
    assert response.status == 200
    response.readline()
    try:
        yield response
    finally:
        response.close()
        connection.close()


def test_answers_that_run_are_limited_and_freed_when_a_client_goes() -> None:
    model = answering("m2", lambda _: "word " * 500, delay_seconds=0.02)
    keys = (ApiKey(name="alice", key=ALICE, max_running=2), ApiKey(name="bob", key=BOB))
    with served(model, keys=keys) as url:
        with streaming(url, ALICE), streaming(url, ALICE):
            refused = ask(url, CHAT, BODIES[CHAT], headers=headers(ALICE))
            assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            assert said(refused) == "2 answers run for alice, at most 2 may; try again in 1 s"
            assert usage_of(url, ALICE)["running"] == 2
            assert ask(url, CHAT, BODIES[CHAT], headers=headers(BOB)).status == 200
            never = ask(url, CHAT, {**BODIES[CHAT], "n": 3}, headers=headers(ALICE))
            assert never.status == 400
            assert said(never) == "the request wants 3 answers, at most 2 may run for alice"
            until = time.monotonic() + 20
            while not (told := usage_of(url, ALICE))["new_tokens"]:
                assert time.monotonic() < until  # tokens count while they come
            assert told["last_minute"]["tokens"] >= told["new_tokens"]
        until = time.monotonic() + 20
        while usage_of(url, ALICE)["running"]:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert ask(url, CHAT, BODIES[CHAT], headers=headers(ALICE)).status == 200
        assert usage_of(url, ALICE)["prompt_tokens"] > 0


def test_a_request_that_is_refused_for_another_reason_holds_no_place() -> None:
    keys = (ApiKey(name="alice", key=ALICE, max_running=2),)
    with served(answering("m2", lambda _: "Fine."), keys=keys, max_answers=2) as url:
        wrong: list[dict[str, Any]] = [{"messages": []}, {"n": 3}, {"top_p": 7}]
        for more in wrong:
            body = {"messages": HI, **more}
            assert ask(url, CHAT, body, headers=headers(ALICE)).status == 400
        told = usage_of(url, ALICE)
        assert (told["running"], told["refused_requests"]) == (0, 0)
