"""The end of a server: what is under way may finish for a while, and is ended then."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Drain:
    """Requests under way, and the end that a server comes to."""

    def __init__(self) -> None:
        self.is_begun = False
        """No new request is taken"""
        self.is_over = False
        """Requests under way are ended"""
        self._running: set[asyncio.Timeout] = set()

    @property
    def num_running(self) -> int:
        """Requests under way."""
        return len(self._running)

    def begin(self) -> None:
        """Refuse new requests; those under way go on."""
        self.is_begun = True

    def end(self) -> None:
        """End the requests under way: streams with an error event, others with 503."""
        self.is_begun = self.is_over = True
        now = asyncio.get_running_loop().time()
        for limit in self._running:
            if not limit.expired():
                limit.reschedule(now)

    @contextmanager
    def holding(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Count a request as under way; its time is over when the server's is."""
        self._running.add(limit)
        if self.is_over:
            limit.reschedule(asyncio.get_running_loop().time())
        try:
            yield
        finally:
            self._running.discard(limit)
