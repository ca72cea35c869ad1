"""Output of commands inside the sandbox: read without waiting, and only so much of it kept.

Runs inside, with nothing but the standard library.
"""

import os
from collections.abc import Iterator
from typing import Final

_PIECE: Final = 64 * 2**10
_PIECES_AT_ONCE: Final = 16
"""So that no pipe keeps the loop from the others"""


class Pipe:
    """End of a pipe that is read, closed as soon as nobody can write to it any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor
        os.set_blocking(descriptor, False)

    @classmethod
    def pair(cls) -> tuple["Pipe", int]:
        """Return a new pipe's end to read and its end to write."""
        end, start = os.pipe2(os.O_CLOEXEC)
        return cls(end), start

    def pieces(self) -> Iterator[bytes]:
        """Yield what is there now."""
        for _ in range(_PIECES_AT_ONCE):
            if self.descriptor is None:
                return
            try:
                piece = os.read(self.descriptor, _PIECE)
            except BlockingIOError:
                return
            if not piece:
                self.close()
                return
            yield piece

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Kept:
    """The last bytes of a stream."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = bytearray()
        self.end = 0

    def add(self, piece: bytes) -> None:
        self.end += len(piece)
        self._bytes += piece
        if len(self._bytes) > self._limit + _PIECE:
            self._trim()

    def _trim(self) -> None:
        del self._bytes[: max(len(self._bytes) - self._limit, 0)]

    def read(self, cursor: int, max_bytes: int) -> tuple[int, bytes]:
        """Return bytes from a place in the stream on, or from the first that is kept, and the place
        where they begin."""
        self._trim()
        begin = min(max(cursor, self.end - len(self._bytes)), self.end)
        first = begin - (self.end - len(self._bytes))
        return begin, bytes(self._bytes[first : first + max_bytes])


class Output:
    """The first bytes of a stream, given out as they come, and the last ones, kept for its end."""

    def __init__(self, limit: int) -> None:
        self._head_room = limit // 2
        self._tail = Kept(limit - limit // 2)
        self.total = 0

    def add(self, piece: bytes) -> bytes:
        """Take bytes in; return those that belong to the first."""
        self.total += len(piece)
        head, rest = piece[: self._head_room], piece[self._head_room :]
        self._head_room -= len(head)
        self._tail.add(rest)
        return head

    def tail(self) -> tuple[bytes, int]:
        """Return the last bytes, and how many before them are lost."""
        begin, piece = self._tail.read(0, self._tail.end)
        return piece, begin
