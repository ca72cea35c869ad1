"""Responses that run while nobody waits for them, and their events for whoever comes to read.

    POST, background -> Background.start -> updates -> EventLog -> readers, from any event on
                                                    -> store, once it has ended

A reader may go away and come back: it asks for the events after the last one that it has.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from fulmen.server.answers import Answers
from fulmen.server.asking import End, Progress
from fulmen.server.drain import Drain
from fulmen.server.errors import Refusal, failure_of
from fulmen.server.responses_reply import ResponsesWriter, failure
from fulmen.server.sse import comment
from fulmen.server.streaming import frames_of

_LOG_BYTES: Final = 32 * 2**20
"""Memory for the events of responses that have ended; the oldest go first"""
_SIGN_SECONDS: Final = 1.0
"""Least time between two comments that tell how far an answer is"""

Keep = Callable[[Mapping[str, Any]], Awaitable[None]]
"""Stores a response as it is now"""


class EventLog:
    """The numbered events of one response: one writer, any number of readers."""

    def __init__(self, sign: Callable[[], str] = lambda: "ping") -> None:
        """sign: how far the answer is, for comments that clients skip"""
        self.num_bytes = 0
        self.is_over = False
        self._sign = sign
        self._frames: list[bytes] = []
        """Event number i is the i-th"""
        self._more = asyncio.Event()

    def add(self, frames: Iterable[bytes]) -> None:
        """Take the next events."""
        for frame in frames:
            self._frames.append(frame)
            self.num_bytes += len(frame)
        self._wake()

    def end(self) -> None:
        """Let readers end once they have all."""
        self.is_over = True
        self._sign = str  # what it told of is not kept for those who read later
        self._wake()

    async def read(self, after: int, *, ping_seconds: float) -> AsyncIterator[bytes]:
        """Yield the events after a number (-1: all) until the last; a comment when the answer got
        further, and when nothing came for so long."""
        clock = asyncio.get_running_loop().time
        place, told = after + 1, self._sign()
        told_at = spoke_at = clock()
        while True:
            more, end = self._more, len(self._frames)
            if place < end:
                yield b"".join(self._frames[place:end])
                place, spoke_at = end, clock()
            elif self.is_over:
                return
            if self.is_over:
                continue
            sign, now = self._sign(), clock()
            is_news = sign != told and now >= told_at + _SIGN_SECONDS
            if is_news or now >= spoke_at + ping_seconds:
                yield comment(sign)
                told, told_at, spoke_at = sign, now, now
            with suppress(TimeoutError):
                async with asyncio.timeout_at(
                    min(spoke_at + ping_seconds, max(told_at, clock()) + _SIGN_SECONDS)
                ):
                    await more.wait()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()


@dataclass(slots=True, eq=False)
class Running:
    """A response that runs in the background."""

    answers: Answers
    writer: ResponsesWriter
    scope: str
    log: EventLog = field(init=False)
    answering: asyncio.Task[tuple[dict[str, Any], list[bytes]]] | None = None
    """Draws the answer; cancelled to end it. Gives the response and its last events."""
    ending: asyncio.Task[None] | None = None
    """Waits for the answer, however it ends, and stores the response; never cancelled"""
    num_tokens: int = 0
    """Tokens that it said so far"""

    def __post_init__(self) -> None:
        self.log = EventLog(self.sign)

    def sign(self) -> str:
        """Return how far it is: in its prompt, then in its answer."""
        if self.num_tokens:
            return f"ping {self.num_tokens} tokens"
        progress = self.answers.progress()
        return f"ping {progress.num_read_tokens}/{progress.num_prompt_tokens} prompt tokens"


class Background:
    """The responses of one server that run in the background, by id; for one event loop."""

    def __init__(self, drain: Drain, *, timeout_seconds: float) -> None:
        """
        drain            lets them finish when the server is asked to stop
        timeout_seconds  longest time that one may run
        """
        self.running: dict[str, Running] = {}
        self._drain = drain
        self._timeout_seconds = timeout_seconds
        self._ended: OrderedDict[str, tuple[str, EventLog]] = OrderedDict()
        """Scope and events of those that ended, the oldest first"""
        self._num_bytes = 0

    async def start(
        self, answers: Answers, writer: ResponsesWriter, scope: str, keep: Keep
    ) -> dict[str, Any]:
        """Let an answer run on its own; return its response as it is now."""
        response = writer.object("in_progress")
        try:
            await keep(response)
        except BaseException:
            await answers.close()
            raise
        one = self.running[answers.id] = Running(answers, writer, scope)
        one.log.add(writer.begin())
        one.answering = asyncio.create_task(self._answer(one))
        one.ending = asyncio.create_task(self._end(one, one.answering, keep))
        return response

    def log(self, id: str, scope: str) -> EventLog | None:
        """Return the events of a response that runs, or ended not long ago; None for others."""
        one = self.running.get(id)
        if one is not None:
            return one.log if one.scope == scope else None
        owner, log = self._ended.get(id, (None, None))
        return log if owner == scope else None

    async def stop(self, id: str, scope: str) -> None:
        """End one, if it runs for this scope, and wait until it is stored as it is then."""
        one = self.running.get(id)
        if one is not None and one.scope == scope and one.answering and one.ending:
            one.answering.cancel()
            await asyncio.wait([one.ending])

    def forget(self, id: str, scope: str) -> None:
        """Drop the events of a response that was deleted."""
        if self.log(id, scope) is not None and id in self._ended:
            _, log = self._ended.pop(id)
            self._num_bytes -= log.num_bytes

    async def close(self) -> None:
        """End them all, and wait until they are stored as they are then."""
        self._drain.end()
        if endings := [one.ending for one in self.running.values() if one.ending is not None]:
            await asyncio.wait(endings)

    async def _answer(self, one: Running) -> tuple[dict[str, Any], list[bytes]]:
        """Draw an answer, its events into the log but for the last ones."""
        async with (
            asyncio.timeout(self._timeout_seconds) as limit,
            aclosing(one.answers.updates()) as updates,
        ):
            with self._drain.holding(limit):
                async for update in updates:
                    if isinstance(update, End):
                        return one.writer.whole(update), list(one.writer.end(update))
                    if not isinstance(update, Progress):  # readers get signs of life anyway
                        one.num_tokens += len(update.tokens)
                        one.log.add(frames_of(one.writer, update))
        raise AssertionError("an answer ends with its end")

    async def _end(
        self, one: Running, answering: asyncio.Task[tuple[dict[str, Any], list[bytes]]], keep: Keep
    ) -> None:
        """Wait until one is over: its response into the store, its last events into the log."""
        ended, last = one.writer.object("failed"), list[bytes]()
        try:
            ended, last = await answering
        except asyncio.CancelledError:
            ended = one.writer.object("cancelled")
        except TimeoutError:
            is_stopping = self._drain.is_over
            ended["error"] = failure(
                Refusal(503, "the server stopped while it ran")
                if is_stopping
                else Refusal(504, "the response took longer than allowed here")
            )
        except Exception as error:
            ended["error"] = failure(failure_of(error))
        try:
            await one.answers.close()
            with suppress(Refusal):
                await keep(ended)
        finally:
            one.log.add(last or one.writer.broken(ended))
            one.log.end()
            self._leave(one)

    def _leave(self, one: Running) -> None:
        """Keep the events of one that ended, as far as memory for them goes."""
        self.running.pop(one.answers.id, None)
        self._ended[one.answers.id] = (one.scope, one.log)
        self._num_bytes += one.log.num_bytes
        while self._num_bytes > _LOG_BYTES:
            _, (_, oldest) = self._ended.popitem(last=False)
            self._num_bytes -= oldest.num_bytes
