"""A model whose weights another server holds, for any number of callers in one event loop.

    async with await UpstreamModel.connect("MiniMaxAI/MiniMax-M2", "http://gpu:30000") as model:
        async with model.stream(request) as stream:
            async for event in stream: ...

Prompts are rendered and encoded here, and answers are read here: ids go out, ids come back. Each
answer is a task of the event loop (`drawing.py`).
"""

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from fulmen.catalog import recommended_sampling, resolve_without_weights
from fulmen.chat import (
    ChatFormat,
    ChatRequest,
    Completion,
    Event,
    Token,
    Tokenizer,
    load_format,
    text_request,
)
from fulmen.checkpoints import read_config
from fulmen.engine import EngineStats
from fulmen.llm.answer import Answer
from fulmen.llm.http import Peer, PeerConfig, PeerError
from fulmen.llm.preparation import Preparation, SharedPrompt, end_ids
from fulmen.llm.starting import StartingStream
from fulmen.llm.upstream.drawing import Drawing, Source
from fulmen.llm.upstream.probe import UpstreamKind, find
from fulmen.sampling import SamplingParams, check_whole

R = TypeVar("R")

_PROBE: Final = PeerConfig(
    connect_seconds=5, first_byte_seconds=30, idle_seconds=30, answer_seconds=60, max_retries=0
)
"""Waits of the questions at the start, which are short"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """Facts that are known of a model without its weights."""

    tokenizer: Tokenizer
    format: ChatFormat
    defaults: SamplingParams
    vocab_size: int
    max_model_len: int

    @classmethod
    def read(cls, name: str, *, ignore_config_fields: Sequence[str] = ()) -> "Folder":
        """Read a model by path, catalog name or hub id; weights are not fetched and not opened."""
        folder: Path = resolve_without_weights(name)
        config = read_config(folder, ignore_config_fields=ignore_config_fields)
        tokenizer, format = Tokenizer.from_folder(folder), load_format(folder)
        return cls(
            tokenizer=tokenizer,
            format=format,
            defaults=recommended_sampling(name, folder, format.name),
            vocab_size=config.vocab_size,
            max_model_len=config.max_position_embeddings,
        )


class UpstreamModel:
    """One model at another server; a `ServedModel`. Make it, use it and close it in one event loop.

    Sessions need the states of a model, which the other server keeps: there are none.
    """

    def __init__(self, model: Folder, source: Source, *, max_num_seqs: int = 256) -> None:
        """max_num_seqs: answers that run at once; more of them wait at the server in front"""
        check_whole("max_num_seqs", max_num_seqs, 1, 2**20)
        self.defaults = model.defaults
        """Recommended sampling of the model"""
        self.max_num_seqs = max_num_seqs
        self.is_closed = False
        self._model = model
        self._source = source
        self._preparation = Preparation(
            model.tokenizer,
            model.format,
            vocab_size=model.vocab_size,
            eos_token_ids=source.eos_token_ids,
        )
        self._streams: set[UpstreamStream] = set()

    @classmethod
    async def connect(
        cls,
        name: str,
        url: str,
        *,
        kind: UpstreamKind | None = None,
        key: str | None = None,
        config: PeerConfig | None = None,
        wait_seconds: float = 0.0,
        on_wait: Callable[[str], None] | None = None,
        max_num_seqs: int = 256,
        ignore_config_fields: Sequence[str] = (),
    ) -> "UpstreamModel":
        """Return a model by path, catalog name or hub id, whose weights are served at a URL.

        kind          which server it is; asked if omitted
        key           API key of that server
        wait_seconds  time in which it has to answer: it may be loading the weights
        on_wait       called with a sentence each time that it does not answer yet

        Raises ValueError for a model or a URL that cannot be used, PeerError for a server that does
        not answer.
        """
        model = await asyncio.to_thread(
            Folder.read, name, ignore_config_fields=ignore_config_fields
        )
        headers: Mapping[str, str] = {} if key is None else {"authorization": f"Bearer {key}"}
        async with Peer(url, headers=headers, config=_PROBE) as peer:
            found = await find(
                peer,
                model.tokenizer,
                model.vocab_size,
                kind=kind,
                wait_seconds=wait_seconds,
                on_wait=on_wait,
            )
        lengths = (found.max_model_len, model.max_model_len)
        source = Source(
            peer=Peer(url, headers=headers, config=config),
            wire=found.wire,
            eos_token_ids=frozenset(end_ids(model.tokenizer, model.format)),
            max_model_len=min(length for length in lengths if length is not None),
        )
        return cls(model, source, max_num_seqs=max_num_seqs)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything that runs, and the connections."""
        self.is_closed = True
        for stream in list(self._streams):
            await stream.close()
        await self._source.peer.close()

    @property
    def name_of_server(self) -> str:
        """Name of the software that holds the weights."""
        return self._source.wire.name

    @property
    def url(self) -> str:
        """Address of that server, without a user's name and key."""
        return self._source.peer.shown_url

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model."""
        return self._model.tokenizer

    @property
    def format(self) -> ChatFormat:
        """Chat format of the model."""
        return self._model.format

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._source.max_model_len

    @property
    def stats(self) -> EngineStats:
        """Counters of what came through here; the other server has its own of its engine."""
        counts = self._source.counts
        return EngineStats(
            num_steps=0,
            num_prompt_tokens=counts.num_prompt_tokens,
            num_queried_tokens=counts.num_prompt_tokens,
            num_hit_tokens=counts.num_hit_tokens,
            num_fed_tokens=counts.num_prompt_tokens + counts.num_new_tokens,
            num_new_tokens=counts.num_new_tokens,
            num_finished=dict(counts.num_finished),
            num_preemptions=0,
            num_drafted_tokens=0,
            num_accepted_tokens=0,
            schedule_seconds=0.0,
            run_seconds=0.0,
            used_snapshot_bytes=0,
            num_running=counts.num_running,
            num_waiting=0,
            kv_cache_usage=0.0,
            num_known_tokens=0,
            num_evicted_tokens=0,
        )

    def prepare(self, request: ChatRequest) -> Answer:
        """Return the answer to a request, yet to be started. Any thread may do this."""
        return self._preparation.prepare(request, self.defaults)

    def prepare_next(self, answer: Answer, request: ChatRequest, number: int) -> Answer:
        """Return the answer after `number` others to one request, of which `answer` is the
        first."""
        return self._preparation.prepare_next(answer, request, number)

    def stream(self, request: ChatRequest) -> "UpstreamStream":
        """Return the answer to a request; it starts when it is entered or first awaited."""
        return UpstreamStream(self, lambda: self.prepare(request))

    def stream_many(self, request: ChatRequest, n: int) -> "list[UpstreamStream]":
        """Return n answers to a request, each with a seed of its own: the seed that is given, that
        and 1, and so on. The prompt is rendered once."""
        prompt = SharedPrompt(self, request)
        return [UpstreamStream(self, prepare) for prepare in prompt.prepare_many(n)]

    def stream_text(self, prompt: str | Sequence[int], **fields: Any) -> "UpstreamStream":
        """Return the continuation of a text or ids as they stand; all of it is content. fields are
        those of `ChatRequest`."""
        return self.stream(text_request(prompt, **fields))

    async def call(self, work: Callable[[], R]) -> R:
        """Run work between two tokens and return its result."""
        return work()

    def draw(self, stream: "UpstreamStream", answer: Answer) -> Drawing:
        """Return the drawing of an answer, whose stream is closed with the model."""
        if self.is_closed:
            answer.cancel()
            raise RuntimeError("the model is closed")
        try:
            drawing = Drawing(self._source, answer, stream.look)
        except ValueError:
            answer.cancel()
            raise
        self._streams.add(stream)
        return drawing

    def leave(self, stream: "UpstreamStream", answer: Answer) -> None:
        """Take note that an answer has ended."""
        self._streams.discard(stream)
        finished = self._source.counts.num_finished
        if answer.finish_reason is not None:
            finished[answer.finish_reason] = finished.get(answer.finish_reason, 0) + 1


class UpstreamStream(StartingStream):
    """A running answer: iterate for its events; close one that is not read to its end."""

    def __init__(self, model: UpstreamModel, prepare: Callable[[], Answer]) -> None:
        self._model = model
        self._prepare = prepare
        self._answer: Answer | None = None
        self._drawing: Drawing | None = None
        self._task: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._is_closed = self._is_over = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        answer = await self._started()
        events: deque[Event] = deque()
        while True:
            is_over = self._is_over
            self._arrived.clear()
            events += answer.take_events()
            while events:
                yield events.popleft()
            if is_over:
                answer.raise_error()
                return
            if not self._is_over:
                await self._arrived.wait()

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
        """Tokens of the prompt that were read: none or all, the other server tells no more."""
        return self.num_prompt_tokens if self.tokens else 0

    def look(self) -> None:
        """Have the reader look at what came."""
        self._arrived.set()

    async def end_thinking(self) -> bool:
        """Close the thought that runs now, at its next token, as if its budget were used up; return
        False if none runs."""
        if self._answer is None or self._drawing is None:
            return False
        async with self._drawing.asking:
            return self._answer.end_thinking()

    async def close(self) -> None:
        """End the answer, if it still runs."""
        self._is_closed = True
        if self._start is not None:
            await asyncio.gather(self._start, return_exceptions=True)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def finish(self) -> Completion:
        """End the answer if it still runs, and return everything it came to. One that failed holds
        what came before, with a finish_reason of "error"."""
        answer = await self._started()
        await self.close()
        return answer.completion()

    async def _started(self) -> Answer:
        await self._wait_for_start()
        if self._answer is None or self._task is None:
            raise RuntimeError("the stream is closed")
        return self._answer

    async def _begin(self) -> None:
        """Prepare the answer, in a thread of its own, and start to draw it."""
        answer = await asyncio.to_thread(self._prepare)
        if self._is_closed:
            answer.cancel()
            return
        drawing = self._model.draw(self, answer)
        answer.started(0)
        self._answer, self._drawing = answer, drawing
        self._task = asyncio.ensure_future(drawing.run())
        self._task.add_done_callback(functools.partial(self._over, answer))

    def _over(self, answer: Answer, task: "asyncio.Task[None]") -> None:
        """Note how the drawing ended."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, PeerError):
            error.public = error.without_address(self._model.url, self._model.name_of_server)
        if error is not None:
            answer.fail(error)
        answer.abort()
        self._is_over = True
        self._model.leave(self, answer)
        self.look()
