"""Sessions on disk: what was said, and the states after it, so that it need not be read again.

    STORE/sessions/NAME.json  where a session stands: its last turn, a few hundred bytes
    STORE/turns/HASH.json     a turn: its parent, its tokens, its record, its chunks
    STORE/chunks/HASH.safetensors  pages of keys and values, or one snapshot of lightning states

Turns and chunks are named by the hash of their content and never change (`objects.py`), so sessions
share what they have in common: a fork is one more small file, a rewind changes one. A turn is
written after its chunks and named in its session last, so a crash loses at most the turn it
interrupts. Chunks can be computed again: above a byte cap those of the sessions unused for longest
go, and their tokens are read again.

Only the caller reads a turn's record (messages, sampling). `check.py` finds and mends what is wrong
in a store; here a bad file is an error of the one session that needs it.
"""

import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fulmen.engine import Between, KnownStates, Origin, PrefixCache, at_once
from fulmen.files import write_text
from fulmen.sessions.chunks import Chunks
from fulmen.sessions.locks import lock_file
from fulmen.sessions.names import is_name, quoted, read_name
from fulmen.sessions.objects import (
    FOLDERS,
    MAX_CHUNK_BYTES,
    MAX_TURN_BYTES,
    Objects,
    entries,
    is_leftover,
    is_real_folder,
    move_aside,
    read_file,
    remove_stray,
    store_folder,
)
from fulmen.sessions.records import (
    MAX_STATE_BYTES,
    SessionState,
    StoredTurn,
    check_metadata,
    read_state,
    read_turn,
    write_state,
    write_turn,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Named:
    """Objects that the sessions of a store have."""

    unreadable: list[str]
    """Sessions that may have anything"""
    turns: set[str] = field(default_factory=set)
    chunks: dict[str, None] = field(default_factory=dict)
    """In order: the last chunks of the session unused for longest come first"""


class SessionStore:
    """A folder of sessions; any number of processes may use it."""

    def __init__(self, root: Path, *, max_bytes: int = 20 * 2**30) -> None:
        """max_bytes: disk that all chunks together may take"""
        self.root = root
        self.max_bytes = max_bytes
        self.turn_objects = Objects(root, "turns", ".json")
        self.chunk_objects = Objects(root, "chunks", ".safetensors")
        self._chunks = Chunks(self.chunk_objects)
        self._turns: dict[str, StoredTurn] = {}
        """Turns that were read: what a hash names never changes"""

    def names(self) -> list[str]:
        """List all sessions, the last used first. Not all of them need be readable."""
        times = {
            path.stem: status.st_mtime_ns
            for path, status in self._entries()
            if path.suffix == ".json" and is_name(path.stem)
        }
        return sorted(times, key=lambda name: -times[name])

    def strays(self) -> list[str]:
        """List the files in the folder of sessions that belong to no session."""
        return sorted(
            path.name
            for path, _ in self._entries()
            if not is_leftover(path.name)
            and not (path.suffix in (".json", ".lock") and is_name(path.stem))
        )

    def has(self, name: str) -> bool:
        """Return whether there is such a session."""
        return os.path.lexists(self.state_path(name))

    def state(self, name: str) -> SessionState:
        """Read where a session stands. Raises ValueError if there is none or it cannot be read."""
        path = self.state_path(name)
        try:
            return read_state(read_file(path, MAX_STATE_BYTES), path)
        except FileNotFoundError:
            raise _no_session(name) from None

    def create(self, name: str, *, model: str, fingerprint: str) -> SessionState:
        """Make a new session without a turn."""
        with self.locked():
            self._check_free(name)
            state = SessionState(
                name=read_name(name), model=model, fingerprint=fingerprint, created=time.time()
            )
            self.write_state(state)
        return state

    def fork(
        self, name: str, new: str, *, num_turns: int | None = None, num_kept: int | None = None
    ) -> SessionState:
        """Make a session that has all turns of another one, or its first num_turns, or of the last
        answer only num_kept tokens. Costs a few hundred bytes, whatever its length."""
        with self.locked():
            self._check_free(new)
            state = self._rewound(self.state(name), num_turns, num_kept)
            state = replace(state, name=read_name(new), created=time.time())
            self.write_state(state)
        return state

    def rewind(self, name: str, *, num_turns: int, num_kept: int | None = None) -> SessionState:
        """Take a session back to its first num_turns. What came after stays in other sessions that
        have it."""
        with self.locked():
            state = self._rewound(self.state(name), num_turns, num_kept)
            self.write_state(state)
        return state

    def note(self, name: str, metadata: Mapping[str, str]) -> SessionState:
        """Give a session other metadata. Its place among those last used stays."""
        with self.locked():
            state = replace(self.state(name), metadata=check_metadata(metadata))
            path = self.state_path(name)
            times = path.stat()
            self.write_state(state)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return state

    def remove(self, name: str) -> None:
        """Forget a session, readable or not, or a stray; and all that no other session has, unless
        one cannot be read: it may have anything."""
        with self.locked():
            path = self._entry(name)
            if is_real_folder(path):
                move_aside(self.root, path)
            path.unlink(missing_ok=True)
            if path.suffix == ".json":
                lock = path.with_suffix(".lock")
                if not is_real_folder(lock):
                    lock.unlink(missing_ok=True)
            named = self.named()
            if named.unreadable:
                logger.warning(
                    "%s cannot be read and may have anything: what no other session has is kept, "
                    "fulmen sessions check --repair mends the store",
                    ", ".join(map(repr, named.unreadable)),
                )
                return
            for hash in self.turn_objects.sizes().keys() - named.turns:
                self.turn_objects.delete(hash)
            for hash in self.chunk_objects.sizes().keys() - named.chunks.keys():
                self.chunk_objects.delete(hash)

    def turns(self, state: SessionState) -> list[StoredTurn]:
        """Read the turns of a session, the first one first."""
        turns = [] if state.turn is None else self._with_parents(state.turn)
        if state.num_kept is not None and state.num_kept > turns[-1].num_answer:
            raise ValueError(
                f"session {quoted(state.name)} keeps {state.num_kept} tokens of an answer that has "
                f"{turns[-1].num_answer}, fulmen sessions check --repair mends it"
            )
        return turns

    def turn(self, hash: str) -> StoredTurn:
        """Read a turn. Raises ValueError if it is gone or cannot be read."""
        if hash not in self._turns:
            path = self.turn_objects.path(hash)
            try:
                content = self.turn_objects.get(hash, MAX_TURN_BYTES)
            except FileNotFoundError:
                raise ValueError(f"{path} is missing, the session cannot be read") from None
            except ValueError as error:
                raise ValueError(f"{error}, the session cannot be read") from None
            self._turns[hash] = read_turn(content, hash, path)
        return self._turns[hash]

    def ids(self, turn: StoredTurn) -> list[int]:
        """Read all ids up to the end of a turn."""
        ids: list[int] = []
        for part in self._with_parents(turn.hash):
            del ids[part.num_shared :]
            ids += part.new_ids
        return ids

    def ids_of(self, state: SessionState) -> list[int]:
        """Read all ids of a session, as far as they count."""
        turns = self.turns(state)
        if not turns:
            return []
        ids = self.ids(turns[-1])
        if state.num_kept is not None:
            del ids[len(ids) - turns[-1].num_answer + state.num_kept :]
        return ids

    def chunk_bytes(self, state: SessionState) -> int:
        """Return the bytes that the chunks of a session take on disk, shared ones included."""
        return sum(self.chunk_objects.size(chunk) for chunk in _chunks_of(self.turns(state)))

    @contextmanager
    def used_by_one(self, name: str) -> Iterator[None]:
        """Hold a session while it is talked to. Raises ValueError if another process does."""
        store_folder(self.root, "sessions", creates=True)
        with lock_file(self.lock_path(name), waits=False) as is_held:
            if not is_held:
                raise ValueError(
                    f"session {quoted(name)} is in use by another process, fulmen sessions fork "
                    "makes a second one of it"
                )
            yield

    def save(
        self,
        state: SessionState,
        *,
        parent: str | None,
        ids: Sequence[int],
        num_answer: int,
        record: Mapping[str, Any],
        origin: Origin,
        prefixes: PrefixCache,
        between: Between = at_once,
    ) -> SessionState:
        """Add a turn to a session after `parent`, one of its turns or None, and what the cache
        knows of its tokens. Only what the parent does not have is written.

        ids         all ids up to the turn's end
        num_answer  number of the last ones that the model sampled
        between     runs what reads the cache; all else is done here

        Raises ValueError if the session is no longer where state says.
        """
        with self.locked():
            state = self._current(state)
            before = None if parent is None else self.turn(parent)
            num_shared = 0
            if before is not None:
                num_shared = min(_num_shared(self.ids(before), ids), len(ids) - num_answer)
            has_states = before is not None and before.origin.has_bits_of(origin)
            spans, snapshots, num_known = self._chunks.save(
                KnownStates(prefixes, ids, between), before if has_states else None, num_shared
            )
            turn = self._put_turn(
                StoredTurn(
                    hash="",
                    parent=parent,
                    num_shared=num_shared,
                    new_ids=tuple(ids[num_shared:]),
                    num_answer=num_answer,
                    origin=origin,
                    num_known=num_known,
                    spans=spans,
                    states=snapshots,
                    record=record,
                )
            )
            state = replace(state, turn=turn.hash, num_kept=None, used=time.time())
            self.write_state(state)
            try:
                self._shrink()
            except (OSError, ValueError) as error:  # the turn is saved, only space is not freed
                logger.warning("sessions may take more than %d bytes: %s", self.max_bytes, error)
        return state

    def save_history(
        self, state: SessionState, records: Sequence[Mapping[str, Any]], *, origin: Origin
    ) -> tuple[SessionState, list[StoredTurn]]:
        """Add turns that have no ids, all or none; return where the session stands then, and them.

        Raises ValueError if the session is no longer where state says.
        """
        with self.locked():
            state = self._current(state)
            turns: list[StoredTurn] = []
            for record in records:
                turn = StoredTurn(
                    hash="",
                    parent=turns[-1].hash if turns else state.turn,
                    num_shared=0,
                    new_ids=(),
                    num_answer=0,
                    origin=origin,
                    num_known=0,
                    spans=(),
                    states={},
                    record=record,
                )
                turns.append(self._put_turn(turn))
            if turns:
                state = replace(state, turn=turns[-1].hash, num_kept=None, used=time.time())
                self.write_state(state)
        return state, turns

    def restore(
        self,
        state: SessionState,
        origin: Origin,
        prefixes: PrefixCache,
        *,
        ids: Sequence[int] | None = None,
        between: Between = at_once,
    ) -> int:
        """Make the cache know what is stored of a session; returns of how many tokens.

        ids      prompt that is to be answered: only what it begins with is of use; None: all is
        between  runs what changes the cache; all else is done here

        Raises ValueError for another model. States of other numerics are not used, nor what a lost
        or damaged chunk held: the engine reads those tokens again.
        """
        if state.fingerprint != origin.model:
            raise ValueError(
                f"session {quoted(state.name)} belongs to another model, it was begun with "
                f"{state.model}"
            )
        self._current(state)
        self._note_use(state)
        if state.turn is None:
            return 0
        turn, known = self.turn(state.turn), self.ids_of(state)
        if ids is not None:
            del known[_num_shared(known, ids) :]
        if not turn.origin.has_bits_of(origin):
            logger.warning(
                "session %s was saved by another build or on another machine, its %d tokens are "
                "read again",
                state.name,
                len(known),
            )
            return 0
        return self._chunks.restore(turn, known, prefixes, between)

    def state_path(self, name: str) -> Path:
        """Return where a session's state is, or would be. Raises ValueError for a name that no
        session can have."""
        return store_folder(self.root, "sessions") / f"{read_name(name)}.json"

    def lock_path(self, name: str) -> Path:
        """Return the file that is locked while a session is talked to."""
        return self.state_path(name).with_suffix(".lock")

    def write_state(self, state: SessionState) -> None:
        """Write where a session stands; only while the store is locked."""
        path = self.state_path(state.name)
        store_folder(self.root, "sessions", creates=True)
        remove_stray(path)
        write_text(path, write_state(state))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time change the store. Raises ValueError, before anything is
        changed, if one of its folders is a link."""
        with self._lock(waits=True):
            yield

    @contextmanager
    def _lock(self, *, waits: bool) -> Iterator[bool]:
        """Lock the store; gives whether it is."""
        for name in FOLDERS:
            store_folder(self.root, name)
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with lock_file(self.root / "lock", waits=waits) as is_held:
            yield is_held

    def _note_use(self, state: SessionState) -> None:
        """Write that a session is used now, unless the store is being changed: a request need not
        wait until another session is saved."""
        with self._lock(waits=False) as is_held:
            if not is_held:
                return
            state = self._current(state)
            try:
                self.write_state(replace(state, used=time.time()))
            except OSError as error:  # a full disk can be read all the same
                logger.warning("the use of session %s is not noted: %s", state.name, error)

    def named(self) -> "Named":
        """Find what sessions have."""
        # A stray that ends like a session's file may be one under a wrong name.
        found = Named([name for name in self.strays() if name.endswith(".json")])
        for name in reversed(self.names()):
            try:
                turns = self.turns(self.state(name))
            except ValueError:
                found.unreadable.append(name)
                continue
            found.turns.update(turn.hash for turn in turns)
            for chunk in reversed(_chunks_of(turns)):
                found.chunks.pop(chunk, None)  # the last use counts
                found.chunks[chunk] = None
        return found

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        folder = store_folder(self.root, "sessions")
        for name, status in entries(folder).items():
            yield folder / name, status

    def _entry(self, name: str) -> Path:
        """Find what `remove` may remove: a session's file, or a stray by its name, with or without
        its .json."""
        with suppress(ValueError):  # no name of a session, but perhaps a stray's
            if self.has(name):
                return self.state_path(name)
        strays = self.strays()
        for stray in (name, f"{name}.json"):
            if stray in strays:
                return store_folder(self.root, "sessions") / stray
        self.state_path(name)
        raise _no_session(name)

    def _check_free(self, name: str) -> None:
        if self.has(name):
            raise ValueError(f"there is a session {quoted(name)} already, choose another name")

    def _current(self, state: SessionState) -> SessionState:
        """Return a session's state as it is now: its metadata may be others. Raises ValueError if
        it is no longer where it was."""
        found = self.state(state.name)
        if (found.turn, found.num_kept, found.created) != (
            state.turn,
            state.num_kept,
            state.created,
        ):
            raise ValueError(
                f"session {quoted(state.name)} was changed by another process meanwhile, nothing "
                "is saved"
            )
        return found

    def _rewound(
        self, state: SessionState, num_turns: int | None, num_kept: int | None
    ) -> SessionState:
        turns = self.turns(state)
        count = len(turns) if num_turns is None else num_turns
        if not 0 <= count <= len(turns):
            raise ValueError(
                f"turn {count} was asked for, session {quoted(state.name)} has {len(turns)} turns"
            )
        if num_kept is None:
            kept = state.num_kept if num_turns is None else None
            return replace(state, turn=turns[count - 1].hash if count else None, num_kept=kept)
        if not count:
            raise ValueError("a token was asked for without a turn, turn 0 has none")
        most = turns[count - 1].num_answer
        if not 0 <= num_kept <= most:
            raise ValueError(
                f"token {num_kept} was asked for, the answer of turn {count} has {most} tokens"
            )
        return replace(
            state, turn=turns[count - 1].hash, num_kept=None if num_kept == most else num_kept
        )

    def _with_parents(self, hash: str) -> list[StoredTurn]:
        """Read a turn and all before it, the first one first."""
        found: list[StoredTurn] = []
        next_hash: str | None = hash
        # A turn is named by its content, its parent's name included, so they form no circle.
        while next_hash is not None:
            found.append(self.turn(next_hash))
            next_hash = found[-1].parent
        found.reverse()
        for parent, turn in pairwise(found):
            if turn.num_shared > parent.num_tokens:
                raise ValueError(
                    f"turn {turn.hash} shares {turn.num_shared} tokens with a turn of "
                    f"{parent.num_tokens}, the session cannot be read"
                )
        return found

    def _put_turn(self, turn: StoredTurn) -> StoredTurn:
        content = write_turn(turn)
        # What is written can be read: bounds of files hold for the caller's record too.
        if len(content) > MAX_TURN_BYTES:
            raise ValueError(f"the turn takes {len(content)} bytes, at most {MAX_TURN_BYTES} fit")
        read_turn(content, "", Path("the new turn"))
        hash = self.turn_objects.put(content)
        self._turns[hash] = replace(turn, hash=hash)
        return self._turns[hash]

    def _shrink(self) -> None:
        """Delete chunks down to the cap: first what no session has, then what sessions unused for
        longest have, each from its end: a beginning is of use without its end, not the other way
        round. All of it can be computed again, so sessions that cannot be read lose no text."""
        self._delete_leftovers()
        sizes = self.chunk_objects.sizes()
        total = sum(sizes.values())
        if total <= self.max_bytes:
            return
        last_use = {chunk: place for place, chunk in enumerate(self.named().chunks)}

        def keep_longer(chunk: str) -> tuple[bool, int]:
            return sizes[chunk] <= MAX_CHUNK_BYTES, last_use.get(chunk, -1)

        for chunk in sorted(sizes, key=keep_longer):
            if total <= self.max_bytes:
                return
            self.chunk_objects.delete(chunk)
            total -= sizes[chunk]

    def _delete_leftovers(self) -> None:
        self.turn_objects.delete_leftovers()
        self.chunk_objects.delete_leftovers()
        for path, status in self._entries():
            if is_leftover(path.name) and stat.S_ISREG(status.st_mode):
                path.unlink(missing_ok=True)


def _chunks_of(turns: Sequence[StoredTurn]) -> list[str]:
    """List the chunks of turns, of the first one first."""
    return list(dict.fromkeys(chunk for turn in turns for chunk in turn.chunks))


def _no_session(name: str) -> ValueError:
    return ValueError(f"there is no session {quoted(name)}, fulmen sessions list shows all")


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids two sequences begin with in common."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)
