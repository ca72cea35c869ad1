"""Git repositories that are made inside: their settings start programs with the next `git status`.

That runs outside, where git finds them by itself, so they are looked for: when all inside is dead,
and before, when a person is likely to look. One whose settings are among those listed here stays.
To any other git is made blind, by another name for its HEAD, and its owner is told.

Everything is opened below the folder before it, and never through a link: another sandbox may be at
work in the same folder.
"""

import os
import re
import stat
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fulmen.sandbox.access import GITS_OWN

Identity = tuple[int, int]
"""Device and inode"""

_MAX_ENTRIES: Final = 1_000_000
_MAX_DEPTH: Final = 100
_MAX_CONFIG: Final = 64 * 2**10
_MAX_TOLD: Final = 20
_KEYS: Final = {
    "core": "repositoryformatversion filemode bare logallrefupdates ignorecase precomposeunicode "
    "symlinks autocrlf eol sharedrepository",
    "extensions": "objectformat refstorage",
    "remote": "url fetch pushurl tagopt mirror",
    "branch": "remote merge rebase",
    "user": "name email",
    "init": "defaultbranch",
}
"""Settings that start nothing"""
_SECTION: Final = re.compile(r"\[\s*([A-Za-z0-9.-]+)(?:\s+\"(?:[^\"\\]|\\.)*\")?\s*\]")
_SETTING: Final = re.compile(r"([A-Za-z][A-Za-z0-9-]*)\s*(?:=\s*(.*))?")
_INDIRECT: Final = ("commondir", "config.worktree", "modules", "worktrees", "gitdir")
"""Names by which the settings of a repository lie elsewhere, or are those of several"""
_FOLDER: Final = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


def is_repository(names: Iterable[str]) -> bool:
    """Return whether git takes a folder with such entries for a repository."""
    found = set(names)
    return "HEAD" in found and ({"objects", "refs"} <= found or "commondir" in found)


def settings_of(names: Iterable[str]) -> frozenset[str]:
    """Return the entries of a repository that are its settings, or lead to them."""
    return frozenset({"HEAD", "config", "hooks", *_INDIRECT}.intersection(names))


@dataclass(slots=True)
class Repositories:
    """Folders to be looked through, and what was a repository in the beginning."""

    known: set[Identity] = field(default_factory=set)
    """`.git` of folders, which are read-only or their owner's"""
    bare: dict[Identity, frozenset[str]] = field(default_factory=dict)
    """Folders that were repositories themselves, with the names of their settings: these are
    read-only, others can be added"""
    closed: set[Identity] = field(default_factory=set)
    """Folders in which nothing can be changed, and which are not looked into"""
    roots: list[Path] = field(default_factory=list)
    devices: set[int] | None = None
    """File systems that are looked at; None for all"""
    _said: set[str] = field(default_factory=set)
    _room: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def settle(self) -> list[str]:
        """Look for new repositories, make git blind to those that could start programs, and return
        a sentence for each, and for each folder that could not be looked into; none twice."""
        notes: list[str] = []
        with self._lock:
            for root in self.roots:
                self._room = _MAX_ENTRIES
                with _failing(root, notes), _opened(str(root)) as folder:
                    if os.readlink(f"/proc/self/fd/{folder}") == str(root):  # else it is another
                        self._look_into(folder, root, notes, _MAX_DEPTH)
            notes = [note for note in dict.fromkeys(notes) if note not in self._said]
            self._said.update(notes)
        more = len(notes) - _MAX_TOLD
        return notes if more <= 0 else [*notes[:_MAX_TOLD], f"and {more} more repositories"]

    def _look_into(self, folder: int, place: Path, notes: list[str], depth: int) -> None:
        with os.scandir(folder) as entries:
            found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        self._room -= len(found)
        with _failing(place / GITS_OWN, notes):
            if GITS_OWN in found and _identity(GITS_OWN, folder) not in self.known:
                _settle_own(folder, place, notes)
        with _failing(place, notes):
            if is_repository(found):
                before = self.bare.get(_identity(".", folder))
                if before is None:
                    _settle_folder(folder, place, notes)
                else:
                    _settle_settings(folder, place, before, notes)
        for name, is_folder in found.items():
            if not is_folder or name == GITS_OWN:
                continue
            if self._room < 0 or not depth:
                notes.append(f"{place} was not looked into for new repositories, it is too much")
                return
            with _failing(place / name, notes):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if (status.st_dev, status.st_ino) in self.closed:
                    continue
                if self.devices is not None and status.st_dev not in self.devices:
                    continue
                # A folder of others that is closed to us is closed inside too.
                if status.st_uid == os.geteuid() or os.access(name, os.X_OK, dir_fd=folder):
                    with _opened(name, folder) as below:
                        self._look_into(below, place / name, notes, depth - 1)


@contextmanager
def _failing(place: Path, notes: list[str]) -> Iterator[None]:
    """Make a failure a sentence, so that what comes after it is looked at."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        pass  # it is gone, or another thing by now
    except OSError as error:
        notes.append(f"{place} may hide a repository that was made inside: {error.strerror}")


def _settle_own(folder: int, place: Path, notes: list[str]) -> None:
    """Settle a new `.git` of a folder."""
    try:
        with _opened(GITS_OWN, folder) as own:
            if "HEAD" in os.listdir(own):  # without it git sees nothing
                _settle_folder(own, place, notes)
            return
    except OSError:
        pass  # a file or a link, which leads to settings elsewhere
    aside = _aside(GITS_OWN, folder)
    notes.append(f"{place / GITS_OWN} was made inside and is now {aside}, git does not see it")


def _settle_folder(folder: int, place: Path, notes: list[str]) -> None:
    """Settle a new repository, whose settings are in this folder."""
    if _is_plain(folder):
        notes.append(f"{place} was made a repository")
        return
    aside = _aside("HEAD", folder)
    notes.append(
        f"{place} was made a repository whose settings could start programs: git does not see it, "
        f"since its HEAD is now {aside}"
    )


def _settle_settings(folder: int, place: Path, before: frozenset[str], notes: list[str]) -> None:
    """Take settings away that a repository did not have in the beginning."""
    for name in sorted(settings_of(os.listdir(folder)) - before):
        aside = _aside(name, folder)
        notes.append(f"{place / name} was made inside, in a repository, and is now {aside}")


def _aside(name: str, folder: int) -> str:
    aside = f"{name}.aside-{uuid.uuid4().hex[:8]}"
    status = os.fstat(folder)
    is_closed = status.st_uid == os.geteuid() and not status.st_mode & stat.S_IWUSR
    if is_closed:
        os.fchmod(folder, stat.S_IMODE(status.st_mode) | stat.S_IWUSR)
    try:
        os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        if is_closed:
            os.fchmod(folder, stat.S_IMODE(status.st_mode))
    return aside


def _is_plain(folder: int) -> bool:
    """Return whether the settings of a repository start nothing."""
    names = set(os.listdir(folder))
    if names & set(_INDIRECT):
        return False
    try:
        if "hooks" in names:
            with _opened("hooks", folder) as hooks:
                if not all(name.endswith(".sample") for name in os.listdir(hooks)):
                    return False
        return "config" not in names or _is_plain_config(_beginning("config", folder))
    except OSError:
        return False


@contextmanager
def _opened(name: str, folder: int | None = None) -> Iterator[int]:
    """Open a folder; one that its owner has closed is open meanwhile."""
    # There is no other way to change it but through a link.
    there = os.open(name, os.O_PATH | _FOLDER, dir_fd=folder)
    try:
        way, status = f"/proc/self/fd/{there}", os.fstat(there)
        mode = stat.S_IMODE(status.st_mode)
        is_closed = status.st_uid == os.geteuid() and not os.access(way, os.R_OK | os.X_OK)
        if is_closed:
            os.chmod(way, mode | stat.S_IRUSR | stat.S_IXUSR)
        try:
            descriptor = os.open(way, os.O_RDONLY | os.O_DIRECTORY)
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        finally:
            if is_closed:
                os.chmod(way, mode)
    finally:
        os.close(there)


def _identity(name: str, folder: int) -> Identity:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return status.st_dev, status.st_ino


def _beginning(name: str, folder: int) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        return os.read(descriptor, _MAX_CONFIG + 1)
    finally:
        os.close(descriptor)


def _is_plain_config(content: bytes) -> bool:
    """Return whether every line of a file of settings is one that starts nothing."""
    if len(content) > _MAX_CONFIG:
        return False
    known: list[str] = []
    for line in content.decode(errors="replace").split("\n"):
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        section = _SECTION.fullmatch(text)
        if section is not None:
            known = _KEYS.get(section[1].lower(), "").split()
            continue
        setting = _SETTING.fullmatch(text)
        if setting is None or setting[1].lower() not in known or text.endswith("\\"):
            return False
        value = (setting[2] or "").strip().strip('"')
        if "::" in value or value.startswith(("-", "!")):  # a program, in place of an address
            return False
    return True
