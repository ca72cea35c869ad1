"""Instructions of a project for the agent: AGENTS.md, plain Markdown; the nearest file wins.

The user's own file, those from where the repository begins down to the workspace, and the one at
the workspace's root hold from the start. A file in a folder below holds for what is in that folder,
and is given when a file there is read. They come in the order from far to near, so that a model
sees the one that wins last.

A file counts only if it is really in the workspace, or in the repository around it, and a link only
if it leads to Markdown there; the user's own may be a link to anywhere.
The first ones are read before there is a sandbox: each part of their path is opened below the one
before, so that nothing can be swapped between a look and the reading. Those below are read in the
sandbox, like all that a tool reads.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fulmen.agent.ignored import repository_above

NAME: Final = "AGENTS.md"
MAX_BYTES: Final = 32 * 2**10
"""Most bytes of a file that are given; the rest is cut, which the text says at its end"""
_MAX_FOLDERS: Final = 32
"""Deepest folder below the workspace that is looked into"""
_MAX_LINKS: Final = 16
"""Most links that are followed on the way to one file"""


@dataclass(frozen=True, slots=True)
class Instructions:
    """A file of instructions and its text, which says at its end if it was cut."""

    path: Path
    text: str


def find_instructions(workspace: Path, *, home: Path) -> list[Instructions]:
    """Return the instructions that hold for a whole workspace: the user's, then the project's, from
    where its repository begins.

    home  the user's folder of settings, which may hold an AGENTS.md
    """
    place = Path(os.path.realpath(workspace))
    top = repository_above(place)
    above = [] if top is None else [one for one in place.parents if one.is_relative_to(top)]
    found = (
        read_own(home / NAME),
        *(read_instructions(one / NAME, within=top) for one in reversed(above) if top is not None),
        read_instructions(workspace / NAME, within=workspace),
    )
    return [one for one in found if one is not None]


def instruction_places(path: str, *, workspace: Path) -> list[Path]:
    """Return where instructions of folders below a workspace would be that hold for a file: paths
    from the workspace on, the nearest last.

    path  absolute, or from the workspace on; outside of it there are none
    """
    below = os.path.relpath(os.path.join(workspace, path), workspace)
    if below == ".." or below.startswith(f"..{os.sep}"):
        return []
    folders = Path(below).parts[:-1][:_MAX_FOLDERS]
    return [Path(*folders[: count + 1], NAME) for count in range(len(folders))]


def is_instruction(real: str, *, workspace: Path) -> bool:
    """Return whether a file counts that was opened as instructions.

    real  its path, no link in it
    """
    name = os.path.basename(real)
    is_markdown = name == NAME or name.lower().endswith(".md")
    return is_markdown and Path(real).is_relative_to(workspace)


def instructions_of(path: Path, content: bytes, size: int) -> Instructions | None:
    """Return the instructions in the beginning of a file; None if there is nothing in it.

    content  up to `MAX_BYTES + 1` bytes
    size     bytes of the whole file
    """
    text = content[:MAX_BYTES].decode(errors="replace").removeprefix("\ufeff")
    if len(content) > MAX_BYTES:
        lines = text.rpartition("\n")[0] or text
        left = size - len(lines.encode())
        text = f"{lines}\n\n[the last {left:,} bytes of this file are left out]\n"
    return Instructions(path, text) if text.strip() else None


def read_instructions(path: Path, *, within: Path) -> Instructions | None:
    """Return one file of instructions; None if there is none, or a link leads out of the folder."""
    try:
        with _opened_within(within, path.relative_to(within).parts) as descriptor:
            content, size = _beginning(descriptor, MAX_BYTES + 1)
    except (OSError, ValueError):  # there is none, or none that the user may read
        return None
    return instructions_of(path, content, size)


def read_own(path: Path) -> Instructions | None:
    """Return a file of the user's own instructions, which may be a link, to one's dotfiles; None if
    there is none."""
    real = Path(os.path.realpath(path))
    found = read_instructions(real, within=real.parent)
    return None if found is None else replace(found, path=path)


def read_regular(path: str, limit: int) -> tuple[bytes, int]:
    """Return the beginning of a file, and the size of all of it.

    It waits for nothing and follows no link. Raises ValueError for what is not a file of bytes.
    """
    descriptor = os.open(path, _flags("O_NOFOLLOW O_NONBLOCK"))
    try:
        return _beginning(descriptor, limit)
    finally:
        os.close(descriptor)


def _beginning(descriptor: int, limit: int) -> tuple[bytes, int]:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a file")
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(limit), status.st_size


def _flags(names: str) -> int:
    """Return flags to open something for reading, without those that a system lacks."""
    return os.O_RDONLY | sum(getattr(os, name, 0) for name in names.split())


@contextmanager
def _opened_within(root: Path, parts: Sequence[str]) -> Iterator[int]:
    """Give a file below a folder, each part of the way opened below the one before. A link is
    followed by hand, and no further than the root.

    Raises OSError, and ValueError for a way that leads out, or through a link to another kind of
    file.
    """
    top = os.path.realpath(root)
    folders = []
    """Folders from the root to where we stand"""
    with ExitStack() as stack:

        def keep(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        folders.append(keep(os.open(top, _flags("O_DIRECTORY"))))
        ahead = list(reversed(parts))
        num_links = 0
        while ahead:
            name = ahead.pop()
            if name in ("", "."):
                continue
            if name == "..":
                folders.pop()
                if not folders:
                    raise ValueError("it leads out of the folder")
                continue
            try:
                target = os.readlink(name, dir_fd=folders[-1])
            except OSError:  # no link
                kind = "O_NOFOLLOW O_NONBLOCK" if not ahead else "O_NOFOLLOW O_DIRECTORY"
                descriptor = keep(os.open(name, _flags(kind), dir_fd=folders[-1]))
                if ahead:
                    folders.append(descriptor)
                    continue
                if num_links and not is_instruction(os.path.join(top, name), workspace=Path(top)):
                    raise ValueError("a link leads to what is no Markdown") from None
                yield descriptor
                return
            num_links += 1
            if num_links > _MAX_LINKS:
                raise ValueError("too many links lead to it")
            if os.path.isabs(target):
                target = os.path.relpath(target, top)
                del folders[1:]
            ahead += reversed(target.split(os.sep))
    raise ValueError("it is a folder")
