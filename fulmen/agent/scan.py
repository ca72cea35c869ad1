"""A folder as it stands: read once, and again only where something changed.

A file is read if its size, times or inode are not those that it had when it was last read. Times
have a granule, and a file may change twice within one: what was that young when it was read is read
again next time. No link is ever followed: each folder is opened below its parent.

Some things are not read, and named with a reason: what is no file, folder or link; what may not be
read; large files; and ignored files where all of them together are large. Those are taken smallest
first, each ignored folder as a whole. Of what a sandbox puts into the folder while it is open,
nothing is read.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from fulmen.agent.ignored import Rules, small_file
from fulmen.agent.repository import Unwritten, Writer, tree_content
from fulmen.files import shorten
from fulmen.sandbox import PROTECTED

LEFTOVER: Final = re.compile(r"\.fulmen-restoring-[0-9a-f]{32}")
"""Name of a file that a restore is writing"""
MAX_DEPTH: Final = 100
"""Most folders in one another"""
FOLDER: Final = stat.S_IFDIR
LINK: Final = stat.S_IFLNK

_MAX_PATH_LENGTH: Final = 64 * 2**20
"""Characters of all paths, of which those in one another's folders make many out of few names"""
_MAX_ALL_RULES_BYTES: Final = 2**20
"""Bytes of new ignore files that one reading takes note of"""
_GRANULE_NS: Final = 50_000_000
"""Longest time for which a file's times may stay the same while it changes: Linux moves them with
its timer, at least 100 times a second"""
_COARSE_GRANULE_NS: Final = 2_100_000_000
"""That time on file systems that count whole seconds, or two of them"""
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
    """Empty where the entries are not all"""
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


@contextmanager
def opened_below(root: int, parents: Sequence[str]) -> Iterator[int]:
    """Give a folder somewhere below an open one, each component opened below the one before."""
    descriptor = open_folder(".", root)
    try:
        for name in parents:
            below = open_folder(name, descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what changes with every change of a file."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def why(error: OSError) -> str:
    """Return why something could not be read or written."""
    return (error.strerror or str(error)).lower()


class _NotRead(Exception):
    """Something is skipped, and why."""


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

    def __init__(
        self,
        root: int,
        writer: Writer | Unwritten,
        limits: Limits,
        *,
        rules: Rules,
        previous: Folder | None,
    ) -> None:
        """
        root      the open folder
        rules     patterns of ignored files, before those in the folder
        previous  the last reading, whose objects the repository has
        """
        self.skipped: list[Skipped] = []
        self.leftovers: list[str] = []
        """Files that an interrupted restore left"""
        self.denied: list[str] = []
        """Folders that may not be listed"""
        self.num_read = 0
        """Files that were read, because they were new or may have changed"""
        self._root = root
        self._device = os.fstat(root).st_dev
        self._writer = writer
        self._limits = limits
        self._count = 0
        self._path_length = 0
        self._bytes = 0
        self._ignored: list[_Ignored] = []
        self._rules_room = _MAX_ALL_RULES_BYTES
        self._measure_room = 5 * limits.max_ignored_files
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
        self._path_length += len(found) * len(path)
        if self._path_length > _MAX_PATH_LENGTH:
            raise ValueError(
                f"the files have names of over {_MAX_PATH_LENGTH:,} characters in all, too many "
                f"for a snapshot; the last ones seen are in {shorten(path)}"
            )
        if self._count > self._limits.max_files:
            raise ValueError(
                f"there are more than {self._limits.max_files:,} files, too many for a snapshot; "
                f"the last one seen is in {shorten(path or './')}"
            )
        old = {} if was is None else was.entries
        folder = Folder(mode)
        if rules is not None:
            rules = self._rules_in(descriptor, path, found, was, rules)
            folder.rules = rules
        is_known = was is not None and (rules is None or was.rules.key == rules.key)
        known_ignored = was.ignored if was is not None and rules is not None else ()
        entries = folder.entries
        num_bytes, max_file_bytes = 0, self._limits.max_file_bytes
        for entry in found:
            name = entry.name
            before = old.get(name)
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:  # it vanished
                continue
            if (
                # Nearly every file of nearly every reading is this one.
                is_known
                and type(before) is Leaf
                and before.is_settled
                and before.stamp
                == (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
                and name not in known_ignored
                and status.st_size <= max_file_bytes
            ):
                num_bytes += status.st_size
                entries[name] = before
                continue
            if name.lower() == ".git":
                if name != ".git":
                    self._skip(
                        parents, name, stat.S_ISDIR(status.st_mode), "on some systems it is .git"
                    )
                continue
            if not parents and name in PROTECTED and _is_placeholder(descriptor, name, status):
                continue
            if name.startswith(".fulmen-") and LEFTOVER.fullmatch(name):
                self.leftovers.append(path + name)
                self._skip(parents, name, False, "left by a restore that broke off")
                continue
            if rules is not None and rules.key:
                is_folder = stat.S_ISDIR(status.st_mode)
                if is_known and before is not None and is_folder is isinstance(before, Folder):
                    is_ignored = name in known_ignored
                else:
                    is_ignored = rules.ignores(path + name, is_folder=is_folder)
                if is_ignored:
                    self._ignored.append(_Ignored(folder, parents, name, before))
                    continue
            self._add(folder, descriptor, parents, name, status, before, rules)
        self._bytes += num_bytes
        return folder

    def _add(
        self,
        folder: Folder,
        descriptor: int,
        parents: tuple[str, ...],
        name: str,
        status: os.stat_result,
        was: Leaf | Folder | None,
        rules: Rules | None,
    ) -> None:
        """Read one thing into its folder, or skip it."""
        is_folder = stat.S_ISDIR(status.st_mode)
        try:
            if is_folder:
                before = was if isinstance(was, Folder) else None
                folder.entries[name] = self._subfolder(
                    descriptor, parents, name, status, before, rules
                )
            else:
                last = was if isinstance(was, Leaf) else None
                folder.entries[name] = self._leaf(descriptor, name, status, last)
        except FileNotFoundError:  # it vanished
            return
        except _NotRead as error:
            self._skip(parents, name, is_folder, str(error))
        except OSError as error:
            if is_folder and error.errno == errno.EACCES:
                self.denied.append("/".join((*parents, name)))
            became_other = error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EINVAL)
            reason = "it became another thing while it was read" if became_other else why(error)
            self._skip(parents, name, is_folder, reason)

    def _skip(self, parents: tuple[str, ...], name: str, is_folder: bool, reason: str) -> None:
        path = "/".join((*parents, name)) + "/" * is_folder
        self.skipped.append(Skipped(path, reason))

    def _subfolder(
        self,
        descriptor: int,
        parents: tuple[str, ...],
        name: str,
        status: os.stat_result,
        was: Folder | None,
        rules: Rules | None,
    ) -> Folder:
        if status.st_dev != self._device:
            raise _NotRead("another file system")
        if len(parents) >= MAX_DEPTH:
            raise _NotRead(f"more than {MAX_DEPTH} folders in one another")
        with opened(name, descriptor) as below:
            mode = FOLDER | status.st_mode & 0o777
            return self._folder(below, (*parents, name), mode, was, rules)

    def _leaf(self, descriptor: int, name: str, status: os.stat_result, last: Leaf | None) -> Leaf:
        """Read a file or link, unless it is what it was."""
        kind = stat.S_IFMT(status.st_mode)
        limits = self._limits
        if kind == stat.S_IFREG:
            if status.st_size > limits.max_file_bytes:
                raise _NotRead(f"more than {limits.max_file_bytes:,} bytes")
            self._bytes += status.st_size
            if self._bytes > limits.max_bytes:
                raise ValueError(
                    f"the files have more than {limits.max_bytes:,} bytes, too many for a "
                    f"snapshot; the last one seen is {shorten(name)}"
                )
            mode = kind | status.st_mode & 0o777
        elif kind == LINK:
            mode = kind
        else:
            kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
            raise _NotRead(kinds.get(kind, "a device"))
        stamp = stamp_of(status)
        if last is not None and last.is_settled and last.stamp == stamp and last.mode == mode:
            return last
        now = time.time_ns()
        try:
            if kind == LINK:
                content = os.fsencode(os.readlink(name, dir_fd=descriptor))
                after = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            else:
                content, after = self._content(descriptor, name)
        except PermissionError:
            # Only its permissions changed, as far as can be seen: it is the file that was read.
            if last is None or (last.stamp[:2], last.stamp[3]) != (stamp[:2], stamp[3]):
                raise
            return Leaf(mode, last.id, stamp, False)
        self.num_read += 1
        is_settled = stamp_of(after) == stamp and max(stamp[1:3]) < now - _granule(stamp)
        return Leaf(mode, self._writer.add("blob", content), stamp, is_settled)

    def _content(self, descriptor: int, name: str) -> tuple[bytes, os.stat_result]:
        """Return what a file holds, and its state afterwards."""
        file = os.open(name, flags(_OPEN_FILE), dir_fd=descriptor)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.ENXIO, "no regular file")
            parts = []
            room = self._limits.max_file_bytes + 1
            while room and (part := os.read(file, min(room, 2**20))):
                parts.append(part)
                room -= len(part)
            if not room:
                raise _NotRead(f"more than {self._limits.max_file_bytes:,} bytes")
            return b"".join(parts), os.fstat(file)
        finally:
            os.close(file)

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
        text = small_file(".gitignore", descriptor)
        if text is None:
            return rules
        if was is not None and was.rules.key == rules.key_below(path, text):
            return was.rules
        self._rules_room -= len(text)
        return rules.below(path, text) if self._rules_room >= 0 else rules

    def _take_ignored(self) -> None:
        """Read the ignored things that are small, the smallest first."""
        limits = self._limits
        for one in self._ignored:
            with suppress(OSError), opened_below(self._root, one.parents) as descriptor:
                one.size, one.count = self._measured(descriptor, one.name, 0)
        room, files = limits.max_ignored_bytes, limits.max_ignored_files
        for one in sorted(self._ignored, key=lambda one: (one.size, one.parents, one.name)):
            room -= one.size
            files -= one.count
            with suppress(OSError), opened_below(self._root, one.parents) as descriptor:
                status = os.stat(one.name, dir_fd=descriptor, follow_symlinks=False)
                if room < 0 or files < 0:
                    reason = "git ignores it, and such files are large together"
                    self._skip(one.parents, one.name, stat.S_ISDIR(status.st_mode), reason)
                    continue
                self._add(one.parent, descriptor, one.parents, one.name, status, one.was, None)
                if one.name in one.parent.entries:
                    one.parent.ignored.add(one.name)

    def _measured(self, descriptor: int, name: str, depth: int) -> tuple[int, int]:
        """Return bytes and number of the files of something ignored; stops beyond the limits."""
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            return (size if size <= self._limits.max_file_bytes else 0), 1
        size, count = 0, 1
        self._measure_room -= 1
        if self._measure_room < 0:
            return self._limits.max_ignored_bytes + 1, count
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
                        self._measure_room -= 1
                    size, count = size + more, count + others
                if size > limits.max_ignored_bytes or count > limits.max_ignored_files:
                    break
        return size, count

    def _seal(self, folder: Folder, was: Folder | None) -> None:
        """Name a folder by its content, and those in it."""
        old = {} if was is None else was.entries
        is_same = was is not None and was.id != "" and len(old) == len(folder.entries)
        for name, entry in folder.entries.items():
            before = old.get(name)
            if isinstance(entry, Folder):
                self._seal(entry, before if isinstance(before, Folder) else None)
            if before is entry:
                continue
            if before is None or (before.mode, before.id) != (entry.mode, entry.id):
                is_same = False
        if is_same and was is not None:
            folder.id = was.id
            return
        tree = {name: (entry.mode, entry.id) for name, entry in folder.entries.items()}
        folder.id = self._writer.add("tree", tree_content(tree))


def _is_placeholder(parent: int, name: str, status: os.stat_result) -> bool:
    """Return whether a sandbox that is open holds the name of something absent by this folder."""
    if not stat.S_ISDIR(status.st_mode) or status.st_mtime != 0:
        return False
    with suppress(OSError), opened(name, parent) as below, os.scandir(below) as entries:
        return next(entries, None) is None
    return False


def _granule(stamp: Stamp) -> int:
    """Return how long a file's times may stay the same: long where they count whole seconds."""
    is_coarse = stamp[2] % 1_000_000 == 0
    return _COARSE_GRANULE_NS if is_coarse else _GRANULE_NS
