"""A local model for any number of callers in one event loop.

    async with LocalModel(llm) as model:
        async with model.stream(request) as stream:
            async for event in stream: ...
        completion = await complete(model, request)

One thread owns the LLM and its engine and steps as long as anything runs. Calls that callers make
of it (a new request, an end, a session's save) wait in a queue and run between two steps. Prompts
are rendered and encoded outside it. So the event loop never waits for a forward pass, no caller
waits for another one's template, and a caller that goes away frees its place within one step.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

from fulmen.chat import ChatFormat, ChatRequest, Completion, Event, Token, Tokenizer, text_request
from fulmen.engine import EngineStats
from fulmen.llm.answer import Answer
from fulmen.llm.llm import LLM
from fulmen.llm.preparation import SharedPrompt
from fulmen.llm.starting import StartingStream
from fulmen.models import Model
from fulmen.sampling import SamplingParams

R = TypeVar("R")


class LocalModel:
    """One LLM, shared; a `ServedModel`. Make it, use it and close it in one event loop."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """Calls to run between two steps; None at the end"""
        self._readers: dict[int, _Reader] = {}
        """Readers of running requests, by id; the thread's own"""
        self._waiting: list[tuple[SharedPrompt, _Reader]] = []
        """Readers of answers that wait until another has read their prompt; the thread's own"""
        self.is_closed = False
        self._thread = threading.Thread(target=self._work, name="fulmen-engine", daemon=True)
        self._thread.start()

    @classmethod
    async def load(cls, name: str, **options: Any) -> "LocalModel":
        """Load a model as `LLM.load` does, with its options, while the event loop goes on."""
        return cls(await asyncio.to_thread(LLM.load, name, **options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything that runs, after the step under way, and the thread."""
        if not self.is_closed:
            self.is_closed = True
            self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model."""
        return self.llm.tokenizer

    @property
    def format(self) -> ChatFormat:
        """Chat format of the model."""
        return self.llm.format

    @property
    def defaults(self) -> SamplingParams:
        """Recommended sampling of the model."""
        return self.llm.defaults

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.llm.engine.max_model_len

    @property
    def stats(self) -> EngineStats:
        """Counters of the engine; they may be read while it runs."""
        return self.llm.engine.stats

    def stream(self, request: ChatRequest) -> "LocalStream":
        """Return the answer to a request; it starts when it is entered or first awaited."""
        return LocalStream(self, lambda: self.llm.prepare(request))

    def stream_many(self, request: ChatRequest, n: int) -> "list[LocalStream]":
        """Return n answers to a request, each with a seed of its own: the seed that is given, that
        and 1, and so on.

        The prompt is rendered and read once: the answer that is entered first reads it, and the
        others run from then on. Each is what it would be alone.
        """
        shared = SharedPrompt(self.llm, request)
        return [LocalStream(self, prepare, shared) for prepare in shared.prepare_many(n)]

    def stream_text(self, prompt: str | Sequence[int], **fields: Any) -> "LocalStream":
        """Return the continuation of a text or ids as they stand; all of it is content. fields are
        those of `ChatRequest`."""
        return self.stream(text_request(prompt, **fields))

    async def call(self, work: Callable[[], R]) -> R:
        """Run work on the LLM between two steps and return its result. It runs even if the caller
        is cancelled meanwhile."""
        if self.is_closed:
            raise RuntimeError("the engine is closed")
        done: Future[R] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self._calls.put(run)
        return await asyncio.shield(asyncio.wrap_future(done))

    async def load_weights(
        self, model: Model, *, running: Literal["end", "continue"] = "end"
    ) -> int:
        """Take a model's weights between two steps, and return their policy_version, which every
        token from now on bears. The model may be changed again when this returns.

        running  end: answers that run or wait end, with finish_reason abort. continue: they go on
                 under the new weights, after all that they were asked and have said was read again
        """

        def load() -> int:
            version = self.llm.load_weights(model, running=running)
            if running == "end":
                for _, reader in self._waiting:  # those that the engine has not taken yet
                    self.llm.end(reader.answer)
            return version

        return await self.call(load)

    def run(self, reader: "_Reader", prompt: "SharedPrompt | None" = None) -> None:
        """Start an answer and pass on its events from now on; for the engine's thread.

        prompt  shared with other answers, one of which reads it first
        """
        if prompt is not None and prompt.is_being_read:
            self._waiting.append((prompt, reader))
            return
        self.llm.start(reader.answer)
        if prompt is not None:
            prompt.started(reader.answer)
        assert reader.answer.request_id is not None
        self._readers[reader.answer.request_id] = reader

    # ---- the engine's thread -----------------------------------------------------------------

    def _work(self) -> None:
        while True:
            try:
                call = self._calls.get(block=not self._readers)
            except queue.Empty:
                self._step()
                continue
            if call is None:
                break
            call()
            self._pass_on()
        for reader in (*self._readers.values(), *(waiting for _, waiting in self._waiting)):
            self.llm.end(reader.answer)
        self._pass_on()

    def _step(self) -> None:
        try:
            self.llm.step()
        except Exception as error:
            # A forward pass that fails has ended the answers that took part, and the others go on.
            # If it ended none, the next step would fail the same way: then all end.
            answers = [reader.answer for reader in self._readers.values()]
            if all(answer.finish_reason is None for answer in answers):
                for answer in answers:
                    self.llm.end(answer, error)
        self._pass_on()

    def _pass_on(self) -> None:
        for request_id, reader in list(self._readers.items()):
            if not reader.pass_on():
                self.llm.end(reader.answer)
            if reader.answer.finish_reason is not None:
                del self._readers[request_id]
        waiting, self._waiting = self._waiting, []
        for prompt, reader in waiting:
            if reader.answer.finish_reason is not None:  # it was closed
                reader.pass_on()
                continue
            try:
                self.run(reader, prompt)
            except Exception as error:
                self.llm.end(reader.answer, error)
                reader.pass_on()


@dataclass(slots=True, eq=False)
class _Reader:
    """Carries events from the engine's thread to the event loop of the caller."""

    answer: Answer
    loop: asyncio.AbstractEventLoop
    arrivals: asyncio.Queue[list[Event] | None] = field(default_factory=asyncio.Queue)
    """Lists of events; None at the end"""

    def pass_on(self) -> bool:
        """Pass on what is new, in the engine's thread; False where nobody listens any more."""
        events = self.answer.take_events()
        try:
            if events:
                self.loop.call_soon_threadsafe(self.arrivals.put_nowait, events)
            if self.answer.finish_reason is not None:
                self.loop.call_soon_threadsafe(self.arrivals.put_nowait, None)
        except RuntimeError:  # the loop is closed
            return False
        return True


class LocalStream(StartingStream):
    """A running answer: iterate for its events; close one that is not read to its end."""

    def __init__(
        self, model: LocalModel, prepare: Callable[[], Answer], prompt: SharedPrompt | None = None
    ) -> None:
        self._model = model
        self._prepare = prepare
        self._prompt = prompt
        self._answer: Answer | None = None
        self._num_read_tokens = 0
        self._reader: _Reader | None = None
        self._events: deque[Event] = deque()
        self._is_over = self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        reader = await self._started()
        while True:
            while self._events:
                yield self._events.popleft()
            if self._is_over:
                return
            arrival = await reader.arrivals.get()
            if arrival is not None:
                self._events += arrival
                continue
            self._is_over = True
            reader.answer.raise_error()

    @property
    def tokens(self) -> Sequence[Token]:
        """New tokens so far; more come while it runs."""
        return () if self._answer is None else self._answer.tokens

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt; 0 until it is encoded."""
        return 0 if self._answer is None else len(self._answer.prompt.ids)

    @property
    def num_read_tokens(self) -> int:
        """Tokens of the prompt that are in the cache so far, those found there included."""
        answer = self._answer
        if answer is not None and answer.tokens:
            self._num_read_tokens = len(answer.prompt.ids)
        elif answer is not None and answer.request_id is not None:
            num_read = self._model.llm.engine.num_read_tokens(answer.request_id)
            num_read = min(num_read, len(answer.prompt.ids))
            self._num_read_tokens = max(num_read, self._num_read_tokens)  # it may be preempted
        return self._num_read_tokens

    async def end_thinking(self) -> bool:
        """Close the thought that runs now, at its next token, as if its budget were used up; return
        False if none runs."""
        answer = self._answer
        if answer is None or self._model.is_closed:
            return False
        return await self._on_model(answer.end_thinking)

    async def close(self) -> None:
        """End the answer, if it still runs, when the step under way is over."""
        if self._start is not None:
            await self._on_model(self._end)

    async def finish(self) -> Completion:
        """End the answer if it still runs, and return everything it came to.

        Raises the error that ended it, if one did.
        """
        reader = await self._started()
        await self._on_model(self._end)
        reader.answer.raise_error()
        return reader.answer.completion()

    async def _started(self) -> _Reader:
        await self._wait_for_start()
        if self._reader is None:
            raise RuntimeError("the stream is closed")
        return self._reader

    async def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if self._model.is_closed:
            raise RuntimeError("the engine is closed")
        self._answer = answer = await asyncio.to_thread(self._prepare)
        await self._on_model(lambda: self._run(answer, loop))

    def _run(self, answer: Answer, loop: asyncio.AbstractEventLoop) -> None:
        """Start the answer in the engine's thread, if its caller is still there."""
        if self._is_closed or self._model.is_closed:
            answer.cancel()
            return
        reader = _Reader(answer, loop)
        self._model.run(reader, self._prompt)
        self._reader = reader

    def _end(self) -> None:
        """End the answer in the engine's thread."""
        self._is_closed = True
        if self._reader is not None:
            self._model.llm.end(self._reader.answer)

    async def _on_model(self, work: Callable[[], R]) -> R:
        """Run work in the engine's thread, or here once that thread has ended."""
        if not self._model.is_closed:
            return await self._model.call(work)
        await self._model.close()
        return work()
