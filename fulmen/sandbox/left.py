"""Records of open sandboxes: what was a repository in each folder before, for whoever comes after.

A sandbox that is killed settles nothing (repositories.py), and the next one would take what was
made in it for a person's. So there is a file while a sandbox is open; one that nobody holds was
left by a kill, and is settled by the next sandbox over the same folders.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from fulmen.files import parse_json
from fulmen.sandbox.repositories import Repositories

try:
    import fcntl
except ImportError:  # no POSIX system, and no sandbox either
    fcntl = None  # type: ignore[assignment]


class Record:
    """File of a sandbox that is open."""

    def __init__(self, folder: Path, repositories: Repositories) -> None:
        """Write it. Raises OSError if it cannot be kept."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = folder / f"{uuid.uuid4().hex}.json"
        new = self._path.with_suffix(".new")
        self._file = new.open("wb")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._file.write(json.dumps(_written(repositories)).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            new.rename(self._path)
        except BaseException:
            self._file.close()
            new.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Take it away, once all is settled."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def settle_left(folder: Path, roots: Iterable[Path]) -> list[str]:
    """Settle what sandboxes that were killed left in these folders; return a sentence for each
    thing that was put right."""
    notes: list[str] = []
    wanted = list(roots)
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                left = _read(file)
            except (ValueError, KeyError, TypeError):
                notes.append(f"{path} cannot be read: what a killed sandbox made is not looked for")
                path.unlink()
                continue
            if any(_overlap(one, root) for one in left.roots for root in wanted):
                notes += left.settle()
                path.unlink()
    return notes


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _written(repositories: Repositories) -> dict[str, Any]:
    return {
        "roots": [[os.fsdecode(root), root.stat().st_dev] for root in repositories.roots],
        "known": sorted(repositories.known),
        "bare": [[*one, sorted(names)] for one, names in sorted(repositories.bare.items())],
        "closed": sorted(repositories.closed),
    }


def _read(file: BinaryIO) -> Repositories:
    """Read a record. The numbers of file systems may be others since the machine was started anew:
    those of the folders are known, and what lay on others is left alone."""
    found: dict[str, Any] = parse_json(file.read(), "a record")
    roots = [(Path(root), int(device)) for root, device in found["roots"]]
    now = {device: root.stat().st_dev for root, device in roots if root.is_dir()}
    return Repositories(
        known={(now[device], inode) for device, inode in found["known"] if device in now},
        bare={(now[one], inode): frozenset(n) for one, inode, n in found["bare"] if one in now},
        closed={(now[device], inode) for device, inode in found["closed"] if device in now},
        roots=[root for root, _ in roots],
        devices=set(now.values()),
    )
