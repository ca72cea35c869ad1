"""Everything that is wrong in a store, found, and mended at the least loss.

Text is never deleted: what cannot be saved is moved to STORE/damaged/. A session whose last turns
are damaged goes back to its last readable one. Chunks hold only what can be computed again, so
damaged ones are deleted.
"""

import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from fulmen.sessions.chunks import load_tensors
from fulmen.sessions.locks import lock_file
from fulmen.sessions.names import name_like
from fulmen.sessions.objects import (
    FOLDERS,
    MAX_CHUNK_BYTES,
    MAX_TURN_BYTES,
    entries,
    is_hash,
    is_leftover,
    move_aside,
    read_beginning,
    read_file,
    store_folder,
)
from fulmen.sessions.records import (
    FORMAT,
    MAX_STATE_BYTES,
    SessionState,
    StoredTurn,
    check_metadata,
    read_state,
)
from fulmen.sessions.session import read_stored
from fulmen.sessions.store import SessionStore

_FIELD = re.compile(r'"(\w+)"\s*:\s*("(?:[^"\\]|\\.)*"|[0-9][0-9.eE+-]*|null)')
"""A field of a JSON object, wherever it stands: most of a damaged file can be read"""
_MAX_BRANCHES = 100
_LARGEST_FORMAT = 1_000
"""Largest number that may be the format of a later version; a larger one is damage"""
_LEFTOVER = "was left by a process that was killed"
_LEFT_LOCK = "is the lock of a session that is not there"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a file of a store."""

    path: Path
    reason: str

    def __str__(self) -> str:
        text = self.reason if str(self.path) in self.reason else f"{self.path} {self.reason}"
        return text.encode(errors="backslashreplace").decode()


def check(store: SessionStore) -> list[Problem]:
    """Find every problem of a store.

    Chunks that are gone are none: the byte cap takes them. Nor are objects that no session names: a
    rewind leaves them, and they go with the next session that is removed.
    """
    store = SessionStore(store.root)  # one that has read nothing yet
    problems = [Problem(path, reason) for path, reason in _replaced(store)]
    if problems:  # nothing behind a link is read
        return problems
    problems += [Problem(path, reason) for path, reason in _misplaced(store)]
    problems += [Problem(path, str(error)) for path, error in _damaged_turns(store)]
    problems += [Problem(path, str(error)) for path, error in _damaged_chunks(store)]
    problems += [Problem(path, f"cannot be read: {error}") for path, error in _unreadable(store)]
    return problems


def repair(store: SessionStore) -> list[str]:
    """Mend every problem of a store; returns what was done."""
    store = SessionStore(store.root)
    done: list[str] = []

    def set_aside(path: Path, reason: str) -> None:
        place = move_aside(store.root, path)
        done.append(f"{path} moved to {place}: {reason}")

    def delete(path: Path, reason: str) -> None:
        path.unlink(missing_ok=True)
        done.append(f"{path} deleted: {reason}")

    for path, reason in _replaced(store):
        set_aside(path, reason)
    with store.locked():
        for path, reason in list(_misplaced(store)):
            name = _name_for_stray(store, path)
            if reason in (_LEFTOVER, _LEFT_LOCK):
                delete(path, reason)
            elif name is not None:
                path.rename(store.state_path(name))
                done.append(f"{path} is session {name} now")
            else:
                set_aside(path, reason)
        parents: dict[str, object] = {}
        for path, error in list(_damaged_turns(store)):
            if _is_newer(path) and _is_whole(store, path):
                done.append(f"{path} is left alone: a newer version of Fulmen wrote it")
                continue
            parents[path.stem] = _legible_fields(path).get("parent")
            set_aside(path, str(error))
        store = SessionStore(store.root)  # one that has not read what was moved
        for path, error in list(_damaged_chunks(store)):
            delete(path, f"{error}; its tokens will be read again")
        for path, error in list(_unreadable(store)):
            if _is_newer(path):
                done.append(f"{path} is left alone: a newer version of Fulmen wrote it")
                continue
            state = _mended(store, path, parents)
            set_aside(path, str(error))
            if state is not None:
                store.write_state(state)
                num_turns = len(store.turns(state))
                done.append(f"session {state.name} was rewound to the end of turn {num_turns}")
    return [line.encode(errors="backslashreplace").decode() for line in done]


def _replaced(store: SessionStore) -> list[tuple[Path, str]]:
    """Find folders of the store that are links or files, and its lock if it is no file."""
    found = entries(store.root)
    wrong = [
        (store.root / name, "is no folder of its own")
        for name in FOLDERS
        if name in found and not stat.S_ISDIR(found[name].st_mode)
    ]
    if "lock" in found and not stat.S_ISREG(found["lock"].st_mode):
        wrong.append((store.root / "lock", "is no file of its own"))
    return wrong


def _misplaced(store: SessionStore) -> Iterator[tuple[Path, str]]:
    """Find what is no session, turn or chunk, or no real file."""
    names, strays = set(store.names()), set(store.strays())
    is_ours: dict[str, Callable[[str], bool]] = {
        "sessions": lambda name: name not in strays,
        "turns": lambda name: store.turn_objects.hash_in(name) is not None,
        "chunks": lambda name: store.chunk_objects.hash_in(name) is not None,
    }
    for folder in FOLDERS:
        place = store_folder(store.root, folder)
        for name, status in sorted(entries(place).items()):
            path = place / name
            if not stat.S_ISREG(status.st_mode):
                yield path, "is no regular file"
            elif is_leftover(name):
                yield path, _LEFTOVER
            elif not is_ours[folder](name):
                yield path, "does not belong into a store"
            elif path.suffix == ".lock" and path.stem not in names:
                with lock_file(path, waits=False) as is_unused:
                    if is_unused:
                        yield path, _LEFT_LOCK


def _damaged_turns(store: SessionStore) -> Iterator[tuple[Path, ValueError]]:
    for hash in sorted(store.turn_objects.sizes()):
        try:
            turn = store.turn(hash)
            if "messages" in turn.record:  # a conversation's
                read_stored(turn)
        except ValueError as error:
            yield store.turn_objects.path(hash), error


def _damaged_chunks(store: SessionStore) -> Iterator[tuple[Path, ValueError]]:
    for hash in sorted(store.chunk_objects.sizes()):
        try:
            load_tensors(store.chunk_objects.get(hash, MAX_CHUNK_BYTES))
        except FileNotFoundError:  # another process needed its place
            continue
        except ValueError as error:
            yield store.chunk_objects.path(hash), error


def _unreadable(store: SessionStore) -> Iterator[tuple[Path, ValueError]]:
    for name in sorted(store.names()):
        try:
            store.ids_of(store.state(name))
        except ValueError as error:
            yield store.state_path(name), error


def _name_for_stray(store: SessionStore, path: Path) -> str | None:
    """Find a name for a session whose file has one that no session can have; None for a file that
    is no session."""
    if path.suffix != ".json" or path.parent != store_folder(store.root, "sessions"):
        return None
    try:
        store.turns(read_state(read_file(path, MAX_STATE_BYTES), path))
    except (ValueError, FileNotFoundError):
        return None
    stem = name_like(path.stem)
    return next(
        name
        for number in count(1)
        if not store.has(name := f"{stem}-{number}" if number > 1 else stem)
    )


def _mended(store: SessionStore, path: Path, parents: Mapping[str, object]) -> SessionState | None:
    """Make a state for an unreadable session from what can be read of it: its last readable turn,
    or None."""
    fields = _legible_fields(path)
    named, model, fingerprint = (fields.get(key) for key in ("turn", "model", "fingerprint"))
    last = _last_readable(store, named, parents) or _only_branch(store, fingerprint, parents)
    if last is None:
        return None
    if not isinstance(fingerprint, str):
        fingerprint = last.origin.model
    kept = fields.get("cut")
    if last.hash != named or type(kept) is not int or kept >= last.num_answer:
        kept = None
    return SessionState(
        name=path.stem,
        model=model if isinstance(model, str) else "unknown",
        fingerprint=fingerprint,
        turn=last.hash,
        num_kept=kept,
        created=path.lstat().st_mtime,
        used=path.lstat().st_mtime,
        metadata=_legible_metadata(path),
    )


def _last_readable(
    store: SessionStore, hash: object, parents: Mapping[str, object]
) -> StoredTurn | None:
    """Find the last turn up to `hash` that can be read with all before it. parents has what
    damaged turns say of theirs."""
    turns: list[StoredTurn] = []
    seen: set[str] = set()
    while is_hash(hash) and hash not in seen:
        seen.add(hash)
        try:
            turns.append(store.turn(hash))
            hash = turns[-1].parent
        except ValueError:
            turns.clear()
            hash = parents.get(str(hash))
    last: StoredTurn | None = None
    for turn in reversed(turns):
        if last is not None and turn.num_shared > last.num_tokens:
            break
        last = turn
    return last


def _only_branch(
    store: SessionStore, fingerprint: object, parents: Mapping[str, object]
) -> StoredTurn | None:
    """Find the last readable turn of the one branch of a model that no readable session has. With a
    second branch it is not known whose they are."""
    named = store.named().turns
    turns = {}
    for hash in store.turn_objects.sizes().keys() - named:
        with suppress(ValueError):  # a newer version wrote it, so it was left alone
            turns[hash] = store.turn(hash)
    ends = turns.keys() - {turn.parent for turn in turns.values()}
    if len(ends) > _MAX_BRANCHES:
        return None
    found = {
        turn.hash: turn
        for turn in (_last_readable(store, end, parents) for end in ends)
        if turn is not None and turn.hash not in named and fingerprint in (None, turn.origin.model)
    }
    return found.popitem()[1] if len(found) == 1 else None


def _is_whole(store: SessionStore, path: Path) -> bool:
    """Return whether a turn is as it was written: its name is its hash."""
    try:
        store.turn_objects.get(path.stem, MAX_TURN_BYTES)
    except (OSError, ValueError):
        return False
    return True


def _is_newer(path: Path) -> bool:
    """Return whether a file is of a format that only a later version knows."""
    found = _legible_fields(path).get("format")
    return type(found) is int and FORMAT < found <= _LARGEST_FORMAT


def _legible_metadata(path: Path) -> dict[str, str]:
    """Read a session's metadata, if its file is still JSON."""
    try:
        values = json.loads(read_beginning(path, MAX_STATE_BYTES))
        return check_metadata(values.get("metadata", {}))
    except (ValueError, FileNotFoundError, AttributeError, RecursionError):
        return {}


def _legible_fields(path: Path) -> dict[str, object]:
    """Read the simple fields in the beginning of a JSON file, however damaged it is."""
    fields: dict[str, object] = {}
    try:
        content = read_beginning(path, MAX_STATE_BYTES)
    except (ValueError, FileNotFoundError):
        return fields
    for name, value in _FIELD.findall(content.decode(errors="replace")):
        with suppress(ValueError):
            fields.setdefault(name, json.loads(value))
    return fields
