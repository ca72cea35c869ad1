"""File locks: one process at a time."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]


@contextmanager
def lock_file(path: Path, *, waits: bool) -> Iterator[bool]:
    """Hold a lock on a file, which is made if it is missing. Gives whether the lock is held; if it
    waits for other processes, it always is. Raises ValueError where path is a link or no file."""
    if fcntl is None:
        raise ValueError("sessions need file locks, which this system does not have")
    while True:
        descriptor = _open(path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            # The process that held the lock before may have deleted the file: then this lock
            # keeps nobody out.
            if _is_same_file(descriptor, path):
                yield True
                return
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    """Open a regular file without changing it: a link may lead to a file that is no lock."""
    if path.is_symlink():
        raise ValueError(f"{path} is a link, a lock must be a file of its own: remove it")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder, a lock must be a file: remove it") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is no regular file, a lock must be one: remove it")
    return descriptor


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
