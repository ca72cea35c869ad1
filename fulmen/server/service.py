"""One request, from what a client sent to what it is answered, in no dialect.

    Ask -> history read and checked -> turns found in the log -> ids -> model -> updates -> log

A dialect turns its request into an `Ask`, and the updates into its own events. Everything between
is here, once: which answers of the history are ours, why a prompt had to be read again, how many
answers may run, and that an answer is in the log before the client can send it back.
"""

import asyncio
import hashlib
import json
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np

from fulmen.chat import (
    ChatRequest,
    Completion,
    ContentDelta,
    Event,
    Found,
    FoundTurn,
    History,
    Message,
    ProblemFound,
    Prompt,
    Token,
    ToolCallEnd,
    ToolCallStart,
    TurnLog,
    fingerprint_of_vocabulary,
    read_history,
    read_tools,
)
from fulmen.sampling import SamplingParams
from fulmen.server.config import ServerConfig
from fulmen.server.errors import Refusal, refusal_of
from fulmen.server.limits import Places
from fulmen.server.metrics import Metrics
from fulmen.server.packets import Packer

_FLUSH_SECONDS: Final = 0.5
"""Longest time that a short fragment waits for more text"""
_KNOWN_PROMPT_BYTES: Final = 64 * 2**20
"""Memory for the ids of recent prompts, which tell why a later one missed the cache"""

MissReason = Literal["system_changed", "tools_changed", "messages_changed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One request for answers."""

    messages: Sequence[Mapping[str, Any]]
    """The conversation as the client sent it"""
    system: object = None
    """System prompt that the client sent apart from the messages: text or text parts"""
    tools: Sequence[Mapping[str, Any]] = ()
    deferred_tools: Sequence[Mapping[str, Any]] = ()
    """Tools that may be called and that the prompt does not show: the history tells of them"""
    params: SamplingParams
    prompt_ids: tuple[int, ...] | None = None
    """The prompt as ids, in place of messages"""
    num_answers: int = 1
    keep_thoughts: bool | None = None
    """Show earlier thoughts that the template drops; None: as the server is set"""
    continues: bool = False
    """The last message is the beginning of the answer"""
    model: str
    """Name that the client asked for"""
    previous_id: str | None = None
    """Answer that the client compares this prompt's cache hits with"""
    ignored: tuple[str, ...] = ()
    """Fields of the request that had no effect"""


@dataclass(frozen=True, slots=True)
class Update:
    """News of one answer."""

    index: int
    events: Sequence[Event]
    tokens: Sequence[Token] = ()
    """Tokens that came since the last update; their text may come a little later"""


@dataclass(frozen=True, slots=True)
class Progress:
    """Nothing new for a while; the prompt is read so far."""

    num_read_tokens: int
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class End:
    """End of one answer, and everything it came to."""

    index: int
    completion: Completion
    shown: Message
    """The answer as the client was sent it"""
    is_call_cut: bool
    """True if a call was begun and not ended: it must not be carried out"""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the history: which turns are ours, and what of the prompt was new."""

    turns: Sequence[FoundTurn]
    repairs: Sequence[str] = ()
    ignored: Sequence[str] = ()
    num_dropped_images: int = 0
    previous_id: str | None = None
    """Answer that the prompt was compared with; None if none is known"""
    miss_reason: MissReason | None = None
    num_missed_tokens: int = 0
    """Tokens of the compared prompt and its answer that this prompt does not begin with"""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as the extension `fulmen` of a reply."""
        report: dict[str, Any] = {
            "turns": [
                {key: value for key, value in _turn_fields(turn) if value is not None}
                for turn in self.turns
            ]
        }
        if self.previous_id is not None:
            report["compared_with"] = self.previous_id
            report["missed_tokens"] = self.num_missed_tokens
            report["miss_reason"] = self.miss_reason
        for name in ("repairs", "ignored"):
            if values := getattr(self, name):
                report[name] = list(values)
        if self.num_dropped_images:
            report["dropped_images"] = self.num_dropped_images
        return report


def _turn_fields(turn: FoundTurn) -> Sequence[tuple[str, Any]]:
    return (("message", turn.index), ("state", turn.state), ("by", turn.by), ("id", turn.turn_id))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request, ready for the model."""

    request: ChatRequest
    found: Found
    report: Report
    digests: "_Digests"


@dataclass(frozen=True, slots=True)
class _Digests:
    """What a prompt's beginning was made of, to say which part changed."""

    system: str
    tools: str


@dataclass(frozen=True, slots=True)
class _KnownPrompt:
    """Ids of an answer and its prompt."""

    digests: _Digests
    ids: "np.ndarray[Any, np.dtype[np.int32]]"


class Service:
    """A model and the log of its answers, for all dialects."""

    def __init__(self, model: Any, config: ServerConfig, metrics: Metrics, places: Places) -> None:
        self.model = model
        self.config = config
        self.metrics = metrics
        self.places = places
        self._volatile_lines = [re.compile(pattern) for pattern in config.volatile_lines]
        self._known_prompts = _KnownPrompts(_KNOWN_PROMPT_BYTES)
        self._running: dict[str, Answers] = {}
        tokenizer = self.tokenizer
        self._log = None
        if tokenizer is not None:
            self._log = TurnLog(
                config.transcripts,
                vocabulary=fingerprint_of_vocabulary(tokenizer, model.format),
                max_bytes=config.transcript_bytes,
                max_age_seconds=config.transcript_days * 86400,
            )

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the model; None for one that has none."""
        return getattr(self.model, "tokenizer", None)

    @property
    def defaults(self) -> SamplingParams:
        """Recommended sampling of the model."""
        return getattr(self.model, "defaults", None) or SamplingParams()

    @property
    def max_model_len(self) -> int | None:
        """Tokens that prompt and answer may have together, if the model says."""
        length: int | None = getattr(self.model, "max_model_len", None)
        return length

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    async def count(self, ask: Ask, scope: str) -> int:
        """Return how many tokens the prompt of a request has."""
        if self.tokenizer is None:
            raise Refusal(501, "this model does not tell its tokens, they cannot be counted")
        prepared = await asyncio.to_thread(self._prepare, ask, scope)
        assert prepared.request.prompt is not None
        return len(prepared.request.prompt.ids) + len(prepared.request.prefix_ids)

    async def answer(self, ask: Ask, scope: str, answer_id: str) -> "Answers":
        """Start the answers to a request. Whatever is wrong with it is a Refusal."""
        if ask.num_answers > self.config.max_answers:
            raise Refusal(
                400, f"n is {ask.num_answers}, it must be at most {self.config.max_answers}"
            )
        lease = self.places.acquire(ask.num_answers)
        try:
            prepared = await asyncio.to_thread(self._prepare, ask, scope)
            answers = Answers(self, ask, scope, answer_id, prepared, lease)
            await answers.start()
        except BaseException as error:
            lease.release()
            if isinstance(error, Exception):
                raise refusal_of(error) from error
            raise
        self.metrics.turns([turn.state for turn in prepared.report.turns])
        self._running[answer_id] = answers
        return answers

    async def end_thinking(self, answer_id: str, scope: str) -> bool:
        """End the running thoughts of an answer softly; return whether one ran.

        Raises a Refusal for an answer that this caller does not have running.
        """
        answers = self._running.get(answer_id)
        if answers is None or answers.scope != scope:
            raise Refusal(404, f"no answer with the id {answer_id[:80]!r} is running")
        return await answers.end_thinking()

    def _prepare(self, ask: Ask, scope: str) -> _Prepared:
        """Read a history, find its turns and encode it, in a thread of its own."""
        history, is_prefix = self._read(ask)
        messages = history.messages
        begun = None
        if is_prefix:
            *before, begun = messages
            messages = tuple(before)
        tools = read_tools(ask.tools)
        digests = _Digests(
            _digest([m.content for m in _leading_systems(messages)]),
            _digest([dict(tool.function) for tool in tools]),
        )
        keep = self.config.keep_thoughts if ask.keep_thoughts is None else ask.keep_thoughts
        report = Report((), history.repairs, ask.ignored, history.num_dropped_images)
        request = ChatRequest(
            messages=messages,
            tools=(*tools, *read_tools(ask.deferred_tools)),
            params=self._with_room(ask.params),
        )
        if self._log is None:
            return _Prepared(request, Found(messages, ()), report, digests)
        if ask.prompt_ids is not None:
            found, ids = Found((), ()), list(ask.prompt_ids)
        else:
            found = self._log.find(
                messages, scope=scope, format=self.model.format, keep_thoughts=keep
            )
            ids = self.model.format.encode_history(
                found.messages, tools, tokenizer=self.tokenizer, keep_thoughts=keep
            ).ids
        prefix_ids = [] if begun is None else self._prefix_ids(begun)
        limit = self.max_model_len
        if limit is not None and len(ids) + len(prefix_ids) >= limit:
            raise Refusal(
                400,
                f"prompt is too long: {len(ids) + len(prefix_ids)} tokens > {limit - 1} maximum",
                code="context_length_exceeded",
                param="messages",
            )
        turns = [replace(turn, index=history.places[turn.index]) for turn in found.turns]
        report = replace(report, turns=turns)
        known_ids = [ask.previous_id, *(turn.turn_id for turn in reversed(found.turns))]
        report = self._known_prompts.compare(
            next((known for known in known_ids if known), None), ids, digests, scope, report
        )
        request = replace(
            request,
            messages=found.messages,
            prompt=Prompt(tuple(ids), report.num_missed_tokens, report.miss_reason),
            prefix_ids=tuple(prefix_ids),
        )
        return _Prepared(request, found, report, digests)

    def _read(self, ask: Ask) -> tuple[History, bool]:
        if ask.prompt_ids is not None:
            return History((), (), (), 0), False
        given: list[Mapping[str, Any]] = list(ask.messages)
        if not given:
            raise Refusal(400, "messages is empty, at least one message is needed")
        has_system = ask.system is not None
        if has_system:
            given.insert(0, {"role": "system", "content": ask.system})
        history = read_history(
            given,
            lenient=self.config.lenient_history,
            volatile_lines=self._volatile_lines,
            drop_images=self.config.drop_images,
            first_index=1 if has_system else 0,
        )
        last = history.messages[-1]
        is_prefix = ask.continues and last.role == "assistant" and not last.tool_calls
        return history, is_prefix

    def _with_room(self, params: SamplingParams) -> SamplingParams:
        """Return the sampling with a budget that leaves the thought's answer its share."""
        if params.max_tokens is None or params.thinking_budget is not None:
            return params
        room = int(params.max_tokens * (1 - self.config.answer_share))
        return replace(params, thinking_budget=room)

    def _prefix_ids(self, begun: Message) -> list[int]:
        """Return the ids of an answer that a client began; a thought before it is closed."""
        thinking = self.model.format.thinking
        text = begun.content.rstrip()
        if thinking is not None and thinking.is_open_in_prompt:
            text = f"{begun.thinking or ''}{thinking.forced_end}{text}"
        ids: list[int] = self.tokenizer.encode(text)
        return ids

    def note(self, answers: "Answers", end: End, signature: str) -> None:
        """Write an answer into the log, in a thread of its own."""
        completion = end.completion
        turn_id = answers.turn_id(end.index)
        if self._log is None or completion.finish_reason not in ("stop", "length", "repetition"):
            return
        if answers.ask.prompt_ids is None:
            self._log.add(
                answers.prepared.found.messages,
                completion,
                scope=answers.scope,
                turn_id=turn_id,
                shown=end.shown,
                signatures=[signature],
            )
        ids = [*completion.prompt_ids, *completion.answer_ids]
        self._known_prompts.add(turn_id, ids, answers.prepared.digests, answers.scope)

    def leave(self, answers: "Answers") -> None:
        """Forget a request that is over."""
        self._running.pop(answers.id, None)


class Answers:
    """The running answers to one request: iterate for their news; close them in the end."""

    def __init__(
        self, service: Service, ask: Ask, scope: str, id: str, prepared: _Prepared, lease: Any
    ) -> None:
        self.id = id
        self.ask = ask
        self.scope = scope
        self.prepared = prepared
        self.report = prepared.report
        self.completions: list[Completion | None] = [None] * ask.num_answers
        self.signatures = [secrets.token_urlsafe(48) for _ in range(ask.num_answers)]
        """What a client sends back with a thought, and we find it by"""
        self.first_token_seconds: float | None = None
        self.seconds = 0.0
        self._service = service
        self._lease = lease
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

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were found in the cache, as far as is known while it is read."""
        return min((getattr(stream, "num_hit_tokens", 0) or 0 for stream in self._streams[:1]), default=0)

    async def start(self) -> None:
        """Start the answers; a request that the model refuses raises here."""
        model, request, count = self._service.model, self.prepared.request, self.ask.num_answers
        if hasattr(model, "stream_many"):
            self._streams = model.stream_many(request, count)
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
    ) -> AsyncIterator[Update | Progress | End]:
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
                raise refusal_of(self._errors[0])
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
                    yield Update(view.index, ready, view.new_tokens())
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
            self._service.metrics.first_token(self.first_token_seconds)

    async def _end(self, view: "_View") -> End:
        completion: Completion = await self._streams[view.index].finish()
        self.completions[view.index] = completion
        reply = completion.reply
        shown = Message("assistant", view.content, reply.thinking, reply.tool_calls)
        end = End(view.index, completion, shown, view.is_call_open)
        await asyncio.to_thread(self._service.note, self, end, self.signatures[view.index])
        self.seconds = time.perf_counter() - self._started
        self._service.metrics.finished(completion, self.seconds)
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
        self._service.leave(self)
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
    packer: Packer = field(default_factory=Packer)
    is_first: bool = True
    content: str = ""
    is_call_open: bool = False
    num_calls: int = 0
    num_sent_tokens: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def has_tokens(self) -> bool:
        return len(getattr(self.stream, "tokens", ())) > 0

    def new_tokens(self) -> Sequence[Token]:
        """Return the tokens since the last call."""
        tokens: Sequence[Token] = getattr(self.stream, "tokens", ())
        new = tokens[self.num_sent_tokens :]
        self.num_sent_tokens += len(new)
        return new

    def take(self, events: Sequence[Event], *, is_over: bool, is_late: bool) -> list[Event]:
        """Return what can go out: fragments of the new events, and at the end all that is held.

        Text of which nothing could be used is shown with its problem, so that no answer is empty.
        """
        ready: list[Event] = []
        for event in events:
            self._see(event)
            ready += self.packer.feed(event)
        if is_late:
            ready += self.packer.flush()
        if is_over:
            ready += self.packer.flush()
            if self.problems and not self.content.strip() and not self.num_calls:
                self.content = "\n".join(self.problems)
                ready.append(ContentDelta(self.content))
        return ready

    def _see(self, event: Event) -> None:
        match event:
            case ContentDelta(text):
                self.content += text
            case ToolCallStart():
                self.is_call_open = True
                self.num_calls += 1
            case ToolCallEnd():
                self.is_call_open = False
            case ProblemFound(text):
                self.problems.append(text)


class _KnownPrompts:
    """Ids of recent prompts with their answers, to say where a later prompt left them."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._known: OrderedDict[tuple[str, str], _KnownPrompt] = OrderedDict()

    def add(self, turn_id: str, ids: Sequence[int], digests: _Digests, scope: str) -> None:
        known = _KnownPrompt(digests, np.asarray(ids, dtype=np.int32))
        self._known[scope, turn_id] = known
        self._num_bytes += known.ids.nbytes
        while self._num_bytes > self._max_bytes:
            _, oldest = self._known.popitem(last=False)
            self._num_bytes -= oldest.ids.nbytes

    def compare(
        self,
        turn_id: str | None,
        ids: Sequence[int],
        digests: _Digests,
        scope: str,
        report: Report,
    ) -> Report:
        """Return the report with what this prompt has in common with an earlier one."""
        known = None if turn_id is None else self._known.get((scope, turn_id))
        if known is None:
            return report
        num_common = _num_common(known.ids, np.asarray(ids, dtype=np.int32))
        num_missed = len(known.ids) - num_common
        reason: MissReason | None = None
        if num_missed:
            reason = "messages_changed"
            if known.digests.system != digests.system:
                reason = "system_changed"
            elif known.digests.tools != digests.tools:
                reason = "tools_changed"
        return replace(
            report, previous_id=turn_id, num_missed_tokens=num_missed, miss_reason=reason
        )


def _num_common(first: Any, second: Any) -> int:
    """Return how many ids two arrays begin with in common."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length


def _leading_systems(messages: Sequence[Message]) -> list[Message]:
    count = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    return list(messages[:count])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
