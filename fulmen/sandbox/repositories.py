"""Git repositories that are made inside: their settings start programs with the next `git status`.

That runs outside, where git finds them by itself, so they are looked for when all inside is dead.
One whose settings are among those listed here stays. To any other git is made blind, by another
name for its HEAD, and its owner is told.

Everything is opened below the folder before it, and never through a link: another sandbox may be at
work in the same folder.
"""

import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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
_FOLDER: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


def is_repository(names: Iterable[str]) -> bool:
    """Return whether git takes a folder with such entries for a repository."""
    found = set(names)
    return "HEAD" in found and ({"objects", "refs"} <= found or "commondir" in found)


@dataclass(slots=True)
class Repositories:
    """Folders to be looked through in the end, and what was a repository in the beginning."""

    known: set[Identity] = field(default_factory=set)
    """`.git` and bare repositories, which are read-only or their owner's"""
    roots: list[Path] = field(default_factory=list)

    def settle(self) -> list[str]:
        """Look for new repositories, make git blind to those that could start programs, and return
        a sentence for each."""
        notes: list[str] = []
        for root in self.roots:
            with suppress(OSError):
                self._look_through(root, notes)
        self.roots.clear()
        more = len(notes) - _MAX_TOLD
        return notes if more <= 0 else [*notes[:_MAX_TOLD], f"and {more} more repositories"]

    def _look_through(self, root: Path, notes: list[str]) -> None:
        descriptor = os.open(root, _FOLDER)
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") != str(root):
                return  # by its path it is another one by now
            room = _MAX_ENTRIES
            for way, folders, files, folder in os.fwalk(".", dir_fd=descriptor):
                place = Path(os.path.normpath(root / way))
                room -= len(folders) + len(files)
                if room < 0:
                    notes.append(f"{root} has too much in it to look for new repositories")
                    return
                names = {*folders, *files}
                if GITS_OWN in names and not self._is_known(GITS_OWN, folder):
                    _settle_own(folder, place, notes)
                if is_repository(names) and not self._is_known(".", folder):
                    _settle_folder(folder, place, notes)
                is_deep = way.count(os.sep) >= _MAX_DEPTH
                folders[:] = [] if is_deep else [one for one in folders if one != GITS_OWN]
        finally:
            os.close(descriptor)

    def _is_known(self, name: str, folder: int) -> bool:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        return (status.st_dev, status.st_ino) in self.known


def _settle_own(folder: int, place: Path, notes: list[str]) -> None:
    """Settle a new `.git` of a folder."""
    try:
        with _opened(GITS_OWN, folder) as own:
            names = os.listdir(own)
            if "HEAD" in names:
                _settle_folder(own, place, notes)
                return
            if not names:
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


def _aside(name: str, folder: int) -> str:
    aside = f"{name}.aside-{uuid.uuid4().hex[:8]}"
    os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=folder)
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
def _opened(name: str, folder: int) -> Iterator[int]:
    descriptor = os.open(name, _FOLDER, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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
