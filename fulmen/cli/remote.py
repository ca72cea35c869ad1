"""A model at a URL, for commands that talk: its key, and its answers without an event loop.

--url, --url-key, --url-dialect -> open_remote -> RemoteLLM -> RemoteRun, used like a Stream
                                -> Relay: whole requests, passed on as they stand
"""

import asyncio
import json
import os
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, TypeVar

from fulmen.chat import ChatRequest, Completion, Event, Message, read_messages
from fulmen.llm import (
    Peer,
    PeerConfig,
    PeerError,
    RemoteCompletion,
    RemoteModel,
    RemoteStream,
    dialect_of_url,
    open_peer,
)
from fulmen.sampling import SamplingParams

R = TypeVar("R")
Dialect = Literal["openai", "anthropic"]

_KEYS: Final = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
_OWN_KEY: Final = "FULMEN_API_KEY"
_PATIENT: Final = PeerConfig(
    first_byte_seconds=21_600.0, idle_seconds=21_600.0, answer_seconds=21_600.0
)
"""Waits for an answer that comes whole: its first byte is there when its last token is"""
_LOOK_SECONDS: Final = 0.1
"""Time after which a caller gets control back, though nothing came: it may have been interrupted"""
_STOPPING: Final = frozenset({401, 403, 408, 429, 502, 503, 504, 529})
"""Statuses that say nothing of the request: the next one would end in the same way"""


class RemoteLLM:
    """A model at a URL for a caller without an event loop; `with` closes it."""

    def __init__(
        self, model: RemoteModel, params: SamplingParams, given: Mapping[str, object]
    ) -> None:
        """given: the fields of params that are sent, the server decides about the others"""
        self.model = model
        self.params = params
        self.sent = set(given)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.model.close())
        self.run(self._loop.shutdown_asyncgens())
        self._loop.close()

    def describe(self) -> str:
        """Ask what is at the URL, and return one line about it. Raises PeerError, ValueError."""
        found = self.run(self.model.connect())
        return f"{found.model} at {found.peer.shown_url} ({found.server.name})"

    def name(self) -> str:
        """Ask what is at the URL, and return the name of the model there."""
        return self.run(self.model.connect()).model

    def send(self, name: str) -> None:
        """Send a field of params from now on."""
        self.sent.add(name)

    def stream(self, request: ChatRequest) -> "RemoteRun":
        """Return the answer to a request, event by event."""
        self.model.sends = frozenset(self.sent)
        return RemoteRun(self, self.model.stream(request))

    def stream_text(self, prompt: str, params: SamplingParams) -> "RemoteRun":
        """Return the continuation of a text as it stands, event by event."""
        return self.stream(ChatRequest(text=prompt, params=params))

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run work to its end."""
        return self._loop.run_until_complete(work)


class RemoteRun:
    """A running answer, used as a `Stream` is."""

    tokens: Sequence[object] = ()
    """Tokens so far: a server tells them with text, if at all"""
    prefix_events: Sequence[Event] = ()

    def __init__(self, llm: RemoteLLM, stream: RemoteStream) -> None:
        self._llm = llm
        self._stream = stream
        self._events = aiter(stream)
        self._next: asyncio.Future[Event | None] | None = None
        """The next event; None at the end"""

    def __enter__(self) -> Self:
        self._llm.run(self._enter())
        return self

    def __exit__(self, *_: object) -> None:
        self._llm.run(self._close())

    def updates(self) -> Iterator[list[Event]]:
        """Yield the new events; none now and then, so that whoever waits may look up."""
        while (events := self._llm.run(self._wait())) is not None:
            yield events

    def finish(self) -> RemoteCompletion:
        """End the answer if it still runs, and return everything it came to."""
        return self._llm.run(self._stream.finish())

    async def _enter(self) -> None:
        await self._stream.__aenter__()

    async def _wait(self) -> list[Event] | None:
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._events, None))
        await asyncio.wait([self._next], timeout=_LOOK_SECONDS)
        if not self._next.done():
            return []
        event, self._next = self._next.result(), None
        return None if event is None else [event]

    async def _close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])
        await self._stream.close()


@dataclass(frozen=True, slots=True)
class RemoteTurn:
    """New messages of a conversation, and the answer to them."""

    messages: tuple[Message, ...]
    reply: Message


@dataclass(slots=True)
class RemoteTranscript:
    """A conversation with a model whose ids are not known: messages alone, turn by turn."""

    turns: list[RemoteTurn] = field(default_factory=list)
    num_kept: int | None = None
    """Always None: such a conversation is never rewound into an answer"""

    @property
    def messages(self) -> list[Message]:
        """All messages."""
        return [each for turn in self.turns for each in (*turn.messages, turn.reply)]

    def prompt(self, messages: Sequence[Message]) -> None:
        """Return no prompt: the server renders the messages."""

    def add(self, messages: Sequence[Message | Mapping[str, Any]], completion: Completion) -> None:
        """Add the answer to messages, which go on from those here."""
        new = tuple(read_messages(messages)[len(self.messages) :])
        self.turns.append(RemoteTurn(new, completion.message))

    def rewind(self, num_turns: int) -> None:
        """Forget all but the first turns."""
        del self.turns[num_turns:]


class Relay:
    """An ASGI application that passes requests on to a URL as they stand.

    What the server refuses is its reply. A server that cannot be reached, refuses whoever asks or
    sends what is no answer raises a PeerError: the next request would fare no better.
    """

    def __init__(self, url: str, model: str | None, dialect: str, key: str | None) -> None:
        """model: name that replaces those of requests; else those without one get the only one"""
        self._url, self._key, self._name = url, url_key(key, url, dialect), model
        self._model = new_remote(url, model, dialect, key)
        self._peers: dict[Dialect, Peer] = {}

    async def close(self) -> None:
        """Close the connections."""
        await self._model.close()
        for peer in self._peers.values():
            await peer.close()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        path: str = scope["path"]
        dialect: Dialect = "anthropic" if path.startswith("/v1/messages") else "openai"
        if dialect not in self._peers:
            self._peers[dialect] = open_peer(self._url, dialect, api_key=self._key, config=_PATIENT)
        body = json.loads((await receive())["body"])
        if self._name is not None:
            body["model"] = self._name
        elif not body.get("model"):
            body["model"] = (await self._model.connect()).model
        status = 200
        try:
            reply = await self._peers[dialect].post(path.removeprefix("/v1"), body)
        except PeerError as error:
            status = error.peer_status or 0
            if not 400 <= status < 600 or status in _STOPPING:
                raise
            reply = {"error": {"message": str(error)}}
            if dialect == "anthropic":
                reply = {"type": "error", "error": {"type": "api_error", "message": str(error)}}
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(reply).encode()})


def open_remote(
    url: str, model: str | None, dialect: str, key: str | None, given: Mapping[str, Any]
) -> RemoteLLM:
    """Return the model at a URL; given holds the sampling fields whose flags were given."""
    return RemoteLLM(new_remote(url, model, dialect, key), SamplingParams(**given), given)


def new_remote(url: str, model: str | None, dialect: Any, key: str | None) -> RemoteModel:
    """Return the model at a URL, for an event loop."""
    return RemoteModel(url, model, dialect=dialect, api_key=url_key(key, url, dialect))


def url_key(key: str | None, url: str, dialect: str) -> str | None:
    """Return the key for a URL: the one that is given, else one of the environment."""
    if key is not None:
        return key
    known = dialect if dialect in _KEYS else dialect_of_url(url) or "openai"
    return os.environ.get(_OWN_KEY) or os.environ.get(_KEYS[known]) or None
