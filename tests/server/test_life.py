"""The life of a request where something goes wrong on the way, or asks for more than the usual."""

import json
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fulmen.llm import ScriptedAnswer
from tests.server.helpers import answering, ask, scripted, served, served_checkpoint

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
QUESTION = {"role": "user", "content": "What is 6 times 7?"}
BODY: dict[str, Any] = {"model": "any", "messages": [QUESTION], "max_tokens": 400}


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_log_that_breaks_while_serving_loses_no_answer(path: str, tmp_path: Path) -> None:
    file = tmp_path / "turns.sqlite3"
    with served_checkpoint("m2", lambda _: "a</think>\n\nIt is 42.", transcripts=file) as url:
        with closing(sqlite3.connect(file)) as other:
            other.execute("DROP TABLE turns")
        answer = ask(url, path, BODY)
        assert answer.status == 200
        assert "It is 42." in answer.text
        again = [QUESTION, {"role": "assistant", "content": "It is 42."}, QUESTION]
        answer = ask(url, path, {**BODY, "messages": again})
        assert answer.status == 200
        assert str(tmp_path) not in answer.text
        assert [turn["state"] for turn in answer.json()["fulmen"]["turns"]] == ["rendered"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"include_reasoning": False}),
        (MESSAGES, {"thinking": {"type": "adaptive", "display": "omitted"}}),
    ],
)
def test_pings_come_while_a_thought_is_hidden(path: str, fields: dict[str, Any]) -> None:
    thought = "I think about it. " * 3
    model = answering("m2", lambda _: f"{thought}</think>\n\nIt is 42.", delay_seconds=0.02)
    with served(model, ping_seconds=0.1) as url:
        text = ask(url, path, {**BODY, **fields, "stream": True}).text
    assert text.count(": ping" if path == CHAT else "event: ping") >= 3
    assert "think about" not in text


@pytest.mark.parametrize("effort", [None, "low", "high"])
def test_no_answer_is_a_thought_alone(effort: str | None) -> None:
    body: dict[str, Any] = {**BODY, "max_tokens": 60, "temperature": 1.0}
    if effort is not None:
        body["reasoning_effort"] = effort
    with served_checkpoint("m2") as url:
        for seed in (4, 5, 6, 8, 11):
            usage = ask(url, CHAT, body | {"seed": seed}).json()["usage"]
            thinking = usage["completion_tokens_details"]["reasoning_tokens"]
            assert usage["completion_tokens"] < 60 or thinking <= 45


def test_a_begun_answer_goes_on_and_is_found_whole() -> None:
    begun = {"role": "assistant", "content": "It is fort"}
    with served_checkpoint("m2") as url:
        body = {**BODY, "messages": [QUESTION, begun], "max_tokens": 5, "temperature": 0}
        answer = ask(url, MESSAGES, body).json()
        count = ask(url, f"{MESSAGES}/count_tokens", {"messages": body["messages"]}).json()
        assert answer["usage"]["output_tokens"] == 5
        assert answer["usage"]["input_tokens"] == count["input_tokens"]
        assert answer["usage"]["output_tokens_details"]["thinking_tokens"] == 0
        texts = [block["text"] for block in answer["content"] if block["type"] == "text"]
        whole = {"role": "assistant", "content": "It is fort" + "".join(texts)}
        body = {**BODY, "messages": [QUESTION, whole, QUESTION]}
        turns = ask(url, MESSAGES, body).json()["fulmen"]["turns"]
    assert [turn["state"] for turn in turns] == ["matched"]


def test_what_cannot_be_continued_is_refused() -> None:
    with served(scripted("m2", "a</think>\n\nb")) as url:
        refused = ask(url, CHAT, {**BODY, "continue_final_message": True})
        assert refused.status == 400
        assert "continue_final_message" in refused.text
        assert ask(url, CHAT, {**BODY, "add_generation_prompt": False}).status == 400
        begun = [QUESTION, {"role": "assistant", "content": "It"}]
        fields = {"continue_final_message": True, "add_generation_prompt": False}
    with served_checkpoint("m2") as url:
        assert ask(url, CHAT, {**BODY, "messages": begun, **fields}).status == 200


def test_an_error_comes_after_what_was_said_before_it() -> None:
    model = scripted(
        "m2", ScriptedAnswer("t</think>\n\nabcdefghijklmnop", fail_with=OSError("broken"))
    )
    with served(model) as url:
        text = ask(url, CHAT, {**BODY, "stream": True}).text
    frames = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    said = [choice["delta"].get("content", "") for f in frames for choice in f.get("choices", ())]
    assert "".join(said) == "abcdefghijklmnop"
    assert "error" in frames[-1]


def test_a_prompt_that_is_too_long_is_still_counted() -> None:
    body = {"messages": [{"role": "user", "content": "word " * 2000}]}
    with served_checkpoint("m2") as url:
        assert ask(url, MESSAGES, {**body, "max_tokens": 10}).status == 400
        assert ask(url, f"{MESSAGES}/count_tokens", body).json()["input_tokens"] > 2000


def test_refusals_of_routes_are_counted() -> None:
    with served(scripted("m2", "a</think>\n\nb"), strict_model_names=True) as url:
        assert ask(url, CHAT, BODY).status == 404
        assert (
            'admission_rejections_total{model_name="fulmen",status="404"} 1'
            in ask(url, "/metrics").text
        )


def test_a_client_that_leaves_is_counted_and_its_answer_logged() -> None:
    text = "a</think>\n\n" + "All work and no play makes a dull story. " * 50
    model = answering("m2", lambda _: text, delay_seconds=0.02)
    with served(model) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({**BODY, "stream": True}).encode()
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            received = b""
            while received.count(b'"content"') < 8:
                received += client.recv(65536)
        until = time.monotonic() + 10
        counted = 'request_success_total{finished_reason="abort",model_name="fulmen"} 1'
        while counted not in ask(url, "/metrics").text:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_begun_answer_is_plain_text_and_no_call() -> None:
    begun = {"role": "assistant", "content": "a[e~[b"}
    tool = {"name": "f", "input_schema": {"type": "object"}}
    body = {**BODY, "messages": [QUESTION, begun], "max_tokens": 5}
    with served_checkpoint("m2") as url:
        count = f"{MESSAGES}/count_tokens"
        plain = ask(url, count, body).json()["input_tokens"]
        begun["content"] = "a[e~_b"
        assert ask(url, count, body).json()["input_tokens"] == plain
        required = {**body, "tools": [tool], "tool_choice": {"type": "any"}}
        refused = ask(url, MESSAGES, required)
    assert refused.status == 400
    assert "tool_choice" in refused.text


def test_who_reads_the_log_does_not_wait_for_one_that_writes(tmp_path: Path) -> None:
    file = tmp_path / "turns.sqlite3"
    with (
        served_checkpoint("m2", lambda _: "a</think>\n\nIt is 42.", transcripts=file) as url,
        closing(sqlite3.connect(file, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        for _ in range(4):
            assert ask(url, f"{MESSAGES}/count_tokens", BODY).status == 200
        assert time.monotonic() - started < 3
