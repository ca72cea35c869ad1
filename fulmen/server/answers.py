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
    ThinkingDelta,
    Token,
    ToolCallEnd,
    ToolCallStart,
)
from fulmen.server.asking import Ask, End, Progress, Report, Update
from fulmen.server.characters import WholeCharacters, whole_characters
from fulmen.server.errors import Refusal, failure_of
from fulmen.server.known_prompts import Digests
from fulmen.server.metrics import ModelMetrics
from fulmen.server.packets import Packer, is_same_text, text_of, with_text
from fulmen.server.places import Lease
from fulmen.server.sessions import Held
from fulmen.server.usage import KeyUsage

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.05
"""Time in which events gather before they are looked at, but for the first and the last: to look at
each token would take the engine's cores more often than a reader can tell"""
_FLUSH_SECONDS: Final = 0.05
"""Longest time that a short fragment waits for more text, once it was looked at: a slow model's
tokens go out one by one, a fast one's are joined"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, ready for the model."""

    request: ChatRequest
    found: Found
    report: Report
    digests: "Digests"
    begun: Message | None = None
    """Beginning of the answer that the client gave"""
    others: Sequence[ChatRequest] = ()
    """Requests for the texts after the first"""

    @property
    def requests(self) -> Sequence[ChatRequest]:
        """All requests, each with answers of its own."""
        return (self.request, *self.others)


class Answers:
    """The running answers to one request: iterate for their news; close them in the end."""

    def __init__(
        self,
        model: ChatModel,
        prepared: Prepared,
        *,
        ask: Ask,
        model_name: str,
        scope: str,
        id: str,
        metrics: ModelMetrics,
        usage: KeyUsage,
        lease: Lease,
        started: float,
        note: Callable[["Answers", End, Message], None],
        leave: Callable[["Answers"], None],
        held: Held | None = None,
    ) -> None:
        """
        usage    of the caller's key
        lease    places in the engine, given back in the end
        started  time.perf_counter() when the request came
        note     writes down an answer that ended, as the client's history will have it; called in a
                 thread of its own
        leave    called when the request is over
        held     session that keeps the answer, released in the end
        """
        self.id = id
        self.ask = ask
        self.model_name = model_name
        """Name of the model, whatever the client asked for"""
        self.scope = scope
        self.prepared = prepared
        self.report = prepared.report
        self.completions: list[Completion | None] = [None] * ask.num_all_answers
        self.signatures = [secrets.token_urlsafe(48) for _ in range(ask.num_all_answers)]
        """Signatures of the thoughts, by which a client's history finds them"""
        self.first_token_seconds: float | None = None
        self.begun_at = time.time_ns()
        """Time at which the engine got the request, in nanoseconds since 1970"""
        self._model = model
        self._metrics = metrics
        self._usage = usage
        self._lease = lease
        self._note = note
        self._leave = leave
        self._held = held
        self._views: list[_View] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._arrived = asyncio.Event()
        self._look_timer: asyncio.TimerHandle | None = None
        self._last_sent = 0.0
        self._started = started
        self._is_closed = False

    def turn_id(self, index: int) -> str:
        """Return the id of one of the answers."""
        return self.id if self.ask.num_all_answers == 1 else f"{self.id}-{index}"

    @property
    def prompt_ids(self) -> tuple[int, ...] | None:
        """Ids of the prompt, if the model has ids."""
        prompt = self.prepared.request.prompt
        return None if prompt is None else prompt.ids

    @property
    def num_prompt_tokens(self) -> int | None:
        """Tokens of all prompts, if the model has ids."""
        if self.prompt_ids is None:
            return None
        return sum(len(each.prompt.ids) for each in self.prepared.requests if each.prompt)

    @property
    def num_new_tokens(self) -> int:
        """Tokens of all answers so far."""
        return sum(view.num_tokens for view in self._views)

    async def start(self) -> None:
        """Start the answers; a request that the model refuses raises here."""
        model, count = self._model, self.ask.num_answers
        streams: list[Any] = []
        self.begun_at = time.time_ns()
        for request in self.prepared.requests:
            if hasattr(model, "stream_many"):
                streams += model.stream_many(request, count)
            else:
                streams += [model.stream(request) for _ in range(count)]
        self._views = [_View(index, stream) for index, stream in enumerate(streams)]
        try:
            await streams[0].__aenter__()
        except BaseException:
            await self._close_streams()
            raise
        self._pumps = [asyncio.create_task(self._pump(view)) for view in self._views]

    async def _pump(self, view: "_View") -> None:
        """Take the events of one answer as they come."""
        loop = asyncio.get_running_loop()
        try:
            async for event in view.stream:
                view.pending.append(event)
                if view.is_first:
                    self._look()
                elif self._look_timer is None:
                    self._look_timer = loop.call_later(_LOOK_SECONDS, self._look)
        except Exception as error:
            view.error = error
        view.is_over = True
        self._look()

    def _look(self) -> None:
        """Have `updates` look at what came."""
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        self._arrived.set()

    def sent(self) -> None:
        """Note that the client was sent something: no ping is due for a while."""
        self._last_sent = asyncio.get_running_loop().time()

    async def updates(
        self, *, ping_seconds: float | None = None, deadline: float | None = None
    ) -> AsyncGenerator[Update | Progress | End, None]:
        """Yield what is new, until every answer has ended.

        ping_seconds  time after `sent` in which a Progress comes; None: none comes
        deadline      end of the time, by the clock of the event loop

        Raises a Refusal if an answer fails, after what it had said, or if the time is over.
        """
        loop = asyncio.get_running_loop()
        self.sent()
        while running := [view for view in self._views if not view.is_ended]:
            ping_at = None if ping_seconds is None else self._last_sent + ping_seconds
            await self._wait_until(ping_at, deadline, *(view.flush_at for view in running))
            now = loop.time()
            if deadline is not None and now >= deadline:
                raise Refusal(504, "the request took longer than the server allows")
            for view in running:
                ready = view.take(now)
                if view.is_first and (ready or view.num_tokens):
                    view.is_first = False
                    self._first_token()
                if ready:
                    update = Update(view.index, ready, view.new_tokens())
                    view.count_gap(self._metrics, len(update.tokens))
                    self._usage.add_new(len(update.tokens))
                    yield update
                if view.is_ended and view.error is not None:
                    with suppress(Exception):  # a model may have kept nothing
                        await self._end(view, is_cut=True)
                    raise failure_of(view.error)
                if view.is_ended:
                    yield await self._end(view)
            if ping_seconds is not None and now >= self._last_sent + ping_seconds:
                self.sent()
                yield self.progress()

    async def _wait_until(self, *times: float | None) -> None:
        """Wait for news, at most until the first of these times."""
        until = min((time for time in times if time is not None), default=None)
        if not self._arrived.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._arrived.wait()
        self._arrived.clear()

    def progress(self) -> Progress:
        """Return how far the prompt is read."""
        stream = self._views[0].stream
        total = getattr(stream, "num_prompt_tokens", 0) or 0
        return Progress(min(getattr(stream, "num_read_tokens", 0) or 0, total), total)

    def _first_token(self) -> None:
        if self.first_token_seconds is None:
            self.first_token_seconds = time.perf_counter() - self._started
            self._metrics.first_token(self.first_token_seconds)

    async def _end(self, view: "_View", *, is_cut: bool = False) -> End:
        """Write down how an answer ended.

        is_cut  the client has only what it was sent: it went away, or the answer failed
        """
        completion: Completion = await view.stream.finish()
        self.completions[view.index] = completion
        reply = completion.reply
        calls = tuple(
            replace(call, arguments=dict(whole_characters(call.arguments)))
            for call in reply.tool_calls
        )
        content = view.sent_content if is_cut else view.content
        begun = self.prepared.begun
        whole = content if begun is None else begun.content + content
        shown = Message("assistant", content, reply.thinking, calls)
        logged = replace(shown, content=whole)
        if completion.prefix_ids and begun is None:  # the client knows what they say
            shown = replace(shown, thinking=view.said(ThinkingDelta))
            logged = replace(shown, content=reply.content, thinking=reply.thinking)
        end = End(view.index, completion, shown, view.is_call_cut, view.spoken)
        try:
            await asyncio.to_thread(self._note, self, end, logged)
        except (OSError, ValueError) as error:  # a full disk, a broken file: the answer goes out
            _log.warning("answer %s is not in the log: %s", self.turn_id(end.index), error)
        if self._held is not None:
            request = self.prepared.request
            self._held.keep(self.prepared.found.messages, completion, request.tools)
        self._metrics.finished(completion, time.perf_counter() - self._started)
        self._count(view, end)
        return end

    def _count(self, view: "_View", end: End) -> None:
        """Count what an answer took that was not counted as it came."""
        used = end.completion.usage
        self._usage.add_new(used.num_new_tokens - view.num_sent_tokens)
        self._usage.add_thinking(end.num_thinking_tokens)
        if self._is_first_of_prompt(view):
            self._usage.add_prompt(end.num_prompt_tokens, used.num_cached_tokens)

    def _is_first_of_prompt(self, view: "_View") -> bool:
        """Return whether an answer is the one that its prompt counts with: others share it."""
        return view.index % self.ask.num_answers == 0

    def when_over(self, call: Callable[[], None]) -> None:
        """Call something once all answers have ended; at once if they have."""
        self._lease.and_then(call)

    async def end_thinking(self) -> bool:
        """End running thoughts softly; return whether one ran."""
        ended = False
        for view in self._views:
            end = getattr(view.stream, "end_thinking", None)
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
        if self._look_timer is not None:
            self._look_timer.cancel()
        try:
            await asyncio.shield(self._close_streams())
        finally:
            self._lease.release()
            if self._held is not None:
                self._held.release()

    async def _close_streams(self) -> None:
        """End every stream; what an answer had said until then is logged."""
        num_read = {view.index: getattr(view.stream, "num_read_tokens", 0) for view in self._views}
        for view in self._views:
            with suppress(Exception):
                await view.stream.close()
        for view in self._views:
            if view.is_ended:
                continue
            if not view.is_first:
                with suppress(Exception):
                    await self._end(view, is_cut=True)
            elif self._is_first_of_prompt(view):
                # It was given up while its prompt was read. An earlier prompt's tokens were known.
                self._usage.add_prompt(num_read[view.index], self.report.num_common_tokens)


@dataclass(slots=True, eq=False)
class _View:
    """One answer as the client sees it."""

    index: int
    stream: Any
    pending: list[Event] = field(default_factory=list)
    """Events that came and were not looked at"""
    error: Exception | None = None
    is_over: bool = False
    """No more events come"""
    is_ended: bool = False
    """All events were looked at"""
    flush_at: float | None = None
    """Time at which held text goes out, however short it is"""
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
        return self.said(ContentDelta)

    def said(self, kind: type[ThinkingDelta | ContentDelta]) -> str:
        """Return the text of all events of a kind so far."""
        return "".join(
            piece for first, run in self.runs if isinstance(first, kind) for piece in run
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
    def sent_content(self) -> str:
        """Text of the answer without what is held back."""
        return self.content.removesuffix(self.packer.held_content)

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return len(getattr(self.stream, "tokens", ()))

    def new_tokens(self) -> Sequence[Token]:
        """Return the tokens since the last call."""
        tokens: Sequence[Token] = getattr(self.stream, "tokens", ())
        new = tokens[self.num_sent_tokens :]
        self.num_sent_tokens += len(new)
        return new

    def count_gap(self, metrics: ModelMetrics, num_tokens: int) -> None:
        """Count the time since the tokens before these; the first ones follow none."""
        before, self.last_sent = self.last_sent, time.perf_counter()
        if before is not None and num_tokens:
            metrics.token_gap(self.last_sent - before, num_tokens)

    def take(self, now: float) -> list[Event]:
        """Return what can go out: fragments of the new events; all that is held if it is the first
        of the answer, the last, or waits too long.

        Text of which nothing could be used is shown with its problem, so that no answer is empty.
        """
        events, self.pending = self.pending, []
        self.is_ended = self.is_over
        ready: list[Event] = []
        for event in events:
            for whole in self.characters.feed(event):
                self._see(whole)
                ready += self.packer.feed(whole)
        is_late = self.flush_at is not None and now >= self.flush_at
        if self.is_first or self.is_ended or is_late:
            ready += self.packer.flush()
        if not self.packer.is_holding:
            self.flush_at = None
        elif ready or self.flush_at is None:
            self.flush_at = now + _FLUSH_SECONDS
        if self.is_ended and self.problems and not self.content.strip() and not self.num_calls:
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
