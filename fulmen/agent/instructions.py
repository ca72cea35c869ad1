"""Instructions of a project for the agent: AGENTS.md, plain Markdown; the nearest file wins.

The user's own file and the one at the workspace's root hold from the start. A file in a folder
below holds for what is in that folder, and is given when a file there is read or changed. They
come in the order from far to near, so that a model sees the one that wins last.

A file counts only if it is really in the workspace: no link may lead the agent out of it.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NAME: Final = "AGENTS.md"
MAX_BYTES: Final = 32 * 2**10
"""Most bytes of a file that are given; the rest is cut, which the text says at its end"""
_MAX_FOLDERS: Final = 32
"""Deepest folder below the workspace that is looked into"""


@dataclass(frozen=True, slots=True)
class Instructions:
    """A file of instructions and its text, which says at its end if it was cut."""

    path: Path
    text: str


def find_instructions(workspace: Path, *, home: Path) -> list[Instructions]:
    """Return the instructions that hold for a whole workspace: the user's, then the project's.

    home  the user's folder of settings, which may hold an AGENTS.md
    """
    found = (
        read_instructions(home / NAME, within=home),
        read_instructions(workspace / NAME, within=workspace),
    )
    return [one for one in found if one is not None]


def instructions_for(path: Path, *, workspace: Path) -> list[Instructions]:
    """Return the instructions of folders below a workspace that hold for a file, nearest last.

    A path outside the workspace has none.
    """
    root = os.path.abspath(workspace)
    whole = os.path.normpath(os.path.join(root, path))
    below = os.path.relpath(whole, root)
    if below == ".." or below.startswith(f"..{os.sep}"):
        return []
    folders = Path(below).parts[:-1][:_MAX_FOLDERS]
    places = [Path(root, *folders[: count + 1]) / NAME for count in range(len(folders))]
    found = (read_instructions(place, within=Path(root)) for place in places)
    return [one for one in found if one is not None]


def read_instructions(path: Path, *, within: Path) -> Instructions | None:
    """Return one file of instructions; None if there is none, or a link leads out of the folder."""
    real, root = os.path.realpath(path), os.path.realpath(within)
    if os.path.commonpath([real, root]) != root:
        return None
    try:
        content, size = read_regular(real, MAX_BYTES + 1)
    except (OSError, ValueError):  # there is none, or none that the user may read
        return None
    text = content[:MAX_BYTES].decode(errors="replace").removeprefix("\ufeff")
    if len(content) > MAX_BYTES:
        lines = text.rpartition("\n")[0] or text
        left = size - len(lines.encode())
        text = f"{lines}\n\n[the last {left:,} bytes of this file are left out]\n"
    return Instructions(path, text) if text.strip() else None


def read_regular(path: str, limit: int) -> tuple[bytes, int]:
    """Return the beginning of a file, and the size of all of it.

    It waits for nothing and follows no link. Raises ValueError for what is not a file of bytes.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit), status.st_size
    finally:
        os.close(descriptor)
