"""Turns and session states as JSON, as a store writes them.

A file may be damaged, edited by hand or made by a stranger: every number, name and nesting is
bounded here, before anything uses it. Names of objects are hashes and nothing else.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fulmen.engine import Origin
from fulmen.kernels import PAGE
from fulmen.sessions.objects import is_hash

FORMAT: Final = 1
"""Number of the files' format; other ones are refused."""
MAX_STATE_BYTES: Final = 512 * 2**10
"""Size of the largest session state that is read; a few hundred bytes are usual."""
_MAX_TOKENS: Final = 2**31
_MAX_VALUES: Final = 8_000_000
_MAX_DEPTH: Final = 100
_MAX_DIGITS: Final = 40
_MAX_TEXT: Final = 4096
MAX_METADATA: Final = 16
"""Most entries of a session's metadata"""
MAX_METADATA_CHARS: Final = 32 * 2**10
"""Most characters of all of them together, names included"""
_MAX_SECONDS: Final = 253_402_214_400.0
"""Seconds from 1970 to the year 9999, the last that a date can have"""


@dataclass(frozen=True, slots=True)
class PageSpan:
    """Consecutive pages in one chunk."""

    chunk: str
    first: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTurn:
    """One exchange, as it was stored."""

    hash: str
    parent: str | None
    num_shared: int
    """Number of tokens that it has in common with its parent, from the start"""
    new_ids: tuple[int, ...]
    """Ids after the shared ones"""
    num_answer: int
    """Number of its last tokens that the model sampled"""
    origin: Origin
    num_known: int
    """Number of tokens whose keys, values and states are stored"""
    spans: tuple[PageSpan, ...]
    """Pages of those tokens, in order"""
    states: Mapping[int, str]
    """Chunks with snapshots of lightning states, by the number of tokens before each"""
    record: Mapping[str, Any]
    """JSON that only the caller reads: messages, log-probabilities, sampling"""

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """Ids that the model sampled."""
        return self.new_ids[len(self.new_ids) - self.num_answer :]

    @property
    def num_tokens(self) -> int:
        """Number of all tokens up to its end."""
        return self.num_shared + len(self.new_ids)

    @property
    def chunks(self) -> tuple[str, ...]:
        """Chunks that it names."""
        return (*(span.chunk for span in self.spans), *self.states.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionState:
    """The place where a session stands: its last turn, and how much of its answer counts."""

    name: str
    model: str
    """Path, catalog name or hub id that the model was loaded by"""
    fingerprint: str
    turn: str | None = None
    num_kept: int | None = None
    """Tokens of the last answer that count, if not all: the session was rewound into it"""
    created: float = 0.0
    used: float = 0.0
    """Seconds since 1970"""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Notes of whoever talks, such as a title; nothing here reads them"""


def check_metadata(metadata: object) -> dict[str, str]:
    """Return metadata. Raises ValueError for what is none, and for too much of it."""
    if not isinstance(metadata, Mapping) or not all(
        isinstance(text, str) for entry in metadata.items() for text in entry
    ):
        raise ValueError("metadata must be an object of texts")
    if len(metadata) > MAX_METADATA:
        raise ValueError(f"metadata has {len(metadata)} entries, it may have {MAX_METADATA}")
    num_chars = sum(len(name) + len(value) for name, value in metadata.items())
    if num_chars > MAX_METADATA_CHARS:
        raise ValueError(
            f"metadata has {num_chars:,} characters, it may have {MAX_METADATA_CHARS:,}"
        )
    return dict(metadata)


def write_turn(turn: StoredTurn) -> bytes:
    """Return a turn as a file holds it. Raises ValueError for one that could not be read again."""
    values = {
        "format": FORMAT,
        "parent": turn.parent,
        "num_shared": turn.num_shared,
        "new_ids": turn.new_ids,
        "num_answer": turn.num_answer,
        "origin": {"model": turn.origin.model, "numerics": turn.origin.numerics},
        "num_known": turn.num_known,
        "spans": [[span.chunk, span.first, span.count] for span in turn.spans],
        "states": dict(turn.states),
        "record": dict(turn.record),
    }
    try:
        return json.dumps(values, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("the turn is nested too deeply, it cannot be saved") from None


def read_turn(content: bytes, hash: str, path: Path) -> StoredTurn:
    """Read a turn from the content of its file."""
    values = _Fields(content, path, "turn")
    parent = values.take("parent")
    if parent is not None:
        parent = values.hash("parent", parent)
    new_ids = values.take("new_ids")
    if not isinstance(new_ids, list) or not all(
        type(id) is int and 0 <= id < _MAX_TOKENS for id in new_ids
    ):
        raise values.error("new_ids are no list of token ids")
    num_shared = values.count("num_shared", _MAX_TOKENS if parent else 0)
    num_tokens = num_shared + len(new_ids)
    num_pages = -(-num_tokens // PAGE)
    num_known = values.count("num_known", num_tokens)
    spans = values.take("spans")
    if not isinstance(spans, list) or len(spans) > num_pages:
        raise values.error(f"spans are {reprlib.repr(spans)}, no list of at most {num_pages}")
    read_spans = tuple(_read_span(values, span, num_pages) for span in spans)
    num_stored = sum(span.count for span in read_spans)
    if num_stored > num_pages or num_stored * PAGE < num_known:
        raise values.error(f"spans hold {num_stored} pages, num_known is {num_known}")
    states = values.mapping("states")
    turn = StoredTurn(
        hash=hash,
        parent=parent,
        num_shared=num_shared,
        new_ids=tuple(new_ids),
        num_answer=values.count("num_answer", len(new_ids)),
        origin=_read_origin(values),
        num_known=num_known,
        spans=read_spans,
        states={
            _read_position(values, tokens, num_known): values.hash("states", chunk)
            for tokens, chunk in states.items()
        },
        record=values.mapping("record"),
    )
    values.end()
    return turn


def write_state(state: SessionState) -> str:
    """Return a session's state as its file holds it."""
    values: dict[str, Any] = {
        "format": FORMAT,
        "name": state.name,
        "model": state.model,
        "fingerprint": state.fingerprint,
        "turn": state.turn,
        "cut": state.num_kept,
        "created": state.created,
        "used": state.used,
    }
    if state.metadata:
        values["metadata"] = check_metadata(state.metadata)
    return json.dumps(values, allow_nan=False) + "\n"


def read_state(content: bytes, path: Path) -> SessionState:
    """Read a session's state from the content of its file. The session is named as its file is,
    which may have been copied."""
    values = _Fields(content, path, "session")
    values.text("name")
    turn, num_kept = values.take("turn"), values.take("cut")
    if turn is not None:
        turn = values.hash("turn", turn)
    if num_kept is not None:
        num_kept = values.checked_count("cut", num_kept, _MAX_TOKENS if turn else 0)
    state = SessionState(
        name=path.stem,
        model=values.text("model"),
        fingerprint=values.text("fingerprint"),
        turn=turn,
        num_kept=num_kept if turn else None,
        created=values.seconds("created"),
        used=values.seconds("used"),
        metadata=values.metadata(),
    )
    values.end()
    return state


class _Fields:
    """The fields of a JSON object, each taken once and checked. Errors name the file."""

    def __init__(self, content: bytes, path: Path, kind: str) -> None:
        self._path = path
        self._kind = kind
        self._values = self._parse(content)
        found = self.take("format")
        if type(found) is not int or found != FORMAT:
            raise ValueError(
                f"{path} has format {reprlib.repr(found)}, this version of Fulmen reads format "
                f"{FORMAT}"
            )

    def error(self, reason: str) -> ValueError:
        return ValueError(
            f"{self._path} is no {self._kind} that this version of Fulmen can read: {reason}"
        )

    def take(self, name: str) -> Any:
        if name not in self._values:
            raise self.error(f"it has no {name}")
        return self._values.pop(name)

    def end(self) -> None:
        """Refuse fields that nobody took."""
        if self._values:
            raise self.error(f"it has unknown fields {reprlib.repr(sorted(self._values))}")

    def hash(self, name: str, value: object) -> str:
        if not is_hash(value):
            raise self.error(f"{name} is {reprlib.repr(value)}, it must be a hash of 64 hex digits")
        return value

    def count(self, name: str, most: int) -> int:
        return self.checked_count(name, self.take(name), most)

    def checked_count(self, name: str, value: object, most: int) -> int:
        if type(value) is not int or not 0 <= value <= most:
            raise self.error(f"{name} is {reprlib.repr(value)}, it must be 0 to {most}")
        return value

    def text(self, name: str) -> str:
        return self.checked_text(name, self.take(name))

    def checked_text(self, name: str, value: object) -> str:
        if not isinstance(value, str) or len(value) > _MAX_TEXT:
            raise self.error(f"{name} is no text of at most {_MAX_TEXT} characters")
        return value

    def seconds(self, name: str) -> float:
        value = self.take(name)
        if type(value) not in (int, float) or not 0 <= value <= _MAX_SECONDS:
            raise self.error(f"{name} is {reprlib.repr(value)}, it must be seconds since 1970")
        return float(value)

    def metadata(self) -> dict[str, str]:
        """Return metadata, which a file may do without."""
        try:
            return check_metadata(self._values.pop("metadata", {}))
        except ValueError as error:
            raise self.error(str(error)) from None

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.take(name)
        if not isinstance(value, dict):
            raise self.error(f"{name} is {reprlib.repr(value)}, it must be an object")
        return value

    def _parse(self, content: bytes) -> dict[str, Any]:
        # An upper bound, found before memory is taken: each value but one stands behind one of
        # these.
        if sum(content.count(mark) for mark in (b",", b"[", b"{")) > _MAX_VALUES:
            raise self.error(f"it has more than {_MAX_VALUES} values")
        try:
            values = json.loads(
                content.decode(),
                parse_int=_read_int,
                parse_float=_read_float,
                parse_constant=_read_float,
            )
        except RecursionError:
            raise self.error("it is nested too deeply") from None
        except ValueError as error:  # no UTF-8, no JSON, or a number out of bounds
            raise self.error(str(error)) from None
        if not isinstance(values, dict):
            raise self.error("it is no JSON object")
        if not _is_shallow(values, _MAX_DEPTH):
            raise self.error("it is nested too deeply")
        return values


def _read_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number is {text[:_MAX_DIGITS]}, which is not finite")
    return value


def _is_shallow(value: dict[str, Any] | list[Any], levels: int) -> bool:
    """Return whether containers stand in one another at most so many levels deep."""
    if not levels:
        return False
    inner = value.values() if isinstance(value, dict) else value
    return all(_is_shallow(item, levels - 1) for item in inner if isinstance(item, (dict, list)))


def _read_span(values: _Fields, span: object, num_pages: int) -> PageSpan:
    if not isinstance(span, list) or len(span) != 3:
        raise values.error(f"a span is {reprlib.repr(span)}, it must be [chunk, first, count]")
    chunk, first, count = span
    return PageSpan(
        values.hash("a span's chunk", chunk),
        values.checked_count("a span's first page", first, _MAX_TOKENS),
        values.checked_count("a span's count", count, num_pages),
    )


def _read_position(values: _Fields, text: str, num_known: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= num_known):
        raise values.error(f"a state stands after {reprlib.repr(text)} tokens of {num_known}")
    return int(text)


def _read_origin(values: _Fields) -> Origin:
    origin = values.mapping("origin")
    if origin.keys() != {"model", "numerics"}:
        raise values.error("origin must have model and numerics")
    return Origin(
        model=values.checked_text("model", origin["model"]),
        numerics=values.checked_text("numerics", origin["numerics"]),
    )
