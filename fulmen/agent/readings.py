"""The last reading of each folder, kept in memory and in a file beside the objects it names.

What it says is never needed: without it all files are read again. It may only say what is so, which
is why a file of one process is newer than the memory of another, and why files that must be read
again are not in it.
"""

import json
import os
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from fulmen.agent.repository import ID, Repository
from fulmen.agent.scan import Folder, Leaf, Scan
from fulmen.files import replacing

_MAX_BYTES: Final = 256 * 2**20
_MAX_UNSAVED: Final = 1_000
"""Files that are read until the reading is written again"""
_MAX_AGE_SECONDS: Final = 30 * 86_400.0
"""Age at which the reading of a folder is deleted of which nobody takes snapshots"""
_REFS: Final = "refs/readings/"


class Readings:
    """The last reading of one folder. The repository's lock keeps others out meanwhile."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        name = sha256(os.fsencode(folder)).hexdigest()[:20]
        self._repository = repository
        self._path = repository.path / "readings" / f"{name}.json"
        self._last: Folder | None = None
        self._seen: tuple[int, int] | None = None
        """Inode and time of the file when it was last read or written"""
        self._num_unsaved = 0

    def last(self) -> Folder | None:
        """Return the last reading, whose objects are all there; None if there is none."""
        if self._last is None or self._seen != self._state():
            saved = _read(self._path)
            self._last = None if saved is None else saved[1]
            self._seen = None if saved is None else self._state()
        return self._last

    def add(self, scan: Scan) -> None:
        """Keep a reading, once its objects are there."""
        self._last = scan.folder
        self._num_unsaved += scan.num_read
        if self._seen is None or self._num_unsaved > _MAX_UNSAVED:
            _write(self._path, scan.folder.id, scan.folder)
            self._seen = self._state()
            self._num_unsaved = 0

    def prune(self) -> Iterator[tuple[str, str]]:
        """Give a name and the tree of each folder's reading, which must stay. When all are given,
        all processes read them anew: what only their memory names may be gone."""
        kept = {}
        for path in sorted(self._path.parent.glob("*.json")):
            saved = _read(path)
            if saved is None or path.stat().st_mtime < time.time() - _MAX_AGE_SECONDS:
                path.unlink()
                self._repository.forget(_REFS + path.stem)
                continue
            kept[path] = saved
            yield _REFS + path.stem, saved[0]
        self._last = None
        for path, (tree, folder) in kept.items():
            _write(path, tree, folder)

    def _state(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


def _read(path: Path) -> tuple[str, Folder] | None:
    """Return a tree and a reading of it; None if the file is missing or of no use."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            return None
        tree, row = json.loads(text)
        return _checked_id(tree), _folder(row)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _write(path: Path, tree: str, folder: Folder) -> None:
    with replacing(path) as file:
        file.write(json.dumps([tree, _row(folder)], separators=(",", ":")).encode())


def _row(folder: Folder) -> list[Any]:
    """Return a reading without files that must be read again, so that the id of their folder does
    not stand for what is left."""
    rows: dict[str, Any] = {}
    for name, entry in folder.entries.items():
        if isinstance(entry, Folder):
            rows[name] = _row(entry)
        elif entry.is_settled:
            rows[name] = [entry.mode, entry.id, *entry.stamp]
    is_whole = len(rows) == len(folder.entries)
    return [folder.mode, folder.id if is_whole else None, rows]


def _folder(row: Any) -> Folder:
    """Return a reading. Raises ValueError, TypeError or AttributeError for what is none."""
    mode, id, rows = row
    folder = Folder(int(mode), "" if id is None else _checked_id(id))
    for name, fields in rows.items():
        if len(fields) == 3:
            folder.entries[name] = _folder(fields)
        else:
            mode, id, *stamp = fields
            size, changed, inode_changed, inode = map(int, stamp)
            folder.entries[name] = Leaf(
                int(mode), _checked_id(id), (size, changed, inode_changed, inode), True
            )
    return folder


def _checked_id(id: object) -> str:
    if not isinstance(id, str) or not ID.fullmatch(id):
        raise ValueError(f"{id!r} is no id")
    return id
