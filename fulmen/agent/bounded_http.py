"""HTTP whose answers have a bounded size, for servers that nobody vouches for."""

from collections.abc import AsyncIterator
from typing import Final

import httpx2

MAX_ANSWER_BYTES: Final = 8 * 2**20


class BoundedTransport(httpx2.AsyncBaseTransport):
    """A transport that ends an answer of too many bytes, and takes none that is compressed: its
    size would not be known."""

    def __init__(
        self,
        inner: httpx2.AsyncBaseTransport,
        *,
        limit: int = MAX_ANSWER_BYTES,
        has_streams: bool = False,
    ) -> None:
        """has_streams: a stream of events may go on; whoever reads it bounds each event"""
        self._inner = inner
        self._limit = limit
        self._has_streams = has_streams

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer to a request."""
        request.headers["accept-encoding"] = "identity"
        response = await self._inner.handle_async_request(request)
        kind = response.headers.get("content-type", "").lower()
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            await response.aclose()
            raise httpx2.RemoteProtocolError(f"it answers in {encoding[:40]!r}, unasked")
        if not (self._has_streams and kind.startswith("text/event-stream")):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Bounded(response.stream, self._limit)
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, limit: int) -> None:
        self._inner = inner
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._limit
        async for chunk in self._inner:
            left -= len(chunk)
            if left < 0:
                raise httpx2.ReadError(f"the answer has more than {self._limit:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
