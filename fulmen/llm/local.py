"""An LLM for any number of callers in one event loop.

    async with AsyncLLM(llm) as front:
        async with front.stream(messages) as stream:
            async for event in stream: ...
        completion = await front.chat(messages)

One thread owns the LLM and its engine and steps as long as anything runs; what callers want of it
(a new request, an end) waits in a queue and is done between two steps. So the event loop never
waits for a forward pass, and a caller that goes away frees its place within one step.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar, Unpack

from fulmen.chat import Event
from fulmen.llm.llm import LLM, Messages, Tools
from fulmen.llm.stream import ChatStream, Completion, Stream, StreamOptions
from fulmen.sampling import SamplingParams

T = TypeVar("T")
R = TypeVar("R")


class AsyncLLM:
    """One LLM, shared. Make it, use it and close it in one event loop."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._wishes: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """What to do between two steps; None at the end"""
        self._readers: dict[int, _Reader[Any]] = {}
        """Of running requests, by id; the thread's own"""
        self.is_closed = False
        self._thread = threading.Thread(target=self._work, name="fulmen-engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all that runs, after the step that is under way, and the thread."""
        if not self.is_closed:
            self.is_closed = True
            self._wishes.put(None)
        await asyncio.to_thread(self._thread.join)

    def stream(
        self,
        messages: Messages,
        tools: Tools | None = None,
        params: SamplingParams | None = None,
        **options: Unpack[StreamOptions],
    ) -> "AsyncChatStream":
        """The answer to a conversation, event by event; it begins when it is entered or first
        awaited."""
        messages, tools = list(messages), None if tools is None else list(tools)
        return AsyncChatStream(self, lambda: self.llm.stream(messages, tools, params, **options))

    def complete(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
    ) -> "AsyncTextStream":
        """What the model writes after a prompt as it stands."""
        return AsyncTextStream(self, lambda: self.llm.complete(prompt, params, priority=priority))

    async def chat(
        self,
        messages: Messages,
        tools: Tools | None = None,
        params: SamplingParams | None = None,
        **options: Unpack[StreamOptions],
    ) -> Completion:
        """The whole answer to a conversation."""
        async with self.stream(messages, tools, params, **options) as stream:
            async for _ in stream:
                pass
            return await stream.finish()

    async def call(self, work: Callable[[], R]) -> R:
        """Does some work on the LLM between two steps, and returns what it returns. It is done
        even if the caller is cancelled meanwhile."""
        if self.is_closed:
            raise RuntimeError("the engine is closed")
        done: Future[R] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self._wishes.put(run)
        return await asyncio.shield(asyncio.wrap_future(done))

    def watch(self, reader: "_Reader[Any]") -> None:
        """Hands on what a stream gets from now on; for the engine's thread."""
        self._readers[reader.stream.request_id] = reader

    # ---- the engine's thread -----------------------------------------------------------------

    def _work(self) -> None:
        while True:
            try:
                wish = self._wishes.get(block=not self._readers)
            except queue.Empty:
                self._step()
                continue
            if wish is None:
                break
            wish()
        for reader in self._readers.values():
            reader.stream.close()
        self._hand_on(None)

    def _step(self) -> None:
        error: Exception | None = None
        try:
            self.llm.step()
        except Exception as caught:  # those whose step it was end, and say why; the others go on
            error = caught
            readers = self._readers.values()
            if all(reader.stream.finish_reason is None for reader in readers):
                for reader in readers:  # it would only fail again
                    reader.stream.close()
        self._hand_on(error)

    def _hand_on(self, error: Exception | None) -> None:
        for request_id, reader in list(self._readers.items()):
            stream = reader.stream
            reader.hand_on(
                stream.take(), (stream.error or error) if stream.finish_reason == "abort" else None
            )
            if stream.finish_reason is not None:
                del self._readers[request_id]


@dataclass(slots=True, eq=False)
class _Reader(Generic[T]):
    """Carries what a stream gets from the engine's thread to its caller's event loop."""

    stream: Stream[T]
    loop: asyncio.AbstractEventLoop
    arrivals: asyncio.Queue[list[T] | Exception | None] = field(default_factory=asyncio.Queue)
    """Lists of items; at the end the error that ended the stream, or None"""

    def hand_on(self, items: list[T], error: Exception | None) -> None:
        """For the engine's thread."""
        try:
            if items:
                self.loop.call_soon_threadsafe(self.arrivals.put_nowait, items)
            if self.stream.finish_reason is not None:
                self.loop.call_soon_threadsafe(self.arrivals.put_nowait, error)
        except RuntimeError:  # the loop is closed, nobody listens any more
            self.stream.close()


class _AsyncStream(Generic[T]):
    """A running request: iterate for what it says; close one that is not read to its end."""

    def __init__(self, front: AsyncLLM, begin: Callable[[], Stream[T]]) -> None:
        self._front = front
        self._begin = begin
        self._reader: _Reader[T] | None = None
        self._items: deque[T] = deque()
        self._start: asyncio.Future[None] | None = None
        self._is_over = self._is_ended = False

    async def __aenter__(self) -> Self:
        await self._started()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[T]:
        reader = await self._started()
        while True:
            while self._items:
                yield self._items.popleft()
            if self._is_over:
                return
            arrival = await reader.arrivals.get()
            if isinstance(arrival, list):
                self._items += arrival
                continue
            self._is_over = True
            if arrival is not None:
                raise arrival

    async def close(self) -> None:
        """Ends the request, if it still runs, when the step that is under way is over."""
        if self._start is not None:
            await self._on_llm(self._end)

    async def _started(self) -> _Reader[T]:
        if self._start is None:
            loop = asyncio.get_running_loop()
            self._start = asyncio.ensure_future(self._front.call(lambda: self._run(loop)))
        try:
            await asyncio.shield(self._start)
        except asyncio.CancelledError:
            await self.close()
            raise
        if self._reader is None:
            raise RuntimeError("the stream is closed")
        return self._reader

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the engine's thread: begins the request, if its caller is still there."""
        if not self._is_ended:
            self._reader = _Reader(self._begin(), loop)
            self._front.watch(self._reader)

    def _end(self) -> None:
        """In the engine's thread."""
        self._is_ended = True
        if self._reader is not None:
            self._reader.stream.close()

    async def _on_llm(self, work: Callable[[], R]) -> R:
        if not self._front.is_closed:
            return await self._front.call(work)
        await self._front.close()  # until then its thread may be in a step
        return work()


class AsyncTextStream(_AsyncStream[str]):
    """A running completion: iterate for its text, piece by piece."""


class AsyncChatStream(_AsyncStream[Event]):
    """A running answer: iterate for its events, `finish` for what they came to."""

    async def finish(self) -> Completion:
        """Ends the answer if it still runs, and returns what it came to."""
        stream = (await self._started()).stream
        assert isinstance(stream, ChatStream)
        return await self._on_llm(stream.finish)
