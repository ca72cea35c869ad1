"""Answers onto the wire, for as long as somebody listens.

Whatever waits, a prompt that is read or a token that is drawn, is given up as soon as the client
goes away, so its answers end within a step of the engine.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from fulmen.server.answers import Answers
from fulmen.server.asking import End, Progress, Update
from fulmen.server.config import ServerConfig
from fulmen.server.errors import Refusal, failure_of

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Writer(Protocol):
    """A dialect's events for the updates of one request."""

    def begin(self) -> Iterator[bytes]: ...
    def update(self, update: Update) -> Iterator[bytes]: ...
    def progress(self, progress: Progress) -> Iterator[bytes]: ...
    def end(self, end: End) -> Iterator[bytes]: ...
    def fail(self, refusal: Refusal, request_id: str) -> Iterator[bytes]: ...


class ClientGoneError(Exception):
    """The client went away."""


def request_id(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))


async def read_ends(request: Request, answers: Answers) -> list[End]:
    """Return how the answers end."""

    async def read() -> list[End]:
        async with aclosing(answers.updates(deadline=_deadline(request))) as updates:
            return [update async for update in updates if isinstance(update, End)]

    try:
        return await unless_gone(request, read())
    finally:
        await answers.close()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what work comes to, unless the client goes away first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return await task
    except BaseException:
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result, Answers):  # they had just started, nobody will read them
            await result.close()
        raise
    finally:
        gone.cancel()


async def _disconnect(receive: Callable[[], Awaitable[Any]]) -> None:
    """Wait until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _deadline(request: Request) -> float | None:
    deadline: float | None = getattr(request.state, "deadline", None)
    return deadline


def stream_response(
    request: Request,
    answers: Answers,
    writer: Writer,
    config: ServerConfig,
    *,
    finish: Callable[[list[End]], Iterator[bytes]] | None = None,
    note: Callable[[End], Awaitable[None]] | None = None,
) -> Response:
    """Return the answers as a stream of events.

    finish  gives what comes after the last answer
    note    is called with the end of an answer before the client is told of it
    """

    async def events() -> AsyncIterator[bytes]:
        ends: list[End] = []
        try:
            for frame in writer.begin():
                yield frame
            answers.sent()
            async with aclosing(
                answers.updates(ping_seconds=config.ping_seconds, deadline=_deadline(request))
            ) as updates:
                async for update in updates:
                    if note is not None and isinstance(update, End):
                        await note(update)
                    if frames := b"".join(frames_of(writer, update)):
                        answers.sent()
                        yield frames
                    if isinstance(update, End):
                        ends.append(update)
            if finish is not None:
                yield b"".join(finish(ends))
        except Exception as error:
            if not isinstance(error, Refusal):
                _log.error("request %s failed", request_id(request), exc_info=error)
            yield b"".join(writer.fail(failure_of(error), request_id(request)))
        finally:
            await answers.close()

    return EventStream(events(), answers.close)


def frames_of(writer: Writer, update: Update | Progress | End) -> Iterator[bytes]:
    """Yield the frames of an update."""
    match update:
        case Update():
            return writer.update(update)
        case Progress():
            return writer.progress(update)
        case End():
            return writer.end(update)


class EventStream(StreamingResponse):
    """A stream of events; what is behind it is closed even if it never begins."""

    def __init__(
        self, frames: AsyncIterator[bytes], close: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """close: called once the stream is over, however it ends"""
        super().__init__(
            frames,
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        self._close = close

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events until they end or the client goes away, even if none is due then."""
        work = asyncio.ensure_future(self.stream_response(send))
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            if self._close is not None:
                await asyncio.shield(self._close())
