"""Bodies of requests: whole, within their limits of size and time, and decoded.

A body is read before the application sees its request, so that no handler needs to think of it.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final

from starlette.datastructures import Headers

from fulmen.files import shorten
from fulmen.server.config import ServerConfig
from fulmen.server.errors import Refusal

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LINGER_SECONDS: Final = 5.0
_LINGER_BYTES: Final = 64 * 2**20
"""Bounds on what is read and dropped of a refused body, so that its sender reads the refusal: a
connection closed with bytes unread would take the refusal with it"""
_NUM_BODIES: Final = 16
"""Bodies of the largest size that may be in memory at once while they arrive"""
_WINDOW_BITS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Bodies:
    """Reads bodies, so many at once as there is room for."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._num_bytes = 0
        """Bytes of bodies that have not arrived as a whole"""

    async def read(self, headers: Headers, incoming: "Incoming") -> bytes | None:
        """Return the whole body, decoded; None if the client went away. Raises a Refusal."""
        most = self._config.max_body_bytes
        length = headers.get("content-length")
        if length is not None:
            if not (length.isascii() and length.isdigit()):
                raise Refusal(400, f"content-length is {shorten(length, 40)!r}, no number of bytes")
            if len(length) > 18 or int(length) > most:
                raise Refusal(
                    413, f"the body has {shorten(length, 40)} bytes, at most {most} may be sent"
                )
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "", *_WINDOW_BITS):
            raise Refusal(
                415,
                f"content-encoding is {shorten(encoding, 40)!r}, it must be gzip, deflate or "
                "identity",
            )
        seconds = self._config.read_timeout_seconds
        parts: list[bytes] = []
        num_bytes = 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    event = await incoming.next()
                    if event["type"] == "http.disconnect":
                        return None
                    part = event.get("body", b"")
                    num_bytes += len(part)
                    self._num_bytes += len(part)
                    if num_bytes > most:
                        raise Refusal(
                            413,
                            f"the body has {num_bytes} bytes or more, at most {most} may be sent",
                        )
                    if self._num_bytes > _NUM_BODIES * most:
                        raise Refusal(503, "too many bodies arrive at once", retry_after=1)
                    parts.append(part)
                    if incoming.is_whole:
                        break
        except TimeoutError:
            raise Refusal(
                408, f"the body did not arrive within {seconds:g} s, {num_bytes} bytes of it did"
            ) from None
        finally:
            self._num_bytes -= num_bytes
        body = b"".join(parts)
        if encoding in _WINDOW_BITS and body:
            return await asyncio.to_thread(_decode, body, encoding, most)
        return body


class Incoming:
    """A request's body as it arrives."""

    def __init__(self, headers: Headers, receive: Receive) -> None:
        self._receive = receive
        self.is_whole = headers.get("content-length", "0") == "0" and (
            "transfer-encoding" not in headers
        )
        """Nothing more will come"""
        self._is_held_back = "expect" in headers
        """The client sends it once we ask for it"""

    async def next(self) -> Event:
        """Return the next event."""
        event = await self._receive()
        self._is_held_back = False
        self.is_whole = not event.get("more_body", False)
        return event

    async def drop(self) -> None:
        """Read and forget what still comes, within bounds."""
        num_bytes = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self.is_whole and not self._is_held_back and num_bytes < _LINGER_BYTES:
                    num_bytes += len((await self.next()).get("body", b""))


def _decode(body: bytes, encoding: str, most: int) -> bytes:
    """Return what a compressed body holds. It is never larger than `most` in memory."""
    bits = _WINDOW_BITS[encoding]
    if encoding == "deflate" and not _has_zlib_head(body):
        bits = -15  # some clients send the bare stream
    decoder = zlib.decompressobj(bits)
    try:
        decoded = decoder.decompress(body, most + 1)
    except zlib.error as error:
        raise Refusal(400, f"the body is not {encoding}: {error}") from None
    if len(decoded) > most:
        raise Refusal(
            413,
            f"the body has more than {most} bytes once it is decoded, at most {most} may be sent",
        )
    if not decoder.eof:
        raise Refusal(400, f"the body is not {encoding}: it ends too early")
    if decoder.unused_data:
        raise Refusal(
            400, f"the body is not {encoding}: {len(decoder.unused_data)} bytes follow it"
        )
    return decoded


def _has_zlib_head(body: bytes) -> bool:
    return len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
