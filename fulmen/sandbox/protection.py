"""Protected names that a mount cannot hold by itself: absent ones, links, and git's pointers.

A name that does not exist is held by an empty folder in its place: git does not see one, and it
goes away, if it is still empty, with the last sandbox that needs it. A crash leaves only that, and
the next sandbox in the same folder takes it up.
"""

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fulmen.sandbox.access import PROTECTED

try:
    import fcntl
except ImportError:  # no POSIX system, and no sandbox either
    fcntl = None  # type: ignore[assignment]

_MAX_POINTER: Final = 4096


class Placeholders:
    """Empty folders in the place of names that do not exist."""

    def __init__(self) -> None:
        self._held: dict[Path, int] = {}

    def hold(self, path: Path) -> bool:
        """Put an empty folder at a path where there is nothing, or share one that another sandbox
        has put there; return whether there is one now."""
        for _ in range(100):
            with contextlib.suppress(FileExistsError):
                path.mkdir(0o755)
                os.utime(path, (0, 0))  # by which the next sandbox knows it
            if not _is_placeholder(path):
                return False
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                # Whoever had it before us may have taken it away.
                if _is_same(descriptor, path):
                    self._held[path] = descriptor
                    return True
            os.close(descriptor)
        raise ValueError(f"{path} comes and goes, nothing can be held there")

    def release(self) -> None:
        """Take the folders away that nobody else holds or uses."""
        for path, descriptor in self._held.items():
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_placeholder(path) and _is_same(descriptor, path):
                    path.rmdir()
            os.close(descriptor)
        self._held.clear()


def remove_placeholders(folder: Path, names: Sequence[str] = PROTECTED) -> None:
    """Take away the empty folders that a sandbox which crashed left at the top of a folder, but for
    those that another one needs."""
    for path in (folder / name for name in names):
        if not _is_placeholder(path):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_placeholder(path) and _is_same(descriptor, path):
                    path.rmdir()
            finally:
                os.close(descriptor)


def _is_placeholder(path: Path) -> bool:
    try:
        status = path.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_mtime == 0 and not any(path.iterdir())
    except OSError:
        return False


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


class Links:
    """Protected names that are symbolic links: put back when something else is in their place.

    The folder of each is held open. By its path the host could be led elsewhere: what is inside may
    rename a folder of the workspace, and put a link in its place.
    """

    def __init__(self) -> None:
        self._held: list[tuple[int, Path, str]] = []

    def hold(self, path: Path) -> None:
        """Take a link under care. Raises OSError if it is none any more."""
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.readlink(f"/proc/self/fd/{folder}") != str(path.parent):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            self._held.append((folder, path, os.readlink(path.name, dir_fd=folder)))
        except BaseException:
            os.close(folder)
            raise

    def restore(self) -> list[str]:
        """Put links back; return a sentence for each. An impostor is kept under another name."""
        notes = []
        for folder, path, target in self._held:
            with contextlib.suppress(OSError):
                if os.readlink(path.name, dir_fd=folder) == target:
                    continue
            with contextlib.suppress(OSError):
                aside = f"{path.name}.replaced-{uuid.uuid4().hex[:8]}"
                with contextlib.suppress(FileNotFoundError):
                    os.rename(path.name, aside, src_dir_fd=folder, dst_dir_fd=folder)
                os.symlink(target, path.name, dir_fd=folder)
                notes.append(f"{path} was replaced by a command and is a link again")
        return notes

    def identities(self) -> set[tuple[int, int]]:
        """Return device and inode of each as it is now: one that was put back is another file."""
        found = set()
        for folder, path, target in self._held:
            with contextlib.suppress(OSError):
                if os.readlink(path.name, dir_fd=folder) == target:
                    status = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
                    found.add((status.st_dev, status.st_ino))
        return found

    def close(self) -> None:
        for folder, _, _ in self._held:
            os.close(folder)
        self._held.clear()


def git_folders(pointer: Path) -> list[Path]:
    """Return git's own folders of a linked worktree whose `.git` is this file.

    The file is a stranger's: they are returned only if the first of them, which git made, points
    back to this worktree.
    """
    words = _line(pointer)
    if words is None or not words.startswith("gitdir: "):
        return []
    own = Path(os.path.normpath(pointer.parent / words.removeprefix("gitdir: ")))
    back = _line(own / "gitdir")
    common = _line(own / "commondir")
    if back is None or common is None or os.path.realpath(own / back) != str(pointer):
        return []
    shared = Path(os.path.realpath(own / common))
    own = Path(os.path.realpath(own))
    is_git = (shared / "HEAD").is_file() and (shared / "objects").is_dir()
    return [shared] if is_git and own.parent == shared / "worktrees" else []


def _line(path: Path) -> str | None:
    """Return the one line of a small file; None if it is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            text = file.read(_MAX_POINTER + 1)
    except OSError:
        return None
    if len(text) > _MAX_POINTER or b"\0" in text:
        return None
    return os.fsdecode(text.removesuffix(b"\n"))
