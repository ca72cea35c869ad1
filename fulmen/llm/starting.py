"""Start of a stream: made once, by whoever asks for the answer first.

    entered, iterated or finished -> _wait_for_start -> _begin, once -> the answer runs

A caller that is cancelled while the answer starts closes it: nobody else would.
"""

import asyncio
from abc import ABC, abstractmethod
from typing import Self


class StartingStream(ABC):
    """A running answer that starts when it is entered or first awaited."""

    _start: "asyncio.Future[None] | None" = None

    async def __aenter__(self) -> Self:
        await self._wait_for_start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @abstractmethod
    async def close(self) -> None:
        """End the answer, if it still runs."""

    @abstractmethod
    async def _begin(self) -> None:
        """Start the answer."""

    async def _wait_for_start(self) -> None:
        """Start the answer, if nobody has, and wait until it runs. Raises what kept it from it."""
        if self._start is None:
            self._start = asyncio.ensure_future(self._begin())
            self._start.add_done_callback(_look_at_error)
        try:
            await asyncio.wait([self._start])
        except asyncio.CancelledError:
            await self.close()
            raise
        if self._start.cancelled():
            raise RuntimeError("the stream is closed")
        self._start.result()


def _look_at_error(start: "asyncio.Future[None]") -> None:
    """Keep asyncio from reporting an error that nobody waits for: the caller may be gone."""
    if not start.cancelled():
        start.exception()
