"""A folder made equal to a snapshot.

Only what differs is written, and only over what a snapshot holds: whatever changed since the folder
was read, or could not be read, stays and is named. Each folder is opened below its parent and never
through a link, since what stood there may lead elsewhere by now. A file is written aside and
renamed, so at any moment it is the old one or the new one; a restore that broke off is completed by
another.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final
from uuid import uuid4

from fulmen.agent.repository import Reader
from fulmen.agent.scan import FOLDER, Folder, Leaf, Skipped, opened, opened_below, stamp_of, why

_HOPELESS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""Failures that every other file would meet too"""


class Restore:
    """One change of a folder into the state of a tree."""

    def __init__(
        self, root: int, reader: Reader, *, not_read: set[str], not_saved: set[str]
    ) -> None:
        """not_read: paths that the folder's reading skipped; not_saved: those that the snapshot
        did"""
        self.left: list[Skipped] = []
        self.num_written = 0
        self.num_deleted = 0
        self._shared: set[int] = set()
        """Inodes of files with several names, one of which was replaced or removed"""
        self._root = root
        self._reader = reader
        self._not_read = {path.rstrip("/") for path in not_read}
        self._not_saved = {path.rstrip("/") for path in not_saved}

    def apply(self, now: Folder, tree: str) -> None:
        """Make the folder, which was read as `now`, equal to a tree."""
        self._fill(self._root, "", now, tree)
        self.left.sort()

    def remove_leftovers(self, paths: list[str]) -> None:
        """Remove what an interrupted restore was writing."""
        for path in paths:
            *parents, name = path.split("/")
            with suppress(OSError), opened_below(self._root, parents) as parent:
                os.unlink(name, dir_fd=parent)

    def _fill(self, descriptor: int, path: str, now: Folder, tree: str) -> None:
        """Make one open folder equal to a tree."""
        wanted = {} if tree == now.id else self._reader.tree(tree)
        if not wanted and tree == now.id:
            return
        for name, entry in now.entries.items():
            if name not in wanted:
                with self._told(path + name):
                    self._remove(descriptor, path, name, entry)
        for name, (mode, id) in wanted.items():
            with self._told(path + name):
                self._place(descriptor, path, name, now.entries.get(name), mode, id)

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """Name what fails instead of ending everything."""
        try:
            yield
        except _Left as error:
            self.left.append(Skipped(path, str(error)))
        except OSError as error:
            if error.errno in _HOPELESS:
                raise
            self.left.append(Skipped(path, why(error)))

    def _place(
        self,
        descriptor: int,
        path: str,
        name: str,
        entry: Folder | Leaf | None,
        mode: int,
        id: str,
    ) -> None:
        """Make one name what a snapshot says."""
        if entry is not None and (entry.mode, entry.id) == (mode, id):
            return
        if path + name in self._not_read:
            raise _Left("it could not be read, so it was not replaced")
        if stat.S_IFMT(mode) != FOLDER:
            if isinstance(entry, Folder):
                self._remove(descriptor, path, name, entry)
                if _exists(descriptor, name):
                    raise _Left("a folder is there that holds what is in no snapshot")
                entry = None
            self._write(descriptor, name, entry, mode, id)
            return
        if isinstance(entry, Leaf):
            self._remove(descriptor, path, name, entry)
        if isinstance(entry, Folder):
            now = entry
        else:
            now = Folder(FOLDER | 0o700, id="")
            os.mkdir(name, 0o700, dir_fd=descriptor)
            self.num_written += 1
        with opened(name, descriptor) as below, _writable(below, mode, now.id != id):
            self._fill(below, f"{path}{name}/", now, id)

    def _remove(self, descriptor: int, path: str, name: str, entry: Folder | Leaf) -> None:
        """Remove what the folder's reading found, and nothing else."""
        if path + name in self._not_saved:
            raise _Left("it is in no snapshot of that time, so it was not removed")
        if isinstance(entry, Leaf):
            self._check_unchanged(descriptor, name, entry)
            os.unlink(name, dir_fd=descriptor)
            self.num_deleted += 1
            return
        with opened(name, descriptor) as below, _writable(below, entry.mode, True):
            for inner, one in entry.entries.items():
                with self._told(f"{path}{name}/{inner}"):
                    self._remove(below, f"{path}{name}/", inner, one)
        try:
            os.rmdir(name, dir_fd=descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise _Left("it holds what is in no snapshot, so it was not removed") from None
        self.num_deleted += 1

    def _write(self, descriptor: int, name: str, entry: Leaf | None, mode: int, id: str) -> None:
        """Put a file or link in place of what was read there."""
        if (
            entry is not None
            and entry.id == id
            and stat.S_ISREG(entry.mode)
            and stat.S_ISREG(mode)
            and self._change_mode(descriptor, name, entry, mode)
        ):
            return
        temporary = f".fulmen-restoring-{uuid4().hex}"
        try:
            if stat.S_ISREG(mode):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                file = os.open(temporary, flags, 0o600, dir_fd=descriptor)
                try:
                    self._reader.copy(id, file)
                    os.fchmod(file, mode & 0o777)
                finally:
                    os.close(file)
            elif stat.S_ISLNK(mode):
                target = self._reader.read(id, "blob", 2**16)
                os.symlink(target, os.fsencode(temporary), dir_fd=descriptor)
            else:
                raise _Left("the snapshot has something there that is no file, folder or link")
            if entry is not None:
                self._check_unchanged(descriptor, name, entry)
            elif _exists(descriptor, name):
                raise _Left("something is there that is in no snapshot")
            os.replace(temporary, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=descriptor)
            raise
        self.num_written += 1

    def _check_unchanged(self, descriptor: int, name: str, entry: Leaf) -> None:
        """Raise if a file is not the one that was read, before one of its names goes."""
        try:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            raise _Left("it vanished while the folder was restored") from None
        size, changed, _, inode = found = stamp_of(status)
        if inode in self._shared:
            # That another name of it went has changed the time of its inode.
            is_same = (size, changed, inode) == (*entry.stamp[:2], entry.stamp[3])
        else:
            is_same = found == entry.stamp
        if not is_same:
            raise _Left("it changed while the folder was restored")
        if status.st_nlink > 1:
            self._shared.add(inode)

    def _change_mode(self, descriptor: int, name: str, entry: Leaf, mode: int) -> bool:
        """Change permissions of a file that has the content already; False where it must be written
        anew: another name of the same file may stand elsewhere."""
        self._check_unchanged(descriptor, name, entry)
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
        except PermissionError:
            return False
        try:
            status = os.fstat(file)
            if status.st_nlink > 1 or stamp_of(status) != entry.stamp:
                return False
            os.fchmod(file, mode & 0o777)
        finally:
            os.close(file)
        self.num_written += 1
        return True


def make_readable(root: int, paths: Sequence[str]) -> bool:
    """Let the user list folders of theirs, which a restore may have to write; return whether any
    could not be listed before."""
    did = False
    for path in paths if hasattr(os, "O_PATH") else ():
        *parents, name = path.split("/")
        with suppress(OSError), opened_below(root, parents) as parent:
            # It cannot be opened, and there is no other way to change it but through a link.
            folder = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=parent)
            try:
                mode = stat.S_IMODE(os.fstat(folder).st_mode)
                if mode & 0o500 != 0o500:
                    os.chmod(f"/proc/self/fd/{folder}", mode | 0o700)
                    did = True
            finally:
                os.close(folder)
    return did


class _Left(Exception):
    """Something that stays as it is, and why."""


def _exists(descriptor: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _writable(descriptor: int, mode: int, changes: bool) -> Iterator[None]:
    """Let names be changed in a folder, which has the permissions `mode` afterwards."""
    before = stat.S_IMODE(os.fstat(descriptor).st_mode)
    special = before & 0o7000
    if changes and before & 0o700 != 0o700:
        os.fchmod(descriptor, before | 0o700)
    try:
        yield
    finally:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != special | mode & 0o777:
            os.fchmod(descriptor, special | mode & 0o777)
