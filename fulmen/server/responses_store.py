"""Responses that are kept, so that later ones can go on from them: one small database.

A row is a response as the client was sent it, and the items of its own input; what came before that
is in the row that it goes on from. No row is found without the scope that it was made in, and each
scope has room of its own.
"""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fulmen.server.errors import Refusal

PLACE_DIGITS: Final = 4
"""Digits of an item's place, at the end of its id"""
_APPLICATION_ID: Final = 0x46755273
_VERSION: Final = 1
_SCHEMA: Final = (
    """CREATE TABLE responses (id TEXT NOT NULL, owner BLOB NOT NULL, previous TEXT,
    used REAL NOT NULL, num_bytes INTEGER NOT NULL, response TEXT NOT NULL, items TEXT NOT NULL,
    PRIMARY KEY (id, owner)) WITHOUT ROWID""",
    "CREATE INDEX by_use ON responses (owner, used, num_bytes, id)",
)
_OF: Final = "WHERE id = ? AND owner = ?"
_BUSY_SECONDS: Final = 1.0
_TOUCH_SECONDS: Final = 3600.0
"""Time after which a use is written down again"""
_MOST_RESPONSES: Final = 10_000
"""Responses that one conversation may have"""


_Row = tuple[str, str, str | None]
"""Response, items and previous"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A response that was kept."""

    response: dict[str, Any]
    items: list[dict[str, Any]]
    """Items of its own input"""
    previous: str | None
    """Response that it goes on from"""


class ResponseStore:
    """Responses of all scopes, in a file or in memory; for any thread."""

    def __init__(
        self,
        file: Path | None,
        *,
        max_bytes: int,
        max_age_seconds: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        max_bytes        size, in each scope, beyond which those go that were not used for longest
        max_age_seconds  time after which a response goes that was not used

        Raises ValueError for a file that is not a store of responses.
        """
        self._name = "the store of responses" if file is None else str(file)
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._now = now
        self._lock = threading.Lock()
        try:
            self._connection = _open(file)
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"{self._name} cannot keep responses: {error}") from None

    def put(
        self,
        response: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
        *,
        scope: str,
        previous: str | None,
    ) -> None:
        """Keep a response, in place of one with its id. It is on disk when this returns."""
        id, owner = response["id"], _owner(scope)
        texts = json.dumps(response), json.dumps(items)
        values = (id, owner, previous, self._now(), sum(map(len, texts)), *texts)
        with self._use() as connection, connection:
            connection.execute("INSERT OR REPLACE INTO responses VALUES (?,?,?,?,?,?,?)", values)
            self._make_room(connection, owner, id)

    def get(self, id: str, *, scope: str) -> Stored:
        """Return a response. Raises a Refusal (404) for one that is not there."""
        with self._use() as connection, connection:
            found = self._row(connection, id, _owner(scope))
        if found is None:
            raise _not_stored(id)
        return _read(found)

    def delete(self, id: str, *, scope: str) -> None:
        """Delete a response. Raises a Refusal (404) for one that is not there."""
        with self._use() as connection, connection:
            cursor = connection.execute(f"DELETE FROM responses {_OF}", (id, _owner(scope)))
            if not cursor.rowcount:
                raise _not_stored(id)

    def history(self, id: str, *, scope: str) -> list[dict[str, Any]]:
        """Return the items of a conversation up to a response, its output included.

        Raises a Refusal for one that is not there, goes on from one that was deleted, or is not
        completed.
        """
        rows = list[_Row]()
        at: str | None = id
        with self._use() as connection, connection:
            while at is not None:
                if len(rows) == _MOST_RESPONSES:
                    raise Refusal(
                        400, f"the conversation has more than {_MOST_RESPONSES:,} responses"
                    )
                row = self._row(connection, at, _owner(scope))
                if row is None:
                    raise _broken_history(id, at)
                rows.append(row)
                at = row[2]
        items: list[dict[str, Any]] = []
        for row in reversed(rows):
            stored = _read(row)
            status = stored.response.get("status")
            if status not in ("completed", "incomplete"):
                raise Refusal(
                    400,
                    f"the response {stored.response['id'][:80]!r} is {status}, only one that has "
                    "ended can go on",
                    param="previous_response_id",
                )
            items += [*stored.items, *stored.response["output"]]
        return items

    def item(self, id: str, *, scope: str) -> dict[str, Any]:
        """Return an item of a stored response's output by its own id. Raises a Refusal (404) for
        one that is not there."""
        response_id = f"resp_{id.partition('_')[2][:-PLACE_DIGITS]}"
        with suppress(Refusal):
            for item in self.get(response_id, scope=scope).response["output"]:
                if item.get("id") == id:
                    return dict(item)
        raise Refusal(404, f"no item with the id {id[:80]!r} is stored", param="input")

    def close(self) -> None:
        """Close the database; a second time does nothing."""
        with self._lock:
            self._connection.close()

    def _row(self, connection: sqlite3.Connection, id: str, owner: bytes) -> "_Row | None":
        """Read a row, and note that it was used."""
        now = self._now()
        found: tuple[str, str, str | None, float] | None = connection.execute(
            f"SELECT response, items, previous, used FROM responses {_OF} AND used >= ?",
            (id, owner, now - self._max_age_seconds),
        ).fetchone()
        if found is None:
            return None
        if now - found[3] > min(_TOUCH_SECONDS, self._max_age_seconds / 10):
            connection.execute(f"UPDATE responses SET used = ? {_OF}", (now, id, owner))
        return found[:3]

    def _make_room(self, connection: sqlite3.Connection, owner: bytes, newest: str) -> None:
        oldest = self._now() - self._max_age_seconds
        connection.execute("DELETE FROM responses WHERE owner = ? AND used < ?", (owner, oldest))
        (total,) = connection.execute(
            "SELECT total(num_bytes) FROM responses WHERE owner = ?", (owner,)
        ).fetchone()
        rows = connection.execute(
            "SELECT id, num_bytes FROM responses WHERE owner = ? ORDER BY used", (owner,)
        )
        gone = []
        while total > self._max_bytes and (row := rows.fetchone()) is not None:
            if row[0] != newest:
                gone.append((row[0], owner))
                total -= row[1]
        connection.executemany(f"DELETE FROM responses {_OF}", gone)

    @contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise OSError(f"{self._name} cannot be used: {error}") from None


def _open(file: Path | None) -> sqlite3.Connection:
    """Open a database that only its owner can read, and make its table."""
    if file is not None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(
        ":memory:" if file is None else file, timeout=_BUSY_SECONDS, check_same_thread=False
    )
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")  # one of several that start makes it
                _make_or_check(connection)
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous = FULL").fetchall()
    return connection


def _make_or_check(connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID and (application or num_tables):
        raise sqlite3.DatabaseError("it is a database of another program")
    if not num_tables:
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    elif version != _VERSION:
        raise sqlite3.DatabaseError(f"it has the format {version}, {_VERSION} is needed")


def _read(row: "_Row") -> Stored:
    response, items, previous = row
    return Stored(json.loads(response), json.loads(items), previous)


def _not_stored(id: str) -> Refusal:
    return Refusal(404, f"no response with the id {id[:80]!r} is stored")


def _broken_history(id: str, at: str) -> Refusal:
    """Return the refusal of a conversation of which a response is not stored."""
    if at == id:
        return Refusal(
            404,
            f"previous_response_id is {id[:80]!r}, no response with that id is stored",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return Refusal(
        404,
        f"the response {id[:80]!r} goes on from {at[:80]!r}, which is not stored any more",
        param="previous_response_id",
    )


def _owner(scope: str) -> bytes:
    return hashlib.sha256(b"responses " + scope.encode()).digest()
