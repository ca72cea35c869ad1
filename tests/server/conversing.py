"""Conversations with a served checkpoint: each answer with its ids and log-probabilities."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fulmen.engine import EngineConfig
from fulmen.llm import LLM, LocalModel
from tests.server.helpers import ask, served

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
LONG = "What is 6 times 7, and why? " * 12


@contextmanager
def served_folder(
    folder: Path, *, engine: EngineConfig | None = None, **server: Any
) -> Iterator[str]:
    """Serve a checkpoint with an engine of its own."""
    model = LocalModel(LLM.load(str(folder), engine_config=engine or EngineConfig()))
    try:
        with served(model, **server) as url:
            yield url
    finally:
        asyncio.run(model.close())


def chat(url: str, messages: list[Any], name: str | None = None, **fields: Any) -> Any:
    """Ask, add the answer to the messages, and return the reply."""
    body = {"messages": messages, "max_tokens": 12, "seed": 3, "logprobs": True, **fields}
    headers = {} if name is None else {"Fulmen-Session": name}
    answer = ask(url, CHAT, {"return_token_ids": True, **body}, headers=headers)
    assert answer.status == 200, answer.text
    assert answer.headers.get("fulmen-session") == name
    reply = answer.json()
    message = reply["choices"][0]["message"]
    messages.append({"role": "assistant", "content": message["content"]})
    return reply


def bits(reply: Any) -> Any:
    """Return the ids of a reply and their log-probabilities."""
    choice = reply["choices"][0]
    return choice["token_ids"], [each["logprob"] for each in choice["logprobs"]["content"]]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def shown(url: str, name: str) -> Any:
    return ask(url, f"/v1/sessions/{name}/save", {}).json()


def cached(reply: Any) -> int:
    return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
