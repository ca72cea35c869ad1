"""File locks: one process at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]


@contextmanager
def lock_file(path: Path, *, waits: bool) -> Iterator[bool]:
    """Holds a lock; gives whether it is held, which it always is if it waits for others."""
    if fcntl is None:
        raise ValueError("sessions need file locks, which this system does not have")
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            # Who held it before may have deleted it: then it keeps nobody out.
            if _is_same_file(file.fileno(), path):
                yield True
                return


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
