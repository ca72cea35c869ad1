"""An answer as a server streams it, whatever its dialect: fragments in, events and a sum out.

    a dialect's reader -> think, say, call, end_call, finish -> events -> ReplySum -> Reply

Here is what the dialects share: which fragments belong to one call, when a call is whole, what is
counted, and how much an answer may hold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from fulmen.chat import (
    ContentDelta,
    Event,
    ProblemFound,
    Reply,
    ReplySum,
    ThinkingDelta,
    Token,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
    load_json,
    random_call_id,
)
from fulmen.files import shorten
from fulmen.llm.http import PeerError, ServerEvent, error_text
from fulmen.sampling import FinishReason, shown

MAX_ANSWER_CHARS: Final = 64 * 2**20
"""Most characters of an answer, its thought and its calls included"""
_MAX_CALLS: Final = 1024
_MAX_TOKENS: Final = 2**22
"""Most tokens whose ids or log-probabilities are kept"""
_LOWEST_LOGPROB: Final = -9999.0
"""OpenAI's number for a token of no probability"""
_ID_PREFIX: Final = "token_id:"
"""Begins the text of a token that is shown by its id, as vLLM writes it"""


@dataclass(frozen=True, slots=True)
class TokenText:
    """A sampled token as a server shows it: by its text, and by its id if that is known."""

    text: str
    logprob: float
    """Natural logarithm; minus infinity for a token of no probability"""
    token_id: int | None = None
    data: bytes | None = None
    """Bytes of the token, if they are told: its text has marks in place of parts of characters"""
    top: "tuple[TokenText, ...]" = ()
    """The likeliest tokens at this place, best first"""


@dataclass(slots=True)
class Counts:
    """Numbers of tokens that a server told; None where it did not."""

    prompt: int | None = None
    cached: int | None = None
    new: int | None = None
    thinking: int | None = None


class Reader(Protocol):
    """Reads the events of one dialect's stream into a `RemoteAnswer`."""

    answer: "RemoteAnswer"

    def feed(self, event: ServerEvent) -> list[Event]:
        """Return the events that one of the stream holds. Raises PeerError."""


@dataclass(slots=True)
class _Call:
    """A call that is being said."""

    index: int
    """Its number among the calls of the answer"""
    id: str | None
    name: str
    fragments: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.fragments)

    @property
    def is_object(self) -> bool:
        """Return whether its arguments are one JSON object."""
        try:
            return isinstance(load_json(self.arguments), dict)
        except ValueError:
            return False


class RemoteAnswer:
    """One answer while it comes, and everything it came to."""

    def __init__(self, where: str) -> None:
        """where: names the stream in errors"""
        self.where = where
        self.finish_reason: FinishReason | None = None
        self.stop_text: str | None = None
        self.is_context_full = False
        self.is_ended = False
        """True when the stream said that nothing follows"""
        self.counts = Counts()
        self.prompt_ids: tuple[int, ...] = ()
        self.token_ids: list[int] = []
        """Ids of the answer, as far as they were told"""
        self.token_texts: list[TokenText] = []
        """Tokens with their log-probabilities, as far as they were told"""
        self.thoughts: dict[str, dict[str, str]] = {}
        """Blocks of thought as they go back to the server, by their signatures"""
        self._sum = ReplySum()
        self._num_chars = 0
        self._calls: dict[object, _Call] = {}
        """Calls that are not at their end, by the key that the dialect has for them"""
        self._latest: object = None
        """Key of the call that began last"""
        self._num_calls = 0
        self._num_looks = 0
        """Number of times that a call's arguments were read, as far as they had come"""
        self._is_call_cut = False

    # ---- what a dialect's reader reports -------------------------------------------------------

    def think(self, text: str) -> list[Event]:
        """Take the next piece of the thought."""
        return self._add(ThinkingDelta(text), text) if text else []

    def say(self, text: str) -> list[Event]:
        """Take the next piece of the answer."""
        return self._add(ContentDelta(text), text) if text else []

    @property
    def is_empty(self) -> bool:
        """True until anything was said."""
        return not self._num_chars

    def note(self, sentence: str) -> list[Event]:
        """Take note of a problem that does not end the answer."""
        return self._add(ProblemFound(sentence), sentence)

    def has_call(self, key: object) -> bool:
        """Return whether a call with this key is being said."""
        return key in self._calls

    def id_of_call(self, key: object) -> str | None:
        """Return the id that a call which is being said was given by the server."""
        return self._calls[key].id

    def name_of_call(self, key: object) -> str:
        """Return the name of a call that is being said."""
        return self._calls[key].name

    def is_whole(self, key: object) -> bool:
        """Return whether the arguments of a call that is being said are a whole JSON object. After
        as many questions as an answer has calls at most, none is: each reads them all."""
        call = self._calls[key]
        if not call.fragments or not call.fragments[-1].rstrip().endswith("}"):
            return False
        self._num_looks += 1
        return self._num_looks <= 2 * _MAX_CALLS and call.is_object

    def start_call(self, key: object, id: str | None, name: str) -> list[Event]:
        """Begin a call; the one before it ends, if its arguments are whole."""
        if not name:
            raise PeerError(f"{self.where} sent a call without a name")
        if self._num_calls == _MAX_CALLS:
            raise PeerError(f"{self.where} sent more than {_MAX_CALLS:,} calls in one answer")
        events: list[Event] = []
        if self._latest in self._calls and self.is_whole(self._latest):
            events = self.end_call(self._latest)
        self._latest = key
        self._calls[key] = call = _Call(self._num_calls, id, name)
        self._num_calls += 1
        start = ToolCallStart(call.index, id or random_call_id(), name)
        return [*events, *self._add(start, name)]

    def add_arguments(self, key: object, text: str) -> list[Event]:
        """Take the next fragment of a call's arguments."""
        if not text:
            return []
        call = self._calls[key]
        call.fragments.append(text)
        return self._add(ToolCallDelta(call.index, text), text)

    def end_call(self, key: object) -> list[Event]:
        """End a call. One whose arguments are no JSON object becomes a problem, which quotes it."""
        call = self._calls.pop(key)
        if call.is_object or not call.arguments.strip():
            return self._add(ToolCallEnd(call.index), "")
        name, said = shorten(call.name, 80), shown(call.arguments)
        return self.note(f"the arguments of the call of {name} are no JSON object: {said}")

    def finish(self, reason: FinishReason) -> list[Event]:
        """Take the reason for which the answer ended. Of a call that was cut nothing counts, unless
        its arguments are whole."""
        self.finish_reason = reason
        events: list[Event] = []
        for key, call in list(self._calls.items()):
            if reason == "stop" or call.is_object:
                events += self.end_call(key)
            else:
                self._is_call_cut = True
        self._calls.clear()
        return events

    def count_chars(self, text: str) -> None:
        """Count text towards the limit of an answer. Raises PeerError beyond it."""
        self._num_chars += len(text)
        if self._num_chars > MAX_ANSWER_CHARS:
            raise PeerError(
                f"the answer of {self.where} has more than {MAX_ANSWER_CHARS:,} characters"
            )

    def add_token_ids(self, ids: object) -> None:
        """Take ids of the next tokens, if a list of them was told."""
        if not is_ids(ids):
            return
        assert isinstance(ids, list)
        self.token_ids += ids
        self._check_tokens(len(self.token_ids))

    def add_token_texts(self, tokens: Sequence[TokenText]) -> None:
        """Take the next tokens with their log-probabilities."""
        self.token_texts += tokens
        self._check_tokens(len(self.token_texts))

    # ---- what it came to -----------------------------------------------------------------------

    def reply(self) -> Reply:
        """Return the sum of the events so far."""
        return self._sum.reply(is_call_open=bool(self._calls) or self._is_call_cut)

    def tokens(self) -> tuple[Token, ...]:
        """Return the tokens, if id and log-probability of every one of them are known."""
        ids = [token.token_id for token in self.token_texts]
        known = [token_id for token_id in ids if token_id is not None]
        if len(known) != len(ids):
            known = self.token_ids
        if len(known) != len(self.token_texts) or (self.token_ids and known != self.token_ids):
            return ()
        return tuple(
            Token(token_id, token.logprob, _top_by_id(token))
            for token_id, token in zip(known, self.token_texts, strict=True)
        )

    def usage(self) -> Usage:
        """Return the tokens that the server counted; where it told nothing, those that it sent."""
        counts = self.counts
        num_prompt = counts.prompt if counts.prompt is not None else len(self.prompt_ids)
        known = max(len(self.token_ids), len(self.token_texts))
        num_new = counts.new if counts.new is not None else known
        return Usage(
            num_prompt_tokens=num_prompt,
            num_cached_tokens=min(counts.cached or 0, num_prompt),
            num_new_tokens=num_new,
            num_thinking_tokens=min(counts.thinking or 0, num_new),
        )

    def _add(self, event: Event, text: str) -> list[Event]:
        self.count_chars(text)
        self._sum.add(event)
        return [event]

    def _check_tokens(self, count: int) -> None:
        if count > _MAX_TOKENS:
            raise PeerError(f"the answer of {self.where} has more than {_MAX_TOKENS:,} tokens")


def _top_by_id(token: TokenText) -> tuple[tuple[int, float], ...]:
    """Return the likeliest tokens by id; none where an id is not known."""
    pairs = [(top.token_id, top.logprob) for top in token.top if top.token_id is not None]
    return tuple(pairs) if len(pairs) == len(token.top) else ()


def is_ids(value: object) -> bool:
    """Return whether a value is a list of token ids."""
    return isinstance(value, list) and all(
        type(each) is int and 0 <= each < 2**31 for each in value
    )


def read_count(value: object) -> int | None:
    """Return a number of tokens; None for anything else."""
    return value if type(value) is int and 0 <= value < 2**53 else None


def read_token(text: object, logprob: object, id: object = None) -> TokenText | None:
    """Return a token as a server shows it; None for what is none."""
    if not isinstance(text, str) or not isinstance(logprob, int | float):
        return None
    value = float(logprob) if abs(logprob) < 2**53 else math.nan
    if not value <= 1e-3:  # a rounding error may be above 0, a probability of more than 1 may not
        return None
    if value <= _LOWEST_LOGPROB:
        value = -math.inf
    digits = text.removeprefix(_ID_PREFIX)
    if id is None and digits != text and digits.isdecimal() and len(digits) <= 10:
        id = int(digits)
    return TokenText(text, value, id if type(id) is int and 0 <= id < 2**31 else None)


def read_error(data: Mapping[str, Any]) -> str | None:
    """Return what an error in a stream says, in any of the known shapes; None if it is none."""
    error, status = data.get("error"), data.get("base_resp")
    if error is None and isinstance(status, Mapping) and status.get("status_code"):
        return error_text({"message": status.get("status_msg")}) or "no reason"  # MiniMax's
    if error is None and data.get("object") != "error" and data.get("type") != "error":
        return None
    return error_text(data) or "no reason"
