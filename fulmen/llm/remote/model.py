"""A model at a URL: any server that speaks OpenAI's or Anthropic's dialect.

    async with RemoteModel("http://127.0.0.1:8000") as model:
        completion = await complete(model, ChatRequest(messages=[...]))

    ChatRequest -> body of the dialect -> Peer -> events of the dialect -> events, a Completion

The first request finds out what is there: which dialect, which model, which kind of server. Each
answer is read as it comes, by a task of its own, so that several run at once whoever reads first.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import httpx2

from fulmen.chat import ChatRequest, Completion, Event, Message, Timing
from fulmen.files import shorten
from fulmen.llm.http import Peer, PeerConfig, PeerError
from fulmen.llm.remote.answer import Reader, RemoteAnswer, TokenText
from fulmen.llm.remote.anthropic import MESSAGES_PATH, VERSION, MessagesReader, messages_body
from fulmen.llm.remote.asking import read_request
from fulmen.llm.remote.openai import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    ChatReader,
    CompletionsReader,
    chat_body,
    completions_body,
)
from fulmen.llm.remote.servers import Server, find_server
from fulmen.llm.starting import StartingStream
from fulmen.sampling import FinishReason, SamplingParams

Dialect = Literal["openai", "anthropic"]

_ENDINGS: Final[dict[str, Dialect | None]] = {
    CHAT_PATH: "openai",
    COMPLETIONS_PATH: "openai",
    MESSAGES_PATH: "anthropic",
    "/models": None,
}
"""Ends of a URL that name a route, and the dialect it belongs to"""
_NO_LIST: Final = frozenset({404, 405, 501})
"""Statuses of a server that lists no models; any other may be another one the next time"""
_ANTHROPICS: Final = "api.anthropic.com"
_MAX_THOUGHT_CHARS: Final = 4 * 2**20
"""Characters of thoughts that are kept as the blocks they came in"""
_DRAIN_SECONDS: Final = 0.2
"""Wait for the end of a stream that has said its last, so that its connection serves again"""
_SHOWN_NAMES: Final = 10
"""Names of models in a sentence, at most"""


def dialect_of_url(url: str) -> Dialect | None:
    """Return the dialect that a URL tells by its host or its path; None if it tells none."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    for ending, dialect in _ENDINGS.items():
        if dialect is not None and path.endswith(ending):
            return dialect
    if parts.hostname == _ANTHROPICS or "anthropic" in path.split("/"):
        return "anthropic"
    return None


def open_peer(
    url: str,
    dialect: Dialect,
    *,
    api_key: str | None = None,
    config: PeerConfig | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> Peer:
    """Return a peer whose paths are the dialect's, such as /chat/completions; the arguments are
    those of `RemoteModel`."""
    headers: dict[str, str] = {}
    is_anthropics = urlsplit(url).hostname == _ANTHROPICS
    if api_key is not None and not is_anthropics:
        headers["authorization"] = f"Bearer {api_key}"
    if dialect == "anthropic":
        headers["anthropic-version"] = VERSION
        if api_key is not None:
            headers["x-api-key"] = api_key
    return Peer(_base_url(url, dialect), headers=headers, config=config, transport=transport)


@dataclass(frozen=True, slots=True)
class Connection:
    """A server, once it is known what is there."""

    peer: Peer
    dialect: Dialect
    model: str
    """Name of the model there"""
    server: Server


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteCompletion(Completion):
    """A `Completion` of a model at a URL. tokens are there only if the id and the log-probability
    of each one are known, which needs `logprobs`; prompt_ids only if they were told."""

    token_texts: tuple[TokenText, ...] = ()
    """Tokens as far as the server shows them, with `logprobs`"""
    signatures: tuple[str, ...] = field(default=(), compare=False)
    """Signatures of the thought"""

    @property
    def message(self) -> Message:
        """The answer as the assistant's message in the history, with its signatures."""
        return replace(self.reply.message(), signatures=self.signatures)


class RemoteModel:
    """A `ChatModel` at a URL. Use and close it in one event loop."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        dialect: Literal["auto", "openai", "anthropic"] = "auto",
        api_key: str | None = None,
        sends: frozenset[str] | None = None,
        config: PeerConfig | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Raises ValueError for what is no URL, and for a key that cannot be sent.

        url        a server's, with or without /v1 or a route such as /v1/chat/completions
        model      its name there; the only one that the server lists if omitted
        dialect    auto: as the URL tells, else as the server lists its models
        sends      fields of `SamplingParams` that are sent, the server decides about the others;
                   all if omitted. A request without params sends none.
        config     how long to wait, how often to ask again
        transport  in place of the network, for tests
        """
        if dialect not in ("auto", "openai", "anthropic"):
            raise ValueError(f"dialect is {dialect!r}, it must be auto, openai or anthropic")
        self.url = url
        self.name = model
        self.defaults = SamplingParams()
        """Sampling of requests that have none; the server may have others of its own"""
        self.sends = sends
        self._dialect = dialect_of_url(url) if dialect == "auto" else dialect
        self._api_key = api_key
        self._config = config
        self._transport = transport
        self._peer = self._new_peer(self._dialect or "openai")
        self.thoughts: dict[str, dict[str, str]] = {}
        """Latest blocks of thought by their signatures, which go back as they came"""
        self._connection: Connection | None = None
        self._connect_lock = asyncio.Lock()
        self.is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; answers that run end with an error."""
        self.is_closed = True
        await self._peer.close()

    def stream(self, request: ChatRequest) -> "RemoteStream":
        """Return the answer to a request; it starts when it is entered or first awaited.

        Raises ValueError then for what cannot be asked of the server, and `PeerError` for one that
        cannot be reached or answers in no known way.
        """
        return RemoteStream(self, request)

    async def connect(self) -> Connection:
        """Find out what is at the URL, once. Raises PeerError, and ValueError if no model is named
        and the server has not exactly one."""
        async with self._connect_lock:
            if self.is_closed:
                raise RuntimeError("the model is closed")
            if self._connection is None:
                self._connection = await self._connect()
            return self._connection

    def remember(self, thoughts: Mapping[str, dict[str, str]]) -> None:
        """Keep blocks of thought for the requests that bring them back."""
        for signature, block in thoughts.items():
            self.thoughts.pop(signature, None)
            self.thoughts[signature] = block
        sizes = {key: sum(map(len, block.values())) for key, block in self.thoughts.items()}
        excess = sum(sizes.values()) - _MAX_THOUGHT_CHARS
        for signature, size in sizes.items():  # the oldest first
            if excess <= 0:
                break
            del self.thoughts[signature]
            excess -= size

    async def _connect(self) -> Connection:
        try:
            listed = await self._peer.get("/models")
        except PeerError as error:
            has_none = error.peer_status in _NO_LIST
            if not has_none or self._dialect is None or self.name is None:
                raise self._explained(error) from None
            listed = {}
        models = _models(listed)
        dialect = self._dialect or _dialect_of_models(listed, models)
        if dialect is None:
            raise PeerError(
                f"{self._peer.shown_url}/models lists no models, so it cannot be told which "
                "dialect is spoken there; name it, openai or anthropic"
            )
        if self._dialect is None and dialect == "anthropic":
            await self._peer.close()
            self._peer = self._new_peer("anthropic")
        name = self.name if self.name is not None else _only_name(models, self._peer.shown_url)
        host = self._peer.url.host
        return Connection(self._peer, dialect, name, find_server(host, _owner(models, name)))

    def _explained(self, error: PeerError) -> PeerError:
        """Return an error of the list of models, with what to do where that would help."""
        if error.peer_status not in (401, 403, *_NO_LIST):
            return error
        advice = "is the key right?"
        if error.peer_status not in (401, 403):
            missing = [
                what
                for what, value in (("the dialect", self._dialect), ("the model", self.name))
                if value is None
            ]
            advice = f"name {' and '.join(missing)}, which this server does not tell"
        return PeerError(
            f"{error}; {advice}",
            peer_status=error.peer_status,
            status=error.status,
            retry_after=error.retry_after,
        )

    def _new_peer(self, dialect: Dialect) -> Peer:
        return open_peer(
            self.url,
            dialect,
            api_key=self._api_key,
            config=self._config,
            transport=self._transport,
        )


class RemoteStream(StartingStream):
    """A running answer: iterate for its events; close one that is not read to its end."""

    def __init__(self, model: RemoteModel, request: ChatRequest) -> None:
        self._model = model
        self._request = request
        self._answer: RemoteAnswer | None = None
        self._task: asyncio.Task[None] | None = None
        """Reads the answer"""
        self._arrivals: asyncio.Queue[list[Event] | None] = asyncio.Queue()
        """Lists of events; None at the end"""
        self._is_over = False
        self.error: Exception | None = None
        """Failure that ended the answer"""
        self._arrival = self._first = self._last = 0.0

    async def __aiter__(self) -> AsyncIterator[Event]:
        await self._started()
        while not self._is_over:
            events = await self._arrivals.get()
            if events is None:
                self._is_over = True
                break
            for event in events:
                yield event
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        """End the answer, if it still runs: the server sees its connection close."""
        for task in (self._start, self._task):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    async def finish(self) -> RemoteCompletion:
        """End the answer if it still runs, and return everything it came to. One that failed is
        returned as far as it came, with the reason error; `error` says why."""
        answer = await self._started()
        await self.close()
        reason: FinishReason = answer.finish_reason or "abort"
        if self.error is not None:
            reason = "error"
        timing = None
        if self._first:
            timing = Timing(
                queue_seconds=0.0,
                prompt_seconds=self._first - self._arrival,
                decode_seconds=self._last - self._first,
            )
        return RemoteCompletion(
            reply=answer.reply(),
            finish_reason=reason,
            prompt_ids=answer.prompt_ids,
            tokens=answer.tokens(),
            params=self._request.params or self._model.defaults,
            usage=answer.usage(),
            stop_text=answer.stop_text,
            is_context_full=answer.is_context_full,
            timing=timing,
            token_texts=tuple(answer.token_texts),
            signatures=tuple(answer.thoughts),
        )

    async def _started(self) -> RemoteAnswer:
        await self._wait_for_start()
        assert self._answer is not None
        return self._answer

    async def _begin(self) -> None:
        self._arrival = time.perf_counter()
        asked = read_request(self._request, self._model.sends)
        connection = await self._model.connect()
        reader: Reader
        if connection.dialect == "anthropic":
            path, where = MESSAGES_PATH, connection.peer.shown_url + MESSAGES_PATH
            body = messages_body(
                asked,
                connection.model,
                thoughts=self._model.thoughts,
                is_anthropics=connection.peer.url.host == _ANTHROPICS,
            )
            reader = MessagesReader(where)
        elif asked.text is not None:
            path, where = COMPLETIONS_PATH, connection.peer.shown_url + COMPLETIONS_PATH
            body = completions_body(asked, connection.model, connection.server)
            reader = CompletionsReader(where)
        else:
            path, where = CHAT_PATH, connection.peer.shown_url + CHAT_PATH
            body = chat_body(asked, connection.model, connection.server)
            reader = ChatReader(where)
        self._answer = reader.answer
        self._task = asyncio.create_task(self._read(connection.peer, path, body, reader))

    async def _read(self, peer: Peer, path: str, body: Mapping[str, Any], reader: Reader) -> None:
        """Read the answer to its end, and pass on its events."""
        answer = reader.answer
        try:
            async with aclosing(peer.events(path, body)) as events:
                async for event in events:
                    self._pass_on(reader.feed(event))
                    if answer.is_ended:
                        await _drain(events)
                        break
            self._model.remember(answer.thoughts)
            if answer.finish_reason is None and answer.is_ended:
                self._pass_on(answer.finish("stop"))
            if answer.finish_reason is None:
                raise PeerError(f"the stream of {answer.where} ended before the answer did")
            if answer.finish_reason == "error":
                raise PeerError(f"{answer.where} ended the answer with an error")
        except Exception as error:  # whoever reads the answer gets it
            self.error = error
        finally:
            self._arrivals.put_nowait(None)

    def _pass_on(self, events: list[Event]) -> None:
        if events:
            self._last = time.perf_counter()
            self._first = self._first or self._last
            self._arrivals.put_nowait(events)


async def _drain(events: AsyncIterator[object]) -> None:
    """Read what is left of a stream whose answer is at its end."""
    with suppress(TimeoutError, PeerError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in events:
                pass


def _base_url(url: str, dialect: Dialect) -> str:
    """Return the URL that routes are put behind: OpenAI's clients are given it with /v1, those of
    Anthropic without."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    for ending in _ENDINGS:
        path = path.removesuffix(ending)
    if not path or (dialect == "anthropic" and not path.endswith("/v1")):
        path += "/v1"
    return urlunsplit(parts._replace(path=path))


def _models(listed: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the models of a list that have a name."""
    data = listed.get("data")
    return [
        item
        for item in (data if isinstance(data, list) else ())
        if isinstance(item, Mapping) and isinstance(item.get("id"), str)
    ]


def _dialect_of_models(
    listed: Mapping[str, Any], models: list[Mapping[str, Any]]
) -> Dialect | None:
    """Return the dialect in which models are listed; a server of both speaks OpenAI's."""
    if not models:
        return None
    if listed.get("object") == "list" or any(item.get("object") == "model" for item in models):
        return "openai"
    return "anthropic" if models[0].get("type") == "model" else "openai"


def _only_name(models: list[Mapping[str, Any]], url: str) -> str:
    if len(models) == 1:
        return str(models[0]["id"])
    if not models:
        raise ValueError(f"{url} lists no models, name the one to talk to")
    names = ", ".join(shorten(item["id"], 60) for item in models[:_SHOWN_NAMES])
    more = f" and {len(models) - _SHOWN_NAMES} more" if len(models) > _SHOWN_NAMES else ""
    raise ValueError(f"{url} has {len(models)} models, name one: {names}{more}")


def _owner(models: list[Mapping[str, Any]], name: str) -> object:
    """Return the owner of the model with a name, else of the first: a server may take any name."""
    named = [item for item in models if item["id"] == name] or models
    return named[0].get("owned_by") if named else None
