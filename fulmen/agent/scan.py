"""A folder as it stands: read once, and again only where something changed.

A file is read if its size, times or inode are not those that it had when it was last read. Times
have a granule, and a file may change twice within one: what was that young when it was read is read
again next time. No link is ever followed: each folder is opened below its parent.

Some things are not read, and named with a reason: what is no file, folder or link; what may not be
read; large files; and ignored files where all of them together are large. Those are taken smallest
first, each ignored folder as a whole.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from fulmen.agent.ignored import MAX_RULES_BYTES, Rules
from fulmen.agent.repository import Writer, tree_content

LEFTOVER: Final = re.compile(r"\.fulmen-restoring-[0-9a-f]{32}")
"""Name of a file that a restore is writing"""
MAX_DEPTH: Final = 200
"""Most folders in one another"""
FOLDER: Final = stat.S_IFDIR
LINK: Final = stat.S_IFLNK

_GRANULE_NS: Final = 50_000_000
"""Longest time for which a file's times may stay the same while it changes: Linux moves them with
its timer, at least 100 times a second"""
_COARSE_GRANULE_NS: Final = 2_100_000_000
"""The same on file systems that count whole seconds or two of them"""
_OPEN_FOLDER: Final = "O_RDONLY O_DIRECTORY O_NOFOLLOW O_CLOEXEC"
_OPEN_FILE: Final = "O_RDONLY O_NOFOLLOW O_NONBLOCK O_NOCTTY O_CLOEXEC"

Stamp = tuple[int, int, int, int]
"""Size, times of the content and of the inode, and its number"""


class Skipped(NamedTuple):
    """Something that is in no snapshot."""

    path: str
    """Below the folder; a folder's ends with a slash"""
    reason: str


class Leaf(NamedTuple):
    """A file or link."""

    mode: int
    id: str
    stamp: Stamp
    is_settled: bool
    """Another change would have changed the stamp"""


@dataclass(slots=True)
class Folder:
    """A folder that was read."""

    mode: int
    id: str = ""
    entries: "dict[str, Leaf | Folder]" = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    """Names in it that git would ignore"""
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds on what one snapshot holds."""

    max_file_bytes: int = 32 * 2**20
    """A larger file is not in it."""
    max_ignored_bytes: int = 64 * 2**20
    """Files that git would ignore have at most so many bytes in all."""
    max_ignored_files: int = 10_000
    max_files: int = 200_000
    """Files and folders; with more there is no snapshot."""
    max_bytes: int = 4 * 2**30
    """Bytes of all files; with more there is no snapshot."""

    def __post_init__(self) -> None:
        for name in ("max_file_bytes", "max_ignored_bytes", "max_ignored_files"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 0 is needed")
        for name in ("max_files", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, at least 1 is needed")


def flags(names: str) -> int:
    """Return flags of open, which some systems lack."""
    return sum(getattr(os, name, 0) for name in names.split())


def open_folder(name: str, parent: int | None = None) -> int:
    """Open a folder, never through a link."""
    return os.open(name, flags(_OPEN_FOLDER), dir_fd=parent)


@contextmanager
def opened(name: str, parent: int) -> Iterator[int]:
    """Give a folder below another one."""
    descriptor = open_folder(name, parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what changes with every change of a file."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def why(error: OSError) -> str:
    """Return why something could not be read or written."""
    return (error.strerror or str(error)).lower()


class _Vanished(Exception):
    """Something went, or became another thing, since its folder was listed."""


@dataclass(slots=True)
class _Ignored:
    """Something that git would ignore, at the place where it is put if it is small."""

    parent: Folder
    parents: tuple[str, ...]
    name: str
    was: Leaf | Folder | None
    size: int = 0
    count: int = 0


class Scan:
    """One reading of a folder."""

    def __init__(self, root: int, writer: Writer, limits: Limits, previous: Folder | None) -> None:
        """root: the open folder; previous: the last reading, whose objects the repository has"""
        self.skipped: list[Skipped] = []
        self.leftovers: list[str] = []
        """Files that an interrupted restore left"""
        self.num_read = 0
        """Files that were read, because they were new or may have changed"""
        self._root = root
        self._device = os.fstat(root).st_dev
        self._writer = writer
        self._limits = limits
        self._count = 0
        self._bytes = 0
        self._ignored: list[_Ignored] = []
        rules = Rules()
        excluded = _user_excludes(root)
        if excluded:
            rules = rules.below("", excluded)
        self.folder = self._folder(root, (), FOLDER | 0o755, previous, rules)
        self._take_ignored()
        self._seal(self.folder, previous)
        self.skipped.sort()

    def _folder(
        self,
        descriptor: int,
        parents: tuple[str, ...],
        mode: int,
        was: Folder | None,
        rules: Rules | None,
    ) -> Folder:
        """Read a folder; rules: those of the folders above, None below an ignored one."""
        path = "".join(f"{name}/" for name in parents)
        with os.scandir(descriptor) as listing:
            room = self._limits.max_files - self._count
            found = list(islice(listing, room + 1))
        self._count += len(found)
        if self._count > self._limits.max_files:
            raise ValueError(
                f"there are more than {self._limits.max_files:,} files, too many for a snapshot; "
                f"the last one seen is in {path or './'}"
            )
        old = {} if was is None else was.entries
        folder = Folder(mode)
        if rules is not None:
            rules = self._rules_in(descriptor, path, found, was, rules)
            folder.rules = rules
        is_known = rules is not None and was is not None and was.rules.key == rules.key
        for entry in found:
            name = entry.name
            if name.lower() == ".git":
                continue
            if LEFTOVER.fullmatch(name):
                self.leftovers.append(path + name)
                self.skipped.append(Skipped(path + name, "left by a restore that broke off"))
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:  # it vanished
                continue
            before = old.get(name)
            if rules is not None and rules.key:
                is_folder = stat.S_ISDIR(status.st_mode)
                if is_known and before is not None and is_folder is isinstance(before, Folder):
                    is_ignored = was is not None and name in was.ignored
                else:
                    is_ignored = rules.ignores(path + name, is_folder=is_folder)
                if is_ignored:
                    self._ignored.append(_Ignored(folder, parents, name, before))
                    continue
            with suppress(_Vanished):
                read = self._entry(descriptor, parents, name, status, before, rules)
                if read is not None:
                    folder.entries[name] = read
        return folder

    def _entry(
        self,
        descriptor: int,
        parents: tuple[str, ...],
        name: str,
        status: os.stat_result,
        was: Leaf | Folder | None,
        rules: Rules | None,
    ) -> Leaf | Folder | None:
        """Read one thing; None if it is skipped."""
        kind = stat.S_IFMT(status.st_mode)
        if kind == FOLDER:
            before = was if isinstance(was, Folder) else None
            return self._subfolder(descriptor, parents, name, status, before, rules)
        path = "".join(f"{parent}/" for parent in parents) + name
        last = was if isinstance(was, Leaf) else None
        self._bytes += status.st_size
        if self._bytes > self._limits.max_bytes and status.st_size <= self._limits.max_file_bytes:
            raise ValueError(
                f"the files have more than {self._limits.max_bytes:,} bytes, too many for a "
                f"snapshot; the last one seen is {path}"
            )
        if kind == stat.S_IFREG:
            if status.st_size > self._limits.max_file_bytes:
                self._bytes -= status.st_size
                return self._skip(path, self._too_large())
            mode = kind | status.st_mode & 0o777
        elif kind == LINK:
            mode = kind
        else:
            kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
            return self._skip(path, kinds.get(kind, "a device"))
        stamp = stamp_of(status)
        if last is not None and last.is_settled and last.stamp == stamp and last.mode == mode:
            return last
        try:
            return self._read(descriptor, path, name, mode, stamp)
        except FileNotFoundError:
            raise _Vanished from None
        except PermissionError as error:
            # Only its permissions changed, as far as can be seen: it is the file that was read.
            if last is not None and (last.stamp[:2], last.stamp[3]) == (stamp[:2], stamp[3]):
                return Leaf(mode, last.id, stamp, False)
            return self._skip(path, why(error))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EINVAL):
                return self._skip(path, "it became another thing while it was read")
            return self._skip(path, why(error))

    def _subfolder(
        self,
        descriptor: int,
        parents: tuple[str, ...],
        name: str,
        status: os.stat_result,
        was: Folder | None,
        rules: Rules | None,
    ) -> Folder | None:
        path = "".join(f"{parent}/" for parent in (*parents, name))
        if status.st_dev != self._device:
            return self._skip(path, "another file system")
        if len(parents) >= MAX_DEPTH:
            return self._skip(path, f"more than {MAX_DEPTH} folders in one another")
        try:
            with opened(name, descriptor) as below:
                mode = FOLDER | status.st_mode & 0o777
                return self._folder(below, (*parents, name), mode, was, rules)
        except FileNotFoundError:
            raise _Vanished from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                return self._skip(path, "it became another thing while it was read")
            return self._skip(path, why(error))

    def _read(self, descriptor: int, path: str, name: str, mode: int, stamp: Stamp) -> Leaf | None:
        now = time.time_ns()
        if stat.S_ISLNK(mode):
            content = os.fsencode(os.readlink(name, dir_fd=descriptor))
            after = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        else:
            found = self._content(descriptor, name)
            if found is None:
                return self._skip(path, self._too_large())
            content, after = found
        self.num_read += 1
        is_settled = stamp_of(after) == stamp and max(stamp[1:3]) < now - _granule(stamp)
        return Leaf(mode, self._writer.add("blob", content), stamp, is_settled)

    def _content(self, descriptor: int, name: str) -> tuple[bytes, os.stat_result] | None:
        """Return what a file holds and its state afterwards; None if it is too large."""
        file = os.open(name, flags(_OPEN_FILE), dir_fd=descriptor)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.ENXIO, "no regular file")
            parts = []
            room = self._limits.max_file_bytes + 1
            while room and (part := os.read(file, min(room, 2**20))):
                parts.append(part)
                room -= len(part)
            return (b"".join(parts), os.fstat(file)) if room else None
        finally:
            os.close(file)

    def _too_large(self) -> str:
        return f"more than {self._limits.max_file_bytes:,} bytes"

    def _skip(self, path: str, reason: str) -> None:
        self.skipped.append(Skipped(path, reason))

    def _rules_in(
        self,
        descriptor: int,
        path: str,
        found: "list[os.DirEntry[str]]",
        was: Folder | None,
        rules: Rules,
    ) -> Rules:
        """Return the patterns that hold in a folder."""
        if not any(entry.name == ".gitignore" for entry in found):
            return rules
        text = _small_file(".gitignore", descriptor)
        if text is None:
            return rules
        key = rules.key_below(path, text)
        return was.rules if was is not None and was.rules.key == key else rules.below(path, text)

    def _take_ignored(self) -> None:
        """Read the ignored things that are small, the smallest first."""
        limits = self._limits
        for one in self._ignored:
            with suppress(OSError), self._opened(one.parents) as descriptor:
                one.size, one.count = self._measured(descriptor, one.name, 0)
        room, files = limits.max_ignored_bytes, limits.max_ignored_files
        for one in sorted(self._ignored, key=lambda one: (one.size, one.parents, one.name)):
            room -= one.size
            files -= one.count
            with suppress(OSError, _Vanished), self._opened(one.parents) as descriptor:
                status = os.stat(one.name, dir_fd=descriptor, follow_symlinks=False)
                if room < 0 or files < 0:
                    end = "/" if stat.S_ISDIR(status.st_mode) else ""
                    path = "/".join((*one.parents, one.name)) + end
                    self._skip(path, "git ignores it, and such files are large together")
                    continue
                read = self._entry(descriptor, one.parents, one.name, status, one.was, None)
                if read is not None:
                    one.parent.entries[one.name] = read
                    one.parent.ignored.add(one.name)

    def _measured(self, descriptor: int, name: str, depth: int) -> tuple[int, int]:
        """Return bytes and number of the files of something ignored; stops beyond the limits."""
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            return (size if size <= self._limits.max_file_bytes else 0), 1
        size, count = 0, 1
        if depth > MAX_DEPTH or status.st_dev != self._device:
            return size, count
        limits = self._limits
        with opened(name, descriptor) as below, os.scandir(below) as listing:
            for entry in islice(listing, limits.max_ignored_files + 1):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        more, others = self._measured(below, entry.name, depth + 1)
                    else:
                        more, others = entry.stat(follow_symlinks=False).st_size, 1
                        more = more if more <= limits.max_file_bytes else 0
                    size, count = size + more, count + others
                if size > limits.max_ignored_bytes or count > limits.max_ignored_files:
                    break
        return size, count

    @contextmanager
    def _opened(self, parents: tuple[str, ...]) -> Iterator[int]:
        """Open a folder from the root, one component after the other."""
        descriptor = open_folder(".", self._root)
        try:
            for name in parents:
                below = open_folder(name, descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def _seal(self, folder: Folder, was: Folder | None) -> None:
        """Name a folder by its content, and those in it."""
        old = {} if was is None else was.entries
        is_same = was is not None and len(old) == len(folder.entries)
        for name, entry in folder.entries.items():
            before = old.get(name)
            if isinstance(entry, Folder):
                self._seal(entry, before if isinstance(before, Folder) else None)
            if before is not entry and (
                before is None or (before.mode, before.id) != (entry.mode, entry.id)
            ):
                is_same = False
        if is_same and was is not None:
            folder.id = was.id
            return
        tree = {name: (entry.mode, entry.id) for name, entry in folder.entries.items()}
        folder.id = self._writer.add("tree", tree_content(tree))


def _granule(stamp: Stamp) -> int:
    """Return how long a file's times may stay the same: long where they count whole seconds."""
    is_coarse = stamp[2] % 1_000_000 == 0
    return _COARSE_GRANULE_NS if is_coarse else _GRANULE_NS


def _small_file(path: str, parent: int | None = None) -> bytes | None:
    """Return the beginning of a file; None for what is none, a link included."""
    try:
        descriptor = os.open(path, flags(_OPEN_FILE), dir_fd=parent)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return os.read(descriptor, MAX_RULES_BYTES)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _user_excludes(root: int) -> bytes:
    """Return the patterns of .git/info/exclude, that of a linked worktree included."""
    try:
        with opened(".git", root) as git, opened("info", git) as info:
            return _small_file("exclude", info) or b""
    except OSError:
        pass
    pointer = _small_file(".git", root) or b""
    place = os.fsdecode(pointer.removeprefix(b"gitdir:").strip())
    if not pointer.startswith(b"gitdir:") or not os.path.isabs(place) or "\0" in place:
        return b""
    common = os.fsdecode((_small_file(os.path.join(place, "commondir")) or b".").strip())
    if "\0" in common:
        return b""
    return _small_file(os.path.join(place, common, "info", "exclude")) or b""
