"""The database of logged turns: rows found by keyed digests, least recently used ones out first.

    turns     what is small and changes: whose a turn is, its conversation, when it was last used
    payloads  what is large and does not: ids, log-probabilities, thought (`turn_log.py` packs it)
    keys      digests by which a turn is found again

No row is found without its owner, a digest of scope and vocabulary; no scope is kept in clear.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

_APPLICATION_ID: Final = 0x46754C6F
_VERSION: Final = 1
_SCHEMA: Final = (
    """CREATE TABLE turns (id INTEGER PRIMARY KEY AUTOINCREMENT, owner BLOB NOT NULL,
    answer BLOB NOT NULL, conversation BLOB NOT NULL, body BLOB NOT NULL, turn_id TEXT NOT NULL,
    created REAL NOT NULL, used REAL NOT NULL)""",
    "CREATE TABLE payloads (turn INTEGER PRIMARY KEY, payload BLOB NOT NULL)",
    """CREATE TABLE keys (key BLOB NOT NULL, turn INTEGER NOT NULL, PRIMARY KEY (key, turn))
    WITHOUT ROWID""",
    "CREATE INDEX keys_of_turn ON keys (turn)",
    "CREATE INDEX turns_by_use ON turns (used)",
    "CREATE INDEX turns_by_conversation ON turns (conversation, answer)",
    "CREATE INDEX turns_by_id ON turns (turn_id)",
)
_EMPTY_BYTES: Final = 2**16
"""Bytes of a database without turns, beside max_bytes"""
_BUSY_SECONDS: Final = 1.0
"""Longest wait for another process that writes; all other requests wait as long"""
_MAX_CANDIDATES: Final = 64
_MAX_CHECKED_BYTES: Final = 2**26
"""Size up to which a file is checked whole when it is opened"""
_COLUMNS: Final = "t.id, t.turn_id, t.conversation, t.body"


class Row(NamedTuple):
    """Logged turn without its payload."""

    id: int
    turn_id: str
    conversation: bytes
    body: bytes
    """Digest of its ids and its thought"""


class TurnRows:
    """Rows of a database file, or in memory; for any thread and several processes."""

    def __init__(
        self,
        file: Path | None,
        *,
        max_bytes: int,
        max_age_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self.name = "the log of turns" if file is None else str(file)
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._now = now
        self._lock = threading.Lock()
        try:
            self._connection = _open(file)
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"{self.name} cannot be used as a log of turns: {error}") from None
        try:
            _prepare(self._connection, is_small=_is_small(file))
        except sqlite3.Error as error:
            self._connection.close()
            is_busy = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
            what = "cannot be used as" if is_busy else "is not"
            raise ValueError(f"{self.name} {what} a log of turns: {error}") from None
        except ValueError as error:
            self._connection.close()
            raise ValueError(f"{self.name} {error}") from None

    def by_key(self, key: bytes, owner: bytes, answer: bytes) -> list[Row]:
        """Return the last turns that a key leads to and that have this answer, newest first."""
        with self._use() as connection:
            found = connection.execute(
                f"SELECT {_COLUMNS} FROM keys k JOIN turns t ON t.id = k.turn WHERE k.key = ?"
                " AND t.owner = ? AND t.answer = ? AND t.used >= ? ORDER BY k.turn DESC LIMIT ?",
                (key, owner, answer, self._oldest(), _MAX_CANDIDATES),
            )
            return [Row(*row) for row in found]

    def by_conversation(self, conversation: bytes, owner: bytes, answer: bytes) -> list[Row]:
        """Return the last turns of a conversation that have this answer, newest first."""
        with self._use() as connection:
            found = connection.execute(
                f"SELECT {_COLUMNS} FROM turns t WHERE t.conversation = ? AND t.answer = ?"
                " AND t.owner = ? AND t.used >= ? ORDER BY t.id DESC LIMIT ?",
                (conversation, answer, owner, self._oldest(), _MAX_CANDIDATES),
            )
            return [Row(*row) for row in found]

    def by_turn_id(self, turn_id: str, owner: bytes) -> Row | None:
        """Return the newest turn with this id."""
        with self._use() as connection:
            found = connection.execute(
                f"SELECT {_COLUMNS} FROM turns t WHERE t.turn_id = ? AND t.owner = ?"
                " AND t.used >= ? ORDER BY t.id DESC LIMIT 1",
                (turn_id, owner, self._oldest()),
            ).fetchone()
            return None if found is None else Row(*found)

    def payloads(self, ids: Sequence[int]) -> dict[int, bytes]:
        """Return the payloads of turns; one that has just gone is left out. They count as used."""
        if not ids:
            return {}
        with self._use() as connection:
            found: dict[int, bytes] = {}
            for id in ids:
                row = connection.execute("SELECT payload FROM payloads WHERE turn = ?", (id,))
                found.update((id, payload) for (payload,) in row)
            # Another process may write for long: then these turns stay as old as they were, and
            # nobody waits.
            connection.execute("PRAGMA busy_timeout = 0").fetchall()
            try:
                with suppress(sqlite3.OperationalError), _transaction(connection):
                    used = self._now()
                    connection.executemany(
                        "UPDATE turns SET used = max(used, ?) WHERE id = ?",
                        [(used, id) for id in ids],
                    )
            finally:
                busy_ms = int(_BUSY_SECONDS * 1000)
                connection.execute(f"PRAGMA busy_timeout = {busy_ms}").fetchall()
            return found

    def add(
        self,
        keys: Sequence[bytes],
        payload: bytes,
        *,
        owner: bytes,
        answer: bytes,
        conversation: bytes,
        body: bytes,
        turn_id: str,
    ) -> None:
        """Add a turn, and take out expired ones and as many old ones as make room for it."""
        with self._use() as connection:
            with _transaction(connection):
                now = self._now()
                cursor = connection.execute(
                    "INSERT INTO turns (owner, answer, conversation, body, turn_id, created, used)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (owner, answer, conversation, body, turn_id, now, now),
                )
                id = cursor.lastrowid
                connection.execute("INSERT INTO payloads VALUES (?, ?)", (id, payload))
                connection.executemany(
                    "INSERT OR IGNORE INTO keys VALUES (?, ?)", [(key, id) for key in keys]
                )
                self._make_room(connection, id)
            with suppress(sqlite3.OperationalError):  # another process writes: it frees the pages
                connection.executescript("PRAGMA incremental_vacuum")  # execute frees one page

    def close(self) -> None:
        """Close the database; a second time does nothing."""
        with self._lock:
            self._connection.close()

    def _oldest(self) -> float:
        return self._now() - self._max_age_seconds

    def _make_room(self, connection: sqlite3.Connection, newest: int | None) -> None:
        expired = "SELECT id FROM turns WHERE used < ? AND id != ?"
        _delete(connection, connection.execute(expired, (self._oldest(), newest)).fetchall())
        oldest = (
            "SELECT t.id, length(p.payload) FROM turns t LEFT JOIN payloads p ON p.turn = t.id"
            " WHERE t.id != ? ORDER BY t.used, t.id"
        )
        while (excess := _used_bytes(connection) - self._max_bytes - _EMPTY_BYTES) > 0:
            ids: list[tuple[int]] = []
            for id, size in connection.execute(oldest, (newest,)):
                ids.append((id,))
                excess -= size or 0
                if excess <= 0:
                    break
            if not ids:
                break
            _delete(connection, ids)

    @contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection; a database that broke is a ValueError, a full disk an OSError."""
        with self._lock:
            try:
                yield self._connection
            except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
                raise OSError(f"{self.name} cannot be used: {error}") from None
            except sqlite3.Error as error:
                raise ValueError(f"{self.name} is broken, remove it: {error}") from None


def _open(file: Path | None) -> sqlite3.Connection:
    """Open a database that only its owner can read."""
    if file is not None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
    return sqlite3.connect(
        ":memory:" if file is None else file,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _is_small(file: Path | None) -> bool:
    return file is None or file.stat().st_size <= _MAX_CHECKED_BYTES


def _prepare(connection: sqlite3.Connection, *, is_small: bool) -> None:
    """Make the tables of a new database, or check that they are ours."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            with _transaction(connection, "DEFERRED"):  # one view, while another may make it
                (application,) = connection.execute("PRAGMA application_id").fetchone()
                (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if application != _APPLICATION_ID and (application or num_tables):
                raise ValueError("is a database of another program, it must be a log of turns")
            if not num_tables:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            break
        except sqlite3.OperationalError as error:  # another process is making it
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    for pragma in ("synchronous = NORMAL", "journal_size_limit = 4194304", "secure_delete = FAST"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    with _transaction(connection):
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != _VERSION:
        raise ValueError(f"is a log of turns of version {version}, this program reads {_VERSION}")
    if is_small:
        ((found, *_),) = connection.execute("PRAGMA quick_check(1)").fetchall()
        if found != "ok":
            raise ValueError(f"is broken, remove it: {found.splitlines()[-1]}")
    for table, columns in (("turns", "id"), ("payloads", "turn"), ("keys", "key, turn")):
        connection.execute(f"SELECT {columns} FROM {table} LIMIT 1").fetchall()


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _delete(connection: sqlite3.Connection, ids: Sequence[tuple[int]]) -> None:
    for table, column in (("keys", "turn"), ("payloads", "turn"), ("turns", "id")):
        connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", ids)


def _used_bytes(connection: sqlite3.Connection) -> int:
    (count,), (free,), (size,) = (
        connection.execute(f"PRAGMA {name}").fetchone()
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((count - free) * size)
