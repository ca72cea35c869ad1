"""A server in memory that answers with the bytes it is given."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from itertools import pairwise
from typing import Any

import httpx2

from fulmen.chat import ChatRequest, Event, Message
from fulmen.llm import RemoteCompletion, RemoteModel
from fulmen.llm.http import EventReader, PeerConfig
from fulmen.llm.remote.answer import Reader, RemoteAnswer
from fulmen.llm.remote.anthropic import MessagesReader
from fulmen.llm.remote.model import Dialect
from fulmen.llm.remote.openai import ChatReader

QUICK = PeerConfig(
    first_byte_seconds=0.2, idle_seconds=0.2, max_retries=1, first_retry_seconds=0.001
)
HELLO = ChatRequest(messages=[Message("user", "Hello")])
NAMED = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "someone"}]}


class Chunks(httpx2.AsyncByteStream):
    """A body in pieces; None stands for silence without an end."""

    def __init__(self, pieces: Iterable[bytes | None]) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if piece is None:
                await asyncio.Event().wait()
            else:
                yield piece


class Fake(httpx2.AsyncBaseTransport):
    """Answers GET /models with a list, and each POST with the next of its streams."""

    def __init__(self, *streams: Any, models: Any = NAMED) -> None:
        """Each stream is pieces of bytes, or a response; models is JSON, or a response."""
        self.streams = list(streams)
        self.models = models
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Path and body of each POST"""
        self.headers: list[httpx2.Headers] = []
        """Headers of every request"""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.headers.append(request.headers)
        if request.method == "GET":
            found = self.models
            return found if isinstance(found, httpx2.Response) else httpx2.Response(200, json=found)
        content = await request.aread()
        self.asked.append((request.url.path, json.loads(content)))
        answer = self.streams.pop(0) if len(self.streams) > 1 else self.streams[0]
        if isinstance(answer, httpx2.Response):
            return answer
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, stream=Chunks(answer))


def listed(owner: str, *names: str) -> dict[str, Any]:
    """Return a list of models as a kind of server gives it."""
    data = [{"id": name, "object": "model", "owned_by": owner} for name in names or ("m",)]
    return {"object": "list", "data": data}


def sse(*events: Any) -> bytes:
    """Return objects as unnamed events; text stands as it is."""
    shown = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return "".join(f"data: {text}\n\n" for text in shown).encode()


def named_sse(*events: dict[str, Any]) -> bytes:
    """Return objects as events that are named by their type."""
    return "".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events
    ).encode()


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return a chunk of Chat Completions with a delta."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def answer_of(
    fake: Fake, request: ChatRequest = HELLO, url: str = "http://fake", **options: Any
) -> tuple[list[Event], RemoteCompletion, Exception | None]:
    """Return the events of an answer, what it came to, and the error that ended it."""

    async def work() -> tuple[list[Event], RemoteCompletion, Exception | None]:
        settings = {"config": QUICK, "transport": fake, **options}
        async with RemoteModel(url, **settings) as model, model.stream(request) as stream:
            events: list[Event] = []
            error: Exception | None = None
            try:
                async for event in stream:
                    events.append(event)
            except Exception as raised:
                error = raised
            assert error is stream.error
            return events, await stream.finish(), error

    return asyncio.run(asyncio.wait_for(work(), 20))


def read_all(dialect: Dialect, pieces: Iterable[bytes]) -> tuple[list[Event], RemoteAnswer]:
    """Return the events of a stream's bytes, and what they come to."""
    reader: Reader = MessagesReader("fake") if dialect == "anthropic" else ChatReader("fake")
    stream = EventReader("fake")
    found = [*(each for piece in pieces for each in stream.feed(piece)), *stream.end()]
    return [event for each in found for event in reader.feed(each)], reader.answer


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return bytes cut at these places."""
    bounds = [0, *sorted({min(place, len(data)) for place in places}), len(data)]
    return [data[start:stop] for start, stop in pairwise(bounds)]
