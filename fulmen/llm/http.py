"""A server at a URL: JSON and events, within bounds.

    Peer(url).get(path), .post(path, body)  ->  one JSON object
    Peer(url).events(path, body)            ->  server-sent events as they come

Whatever the other side does (refuses, hangs, dies in mid-answer, sends a page of HTML or a line
without end) is a `PeerError` of one sentence, in bounded time and memory. What is worth another
try is tried again: JSON until all of it is there, events until the first one was given on.
"""

import asyncio
import ipaddress
import itertools
import json
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx2

from fulmen.chat import ModelError, Overflow
from fulmen.files import MAX_JSON_BYTES, parse_json, shorten

MAX_EVENT_BYTES: Final = 8 * 2**20
"""Largest event. One token with its log-probabilities is a few hundred bytes; a whole response at
the end of a stream can be megabytes."""

_MAX_ERROR_BYTES: Final = 64 * 2**10
"""Bytes of a refusal's body that are read"""
_RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504, 529})
"""Statuses that may be another one the next time"""
_PASSED_ON: Final = {400: 400, 413: 413, 422: 400, 429: 429, 503: 503, 529: 503}
"""Statuses that concern whoever asked, and what a server in front of the other answers then"""
_TOO_LONG: Final = frozenset({400, 413, 422})
"""Statuses of servers that refuse a prompt for its length"""
_OVERFLOW: Final = re.compile(
    r"context[ _-]?(?:length|window|size|limit)|maximum (?:input|prompt|model) length"
    r"|(?:prompt|input)\b[^.:]{0,60} (?:too long|longer than)",
    re.IGNORECASE,
)
"""Sentences of vLLM, SGLang, llama.cpp, OpenAI, Anthropic and MiniMax about a full context"""
_WITH_ANSWER: Final = re.compile(
    r"max_(?:completion_|output_|new_)?tokens|in the completion|[1-9]\d* output tokens",
    re.IGNORECASE,
)
_PLAIN: Final = frozenset({"", "identity"})
"""Content encodings that are read: what is packed small could be of any size"""
_MANY: Final = 10_000
"""Values of a body that take milliseconds to write"""
_LONGEST_WAIT: Final = 60.0
"""Seconds that a `retry-after` may ask for"""


class PeerError(ModelError):
    """A server that could not be reached, refused, or did not answer as its protocol says."""

    def __init__(
        self,
        message: str,
        *,
        peer_status: int | None = None,
        status: int = 502,
        retry_after: float | None = None,
        may_pass: bool = False,
        said: str = "",
    ) -> None:
        """
        peer_status          HTTP status that the other side refused with, if it did
        status, retry_after  as `ModelError` has them, the second in seconds
        may_pass             True if the same request may fare better the next time
        said                 the other side's words about the request: a full context, perhaps
        """
        super().__init__(message, status=status, retry_after=retry_after)
        self.overflow = _overflow(said)
        self.peer_status = peer_status
        self.may_pass = may_pass

    def without_address(self, url: str, name: str) -> str:
        """Return the sentence for somebody who may not know where the server is.

        url   as `Peer.shown_url`; name stands in its place, and in that of its paths
        """
        sentence = re.sub(re.escape(url) + r"[\w/.-]*", name, str(self))
        sentence = re.sub(r"https?://[^\s,;]+", "another address", sentence)
        if self.peer_status is None and self.may_pass:
            return sentence.partition(": ")[0]  # a system's own words may hold an address
        return sentence


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerConfig:
    """Limits of waiting for a server, and of asking again."""

    connect_seconds: float = 10.0
    first_byte_seconds: float = 600.0
    """From a request to its answer's head, and from there to its first byte: a long prompt is read
    in either"""
    idle_seconds: float = 120.0
    """Longest silence within an answer that has begun"""
    answer_seconds: float = 7200.0
    """Longest answer, from its request to its end"""
    max_retries: int = 3
    first_retry_seconds: float = 0.5
    """Wait before the second try; each further one waits twice as long, give or take a quarter"""

    def __post_init__(self) -> None:
        for name in ("connect_seconds", "first_byte_seconds", "idle_seconds", "answer_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, it must be more than 0")
        if not 0 <= self.max_retries <= 100:
            raise ValueError(f"max_retries is {self.max_retries}, it must be from 0 to 100")


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event."""

    data: str
    event: str | None = None
    """Its type, if the stream names one"""

    def json(self, where: str) -> dict[str, Any]:
        """Return its data as a JSON object. Raises a PeerError that begins with `where`."""
        try:
            return parse_json(self.data.encode(errors="surrogatepass"), f"an event of {where}")
        except ValueError as error:
            raise PeerError(shorten(str(error))) from None


class Peer:
    """A server at a URL; one pool of connections. Use and close it in one event loop."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        config: PeerConfig | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Raises ValueError for what is no http or https URL, or for a header that cannot be sent.

        url        http://host:port, with or without a path; paths of requests are put behind it
        headers    sent with every request, such as a key
        transport  in place of the network, for tests
        """
        self.url, self.shown_url = _checked_url(url)
        self.config = config or PeerConfig()
        self._client = httpx2.AsyncClient(
            headers={"accept-encoding": "identity", **_checked_headers(headers or {})},
            timeout=None,  # each wait has its own limit below
            transport=transport,
            trust_env=not _is_loopback(self.url.host),  # no proxy leads to this machine
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; requests that run end with an error."""
        await self._client.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        """Return the JSON object at a path. Raises PeerError."""
        return await self._json("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON object that a path answers a body with. Raises PeerError."""
        return await self._json("POST", path, body)

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[ServerEvent]:
        """Yield the events that a path answers a body with, to the end. Raises PeerError.

        Close the iterator (`contextlib.aclosing`) to end the answer: the connection is given up,
        which every server takes as the end of the request.
        """
        is_given_on = False
        for number in itertools.count():
            try:
                async with aclosing(self._events(path, body)) as events:
                    async for event in events:
                        is_given_on = True
                        yield event
                return
            except PeerError as error:
                if is_given_on:
                    raise
                await self._wait_to_retry(error, number)

    async def _events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[ServerEvent]:
        """Yield the events of one try."""
        ends_at = asyncio.get_running_loop().time() + self.config.answer_seconds
        where = self.shown_url + path
        async with self._response("POST", path, body) as response:
            kind = response.headers.get("content-type", "nothing")
            if not kind.startswith("text/event-stream"):
                found = await self._read(response, where, _MAX_ERROR_BYTES, ends_at, is_cut=True)
                raise PeerError(
                    f"{where} answered with {shorten(kind, 60)} in place of a stream of events: "
                    f"{_said(found)}"
                )
            reader = EventReader(where)
            async for chunk in self._chunks(response, where, ends_at):
                for event in reader.feed(chunk):
                    yield event
            for event in reader.end():
                yield event

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        for number in itertools.count():
            try:
                text = await self._whole(method, path, body)
                break
            except PeerError as error:
                await self._wait_to_retry(error, number)
        try:
            return parse_json(text, f"the answer of {self.shown_url}{path}")
        except ValueError as error:
            raise PeerError(shorten(str(error))) from None

    async def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        """Return the body of an answer, after one try."""
        ends_at = asyncio.get_running_loop().time() + self.config.answer_seconds
        async with self._response(method, path, body) as response:
            return await self._read(response, self.shown_url + path, MAX_JSON_BYTES, ends_at)

    async def _wait_to_retry(self, error: PeerError, number: int) -> None:
        """Wait after `number` tries before this one; raise the error if it is to be the last."""
        if not error.may_pass or number >= self.config.max_retries:
            raise error
        wait = self.config.first_retry_seconds * 2**number * random.uniform(0.75, 1.25)
        if error.retry_after is not None:
            wait = error.retry_after
        await asyncio.sleep(min(wait, _LONGEST_WAIT))

    @asynccontextmanager
    async def _response(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator[httpx2.Response]:
        """Give a successful response whose body is not read yet."""
        response = await self._send(method, path, body)
        try:
            yield response
        finally:
            await response.aclose()

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> httpx2.Response:
        """Return a successful response, its body unread. Raises PeerError."""
        where = self.shown_url + path
        content = None if body is None else await _dumped(body)
        request = self._client.build_request(
            method,
            self.url.copy_with(path=self.url.path.rstrip("/") + path),
            content=content,
            headers={} if content is None else {"content-type": "application/json"},
            extensions={"timeout": {"connect": self.config.connect_seconds}},
        )
        try:
            async with asyncio.timeout(self.config.first_byte_seconds):
                response = await self._client.send(request, stream=True)
        except TimeoutError:
            raise PeerError(
                f"{where} did not begin to answer within {self.config.first_byte_seconds:g} s",
                status=504,
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise PeerError(
                f"{self.shown_url} cannot be reached: {_reason(error)}", may_pass=True
            ) from None
        if response.is_success and response.headers.get("content-encoding", "") in _PLAIN:
            return response
        try:
            raise await self._refusal(where, response)
        finally:
            await response.aclose()

    async def _refusal(self, where: str, response: httpx2.Response) -> PeerError:
        """Return a response that is no answer as an error."""
        status = response.status_code
        if response.is_success:
            return PeerError(f"{where} answered compressed, which was not asked for")
        if response.is_redirect:
            target = shorten(response.headers.get("location", "nowhere"), 100)
            return PeerError(
                f"{where} sends elsewhere, to {target}; give that URL", peer_status=status
            )
        try:
            ends_at = asyncio.get_running_loop().time() + self.config.connect_seconds
            body = await self._read(response, where, _MAX_ERROR_BYTES, ends_at, is_cut=True)
            said = _said(body)
        except PeerError as error:
            said = str(error)
        return PeerError(
            f"{where} answered with {status}: {said}",
            peer_status=status,
            status=_PASSED_ON.get(status, 502),
            may_pass=status in _RETRIED,
            retry_after=_seconds(response.headers.get("retry-after")),
            said=said if status in _TOO_LONG else "",
        )

    async def _read(
        self,
        response: httpx2.Response,
        where: str,
        limit: int,
        ends_at: float,
        *,
        is_cut: bool = False,
    ) -> bytes:
        """Return a body of at most `limit` bytes; is_cut: leave out what comes after them."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self._chunks(response, where, ends_at):
            parts.append(chunk)
            size += len(chunk)
            if size > limit and is_cut:
                break
            if size > limit:
                raise PeerError(f"{where} answered with more than {limit:,} bytes")
        return b"".join(parts)[:limit]

    async def _chunks(
        self, response: httpx2.Response, where: str, ends_at: float
    ) -> AsyncIterator[bytes]:
        """Yield a body as it comes. Raises PeerError for one that stalls, lasts or breaks off."""
        chunks = response.aiter_bytes()
        loop = asyncio.get_running_loop()
        longest = self.config.first_byte_seconds
        while True:
            left = ends_at - loop.time()
            try:
                async with asyncio.timeout(min(longest, left)):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                what = f"{where} sent nothing more within {longest:g} s"
                if left < longest:
                    what = f"the answer of {where} did not end in time"
                raise PeerError(what, status=504) from None
            except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
                raise PeerError(
                    f"the answer of {where} broke off: {_reason(error)}", may_pass=True
                ) from None
            longest = self.config.idle_seconds
            yield chunk


class EventReader:
    """Server-sent events of a stream, from its bytes however they are cut (WHATWG HTML, 9.2)."""

    def __init__(self, where: str) -> None:
        """where: names the stream in errors"""
        self._where = where
        self._buffer = bytearray()
        self._searched = 0
        self._data: list[str] = []
        self._size = 0
        self._event: str | None = None

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """Yield the events that are whole with these bytes. Raises PeerError for one too large."""
        self._buffer += chunk
        while (line := self._next_line()) is not None:
            event = self._line(line)
            if event is not None:
                yield event
        if len(self._buffer) + self._size > MAX_EVENT_BYTES:
            raise PeerError(f"{self._where} sent an event of more than {MAX_EVENT_BYTES:,} bytes")

    def end(self) -> Iterator[ServerEvent]:
        """Yield the event that stands without the empty line after it, as some servers end."""
        for line in (*self._buffer.splitlines(), b""):
            event = self._line(bytes(line))
            if event is not None:
                yield event
        self._buffer.clear()

    def _next_line(self) -> bytes | None:
        r"""Take the next whole line. A "\r" at the end waits: "\n" may belong to it."""
        buffer, start = self._buffer, self._searched
        feed, back = buffer.find(b"\n", start), buffer.find(b"\r", start)
        if back != -1 and back != len(buffer) - 1 and (feed == -1 or back < feed):
            end, following = back, back + 1 + (buffer[back + 1] == 0x0A)
        elif feed != -1 and (back == -1 or feed < back):
            end, following = feed, feed + 1
        else:
            self._searched = len(buffer) if back == -1 else back
            return None
        line = bytes(buffer[:end])
        del buffer[:following]
        self._searched = 0
        return line

    def _line(self, line: bytes) -> ServerEvent | None:
        if not line:
            event = None
            if self._data:
                event = ServerEvent("\n".join(self._data), self._event)
            self._data, self._size, self._event = [], 0, None
            return event
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._size += len(line)
        elif name == "event":
            self._event = value
        return None


def _checked_url(url: str) -> tuple[httpx2.URL, str]:
    """Return a URL and how errors show it: without a user's name and key."""
    shown = re.sub(r"^(\w+://)?.*@", r"\1", url) if isinstance(url, str) else url
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError, ValueError) as error:
        reason = "it cannot be read" if shown != url else error
        raise ValueError(f"{shorten(shown, 100)} is no URL: {reason}") from None
    shown = shorten(shown, 100)
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise ValueError(f"{shown} is no URL: its port is outside 1 to 65535")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{shown} is no URL of a server, it must look like http://127.0.0.1:8000")
    if parsed.query or parsed.fragment:
        raise ValueError(f"{shown} has a query or a fragment, a server's URL has none")
    return parsed, shorten(str(parsed.copy_with(userinfo=b"")).rstrip("/"), 200)


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not name.isascii() or not all(" " <= char <= "~" for char in value):
            raise ValueError(
                f"the header {shorten(name, 60)} has a line break or another character that no "
                "header can hold; is a key in it that was pasted with more than itself?"
            )
    return dict(headers)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _dumped(body: Mapping[str, Any]) -> bytes:
    """Return a body as JSON; others go on meanwhile if it is large."""
    parts = list(body.values())
    parts += [each for part in parts if isinstance(part, Mapping) for each in part.values()]
    if sum(len(part) for part in parts if isinstance(part, list | tuple | Mapping)) < _MANY:
        return json.dumps(body).encode()
    # dumps would not let go of the interpreter until it is done, iterencode does now and then.
    encoder = json.JSONEncoder()
    return await asyncio.to_thread(lambda: "".join(encoder.iterencode(body)).encode())


def _said(body: bytes) -> str:
    """Return what a refusal says, in whichever of the known shapes."""
    text = body.decode(errors="replace").strip()
    if not text:
        return "nothing else"
    if text[:1] == "<":
        return "a page of HTML"
    try:
        value: Any = parse_json(body, "it")
    except ValueError:
        return shorten(text)
    return error_text(value) or shorten(text)


def error_text(value: Mapping[str, Any]) -> str:
    """Return what an object says of an error, in whichever of the known shapes; an empty text if it
    says nothing."""
    for name in ("error", "detail", "message"):
        found = value.get(name)
        if isinstance(found, Mapping):
            found = found.get("message") or found.get("type") or found
        if found:
            return shorten(found if isinstance(found, str) else json.dumps(found))
    return ""


def _reason(error: Exception) -> str:
    """Return why a connection failed, in words."""
    match error:
        case httpx2.ConnectTimeout():
            return "no connection came about in time"
        case httpx2.RemoteProtocolError():
            return "it closed the connection in mid-answer or spoke no HTTP"
        case _:
            return shorten(str(error) or type(error).__name__, 120)


def _overflow(said: str) -> Overflow | None:
    """Return the part of a request that a server's sentence says is too long for the context."""
    if _OVERFLOW.search(said) is None:
        return None
    return "prompt" if _WITH_ANSWER.search(said) is None else "prompt and answer"


def _seconds(text: str | None) -> float | None:
    """Return the seconds of a retry-after; None for a date or anything else."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
