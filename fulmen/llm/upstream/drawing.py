"""One answer, drawn by a server that holds the weights.

    Answer.ask -> free:    the next token of the request that runs
                  refused: that request is given up, one token is drawn again under a bias
                  nudged:  one token is drawn with the bias of a thought's soft end
                  forced:  the request is given up, the ids are taken as they are
    then the server goes on from prompt and answer so far, all of which is in its prefix cache

So thinking budgets, grammars, limits of calls and stop texts are those of a local engine, though
the server knows of none. Drawing freely, and again among the allowed where a grammar refuses what
came, is as likely as a masked draw where nothing filters it. top_p, top_k and min_p filter before
the grammar is asked, so where they are given and few ids are allowed, these alone are drawn from.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from fulmen.engine import Choice, PromptLogprob, TokenOutput
from fulmen.llm.answer import Answer
from fulmen.llm.http import Peer, PeerError
from fulmen.llm.upstream.wire import Draw, Drawn, Wire, lie, seed_at
from fulmen.sampling import FinishReason, Mask, count_repetitive, max_new_tokens

_BIAS: Final = 100.0
"""Bias that decides a draw; servers take no larger one"""
_FEW: Final = 32
"""Most allowed ids that are drawn from at once"""
_USAGE_SECONDS: Final = 2.0
"""Time for the counts that come behind an answer's last token"""


@dataclass(slots=True)
class Counts:
    """Tokens and answers of all drawings so far."""

    num_prompt_tokens: int = 0
    num_hit_tokens: int = 0
    num_new_tokens: int = 0
    num_running: int = 0
    num_finished: dict[FinishReason, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A server that draws tokens, and the model it holds."""

    peer: Peer
    wire: Wire
    eos_token_ids: frozenset[int]
    max_model_len: int
    counts: Counts = field(default_factory=Counts)


class Drawing:
    """The drawing of one answer."""

    def __init__(self, source: Source, answer: Answer, on_token: Callable[[], None]) -> None:
        """on_token: called when the answer has one more token

        Raises ValueError for a prompt that leaves no room for one.
        """
        self._source = source
        self._answer = answer
        self._on_token = on_token
        num_prefix_ids = len(answer.prefix_ids)
        self._max_tokens = max_new_tokens(
            answer.params,
            len(answer.prompt.ids) + num_prefix_ids,
            num_prefix_ids=num_prefix_ids,
            max_model_len=source.max_model_len,
        )
        self._segment: _Segment | None = None
        self._first: _Segment | None = None
        """First request, which reads the prompt"""
        self._num_breaks = 0
        """Requests that broke off and were taken up again"""
        self._num_repetitive = answer.num_repetitive
        self.asking = asyncio.Lock()
        """Held while the answer is asked what may come next, in a thread"""
        self._prompt_logprobs: Sequence[PromptLogprob] = ()

    async def run(self) -> None:
        """Draw the answer to its end. Raises PeerError where the server does not."""
        counts, answer = self._source.counts, self._answer
        counts.num_running += 1
        counts.num_prompt_tokens += len(answer.prompt.ids) + len(answer.prefix_ids)
        try:
            if (num_top := answer.params.prompt_logprobs) is not None:
                self._prompt_logprobs = await self._score(self._ids(), answer.first_scored, num_top)
            while answer.finish_reason is None:
                await self._step()
            await self._settle()
        finally:
            counts.num_running -= 1
            await self._give_up()

    async def _step(self) -> None:
        """Take what comes next: one token, or those that are forced."""
        choice = await self._ask()
        if choice.forced_id is not None:
            await self._force(self._answer.forced_ids)
        elif choice.logit_bias is not None:
            self._take(await self._draw_one(dict([choice.logit_bias])))
        elif choice.mask is not None and self._is_filtered and _is_few(choice.mask):
            self._take(await self._draw_allowed(choice.mask))
        elif not isinstance(drawn := await self._next(), Drawn):
            self._answer.end(drawn)
            self._on_token()
        elif choice.mask is None or choice.mask.allowed[drawn.token_id]:
            self._take(drawn)
        else:
            self._take(await self._draw_allowed(choice.mask))

    async def _ask(self) -> Choice:
        """Return what may come next. A grammar is asked in a thread, so that others go on."""
        answer = self._answer
        if not answer.has_grammar:
            return answer.ask(())[0]
        async with self.asking:
            asked = asyncio.ensure_future(asyncio.to_thread(answer.ask, ()))
            try:
                return (await asyncio.shield(asked))[0]
            except asyncio.CancelledError:
                await asyncio.gather(asked, return_exceptions=True)
                raise

    @property
    def _is_filtered(self) -> bool:
        """True if the server leaves out unlikely tokens, so that a mask must come first."""
        params = self._answer.params
        has_filter = params.top_p < 1 or params.top_k is not None or params.min_p > 0
        return has_filter and params.temperature > 0

    async def _next(self) -> Drawn | FinishReason:
        """Return the next token that the server draws, or why it ended the answer."""
        while True:
            if self._segment is None:
                self._segment = self._open(self._num_left)
            segment = self._segment
            try:
                drawn = await segment.next()
            except BrokenOffError as error:
                self._note_break(error)
                drawn = None
            if drawn is not None:
                return drawn
            if segment.finish_reason is not None and segment.is_at_its_end:
                return segment.finish_reason
            await self._give_up()  # it broke off, or drew the part that it was asked for

    async def _draw_one(self, logit_bias: Mapping[int, float]) -> Drawn:
        """Return one token, drawn with a bias."""
        await self._give_up()
        while True:
            segment = self._open(1, logit_bias)
            try:
                drawn = await segment.next()
            except BrokenOffError as error:
                self._note_break(error)
                continue
            finally:
                await segment.close()
            if drawn is None:
                raise lie(self._source.wire.name, "no token where one was asked for")
            return drawn

    def _note_break(self, error: "BrokenOffError") -> None:
        """Count a request that broke off; raise the error where too many have."""
        if self._num_breaks >= self._source.peer.config.max_retries:
            raise error
        self._num_breaks += 1

    async def _draw_allowed(self, mask: Mask) -> Drawn:
        """Return one token that a grammar allows."""
        allowed = mask.allowed
        is_few = 2 * int(allowed.sum()) <= len(allowed)
        chosen = np.flatnonzero(allowed if is_few else ~allowed)
        bias = _BIAS if is_few else -_BIAS
        drawn = await self._draw_one(dict.fromkeys(chosen.tolist(), bias))
        if not allowed[drawn.token_id]:
            raise lie(self._source.wire.name, "a token that its logit_bias ruled out")
        return drawn

    async def _force(self, token_ids: Sequence[int]) -> None:
        """Take ids that are given. Their log-probabilities are asked for if the caller wants any,
        and else are those of tokens that had to come."""
        await self._give_up()
        scores: Sequence[Drawn] = [Drawn(token_id, 0.0) for token_id in token_ids]
        if (num_top := self._answer.params.logprobs) is not None:
            ids = self._ids()
            found = await self._score([*ids, *token_ids], len(ids), num_top)
            scores = [Drawn(*score) for score in found]
        for drawn in scores:
            if self._answer.finish_reason is None:
                self._take(drawn)

    def _take(self, drawn: Drawn) -> None:
        answer = self._answer
        output = TokenOutput(
            0,
            *drawn,
            self._finish_reason(drawn),
            num_hit_tokens=self._num_cached,
            prompt_logprobs=self._prompt_logprobs,
        )
        answer.take(output)
        self._source.counts.num_new_tokens += 1
        self._on_token()

    def _finish_reason(self, drawn: Drawn) -> FinishReason | None:
        """Return why this token is the last; None if it is not. Counts repetition."""
        params = self._answer.params
        ends_turn = drawn.token_id in self._source.eos_token_ids and not params.ignore_eos
        server_has_stopped = self._segment is not None and self._segment.has_stopped
        if ends_turn or server_has_stopped or drawn.token_id in params.stop_token_ids:
            return "stop"
        if params.repetition_window is not None:
            self._num_repetitive = count_repetitive(params, self._num_repetitive, drawn.logprob)
            if self._num_repetitive >= params.repetition_window:
                return "repetition"
        return "length" if self._num_left <= 1 else None

    # ---- requests ----------------------------------------------------------------------------

    @property
    def _num_left(self) -> int:
        """Tokens that may still come."""
        return self._max_tokens - len(self._answer.tokens)

    @property
    def _num_cached(self) -> int:
        """Tokens of the prompt that were in the server's cache, if it told."""
        found = self._first.num_cached_tokens if self._first is not None else None
        return min(found or 0, len(self._answer.prompt.ids))

    def _ids(self) -> list[int]:
        """Return the prompt and the answer so far."""
        answer = self._answer
        drawn = (token.token_id for token in answer.tokens)
        return [*answer.prompt.ids, *answer.prefix_ids, *drawn]

    def _open(self, max_tokens: int, logit_bias: Mapping[int, float] | None = None) -> "_Segment":
        """Return a request that goes on from here; it is sent when it is first read."""
        params, source = self._answer.params, self._source
        ends = () if params.ignore_eos else source.eos_token_ids
        draw = Draw(
            ids=self._ids(),
            max_tokens=max_tokens,
            params=params,
            seed=seed_at(params.seed or 0, len(self._answer.tokens)),
            stop_token_ids=sorted({*ends, *params.stop_token_ids}),
            logit_bias=logit_bias or {},
        )
        segment = _Segment(source, draw, is_whole=max_tokens == self._num_left)
        self._first = self._first or segment
        return segment

    async def _score(self, ids: Sequence[int], start: int, num_top: int) -> Sequence[PromptLogprob]:
        """Return the log-probabilities of ids from a place on."""
        if start >= len(ids):
            return ()
        source = self._source
        answer = await source.peer.post(
            source.wire.path, source.wire.score_body(ids, start, num_top)
        )
        return source.wire.read_scores(answer, ids, start, num_top)

    async def _give_up(self) -> None:
        """End the request that runs, if one does."""
        segment, self._segment = self._segment, None
        if segment is not None:
            await segment.close()

    async def _settle(self) -> None:
        """Take the counts that come at the end of the request that read the prompt."""
        if self._first is not None and self._first is self._segment:
            await self._first.settle()
        self._answer.num_cached_tokens = self._num_cached
        self._source.counts.num_hit_tokens += self._num_cached


class BrokenOffError(PeerError):
    """A stream that ended before the answer did: the answer can go on from what came."""


class _Segment:
    """Tokens of one request, as they come."""

    def __init__(self, source: Source, draw: Draw, *, is_whole: bool) -> None:
        """is_whole: all that may still come is asked for"""
        asked = source.wire.max_tokens(draw)
        self._is_whole = is_whole and asked == draw.max_tokens
        draw = replace(draw, max_tokens=asked)
        self.num_tokens = 0
        """Tokens that were given on"""
        self.finish_reason: Literal["stop", "length"] | None = None
        self.num_cached_tokens: int | None = None
        self._name = source.wire.name
        self._where = source.peer.shown_url + source.wire.path
        self._max_tokens = asked
        self._reader = source.wire.reader(draw)
        self._events = source.peer.events(source.wire.path, source.wire.body(draw))
        self._tokens: deque[Drawn] = deque()
        self._has_begun = False
        """True if an event came"""

    @property
    def has_stopped(self) -> bool:
        """True if the last token that was given on ended the answer for the server."""
        return self.finish_reason == "stop" and not self._tokens and self.num_tokens > 0

    @property
    def is_at_its_end(self) -> bool:
        """True if the server would draw no more, though it were asked again."""
        return self.finish_reason == "stop" or self._is_whole or self.num_tokens < self._max_tokens

    async def next(self) -> Drawn | None:
        """Return the next token; None if there are no more. Raises PeerError."""
        while not self._tokens:
            if self.finish_reason is not None or not await self._read():
                return None
        self.num_tokens += 1
        return self._tokens.popleft()

    async def _read(self) -> bool:
        """Read one more event; False at the end of the stream, if the answer has ended."""
        try:
            event = await anext(self._events, None)
        except PeerError as error:
            if error.may_pass and self._has_begun:  # else it was tried again already
                raise BrokenOffError(str(error)) from error
            raise
        self._has_begun = True
        if event is None or event.data.strip() == "[DONE]":
            if self.finish_reason is not None:
                return False
            raise BrokenOffError(f"{self._where} ended in mid-answer, without a finish_reason")
        chunk = self._reader.read(event.json(self._where))
        if self.finish_reason is not None and (chunk.tokens or chunk.finish_reason):
            raise lie(self._name, "tokens behind the end of the answer")
        self._tokens += chunk.tokens
        self.finish_reason = self.finish_reason or chunk.finish_reason
        if chunk.num_cached_tokens is not None:
            self.num_cached_tokens = chunk.num_cached_tokens
        return True

    async def settle(self) -> None:
        """Read the counts behind the last token, if they come at once."""
        if self.finish_reason is None or self.num_cached_tokens is not None:
            return
        with suppress(PeerError, TimeoutError):
            async with asyncio.timeout(_USAGE_SECONDS):
                while await self._read():
                    pass

    async def close(self) -> None:
        """Give the connection up: the server draws no more for it."""
        await self._events.aclose()


def _is_few(mask: Mask) -> bool:
    """Return True if a mask leaves a few ids, and not one alone, which comes either way."""
    return not mask.redraw_only and 1 < int(np.count_nonzero(mask.allowed)) <= _FEW
