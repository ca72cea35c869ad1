"""Histories as coding clients change them, without the clients: whatever became of an answer, in
each dialect the next prompt begins with the prompt before and the answer as it was sampled."""

import json
import logging
from typing import Any

import pytest

from fulmen.server.logs import LOGGER
from tests.server.helpers import ask, byte_tokenizer, scripted, served

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "all": {"type": "boolean", "default": False},
        "edits": {
            "type": "array",
            "items": {"type": "object", "properties": {"mode": {"type": "string", "default": "x"}}},
        },
    },
    "required": ["path"],
}
CALL = (
    "I edit.</think>\n\nNow.\n<minimax:tool_call>\n"
    '<invoke name="edit">\n<parameter name="path">a.txt</parameter>\n'
    '<parameter name="edits">[{"to":  "b"}]</parameter>\n</invoke>\n'
    "</minimax:tool_call>"
)
CHECKED = {"all": False, "path": "a.txt", "edits": [{"to": "b", "mode": "x"}]}
"""The arguments as a client's check of them leaves them: with all defaults"""
WANTED = {**CHECKED, "all": True}


def chat(url: str, arguments: Any) -> Any:
    tool = {"type": "function", "function": {"name": "edit", "parameters": PARAMETERS}}
    messages: list[Any] = [{"role": "user", "content": "Edit it."}]
    body = {"model": "m2", "tools": [tool], "messages": messages}
    message = ask(url, "/v1/chat/completions", body).json()["choices"][0]["message"]
    (call,) = message["tool_calls"]
    call["function"]["arguments"] = json.dumps(arguments)
    result = {"role": "tool", "tool_call_id": call["id"], "content": "done"}
    body["messages"] = [*messages, message, result]
    return ask(url, "/v1/chat/completions", body).json()


def messages(url: str, arguments: Any) -> Any:
    tool = {"name": "edit", "input_schema": PARAMETERS}
    question = {"role": "user", "content": "Edit it."}
    body: dict[str, Any] = {"model": "m2", "max_tokens": 500, "tools": [tool]}
    answer = ask(url, "/v1/messages", {**body, "messages": [question]}).json()
    *before, call = answer["content"]
    said = {"role": "assistant", "content": [*before, {**call, "input": arguments}]}
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "done"}
    history = [question, said, {"role": "user", "content": [result]}]
    return ask(url, "/v1/messages", {**body, "messages": history}).json()


def responses(url: str, arguments: Any) -> Any:
    tool = {"type": "function", "name": "edit", "parameters": PARAMETERS, "strict": False}
    question = {"role": "user", "content": "Edit it."}
    body: dict[str, Any] = {"model": "m2", "tools": [tool], "store": False}
    *before, call = ask(url, "/v1/responses", {**body, "input": [question]}).json()["output"]
    call["arguments"] = json.dumps(arguments)
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "done"}
    history = [question, *before, call, result]
    return ask(url, "/v1/responses", {**body, "input": history}).json()


DIALECTS = {"chat": chat, "messages": messages, "responses": responses}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_call_that_comes_back_with_its_defaults_keeps_its_ids(
    dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = scripted("m2", CALL, "Yes.</think>\n\nIt is done.")
    with caplog.at_level(logging.INFO, LOGGER), served(model) as url:
        answer = DIALECTS[dialect](url, CHECKED)
    (turn,) = answer["fulmen"]["turns"]
    assert (turn["state"], turn["by"]) == ("matched", "tool_call_id")
    assert answer["fulmen"]["missed_tokens"] == 0
    first, second = (request.prompt.ids for request in model.requests if request.prompt)
    tokenizer = byte_tokenizer("m2")
    assert list(second[: len(first)]) == list(first)
    assert tokenizer.decode(second[len(first) :]).startswith(CALL)
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert "turns=matched:1" in lines[-1]
    assert "missed_tokens" not in lines[-1]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_call_that_comes_back_with_other_values_is_another(
    dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = scripted("m2", CALL, "Yes.</think>\n\nIt is done.")
    with caplog.at_level(logging.INFO, LOGGER), served(model) as url:
        answer = DIALECTS[dialect](url, WANTED)
    assert [turn["state"] for turn in answer["fulmen"]["turns"]] == ["rendered"]
    (prompt,) = (request.prompt for request in model.requests[1:])
    assert prompt is not None
    text = byte_tokenizer("m2").decode(prompt.ids)
    assert '<parameter name="all">true</parameter>' in text
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert "turns=rendered:1" in lines[-1]
