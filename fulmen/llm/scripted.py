"""A model whose answers are written beforehand: for tests of what serves a model, and for replays.

`ScriptedModel` needs no weights: its texts go through the real parser, in pieces, with the ids and
counts that an engine would give them. `forced.py` makes a real engine say the texts.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final, Self, TypeVar, get_args

from fulmen.chat import (
    ChatFormat,
    ChatRequest,
    Completion,
    Event,
    PlainParser,
    StopTexts,
    Timing,
    Token,
    Tokenizer,
    Tool,
    Usage,
    find_spans,
    limits_calls,
    read_tools,
    text_request,
)
from fulmen.engine import EngineStats, read_ids
from fulmen.sampling import FinishReason, SamplingParams, check_whole

R = TypeVar("R")

_NUM_KNOWN: Final = 64
"""Latest answers whose ids count as cached for later prompts"""


@dataclass(frozen=True, slots=True)
class ScriptedAnswer:
    """One answer of a script."""

    text: str = ""
    """Raw text of the model, with tags as it writes them, without the end of the turn"""
    fail_with: Exception | None = None
    """Error that the stream raises after the text"""
    finish_reason: FinishReason = "stop"
    """Reason why the answer ends after the text; "stop" is the end of the turn"""


Line = str | Exception | ScriptedAnswer
Script = Iterable[Line | Callable[[ChatRequest], Line]]
"""One answer after the other, or functions that write it for a request; a text is an answer that
ends its turn, an exception is raised in the stream"""


class Lines:
    """A script, read answer by answer."""

    def __init__(self, script: Script) -> None:
        self._lines: Iterator[Line | Callable[[ChatRequest], Line]] = iter(script)
        self._count = 0

    def next(self, request: ChatRequest) -> ScriptedAnswer:
        """Return the next answer."""
        line = next(self._lines, None)
        if line is None:
            raise ValueError(f"the script ended after {self._count} answers, another was asked for")
        self._count += 1
        if not isinstance(line, Line):
            line = line(request)
        if isinstance(line, str):
            return ScriptedAnswer(line)
        return line if isinstance(line, ScriptedAnswer) else ScriptedAnswer(fail_with=line)


class ScriptedModel:
    """A `ServedModel` that answers each request with the next text of a script.

    Of the sampling it follows max_tokens, stop texts, stop_token_ids and logprobs, ids only with a
    tokenizer. A script says what it says: grammars, a tool_choice and a thinking_budget, 0 too,
    change nothing, though a request that no model could follow is refused.
    """

    def __init__(
        self,
        format: ChatFormat,
        script: Script,
        *,
        tokenizer: Tokenizer | None = None,
        piece_chars: int = 7,
        delay_seconds: float = 0.0,
        max_model_len: int = 2**20,
        defaults: SamplingParams | None = None,
    ) -> None:
        """With a tokenizer, completions have ids, each with log-probability 0: a script is certain.

        piece_chars    least number of characters that come at once; one text without a tokenizer
        delay_seconds  time before each piece
        """
        check_whole("piece_chars", piece_chars, 1, 2**31)
        check_whole("max_model_len", max_model_len, 2, 2**31)
        self.format = format
        self.piece_chars = piece_chars
        self.delay_seconds = delay_seconds
        self.max_model_len = max_model_len
        self.defaults = defaults or SamplingParams()
        self.requests: list[ChatRequest] = []
        """All requests so far"""
        self.lines = Lines(script)
        self.known_tokenizer = tokenizer
        """Tokenizer, if it was given one"""
        self.known_ids: deque[tuple[int, ...]] = deque(maxlen=_NUM_KNOWN)
        """Prompts with their answers, which count as cached"""
        self.counts: Counter[str] = Counter()
        """Tokens and requests so far, by their name in `EngineStats`"""
        self.finished: Counter[FinishReason] = Counter(dict.fromkeys(get_args(FinishReason), 0))

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model. Raises ValueError if it was given none."""
        if self.known_tokenizer is None:
            raise ValueError("the scripted model has no tokenizer, it has to be given one")
        return self.known_tokenizer

    @property
    def stats(self) -> EngineStats:
        """Counters as an engine would have them."""
        return EngineStats(
            num_steps=self.counts["num_new_tokens"],
            num_prompt_tokens=self.counts["num_prompt_tokens"],
            num_queried_tokens=self.counts["num_prompt_tokens"],
            num_hit_tokens=self.counts["num_hit_tokens"],
            num_fed_tokens=self.counts["num_prompt_tokens"] + self.counts["num_new_tokens"],
            num_new_tokens=self.counts["num_new_tokens"],
            num_finished=dict(self.finished),
            num_preemptions=0,
            num_drafted_tokens=0,
            num_accepted_tokens=0,
            schedule_seconds=0.0,
            run_seconds=0.0,
            used_snapshot_bytes=0,
            num_running=self.counts["num_running"],
            num_waiting=0,
            kv_cache_usage=0.0,
            num_known_tokens=0,
            num_evicted_tokens=0,
        )

    def stream(self, request: ChatRequest) -> "ScriptedStream":
        """Return the next answer of the script."""
        return ScriptedStream(self, request)

    def stream_many(self, request: ChatRequest, n: int) -> "list[ScriptedStream]":
        """Return the next n answers of the script, in the order in which they are entered."""
        check_whole("n", n, 1, 2**31)
        return [self.stream(request) for _ in range(n)]

    def stream_text(self, prompt: str | Sequence[int], **fields: Any) -> "ScriptedStream":
        """Return the next answer of the script as the continuation of a text or ids."""
        return self.stream(text_request(prompt, **fields))

    async def call(self, work: Callable[[], R]) -> R:
        """Run work at once: there is no engine to wait for."""
        return work()


class ScriptedStream:
    """A scripted answer: iterate for its events."""

    def __init__(self, model: ScriptedModel, request: ChatRequest) -> None:
        self._model = model
        self._request = request
        self._format = model.format if request.text is None else None
        """None where all of the answer is content"""
        self._params = request.params or model.defaults
        self._line: ScriptedAnswer | None = None
        """Answer of the script; None until it starts"""
        self._rest: deque[int | str] = deque()
        """Ids still to come, or texts without a tokenizer"""
        self._prompt_ids: tuple[int, ...] = ()
        self._num_cached = self._num_thinking = self._num_chars = 0
        self._tokens: list[Token] = []
        self._pieces: list[str] = []
        """Text that each id settled"""
        self._stop = StopTexts(self._params.stop)
        self._has_end_id = self._is_context_full = False
        self._finish_reason: FinishReason | None = None
        self._error: Exception | None = None

    @property
    def tokens(self) -> Sequence[Token]:
        """New tokens so far; none without a tokenizer."""
        return self._tokens

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt; 0 until it is encoded."""
        return len(self._prompt_ids)

    @property
    def num_read_tokens(self) -> int:
        """Tokens of the prompt: a script reads it at once."""
        return len(self._prompt_ids)

    async def end_thinking(self) -> bool:
        """Put the last phrase and the closing tag in place of the rest of the thought; return False
        if none runs."""
        thinking = None if self._format is None else self._format.thinking
        is_running = self._line is not None and self._finish_reason is None
        if thinking is None or not is_running or not self._parser.is_thinking:
            return False
        tokenizer = self._model.known_tokenizer
        if tokenizer is None:
            rest = "".join(map(str, self._rest))
        else:
            rest = tokenizer.decode([one for one in self._rest if isinstance(one, int)])
        _, _, answer = rest.partition(thinking.end)
        end = f"\n\n{thinking.last_phrase}{thinking.forced_end}"
        self._rest = self._as_rest(end + answer.lstrip("\n"))
        return True

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        self._start()
        while self._finish_reason is None:
            if self._rest and self._model.delay_seconds:
                await asyncio.sleep(self._model.delay_seconds)
            if self._finish_reason is None:  # it may have been closed meanwhile
                for event in self._next_events():
                    yield event
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """End the answer, if it is not at its end."""
        if self._line is not None:
            self._end("abort")

    async def finish(self) -> Completion:
        """End the answer and return everything it came to; raise the error that ended it."""
        self._start()
        await self.close()
        if self._error is not None:
            raise self._error
        assert self._finish_reason is not None
        sampled = None
        ids = [token.token_id for token in self._tokens]
        if self._format is not None and self._model.known_tokenizer is not None:
            num_spoken = len(ids) - self._has_end_id
            length = self._num_chars if self._stop.is_found else None
            sampled = find_spans(
                self._format, ids[:num_spoken], self._pieces[:num_spoken], length=length
            )
        return Completion(
            reply=self._parser.finish(),
            finish_reason=self._finish_reason,
            prompt_ids=self._prompt_ids,
            tokens=tuple(self._tokens),
            params=self._params,
            usage=Usage(
                num_prompt_tokens=len(self._prompt_ids),
                num_cached_tokens=self._num_cached,
                num_new_tokens=len(ids),
                num_thinking_tokens=self._num_thinking,
            ),
            sampled=sampled,
            stop_text=self._stop.found,
            is_context_full=self._is_context_full,
            timing=self._timing() if self._tokens else None,
        )

    def _timing(self) -> Timing:
        return Timing(
            queue_seconds=0.0,
            prompt_seconds=self._first - self._arrival,
            decode_seconds=self._last - self._first,
        )

    def _start(self) -> None:
        """Take the next text of the script. Raises ValueError at its end, and for a request that a
        script cannot follow."""
        if self._line is not None:
            return
        model, request = self._model, self._request
        if request.prefix_ids or request.forced_ids:
            raise ValueError("a script does not know prefix_ids and forced_ids")
        tools, tokenizer = read_tools(request.tools), model.known_tokenizer
        limits_calls(self._params, self._format, tools)
        if request.prompt is not None:
            self._prompt_ids = request.prompt.ids
        elif request.text is not None and not isinstance(request.text, str):
            self._prompt_ids = tuple(read_ids("prompt", request.text))
        elif tokenizer is not None:
            self._prompt_ids = tuple(_encode(request, tools, model.format, tokenizer))
        self._room = model.max_model_len - len(self._prompt_ids)
        if self._room < 1:
            raise ValueError(
                f"the prompt has {len(self._prompt_ids)} tokens, the context holds "
                f"{model.max_model_len} including at least one new token"
            )
        model.requests.append(request)
        line = model.lines.next(request)
        self._parser = PlainParser() if self._format is None else self._format.parser(tools)
        self._detokenizer = None if tokenizer is None else tokenizer.detokenizer()
        self._rest = self._as_rest(line.text)
        self._num_cached = self._known_length()
        self._arrival = self._first = self._last = time.perf_counter()
        self._line = line
        model.counts["num_running"] += 1
        model.counts["num_prompt_tokens"] += len(self._prompt_ids)
        model.counts["num_hit_tokens"] += self._num_cached

    def _as_rest(self, text: str) -> deque[int | str]:
        tokenizer, size = self._model.known_tokenizer, self._model.piece_chars
        if tokenizer is not None:
            return deque(tokenizer.encode(text))
        return deque(text[start : start + size] for start in range(0, len(text), size))

    def _known_length(self) -> int:
        """Return how many of the prompt's first ids an earlier request had, as a cache would find;
        the last is always read."""
        most = 0
        for known in self._model.known_ids:
            pairs = zip(known, self._prompt_ids[:-1], strict=False)
            most = max(most, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
        return most

    def _next_events(self) -> list[Event]:
        """Return the events of the next piece, and end the answer where it ends."""
        events: list[Event] = []
        num_chars = 0
        while self._finish_reason is None and num_chars < self._model.piece_chars:
            piece, reason = self._take(self._rest.popleft()) if self._rest else self._take_end()
            num_chars += len(piece)
            text = self._stop.feed(piece, is_last=reason is not None)
            self._num_chars += len(text)
            events += self._parser.feed(text)
            if self._stop.is_found:
                reason, self._is_context_full = "stop", False
            if reason is not None:
                events += self._parser.finish_events()
                self._end(reason)
        return events

    def _take(self, next_: int | str) -> tuple[str, FinishReason | None]:
        """Return the text of the next id, or the next text, and the reason if it is the last."""
        if isinstance(next_, str):
            return next_, None
        assert self._detokenizer is not None
        self._add_token(next_)
        if next_ in self._params.stop_token_ids:
            self._pieces.append("")
            self._has_end_id = True
            return self._detokenizer.flush(), "stop"
        piece = self._detokenizer.feed([next_])
        most = self._params.max_tokens
        is_cut = most is not None and len(self._tokens) >= most
        self._is_context_full = not is_cut and len(self._tokens) >= self._room
        if is_cut or self._is_context_full:
            piece += self._detokenizer.flush()
        self._pieces.append(piece)
        return piece, "length" if is_cut or self._is_context_full else None

    def _take_end(self) -> tuple[str, FinishReason]:
        """End the answer as the script says; return the rest of its text."""
        line, tokenizer = self._line, self._model.known_tokenizer
        assert line is not None
        if line.fail_with is not None:
            self._error = line.fail_with
            return "", "error"
        rest = "" if self._detokenizer is None else self._detokenizer.flush()
        if line.finish_reason == "stop" and tokenizer is not None:
            end = tokenizer.token_id(self._model.format.end_of_turn)
            if end is not None:
                self._add_token(end)
                self._pieces.append("")
                self._has_end_id = True
        return rest, line.finish_reason

    def _add_token(self, token_id: int) -> None:
        self._last = time.perf_counter()
        if not self._tokens:
            self._first = self._last
        self._num_thinking += self._parser.is_thinking
        top = ((token_id, 0.0),) if self._params.logprobs else ()
        self._tokens.append(Token(token_id, 0.0, top, is_forced=True))
        self._model.counts["num_new_tokens"] += 1

    def _end(self, reason: FinishReason) -> None:
        """End the answer, if it runs."""
        if self._finish_reason is not None:
            return
        self._finish_reason = reason
        self._model.finished[reason] += 1
        self._model.counts["num_running"] -= 1
        ids = (token.token_id for token in self._tokens)
        self._model.known_ids.append((*self._prompt_ids, *ids))


def _encode(
    request: ChatRequest, tools: tuple[Tool, ...], format: ChatFormat, tokenizer: Tokenizer
) -> list[int]:
    """Return the ids of a request's text, or else of its messages."""
    if isinstance(request.text, str):
        return tokenizer.encode(request.text)
    return format.encode(list(request.messages), tools, tokenizer=tokenizer)
