"""One running answer: ids to text to events.

    engine -> token id -> detokenizer -> stop texts -> parser -> events -> who reads them

Here ids become text, once. Everything that needs text is decided when a token comes, not when
someone reads it, so an answer never depends on who reads which stream when: a stop text ends the
request, a thought near the end of its budget is led to its closing tag (`thinking.py`).
"""

import itertools
import math
import time
from collections import deque
from collections.abc import Sequence

from fulmen.chat import (
    ChatFormat,
    ChatRequest,
    CodePlace,
    Completion,
    Event,
    Grammar,
    Parser,
    Prompt,
    StopTexts,
    Timing,
    Token,
    Tokenizer,
    Usage,
    find_spans,
)
from fulmen.engine import Choice, TokenOutput
from fulmen.llm.steering import AnswerSteering
from fulmen.llm.thinking import ThoughtBudget
from fulmen.sampling import FinishReason, SamplingParams


class Answer:
    """One answer while it comes, and everything it came to. It steers its request of the engine
    (`fulmen.engine.Steering`), in the engine's thread."""

    def __init__(
        self,
        request: ChatRequest,
        prompt: Prompt,
        params: SamplingParams,
        *,
        tokenizer: Tokenizer,
        parser: Parser,
        format: ChatFormat | None = None,
        grammar: Grammar | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """Read the request's prefix_ids. Without a format nothing is a thought.

        vocab_size  of the model; that of the tokenizer if omitted

        Raises ValueError if the prefix has a stop text in it.
        """
        self.prompt = prompt
        self.params = params
        self.prefix_ids = tuple(request.prefix_ids)
        self.tokens: list[Token] = []
        """Every new token so far, the one that ended the turn included"""
        self.prompt_tokens: tuple[Token, ...] = ()
        """Tokens of the prompt from the second on, if their log-probabilities are wanted"""
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        """Failure that ended the answer"""
        self.request_id: int | None = None
        """Set when the engine has taken the request"""
        self.num_cached_tokens = 0
        self._queue_seconds = 0.0
        """Seconds until the engine has taken the request, then until it first ran"""
        self._arrival = self._first = self._last = time.perf_counter()
        """Times of the request, and of its first and last token"""
        self.priority = request.priority
        self.first_scored = request.first_scored
        """Index of the prompt's first token whose log-probability is wanted, if any are"""
        self._prefix_logprobs = tuple(request.prefix_logprobs)
        self.num_repetitive = _num_repetitive(request.prefix_logprobs, params)
        """Last tokens of the prefix that count for a repetition_window"""
        self._format = format
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._stop = StopTexts(params.stop)
        self._num_chars = 0
        """Characters that the parser has read: those before any stop text"""
        self._parser = parser
        self._grammar = grammar
        self._has_end_id = False
        """True if the last id ended the turn: it is no part of the text"""
        self._pieces: list[str] = []
        """Text that each id settled, before stop texts are cut off"""
        self._events: deque[Event] = deque()
        self._budget = ThoughtBudget(format, tokenizer, params, request.budget)
        self._steering = AnswerSteering(
            self._budget,
            grammar,
            tokenizer,
            vocab_size=vocab_size or tokenizer.vocab_size,
            opening=format.thinking.again if format is not None and format.thinking else None,
        )
        self.prefix_events: list[Event] = []
        """Events of the prefix, as far as they are settled"""
        try:
            for token_id in self.prefix_ids:
                self.prefix_events += self._take_prefix(token_id)
        except BaseException:
            self.cancel()
            raise
        self._steering.force(request.forced_ids)

    def take_events(self) -> list[Event]:
        """Return the events since the last call."""
        events = list(self._events)
        self._events.clear()
        return events

    # ---- the engine's side -------------------------------------------------------------------

    def ask(self, draft_ids: Sequence[int]) -> list[Choice]:
        """Return what may come next and after each draft."""
        return self._steering.ask(
            draft_ids,
            is_thinking=self._parser.is_thinking,
            code_place=self._code_place(),
        )

    @property
    def has_grammar(self) -> bool:
        """True if a grammar says which ids may come: that takes long with a large vocabulary."""
        return self._grammar is not None

    @property
    def forced_ids(self) -> tuple[int, ...]:
        """Ids that come next, as far as they are given; known once `ask` was called."""
        return self._steering.forced_ids

    def take(self, output: TokenOutput) -> bool:
        """Read the next token; True ends the answer here, at a stop text."""
        self._last = time.perf_counter()
        if not self.tokens:
            known = output.prompt_logprobs[: max(0, len(self.prompt.ids) - self.first_scored)]
            self.prompt_tokens = tuple(Token(*one, is_forced=True) for one in known)
            self.num_cached_tokens = output.num_hit_tokens
            self._queue_seconds += output.queue_seconds
            self._first = self._last
        is_forced = self._steering.is_forced
        self.tokens.append(
            Token(
                output.token_id,
                output.logprob,
                output.top_logprobs,
                is_forced,
                output.policy_version,
            )
        )
        self._steering.take(output.token_id)
        is_last = output.finish_reason is not None
        self._has_end_id = output.finish_reason == "stop"
        piece = "" if self._has_end_id else self._detokenizer.feed([output.token_id])
        if is_last:
            piece += self._detokenizer.flush()
        self._pieces.append(piece)
        return self._hear(piece, output.finish_reason)

    def end(self, reason: FinishReason) -> None:
        """End the answer for a reason that became known after its last token."""
        piece = self._detokenizer.flush()
        if self._pieces:
            self._pieces[-1] += piece
        self._hear(piece, reason)

    def started(self, request_id: int) -> None:
        """Take note that the engine has taken the request."""
        self.request_id = request_id
        self._queue_seconds = time.perf_counter() - self._arrival

    def end_thinking(self) -> bool:
        """Close the thought that runs at the next token; return False if none runs. Only between
        steps."""
        if self.finish_reason is not None or not self._parser.is_thinking:
            return False
        return self._budget.end_thought()

    def fail(self, error: BaseException) -> None:
        """End the answer because of an error."""
        self.error = error
        self.finish_reason = "error" if isinstance(error, Exception) else "abort"
        self._budget.end()

    # ------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """End the answer as it is; whoever calls ends the request."""
        if self.finish_reason is None:
            self.finish_reason = "abort"
        self._budget.end()

    def cancel(self) -> None:
        """End an answer that was never started, and give back all that its prefix was charged."""
        self.abort()
        self._budget.refund()

    def raise_error(self) -> None:
        """Raise the error that ended the answer, if one did."""
        if self.finish_reason == "error" and self.error is not None:
            raise self.error

    def completion(self) -> Completion:
        """Return everything the ended answer came to."""
        assert self.finish_reason is not None
        reply = self._parser.finish()
        ids = (*self.prefix_ids, *(token.token_id for token in self.tokens))
        usage = Usage(
            num_prompt_tokens=len(self.prompt.ids),
            num_cached_tokens=self.num_cached_tokens,
            num_new_tokens=len(self.tokens),
            num_thinking_tokens=self._budget.num_tokens,
            num_reread_tokens=self.prompt.num_reread_tokens,
            reread_reason=self.prompt.reread_reason,
        )
        sampled = None
        if self._format is not None:
            # The id that ended the turn is in no span, nor is text from a stop text on, which the
            # pieces still hold.
            num_spoken = len(ids) - 1 if self._has_end_id else len(ids)
            sampled = find_spans(
                self._format,
                ids[:num_spoken],
                self._pieces[:num_spoken],
                length=self._num_chars if self._stop.is_found else None,
            )
        return Completion(
            reply=reply,
            finish_reason=self.finish_reason,
            prompt_ids=self.prompt.ids,
            prefix_ids=self.prefix_ids,
            prefix_logprobs=self._prefix_logprobs,
            tokens=tuple(self.tokens),
            prompt_tokens=self.prompt_tokens,
            params=self.params,
            usage=usage,
            sampled=sampled,
            stop_text=self._stop.found,
            is_context_full=self._is_context_full,
            timing=self._timing() if self.tokens else None,
        )

    @property
    def _is_context_full(self) -> bool:
        """True if the engine ended the answer before max_tokens: no token more had room."""
        most = self.params.max_tokens
        num_tokens = len(self.prefix_ids) + len(self.tokens)
        return self.finish_reason == "length" and (most is None or num_tokens < most)

    def _timing(self) -> Timing:
        return Timing(
            queue_seconds=self._queue_seconds,
            prompt_seconds=max(self._first - self._arrival - self._queue_seconds, 0.0),
            decode_seconds=self._last - self._first,
        )

    def _take_prefix(self, token_id: int) -> list[Event]:
        self._steering.decide(is_thinking=self._parser.is_thinking)
        self._steering.take(token_id)
        text = self._detokenizer.feed([token_id])
        self._pieces.append(text)
        events = self._read(self._stop.feed(text))
        if self._stop.is_found:
            raise ValueError("prefix_ids has a stop text in it, the answer cannot go on from there")
        return events

    def _hear(self, piece: str, finish_reason: FinishReason | None) -> bool:
        """Read new text, the last if there is a reason to end; return True at a stop text."""
        is_last = finish_reason is not None
        events = self._read(self._stop.feed(piece, is_last=is_last))
        is_stopped = self._stop.is_found
        if is_stopped or is_last:
            self.finish_reason = "stop" if is_stopped else finish_reason
            self._budget.end()
            events += self._parser.finish_events()
        self._events.extend(events)
        return is_stopped

    def _read(self, text: str) -> list[Event]:
        self._num_chars += len(text)
        self._parser.has_plain_values = self._grammar is not None and self._grammar.has_plain_values
        if self._parser.is_thinking:
            self._budget.count(text)
        num_thoughts = self._parser.num_thoughts
        events = self._parser.feed(text)
        if self._parser.num_thoughts > num_thoughts:
            self._budget.start_thought()
        return events

    def _code_place(self) -> CodePlace | None:
        """Return the place in the content, if an opening tag that came next would open another
        thought there unless it stood in code."""
        place = self._parser.code_place if self._budget.is_limited else None
        return None if place is None else place.after(self._stop.held)


def _num_repetitive(logprobs: Sequence[float], params: SamplingParams) -> int:
    """Return how many of the last tokens in a row were likelier than repetition_probability."""
    threshold = math.log(params.repetition_probability)
    likely = itertools.takewhile(lambda logprob: logprob > threshold, reversed(logprobs))
    return sum(1 for _ in likely)
