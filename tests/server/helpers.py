"""A chat model behind HTTP on a free port, and raw requests to it."""

import asyncio
import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from fulmen.catalog.download import cache_folder
from fulmen.chat import ChatModel, ChatRequest, Message, Tokenizer, get_format, read_messages
from fulmen.llm import LLM, ForcedModel, LocalModel, ScriptedModel
from fulmen.server import ServerConfig, create_app
from tests.server.conforming import conforming
from tests.server.serving import serving
from tests.tiny import write_checkpoint

FORMATS = {"m1": "minimax_m1", "m2": "minimax_m2"}


@contextmanager
def served(model: ChatModel | Mapping[str, ChatModel], **settings: Any) -> Iterator[str]:
    """Serve a model, or several by their names, on a free port of this machine, in a thread; give
    its address. Every reply must be as the published description says."""
    config = ServerConfig(**{"port": 0, "drain_seconds": 1} | settings)
    app = create_app(model, config)
    described = conforming(app)
    with serving(app, config) as (host, port):
        yield f"http://{host}:{port}"
    assert not described.failures, "\n".join(described.failures[:5])


@cache
def byte_tokenizer(kind: str) -> Tokenizer:
    """Return a tokenizer that splits every character outside ASCII over several ids."""
    with TemporaryDirectory() as folder:
        return Tokenizer.from_folder(write_checkpoint(Path(folder), kind))


def scripted(kind: str, *script: Any, piece_chars: int = 1, **options: Any) -> ScriptedModel:
    """Return a model of a kind that says these texts one after the other."""
    return ScriptedModel(
        get_format(FORMATS[kind]),
        script,
        tokenizer=byte_tokenizer(kind),
        piece_chars=piece_chars,
        **options,
    )


def answering(kind: str, answer: Callable[[str], Any], **options: Any) -> ScriptedModel:
    """Return a model that answers each request by the text of its last message."""

    def say(request: ChatRequest) -> Any:
        return answer(last_message(request).content)

    return ScriptedModel(
        get_format(FORMATS[kind]),
        repeat(say),
        tokenizer=byte_tokenizer(kind),
        piece_chars=options.pop("piece_chars", 1),
        **options,
    )


@contextmanager
def served_smollm2(**settings: Any) -> Iterator[str]:
    """Serve SmolLM2 where it is here; skip the test elsewhere."""
    if not (cache_folder() / "smollm2/model.gguf").exists():
        pytest.skip("smollm2 is not here, `fulmen models pull smollm2` brings it")
    model = LocalModel(LLM.load("smollm2"))
    try:
        with served(model, **settings) as url:
            yield url
    finally:
        asyncio.run(model.close())


@contextmanager
def served_checkpoint(
    kind: str, answer: Callable[[str], str] | None = None, **settings: Any
) -> Iterator[str]:
    """Serve a tiny checkpoint with its engine. With a function, it is made to say what that answers
    to the text of the last message."""
    with TemporaryDirectory() as folder:
        llm = LLM.load(str(write_checkpoint(Path(folder), kind)))
        model = LocalModel(llm)
        forced: Any = model
        if answer is not None:
            forced = ForcedModel(
                model, repeat(lambda request: answer(last_message(request).content))
            )
        try:
            with served(forced, **settings) as url:
                yield url
        finally:
            asyncio.run(model.close())


def last_message(request: ChatRequest) -> Message:
    return read_messages(list(request.messages))[-1]


@dataclass(frozen=True, slots=True)
class Answer:
    """A raw answer over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[tuple[str | None, str]]:
        """Return the events of a stream: the name of each, and its data."""
        events = []
        for block in self.body.decode().split("\n\n"):
            lines = [line.partition(": ") for line in block.split("\n") if line]
            fields = {name: value for name, _, value in lines if name}
            if "data" in fields:
                events.append((fields.get("event"), fields["data"]))
        return events

    def chunks(self) -> list[Any]:
        """Return the data of a stream as JSON, without its [DONE]."""
        return [json.loads(data) for _, data in self.events() if data != "[DONE]"]


def ask(
    url: str,
    path: str,
    body: Any = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request, a body as JSON or as bytes, and return the answer whatever its status."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        sent = {"content-type": "application/json"} if data is not None else {}
        connection.request(
            method or ("GET" if data is None else "POST"), path, data, {**sent, **(headers or {})}
        )
        reply = connection.getresponse()
        return Answer(
            reply.status,
            {name.lower(): value for name, value in reply.getheaders()},
            reply.read(),
        )
    finally:
        connection.close()
