"""The running answers to one request: events of the model, joined and counted as they come."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fulmen.chat import (
    ChatModel,
    ChatRequest,
    Completion,
    ContentDelta,
    Event,
    Found,
    Message,
    ProblemFound,
    Token,
    ToolCallEnd,
    ToolCallStart,
)
from fulmen.server.asking import Ask, End, Progress, Report, Update
from fulmen.server.characters import WholeCharacters, whole_characters
from fulmen.server.errors import Refusal, failure_of
from fulmen.server.known_prompts import Digests
from fulmen.server.limits import Lease
from fulmen.server.metrics import Metrics
from fulmen.server.packets import Packer, is_same_text, text_of, with_text

_log = logging.getLogger(__name__)

_FLUSH_SECONDS: Final = 0.5
"""Longest time that a short fragment waits for more text"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, ready for the model."""

    request: ChatRequest
    found: Found
    report: Report
    digests: "Digests"


class Answers:
    """The running answers to one request: iterate for their news; close them in the end."""

    def __init__(
        self,
        model: ChatModel,
        prepared: Prepared,
        *,
        ask: Ask,
        scope: str,
        id: str,
        metrics: Metrics,
        lease: Lease,
        note: Callable[["Answers", End], None],
        leave: Callable[["Answers"], None],
    ) -> None:
        """
        lease  places in the engine, given back in the end
        note   writes down an answer that ended; called in a thread of its own
        leave  called when the request is over
        """
        self.id = id
        self.ask = ask
        self.scope = scope
        self.prepared = prepared
        self.report = prepared.report
        self.completions: list[Completion | None] = [None] * ask.num_answers
        self.signatures = [secrets.token_urlsafe(48) for _ in range(ask.num_answers)]
        """Signatures of the thoughts, by which a client's history finds them"""
        self.first_token_seconds: float | None = None
        self.seconds = 0.0
        self._model = model
        self._metrics = metrics
        self._lease = lease
        self._note = note
        self._leave = leave
        self._streams: list[Any] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._arrived = asyncio.Event()
        self._pending: list[list[Event]] = [[] for _ in range(ask.num_answers)]
        self._is_over = [False] * ask.num_answers
        self._errors: list[Exception] = []
        self._started = time.perf_counter()
        self._is_closed = False

    def turn_id(self, index: int) -> str:
        """Return the id of one of the answers."""
        return self.id if self.ask.num_answers == 1 else f"{self.id}-{index}"

    @property
    def prompt_ids(self) -> tuple[int, ...] | None:
        """Ids of the prompt, if the model has ids."""
        prompt = self.prepared.request.prompt
        return None if prompt is None else prompt.ids

    async def start(self) -> None:
        """Start the answers; a request that the model refuses raises here."""
        model, request, count = self._model, self.prepared.request, self.ask.num_answers
        if hasattr(model, "stream_many"):
            self._streams = list(model.stream_many(request, count))
        else:
            self._streams = [model.stream(request) for _ in range(count)]
        try:
            await self._streams[0].__aenter__()
        except BaseException:
            await self._close_streams()
            raise
        self._pumps = [
            asyncio.create_task(self._pump(index)) for index in range(len(self._streams))
        ]

    async def _pump(self, index: int) -> None:
        """Take the events of one answer as they come."""
        try:
            async for event in self._streams[index]:
                self._pending[index].append(event)
                self._arrived.set()
        except Exception as error:
            self._errors.append(error)
        self._is_over[index] = True
        self._arrived.set()

    async def updates(
        self, *, ping_seconds: float | None = None, deadline: float | None = None
    ) -> AsyncGenerator[Update | Progress | End, None]:
        """Yield what is new, until every answer has ended.

        ping_seconds  time without news after which a Progress comes
        deadline      end of the time, by the clock of the event loop

        Raises a Refusal if an answer fails or the time is over.
        """
        loop = asyncio.get_running_loop()
        views = [_View(index, self._streams[index]) for index in range(len(self._streams))]
        last_sent = loop.time()
        while views:
            holding = any(view.packer.is_holding for view in views)
            now = loop.time()
            until = [now + _FLUSH_SECONDS] if holding else []
            until += [last_sent + ping_seconds] if ping_seconds is not None else []
            until += [deadline] if deadline is not None else []
            is_new = await self._wait(min(until) - now if until else None)
            if self._errors:
                raise failure_of(self._errors[0])
            if deadline is not None and loop.time() >= deadline:
                raise Refusal(504, "the request took longer than the server allows")
            sent_any = False
            for view in list(views):
                events, self._pending[view.index] = self._pending[view.index], []
                is_over = self._is_over[view.index]
                ready = view.take(events, is_over=is_over, is_late=not is_new)
                if view.is_first and (ready or view.has_tokens):
                    view.is_first = False
                    self._first_token()
                if ready:
                    update = Update(view.index, ready, view.new_tokens())
                    view.count_gap(self._metrics, len(update.tokens))
                    yield update
                    sent_any = True
                if is_over:
                    views.remove(view)
                    yield await self._end(view)
                    sent_any = True
            if sent_any:
                last_sent = loop.time()
            elif ping_seconds is not None and loop.time() - last_sent >= ping_seconds:
                last_sent = loop.time()
                yield self._progress()

    async def _wait(self, timeout: float | None) -> bool:
        """Wait for news at most this long; return whether there are any."""
        if not self._arrived.is_set():
            try:
                async with asyncio.timeout(timeout):
                    await self._arrived.wait()
            except TimeoutError:
                return False
        self._arrived.clear()
        return True

    def _progress(self) -> Progress:
        stream = self._streams[0]
        total = getattr(stream, "num_prompt_tokens", 0) or 0
        return Progress(min(getattr(stream, "num_read_tokens", 0) or 0, total), total)

    def _first_token(self) -> None:
        if self.first_token_seconds is None:
            self.first_token_seconds = time.perf_counter() - self._started
            self._metrics.first_token(self.first_token_seconds)

    async def _end(self, view: "_View") -> End:
        completion: Completion = await self._streams[view.index].finish()
        self.completions[view.index] = completion
        reply = completion.reply
        calls = tuple(
            replace(call, arguments=dict(whole_characters(call.arguments)))
            for call in reply.tool_calls
        )
        shown = Message("assistant", view.content, reply.thinking, calls)
        end = End(view.index, completion, shown, view.is_call_cut, view.spoken)
        try:
            await asyncio.to_thread(self._note, self, end)
        except OSError as error:  # such as a full disk: the client gets its answer all the same
            _log.warning("answer %s is not in the log: %s", self.turn_id(end.index), error)
        self.seconds = time.perf_counter() - self._started
        self._metrics.finished(completion, self.seconds)
        return end

    async def end_thinking(self) -> bool:
        """End running thoughts softly; return whether one ran."""
        ended = False
        for stream in self._streams:
            end = getattr(stream, "end_thinking", None)
            if end is None:
                raise Refusal(501, "this model's thoughts cannot be ended while they run")
            ended = await end() or ended
        return ended

    async def close(self) -> None:
        """End what still runs, and free its place. Safe to call again, and when cancelled."""
        if self._is_closed:
            return
        self._is_closed = True
        self._leave(self)
        for pump in self._pumps:
            pump.cancel()
        try:
            await asyncio.shield(self._close_streams())
        finally:
            self._lease.release()

    async def _close_streams(self) -> None:
        for stream in self._streams:
            with suppress(Exception):
                await stream.close()


@dataclass(slots=True, eq=False)
class _View:
    """One answer as the client sees it."""

    index: int
    stream: Any
    characters: WholeCharacters = field(default_factory=WholeCharacters)
    packer: Packer = field(default_factory=Packer)
    runs: list[tuple[Event, list[str]]] = field(default_factory=list)
    """First event of each text so far with its pieces, and every other event, in order"""
    is_first: bool = True
    num_calls: int = 0
    num_whole_calls: int = 0
    num_sent_tokens: int = 0
    last_sent: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def content(self) -> str:
        """Text of the answer."""
        return "".join(
            piece for kind, run in self.runs for piece in run if isinstance(kind, ContentDelta)
        )

    @property
    def spoken(self) -> list[Event]:
        """All events so far; pieces of one text are one event."""
        return [with_text(event, "".join(run)) if run else event for event, run in self.runs]

    @property
    def is_call_cut(self) -> bool:
        """True if a call that was begun has not ended."""
        return self.num_calls > self.num_whole_calls

    @property
    def has_tokens(self) -> bool:
        return len(getattr(self.stream, "tokens", ())) > 0

    def new_tokens(self) -> Sequence[Token]:
        """Return the tokens since the last call."""
        tokens: Sequence[Token] = getattr(self.stream, "tokens", ())
        new = tokens[self.num_sent_tokens :]
        self.num_sent_tokens += len(new)
        return new

    def count_gap(self, metrics: Metrics, num_tokens: int) -> None:
        """Count the time since the tokens before these; the first ones follow none."""
        before, self.last_sent = self.last_sent, time.perf_counter()
        if before is not None and num_tokens:
            metrics.token_gap(self.last_sent - before, num_tokens)

    def take(self, events: Sequence[Event], *, is_over: bool, is_late: bool) -> list[Event]:
        """Return what can go out: fragments of the new events, and at the end all that is held.

        Text of which nothing could be used is shown with its problem, so that no answer is empty.
        """
        ready: list[Event] = []
        for event in events:
            for whole in self.characters.feed(event):
                self._see(whole)
                ready += self.packer.feed(whole)
        if is_late:
            ready += self.packer.flush()
        if is_over:
            ready += self.packer.flush()
            if self.problems and not self.content.strip() and not self.num_calls:
                shown = ContentDelta("\n".join(self.problems))
                self.runs = [run for run in self.runs if not isinstance(run[0], ContentDelta)]
                self._see(shown)
                ready.append(shown)
        return ready

    def _see(self, event: Event) -> None:
        text = text_of(event)
        if text is not None and self.runs and is_same_text(self.runs[-1][0], event):
            self.runs[-1][1].append(text)
        else:
            self.runs.append((event, [] if text is None else [text]))
        match event:
            case ToolCallStart():
                self.num_calls += 1
            case ToolCallEnd():
                self.num_whole_calls += 1
            case ProblemFound(sentence):
                self.problems.append(sentence)
