"""Responses that are kept, so that later ones can go on from them: one small database.

A row is a response as the client was sent it, and the items of its own input; what came before that
is in the row that it goes on from. No row is found without the scope that it was made in.
"""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fulmen.server.errors import Refusal

_APPLICATION_ID: Final = 0x46755273
_SCHEMA: Final = """CREATE TABLE responses (id TEXT NOT NULL, owner BLOB NOT NULL,
    previous TEXT, created REAL NOT NULL, used REAL NOT NULL, response TEXT NOT NULL,
    items TEXT NOT NULL, PRIMARY KEY (id, owner)) WITHOUT ROWID"""
_BUSY_SECONDS: Final = 1.0
_MOST_RESPONSES: Final = 10_000
"""Responses that one conversation may have"""


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
        max_bytes        size beyond which the responses go that were not used for longest
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
        now = self._now()
        values = (
            response["id"],
            _owner(scope),
            previous,
            now,
            now,
            json.dumps(response),
            json.dumps(items),
        )
        with self._use() as connection, connection:
            connection.execute("INSERT OR REPLACE INTO responses VALUES (?,?,?,?,?,?,?)", values)
            self._make_room(connection, response["id"])

    def get(self, id: str, *, scope: str) -> Stored:
        """Return a response. Raises a Refusal (404) for one that is not there."""
        with self._use() as connection, connection:
            found = connection.execute(
                "SELECT response, items, previous FROM responses WHERE id = ? AND owner = ? "
                "AND used >= ?",
                (id, _owner(scope), self._now() - self._max_age_seconds),
            ).fetchone()
            if found is None:
                raise Refusal(404, f"no response with the id {id[:80]!r} is stored")
            connection.execute(
                "UPDATE responses SET used = ? WHERE id = ? AND owner = ?",
                (self._now(), id, _owner(scope)),
            )
        response, items, previous = found
        return Stored(json.loads(response), json.loads(items), previous)

    def delete(self, id: str, *, scope: str) -> None:
        """Delete a response. Raises a Refusal (404) for one that is not there."""
        with self._use() as connection, connection:
            cursor = connection.execute(
                "DELETE FROM responses WHERE id = ? AND owner = ?", (id, _owner(scope))
            )
            if not cursor.rowcount:
                raise Refusal(404, f"no response with the id {id[:80]!r} is stored")

    def history(self, id: str, *, scope: str) -> list[dict[str, Any]]:
        """Return the items of a conversation up to a response, its output included.

        Raises a Refusal for one that is not there, goes on from one that was deleted, or is not
        completed.
        """
        parts: list[list[dict[str, Any]]] = []
        at: str | None = id
        while at is not None:
            try:
                stored = self.get(at, scope=scope)
            except Refusal:
                if at == id:
                    raise Refusal(
                        404,
                        f"previous_response_id is {id[:80]!r}, no response with that id is stored",
                        param="previous_response_id",
                        code="previous_response_not_found",
                    ) from None
                raise Refusal(
                    404,
                    f"the response {id[:80]!r} goes on from {at[:80]!r}, which is not stored any "
                    "more",
                    param="previous_response_id",
                ) from None
            status = stored.response.get("status")
            if status not in ("completed", "incomplete"):
                raise Refusal(
                    400,
                    f"the response {at[:80]!r} is {status}, only one that has ended can go on",
                    param="previous_response_id",
                )
            parts.append([*stored.items, *stored.response["output"]])
            at = stored.previous
            if len(parts) > _MOST_RESPONSES:
                raise Refusal(400, f"the conversation has more than {_MOST_RESPONSES:,} responses")
        return [item for part in reversed(parts) for item in part]

    def close(self) -> None:
        """Close the database; a second time does nothing."""
        with self._lock:
            self._connection.close()

    def _make_room(self, connection: sqlite3.Connection, newest: str) -> None:
        oldest = self._now() - self._max_age_seconds
        connection.execute("DELETE FROM responses WHERE used < ?", (oldest,))
        size = "length(response) + length(items)"
        (total,) = connection.execute(f"SELECT total({size}) FROM responses").fetchone()
        if total <= self._max_bytes:
            return
        rows = connection.execute(
            f"SELECT id, owner, {size} FROM responses WHERE id != ? ORDER BY used", (newest,)
        ).fetchall()
        for id, owner, num_bytes in rows:
            if total <= self._max_bytes:
                break
            connection.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (id, owner))
            total -= num_bytes

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
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION_ID and (application or num_tables):
        raise sqlite3.DatabaseError("it is a database of another program")
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = FULL").fetchall()
    if not num_tables:
        connection.execute(_SCHEMA)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.commit()
    return connection


def _owner(scope: str) -> bytes:
    return hashlib.sha256(b"responses " + scope.encode()).digest()
