"""Files of a folder as a stranger left it: no link is followed, and everything has an end."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

_MAX_ENTRIES: Final = 2000
_MAX_DEPTH: Final = 4
_MAX_BYTES: Final = 2**18
_MAX_COPIED: Final = 20_000
"""Files and folders of a copy"""
_MAX_COPIED_DEPTH: Final = 40
_MAX_COPIED_BYTES: Final = 2**29
_CHUNK: Final = 2**20


def left_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the regular files below a folder that are not too large, some
    hundred at most; with `/` in paths, in order of names."""
    waiting, num_left = [""], _MAX_ENTRIES
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as found:
                entries = sorted(islice(found, num_left), key=lambda entry: entry.name)
        except OSError:  # a folder that is closed to us
            continue
        num_left -= len(entries)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if prefix.count("/") < _MAX_DEPTH:
                    waiting.append(f"{prefix}{entry.name}/")
            elif (content := left_file(Path(entry))) is not None:
                yield f"{prefix}{entry.name}", content


def left_file(path: Path) -> bytes | None:
    """Return the content of a regular file that is not too large; None if it is something else."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            content = file.read(_MAX_BYTES + 1)
    except OSError:
        return None
    return content if len(content) <= _MAX_BYTES else None


def copy_left(folder: Path, copy: Path, *, without: frozenset[str] = frozenset()) -> bool:
    """Copy what is in a folder into a new or empty one; return whether it was not too much.

    without  names that are left out, wherever they stand

    Links are copied as links, what is neither file nor folder is passed over, and so is what is
    closed to us. Modes stay but for the bits that change who a program runs as. A path too long for
    the system, which can be made step by step, is too much.
    """
    copy.mkdir(parents=True, exist_ok=True)
    try:
        return _is_copied(folder, copy, without)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def _is_copied(folder: Path, copy: Path, without: frozenset[str]) -> bool:
    waiting, num_left, bytes_left = [""], _MAX_COPIED, _MAX_COPIED_BYTES
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as found:
                entries = sorted(islice(found, num_left + 1), key=lambda entry: entry.name)
        except OSError:
            continue
        num_left -= len(entries)
        if num_left < 0 or prefix.count("/") > _MAX_COPIED_DEPTH:
            return False
        for entry in entries:
            place = copy / f"{prefix}{entry.name}"
            if entry.name in without:
                continue
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), place)
            elif entry.is_dir():
                place.mkdir()
                waiting.append(f"{prefix}{entry.name}/")
            elif (num_bytes := _copy_file(Path(entry.path), place, bytes_left)) is None:
                return False
            else:
                bytes_left -= num_bytes
    return True


def _copy_file(path: Path, place: Path, most: int) -> int | None:
    """Copy a regular file and return its size: 0 for what is none, None if it is too large."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        source = open(os.open(path, flags), "rb")  # noqa: SIM115  the next line closes it
    except OSError:
        return 0
    with source:
        status = os.fstat(source.fileno())
        if not stat.S_ISREG(status.st_mode):
            return 0
        if status.st_size > most:
            return None
        with place.open("xb") as file:
            shutil.copyfileobj(source, file, _CHUNK)
    place.chmod(stat.S_IMODE(status.st_mode) & 0o777 | stat.S_IRUSR | stat.S_IWUSR)
    return status.st_size
