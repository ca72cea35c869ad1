"""Files of a folder as a stranger left it: no link is followed, and everything has an end."""

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

_MAX_ENTRIES: Final = 2000
_MAX_DEPTH: Final = 4
_MAX_BYTES: Final = 2**18


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
