"""Paths that must be held fast in a folder before strangers may write to it.

A mount makes a path read-only, so four kinds of path have to be found first: protected names,
settings of repositories that are folders themselves (bare ones), files that have another name
outside (a hard link: writing to one writes to the other), and Unix sockets, which answer through
any mount.
"""

import contextlib
import os
import stat
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fulmen.sandbox.access import GITS_OWN
from fulmen.sandbox.repositories import Identity, is_repository, settings_of

MAX_ENTRIES: Final = 1_000_000
"""Most files and folders that are looked at, some seconds' worth; folders beyond are held whole"""
MAX_HELD: Final = 400
"""Most mounts made for one folder; where there is more to hold, common folders are held"""
_MAX_PATH: Final = 3000
"""Longest path of a folder that is looked into; the system takes 4,095 bytes, with what is mounted
at it and the name of an entry"""


@dataclass(slots=True)
class Survey:
    """Paths below a folder that need care."""

    protected: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    """Protected names that are symbolic links, which no mount can hold"""
    shared: list[Path] = field(default_factory=list)
    """Files with a hard link elsewhere"""
    sockets: list[Path] = field(default_factory=list)
    unseen: list[Path] = field(default_factory=list)
    """Folders that were not looked into: they are closed, lie too deep, or so much was before"""
    settings: list[Path] = field(default_factory=list)
    """Settings of repositories that are no `.git`"""
    repositories: set[Identity] = field(default_factory=set)
    """Each `.git`"""
    bare: dict[Identity, frozenset[str]] = field(default_factory=dict)
    """Folders that are repositories themselves, with the names of their settings"""


def survey(root: Path, names: tuple[str, ...], *, max_entries: int = MAX_ENTRIES) -> Survey:
    """Look through a folder, the nearest first, without following links."""
    found = Survey()
    inodes: dict[tuple[int, int], list[Path]] = {}
    wanted: dict[tuple[int, int], int] = {}
    folders = deque([(str(root), False)])
    room = max_entries
    while folders:
        folder, is_held = folders.popleft()
        if room <= 0 or len(os.fsencode(folder)) > _MAX_PATH:
            if not is_held:
                found.unseen.append(Path(folder))
            continue
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError:  # what we cannot list, nor open, cannot be listed inside either
            continue
        room -= len(listed)
        if is_repository(entry.name for entry in listed):
            with contextlib.suppress(OSError):
                status = os.lstat(folder)
                names_of_settings = settings_of(entry.name for entry in listed)
                found.bare[status.st_dev, status.st_ino] = names_of_settings
                if not is_held and os.path.basename(folder) != GITS_OWN:
                    found.settings += [Path(folder, name) for name in sorted(names_of_settings)]
        for entry in listed:
            is_name = entry.name in names
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if entry.name == GITS_OWN:
                found.repositories.add((status.st_dev, status.st_ino))
            if is_name and not is_held:
                kind = found.links if stat.S_ISLNK(status.st_mode) else found.protected
                kind.append(Path(entry.path))
            if stat.S_ISDIR(status.st_mode) and _is_closed(status) and not is_held:
                found.unseen.append(Path(entry.path))
            elif stat.S_ISDIR(status.st_mode):
                folders.append((entry.path, is_held or is_name))
            elif stat.S_ISSOCK(status.st_mode):
                found.sockets.append(Path(entry.path))
            elif status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
                key = status.st_dev, status.st_ino
                wanted[key] = status.st_nlink
                # Names inside a protected folder are read-only already, but their others are not.
                inodes.setdefault(key, []).append(Path(entry.path))
    protected = set(found.protected)
    for key, paths in inodes.items():
        free = [path for path in paths if not protected & {path, *path.parents}]
        if len(paths) < wanted[key] or len(free) < len(paths):
            found.shared += free
    return found


def _is_closed(status: os.stat_result) -> bool:
    """Return whether a folder is closed to its owner, who could open it, and so inside too."""
    needed = stat.S_IRUSR | stat.S_IXUSR
    return status.st_uid == os.geteuid() and status.st_mode & needed != needed


def gathered(paths: list[Path], root: Path, limit: int = MAX_HELD) -> list[Path]:
    """Return at most `limit` paths that have all the given ones at or below them, none of them
    below another. Raises ValueError where only the root would do."""
    depth = max((len(path.relative_to(root).parts) for path in paths), default=0)
    while True:
        parts = Counter(path.relative_to(root).parts[:depth] for path in paths)
        kept = [root.joinpath(*one) for one in parts]
        if len(kept) <= limit:
            break
        depth -= 1
        if depth == 0:
            raise ValueError(
                f"{root} has more than {limit} files that must not be changed, such as names of "
                "files elsewhere (hard links): copy it, or make it read-only"
            )
    found = set(kept)
    return sorted(path for path in kept if not found & set(path.parents))
