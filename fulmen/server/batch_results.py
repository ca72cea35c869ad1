"""The results of a batch: whole lines of a file, known again after a stop, of one process at a
time."""

import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from fulmen.files import naming
from fulmen.sampling import shown
from fulmen.server.sse import to_json

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

MAX_LINE_BYTES: Final = 64 * 2**20
"""Longest line of a file of requests; a server takes half of it"""
_MAX_RESULT_BYTES: Final = 2**30
_SYNC_SECONDS: Final = 1.0
"""Longest time between results that are on the disk"""
_BEGINNINGS: Final = (b'{"id":"batch_req_', b'{"custom_id":"')
"""Beginnings of the lines that we write"""

Key = str | int
"""custom_id of a request; the number of its line where it has none"""


class Results:
    """Results so far, and a place for more; `with` holds the file for one process."""

    def __init__(self, path: Path, source: Path) -> None:
        """source  file of the requests, which may not be the same"""
        self.known: dict[Key, bool] = {}
        """Requests that have a result, and whether it is an answer"""
        self._path = path
        self._source = source
        self._descriptor = -1
        self._size = 0
        """Bytes of whole lines"""
        self._synced = 0.0

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o666)
        try:
            self._take()
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._sync()
        finally:
            os.close(self._descriptor)

    def add(self, result: Mapping[str, Any]) -> None:
        """Write one more line. An error leaves those before it whole."""
        line = to_json(result) + b"\n"
        try:
            self._write(line)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line)
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            self._sync()

    def _take(self) -> None:
        """Make sure that the file is ours alone, and read what it holds."""
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{self._path} is no regular file, results need one")
        if os.path.samestat(found, self._source.stat()):
            raise ValueError(f"{self._path} holds the requests, results need a file of their own")
        if fcntl is not None:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self._path} is being written by another process") from None
        for number, line in read_lines(self._path, _MAX_RESULT_BYTES):
            self._read(number, line)
        self._size = os.lseek(self._descriptor, 0, os.SEEK_END)
        self._mend_end()
        self._synced = time.monotonic()

    def _read(self, number: int, line: bytes | None) -> None:
        """Take note of a line that is there."""
        result: Any = None
        with suppress(ValueError):
            result = json.loads(line or b"")
        key = _key(result) if isinstance(result, dict) else None
        if key is not None:
            self.known[key] = _is_answer(result)
        elif line is None or line.endswith(b"\n") or not _is_torn(line):
            raise ValueError(
                f"{self._path}, line {number} is no result of a batch but "
                f"{shown((line or b'')[:60])}: choose another file, or mend the line"
            )

    def _mend_end(self) -> None:
        """Cut a last line that is not whole; end one that only lacks its end."""
        with self._path.open("rb") as file:
            end = _last_line(file, self._size)
        if not end or end.endswith(b"\n"):
            return
        try:
            json.loads(end)
        except ValueError:
            self._size -= len(end)
            os.ftruncate(self._descriptor, self._size)
        else:
            self._write(b"\n")
            self._size += 1

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise naming(error, self._path) from None

    def _sync(self) -> None:
        self._synced = time.monotonic()
        os.fsync(self._descriptor)


def read_lines(path: Path, most: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line that is not blank with its number, from 1 on; None for one of more bytes than
    `most`."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(most + 1):
            number += 1
            is_long = len(line) > most
            while len(line) > most and not line.endswith(b"\n"):
                line = file.readline(most + 1)
            if is_long or line.strip():
                yield number, None if is_long else line


def _last_line(file: Any, size: int) -> bytes:
    """Return what a file has after its last whole line; its last line, if that is whole."""
    step = 2**20
    start = size
    while start > 0:
        start = max(0, start - step)
        file.seek(start)
        tail: bytes = file.read(size - start)
        if (place := tail.rfind(b"\n", 0, -1)) >= 0:
            return tail[place + 1 :]
    file.seek(0)
    return bytes(file.read())


def _is_torn(line: bytes) -> bool:
    """Return whether bytes can be the beginning of a line that we write."""
    return any(line[: len(begin)] == begin[: len(line)] for begin in _BEGINNINGS)


def _key(result: Mapping[str, Any]) -> Key | None:
    """Return which request a result is of; None for a line that is no result."""
    error, custom_id = result.get("error"), result.get("custom_id")
    if "result" not in result and not ("response" in result and "error" in result):
        return None
    if isinstance(custom_id, str):
        return custom_id
    line = error.get("line") if isinstance(error, dict) else None
    return line if isinstance(line, int) else None


def _is_answer(result: Mapping[str, Any]) -> bool:
    """Return whether a result is an answer, and not an error."""
    inner = result.get("result", result.get("response"))
    if not isinstance(inner, Mapping):
        return False
    return inner.get("type") == "succeeded" or inner.get("status_code") == 200
