"""Sequences on disk: what was said, and the state after it, so that it need not be read again.

    STORE/sessions/NAME.json      where a session stands: its last turn, a few hundred bytes
    STORE/turns/HASH.json         a turn: its parent, its tokens, its record, its chunks
    STORE/chunks/HASH.safetensors pages of keys and values, or one snapshot of lightning states

Every turn and chunk is named by the hash of its content and never changes, so sessions share what
they have in common: a fork is one more small file, going back is rewriting it. A turn is written
after its chunks and named in its session last, so a crash loses at most the turn it interrupts.
Chunks are what can be computed again: above a byte cap those of sessions unused for longest go,
and what they held is read anew from the tokens.

What a turn means (messages, sampling) is its record, which only the caller reads.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fulmen.engine import Origin, PrefixCache
from fulmen.files import replacing, write_text
from fulmen.kernels import PAGE
from fulmen.models import StateSnapshot
from fulmen.sessions.locks import lock_file

logger = logging.getLogger(__name__)

FORMAT: Final = 1
"""Of the files; another one is refused."""
CHUNK_BYTES: Final = 64 * 2**20
"""Pages are written in chunks of about this size: what a save needs of memory."""
RESTORED_BYTES: Final = 256 * 2**20
"""Snapshots are read back up to this size, the latest first and always one: the last serves to go
on, the others to go back."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive pages in one chunk."""

    chunk: str
    first: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One exchange, as it was stored."""

    hash: str
    parent: str | None
    num_shared: int
    """Tokens it has in common with its parent, from the start"""
    new_ids: tuple[int, ...]
    """Its tokens after those"""
    num_answer: int
    """How many of its last tokens the model said"""
    origin: Origin
    num_known: int
    """Tokens whose pages are stored"""
    spans: tuple[Span, ...]
    """The pages of all of them, in order"""
    states: Mapping[int, str]
    """Chunks with the lightning states, by the number of tokens before them"""
    record: Mapping[str, Any]
    """What it means to the caller, as JSON"""

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """What the model said."""
        return self.new_ids[len(self.new_ids) - self.num_answer :]


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Where a session stands."""

    name: str
    model: str
    """As it was loaded: a path, a catalog name or a hub id"""
    fingerprint: str
    turn: str | None = None
    cut: int | None = None
    """Tokens of the last answer that count, if not all: the session was taken back into it"""
    created: float = 0.0
    used: float = 0.0
    """Seconds since 1970"""


class SessionStore:
    """A folder of sessions; any number of processes may use it."""

    def __init__(self, root: Path, *, max_bytes: int = 20 * 2**30) -> None:
        """max_bytes: what all chunks together may take"""
        self.root = root
        self.max_bytes = max_bytes
        self._turns: dict[str, Turn] = {}

    # ---- sessions ----------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Of all sessions, the last used first."""
        paths = (self.root / "sessions").glob("*.json")
        return [path.stem for path in sorted(paths, key=lambda path: -path.stat().st_mtime_ns)]

    def has(self, name: str) -> bool:
        """Whether there is such a session."""
        return self._head_path(name).exists()

    def head(self, name: str) -> Head:
        """Where a session stands. Raises ValueError if there is none or it cannot be read."""
        path = self._head_path(name)
        if not path.exists():
            raise ValueError(f"there is no session {name!r}, fulmen sessions list shows all")
        try:
            return Head(**self._read_json(path, "session"))
        except TypeError:
            raise _unreadable(path, "session") from None

    def create(self, name: str, *, model: str, fingerprint: str) -> Head:
        """A new session without a turn."""
        with self._locked():
            self._check_free(name)
            head = Head(name=name, model=model, fingerprint=fingerprint, created=time.time())
            self._write_head(head)
        return head

    def fork(
        self, name: str, new: str, *, num_turns: int | None = None, cut: int | None = None
    ) -> Head:
        """A session that has all of another one's turns, or the first num_turns, the last cut
        after some of its tokens. Costs a few hundred bytes, whatever its length."""
        with self._locked():
            self._check_free(new)
            head = self._back(self.head(name), num_turns, cut)
            head = replace(head, name=new, created=time.time())
            self._write_head(head)
        return head

    def rewind(self, name: str, *, num_turns: int, cut: int | None = None) -> Head:
        """Takes a session back to its first num_turns; what came after stays to other sessions."""
        with self._locked():
            head = self._back(self.head(name), num_turns, cut)
            self._write_head(head)
        return head

    def remove(self, name: str) -> None:
        """Forgets a session, and all that no other one has. Raises ValueError, and forgets nothing,
        if a session cannot be read."""
        with self._locked():
            self.head(name)
            others = [self.head(other) for other in self.names() if other != name]
            turns = {turn.hash for head in others for turn in self.turns(head)}
            chunks = {chunk for head in others for chunk in self._chunks_of(head)}
            self._head_path(name).unlink()
            self._lock_path(name).unlink(missing_ok=True)
            for folder, kept in (("turns", turns), ("chunks", chunks)):
                for path in (self.root / folder).glob("*"):
                    if path.name.split(".")[0] not in kept:
                        path.unlink(missing_ok=True)

    def turns(self, head: Head) -> list[Turn]:
        """Of a session, the first one first."""
        found: list[Turn] = []
        hash = head.turn
        while hash is not None:
            found.append(self.turn(hash))
            hash = found[-1].parent
        return found[::-1]

    def turn(self, hash: str) -> Turn:
        """A turn by its hash. Raises ValueError if it cannot be read."""
        if hash not in self._turns:
            path = self.root / "turns" / f"{hash}.json"
            if not path.exists():
                raise ValueError(f"{path} is missing, the session cannot be read")
            if hashlib.sha256(path.read_bytes()).hexdigest() != hash:
                raise ValueError(f"{path} is damaged, the session cannot be read")
            values = self._read_json(path, "turn")
            try:
                values["origin"] = Origin(**values["origin"])
                values["new_ids"] = tuple(values["new_ids"])
                values["spans"] = tuple(Span(*span) for span in values["spans"])
                values["states"] = {int(tokens): name for tokens, name in values["states"].items()}
                self._turns[hash] = Turn(hash=hash, **values)
            except (KeyError, TypeError, ValueError):
                raise _unreadable(path, "turn") from None
        return self._turns[hash]

    def ids(self, turn: Turn) -> list[int]:
        """All tokens up to the end of a turn."""
        parts: list[tuple[int, ...]] = []
        length: int | None = None
        while True:
            end = None if length is None else max(0, length - turn.num_shared)
            parts.append(turn.new_ids[:end])
            length = turn.num_shared if length is None else min(length, turn.num_shared)
            if turn.parent is None:
                return [id for part in reversed(parts) for id in part]
            turn = self.turn(turn.parent)

    def ids_of(self, head: Head) -> list[int]:
        """All tokens of a session, as far as it counts."""
        if head.turn is None:
            return []
        turn = self.turn(head.turn)
        ids = self.ids(turn)
        return ids if head.cut is None else ids[: len(ids) - turn.num_answer + head.cut]

    def chunk_bytes(self, head: Head) -> int:
        """What the chunks of a session take on disk, shared ones included."""
        return sum(self._size(chunk) for chunk in self._chunks_of(head))

    @contextmanager
    def used_by_one(self, name: str) -> Iterator[None]:
        """Holds a session while it is talked to. Raises ValueError if another process does."""
        path = self._lock_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(path, waits=False) as is_held:
            if not is_held:
                raise ValueError(
                    f"session {name!r} is in use by another process, fulmen sessions fork makes a "
                    "second one of it"
                )
            yield

    # ---- states ------------------------------------------------------------------------------

    def save(
        self,
        head: Head,
        *,
        parent: str | None,
        ids: Sequence[int],
        num_answer: int,
        record: Mapping[str, Any],
        origin: Origin,
        prefixes: PrefixCache,
    ) -> Head:
        """Adds a turn to a session after `parent`, one of its turns or None, and what the cache
        knows of its tokens. Only what the parent does not have is written.

        ids         all tokens up to the turn's end
        num_answer  how many of the last ones the model said

        Raises ValueError if the session is no longer where head says.
        """
        with self._locked():
            self._check_current(head)
            before = None if parent is None else self.turn(parent)
            shared = 0
            if before is not None:
                shared = min(_num_shared(self.ids(before), ids), len(ids) - num_answer)
            spans, states, num_known = self._store_states(before, shared, ids, origin, prefixes)
            turn = self._put_turn(
                Turn(
                    hash="",
                    parent=parent,
                    num_shared=shared,
                    new_ids=tuple(ids[shared:]),
                    num_answer=num_answer,
                    origin=origin,
                    num_known=num_known,
                    spans=tuple(spans),
                    states=states,
                    record=record,
                )
            )
            head = replace(head, turn=turn.hash, cut=None, used=time.time())
            self._write_head(head)
            self._shrink()
        return head

    def restore(self, head: Head, origin: Origin, prefixes: PrefixCache) -> int:
        """Makes the cache know what is stored of a session; returns of how many tokens.

        Raises ValueError for another model. States of other numerics are left alone, and what a
        lost or damaged chunk held too: the engine reads those tokens again.
        """
        if head.fingerprint != origin.model:
            raise ValueError(
                f"session {head.name!r} belongs to another model, it was begun with {head.model}"
            )
        with self._locked():
            self._check_current(head)
            self._write_head(replace(head, used=time.time()))
        if head.turn is None:
            return 0
        turn = self.turn(head.turn)
        ids = self.ids_of(head)
        if turn.origin != origin:
            logger.warning(
                "session %s was saved by another build or on another machine, its %d tokens are "
                "read again",
                head.name,
                len(ids),
            )
            return 0
        ids = ids[: turn.num_known]
        # Of states inside pages only the last one can be used.
        usable = [n for n in turn.states if (n < len(ids) and n % PAGE == 0) or n == len(ids)]
        states = self._states({tokens: turn.states[tokens] for tokens in usable})
        return prefixes.learn(ids, self._pages(turn, ids), states)

    def _states(self, chunks: Mapping[int, str]) -> dict[int, StateSnapshot]:
        found: dict[int, StateSnapshot] = {}
        left = RESTORED_BYTES
        for tokens in sorted(chunks, reverse=True):
            left -= self._size(chunks[tokens])
            if found and left < 0:
                break
            try:
                found[tokens] = StateSnapshot.of(self._get(chunks[tokens]))
            except ValueError as error:
                logger.warning("%s, more of the session's tokens are read again", error)
        return found

    def _pages(self, turn: Turn, ids: Sequence[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        left = -(-len(ids) // PAGE)
        for span in turn.spans:
            count = min(span.count, left)
            if not count:
                return
            try:
                tensors = self._get(span.chunk)
            except ValueError as error:
                logger.warning("%s, the tokens from there on are read again", error)
                return
            rows = slice(span.first, span.first + count)
            yield count, {name: tensor[rows] for name, tensor in tensors.items()}
            left -= count

    def _store_states(
        self,
        parent: Turn | None,
        shared: int,
        ids: Sequence[int],
        origin: Origin,
        prefixes: PrefixCache,
    ) -> tuple[list[Span], dict[int, str], int]:
        """Writes what the cache knows of ids and the parent, which shares the first of them, does
        not have; returns all spans, all states, and how many tokens they hold."""
        spans: list[Span] = []
        states: dict[int, str] = {}
        if parent is not None and parent.origin == origin:
            spans = self._cut(parent.spans, min(shared, parent.num_known) // PAGE)
        num_kept = sum(span.count for span in spans)
        if parent is not None:
            states = {
                tokens: chunk
                for tokens, chunk in parent.states.items()
                if tokens <= num_kept * PAGE and self._size(chunk)
            }
        path = prefixes.known(ids)
        step = max(1, CHUNK_BYTES // max(1, prefixes.cache.page_bytes))
        for start in range(num_kept, len(path), step):
            nodes = path[start : start + step]
            tensors = prefixes.cache.read_pages([node.page for node in nodes])
            spans.append(Span(self._put(safetensors.torch.save(tensors)), 0, len(nodes)))
        for node in path:
            if node.state is not None and node.depth not in states:
                states[node.depth] = self._put(safetensors.torch.save(node.state.tensors()))
        return spans, states, max(num_kept * PAGE, path[-1].depth if path else 0)

    def _cut(self, spans: Sequence[Span], num_pages: int) -> list[Span]:
        """The first pages of spans, up to the first chunk that is no longer there."""
        kept: list[Span] = []
        for span in spans:
            count = min(span.count, num_pages)
            if not count or not self._size(span.chunk):
                break
            kept.append(replace(span, count=count))
            num_pages -= count
        return kept

    # ---- files -------------------------------------------------------------------------------

    def _head_path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot name a session, it must be letters, digits, dots, dashes and "
                "underscores, up to 100, a letter or digit first"
            )
        return self.root / "sessions" / f"{name}.json"

    def _lock_path(self, name: str) -> Path:
        return self._head_path(name).with_suffix(".lock")

    def _check_free(self, name: str) -> None:
        if self.has(name):
            raise ValueError(f"there is a session {name!r} already, choose another name")

    def _back(self, head: Head, num_turns: int | None, cut: int | None) -> Head:
        turns = self.turns(head)
        count = len(turns) if num_turns is None else num_turns
        if not 0 <= count <= len(turns):
            raise ValueError(
                f"turn {count} was asked for, session {head.name!r} has {len(turns)} turns"
            )
        if cut is None:
            kept = head.cut if num_turns is None else None
            return replace(head, turn=turns[count - 1].hash if count else None, cut=kept)
        if not count:
            raise ValueError("a token was asked for without a turn, turn 0 has none")
        most = turns[count - 1].num_answer
        if not 0 <= cut <= most:
            raise ValueError(
                f"token {cut} was asked for, the answer of turn {count} has {most} tokens"
            )
        return replace(head, turn=turns[count - 1].hash, cut=None if cut == most else cut)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time changes the store."""
        self.root.mkdir(parents=True, exist_ok=True)
        with lock_file(self.root / "lock", waits=True):
            yield

    def _check_current(self, head: Head) -> None:
        """Raises ValueError if a session is no longer where it was."""
        found = self.head(head.name)
        if (found.turn, found.cut, found.created) != (head.turn, head.cut, head.created):
            raise ValueError(
                f"session {head.name!r} was changed by another process meanwhile, nothing is saved"
            )

    def _write_head(self, head: Head) -> None:
        write_text(self._head_path(head.name), json.dumps({"format": FORMAT} | asdict(head)) + "\n")

    def _put_turn(self, turn: Turn) -> Turn:
        values = {"format": FORMAT} | asdict(turn)
        del values["hash"]
        values["spans"] = [[span.chunk, span.first, span.count] for span in turn.spans]
        text = json.dumps(values)
        hash = hashlib.sha256(text.encode()).hexdigest()
        write_text(self.root / "turns" / f"{hash}.json", text)
        self._turns[hash] = replace(turn, hash=hash)
        return self._turns[hash]

    @staticmethod
    def _read_json(path: Path, what: str) -> dict[str, Any]:
        try:
            values = json.loads(path.read_text("utf-8"))
            found = values.pop("format")
        except (ValueError, KeyError, AttributeError):
            raise _unreadable(path, what) from None
        if found != FORMAT:
            raise ValueError(
                f"{path} has format {found}, this version of Fulmen reads format {FORMAT}"
            )
        return dict(values)

    def _chunk_path(self, hash: str) -> Path:
        return self.root / "chunks" / f"{hash}.safetensors"

    def _size(self, chunk: str) -> int:
        """Bytes of a chunk; 0 if it is gone."""
        try:
            return self._chunk_path(chunk).stat().st_size
        except FileNotFoundError:
            return 0

    def _put(self, content: bytes) -> str:
        hash = hashlib.sha256(content).hexdigest()
        if self._size(hash) != len(content):
            with replacing(self._chunk_path(hash)) as file:
                file.write(content)
        return hash

    def _get(self, chunk: str) -> dict[str, Tensor]:
        """The tensors of a chunk. Raises ValueError if it is gone, or damaged: then it goes, so
        that it is written anew."""
        path = self._chunk_path(chunk)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{path} is gone") from None
        if hashlib.sha256(content).hexdigest() != chunk:
            path.unlink(missing_ok=True)
            raise ValueError(f"{path} is damaged")
        try:
            return dict(safetensors.torch.load(content))
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from None

    def _chunks_of(self, head: Head) -> list[str]:
        """What a session has, of its oldest turn first."""
        found: dict[str, None] = {}
        for turn in self.turns(head):
            found |= dict.fromkeys((*(span.chunk for span in turn.spans), *turn.states.values()))
        return list(found)

    def _shrink(self) -> None:
        """Down to the cap: first what no session has, then what sessions unused for longest have,
        each from its end: a beginning is of use without it, not the other way round."""
        for left_by_a_kill in self.root.glob("*/.*.part"):
            left_by_a_kill.unlink(missing_ok=True)
        paths = list((self.root / "chunks").glob("*.safetensors"))
        sizes = {path.stem: path.stat().st_size for path in paths}
        total = sum(sizes.values())
        if total <= self.max_bytes:
            return
        try:
            heads = [self.head(name) for name in reversed(self.names())]
            order = [chunk for head in heads for chunk in reversed(self._chunks_of(head))]
        except ValueError as error:
            logger.warning("sessions take %d bytes, none can go: %s", total, error)
            return
        last_use = {chunk: place for place, chunk in enumerate(order)}
        for chunk in sorted(sizes, key=lambda chunk: last_use.get(chunk, -1)):
            if total <= self.max_bytes:
                return
            self._chunk_path(chunk).unlink(missing_ok=True)
            total -= sizes[chunk]


def _unreadable(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is no {what} that this version of Fulmen can read")


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)
