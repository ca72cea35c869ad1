"""Token ids in, token ids out: what is asked of a server that holds the weights.

    Draw -> Wire.body -> POST -> events -> Reader.read -> Chunk

A `Wire` is the protocol of one kind of server. Nothing that comes back is believed unseen: ids
outside the vocabulary, numbers that do not add up and log-probabilities that are none are a
`PeerError` of one sentence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from fulmen.engine import PromptLogprob
from fulmen.files import shorten
from fulmen.llm.http import PeerError, error_text
from fulmen.sampling import SamplingParams, shown

_MAX_LOGPROB_ERROR = 1e-3
"""Most that rounding may put a log-probability above 0"""
_SEEDS = 2**63
"""Servers keep seeds in signed 64 bits"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Tokens that are wanted: they go on from these ids."""

    ids: Sequence[int]
    """The prompt and the answer so far"""
    max_tokens: int
    params: SamplingParams
    seed: int
    stop_token_ids: Sequence[int]
    """Ids after which no more are wanted"""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Number added to the logit of an id, from -100 to 100"""


class Drawn(NamedTuple):
    """One token that came."""

    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability) of the likeliest tokens in its place, best first"""


class Chunk(NamedTuple):
    """One event of a stream of tokens."""

    tokens: Sequence[Drawn] = ()
    finish_reason: Literal["stop", "length"] | None = None
    num_cached_tokens: int | None = None
    """Tokens of the ids that the server had in its cache, if it tells"""


class Reader(Protocol):
    """Reads the events of one stream, in order."""

    def read(self, event: Mapping[str, Any]) -> Chunk:
        """Return what an event brings. Raises PeerError."""


class Wire(Protocol):
    """Protocol of one kind of server."""

    name: str
    """Name of the server's software"""
    path: str
    """Path that is asked for tokens"""

    def body(self, draw: Draw) -> dict[str, Any]:
        """Return the request for a stream of tokens."""

    def reader(self, draw: Draw) -> Reader:
        """Return what reads the answer to it."""

    def max_tokens(self, draw: Draw) -> int:
        """Return the most tokens that one request is good for."""

    def score_body(self, ids: Sequence[int], start: int, num_top: int) -> dict[str, Any]:
        """Return the request for the log-probabilities of ids from a place on, at least 1.

        num_top  likeliest ids that are wanted at each place
        """

    def read_scores(
        self, answer: Mapping[str, Any], ids: Sequence[int], start: int, num_top: int
    ) -> list[PromptLogprob]:
        """Return the log-probabilities of those ids. Raises PeerError."""


def seed_at(seed: int, num_tokens: int) -> int:
    """Return a seed for what follows so many tokens of an answer: the same seed again would draw
    with the same random numbers as at its beginning."""
    return (seed + 0x9E3779B97F4A7C15 * num_tokens) % _SEEDS


def lie(name: str, what: str) -> PeerError:
    """Return the error for an answer that cannot be true."""
    return PeerError(f"{name} answered with {shorten(what)}")


def checked_id(name: str, value: object, vocab_size: int) -> int:
    """Return a token id of the vocabulary. Raises PeerError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
        raise lie(
            name, f"the token id {shown(value)}, the model's ids go from 0 to {vocab_size - 1}"
        )
    return value


def checked_logprob(name: str, value: object) -> float:
    """Return a log-probability, minus infinity included. Raises PeerError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise lie(name, f"the log-probability {shown(value)}, it must be a number")
    if not value <= _MAX_LOGPROB_ERROR:  # NaN too
        raise lie(name, f"the log-probability {shown(value)}, it must be 0 or less")
    return min(float(value), 0.0)


def checked_list(name: str, value: object, what: str) -> list[Any]:
    """Return a list of an answer. Raises PeerError for anything else."""
    if not isinstance(value, list):
        raise lie(name, f"{what} that are {shown(value)}, they must be a list")
    return value


def checked_count(name: str, value: object, what: str) -> int:
    """Return a count of an answer. Raises PeerError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise lie(name, f"{what} that is {shown(value)}, it must be a count")
    return value


def mapping(value: object) -> Mapping[str, Any]:
    """Return a value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def refuse_error(name: str, event: Mapping[str, Any]) -> None:
    """Raise PeerError for an event that says that the answer failed."""
    if error := event.get("error"):
        status = _status(mapping(error).get("code"))
        raise PeerError(f"{name} failed in mid-answer: {error_text(event)}", status=status)


def read_end(name: str, reason: object) -> Literal["stop", "length"] | None:
    """Return why an answer ended, as a word or as an object with a type; None if it has not. Raises
    PeerError for one that was given up."""
    kind = mapping(reason).get("type", reason)
    if kind is None:
        return None
    if kind == "stop":
        return "stop"
    if kind == "length":
        return "length"
    said = shorten(str(mapping(reason).get("message", kind)))
    status = _status(mapping(reason).get("status_code"))
    raise PeerError(f"{name} ended the answer: {said}", status=status)


def _status(code: object) -> int:
    """Return what a server in front answers with, where the other failed with a code."""
    return code if isinstance(code, int) and code in (400, 429, 503) else 502
