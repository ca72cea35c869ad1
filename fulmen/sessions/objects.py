"""The folders of a store, and objects in them that are named by the hash of their content.

    STORE/turns/HASH.json         turns
    STORE/chunks/HASH.safetensors pages of keys and values, snapshots of lightning states

An object never changes: its name is the SHA-256 of its bytes, so what is read under a name is what
was written under it, and two sessions with one past share it.

A store may come from a stranger. So nothing outside it is read, written or deleted: a name is 64
hex digits and nothing else, the folders are real folders, the files real files, and links are not
followed. What the bytes mean is not known here.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeGuard
from uuid import uuid4

from fulmen.files import replacing

MAX_TURN_BYTES: Final = 64 * 2**20
"""Size of the largest turn that is read; a million tokens with log-probabilities take half."""
MAX_CHUNK_BYTES: Final = 4 * 2**30
"""Size of the largest chunk that is read; a snapshot of M1 takes a tenth."""
FOLDERS: Final = ("sessions", "turns", "chunks")
_HASH = re.compile("[0-9a-f]{64}")


class DamagedError(ValueError):
    """The content of an object is not what its name says."""


def is_hash(value: object) -> TypeGuard[str]:
    """Return whether a value is the name of an object."""
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def is_real_folder(path: Path) -> bool:
    """Return whether a path is a folder itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def store_folder(root: Path, name: str, *, creates: bool = False) -> Path:
    """Return one of the folders of a store, which may be missing. Raises ValueError for a link:
    what lies behind it is not the store's."""
    path = root / name
    if not is_real_folder(path):
        if os.path.lexists(path):
            raise ValueError(
                f"{path} is no folder of its own, a store needs one: fulmen sessions check "
                "--repair moves it aside"
            )
        if creates:
            # States hold what was said, which is nobody else's to read.
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.mkdir(exist_ok=True)
    return path


def remove_stray(path: Path) -> None:
    """Remove a link or a device, never what a link leads to, where a file is to be written."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        path.unlink(missing_ok=True)


def entries(folder: Path) -> dict[str, os.stat_result]:
    """Return the names in a folder and what each is itself, links not followed."""
    found: dict[str, os.stat_result] = {}
    if not folder.exists():
        return found
    with os.scandir(folder) as scan:
        for entry in scan:
            try:
                found[entry.name] = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # another process removed it
                continue
    return found


def is_leftover(name: str) -> bool:
    """Return whether a file is one that a killed process did not finish."""
    return name.startswith(".") and name.endswith(".part")


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read a regular file of at most max_bytes. Raises ValueError for anything else, and
    FileNotFoundError."""
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{path} has {size} bytes, at most {max_bytes} can be right")
        return file.read(max_bytes)


def read_beginning(path: Path, max_bytes: int) -> bytes:
    """Read the first max_bytes of a regular file; raises as `read_file`."""
    with _open(path) as file:
        return file.read(max_bytes)


def _open(path: Path) -> BinaryIO:
    try:
        # A link may lead out of the store; opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "it is a link" if path.is_symlink() else str(error.strerror).lower()
        raise ValueError(f"{path} cannot be read, {reason}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is no regular file")
    return open(descriptor, "rb")


def move_aside(root: Path, path: Path) -> Path:
    """Move something in a store, a link itself, to STORE/damaged/ and return its new place."""
    folder = root / "damaged"
    if os.path.lexists(folder) and not is_real_folder(folder):
        raise ValueError(f"{folder} is no folder of its own, move it away first")
    place = folder / uuid4().hex[:8]
    place.mkdir(parents=True)
    return path.rename(place / path.name)


@dataclass(frozen=True, slots=True)
class Objects:
    """One kind of objects: a folder of a store, files named by the hash of their content."""

    root: Path
    folder: str
    suffix: str

    def path(self, hash: str) -> Path:
        """Return where an object is, or would be. Raises ValueError for what is no hash."""
        if not is_hash(hash):
            raise ValueError(
                f"{hash!r} names nothing in {self.root / self.folder}, a name is 64 hex digits"
            )
        return store_folder(self.root, self.folder) / (hash + self.suffix)

    def hash_in(self, name: str) -> str | None:
        """Return the hash in a file's name; None where the file is no object."""
        stem = name.removesuffix(self.suffix)
        return stem if name != stem and is_hash(stem) else None

    def size(self, hash: str) -> int:
        """Return the bytes of an object; 0 if it is gone."""
        try:
            status = self.path(hash).lstat()
        except FileNotFoundError:
            return 0
        return status.st_size if stat.S_ISREG(status.st_mode) else 0

    def sizes(self) -> dict[str, int]:
        """Return all objects and their bytes."""
        found = {}
        for name, status in entries(store_folder(self.root, self.folder)).items():
            hash = self.hash_in(name)
            if hash is not None and stat.S_ISREG(status.st_mode):
                found[hash] = status.st_size
        return found

    def put(self, content: bytes) -> str:
        """Write an object, if it is not there, and return its hash."""
        hash = hashlib.sha256(content).hexdigest()
        store_folder(self.root, self.folder, creates=True)
        path = self.path(hash)
        if is_real_folder(path):
            raise ValueError(f"{path} is a folder, fulmen sessions check --repair moves it aside")
        if self.size(hash) != len(content):
            remove_stray(path)
            with replacing(path) as file:
                file.write(content)
        return hash

    def get(self, hash: str, max_bytes: int) -> bytes:
        """Read an object. Raises DamagedError, ValueError if it is too large or no real file, and
        FileNotFoundError."""
        path = self.path(hash)
        content = read_file(path, max_bytes)
        if hashlib.sha256(content).hexdigest() != hash:
            raise DamagedError(f"{path} is damaged")
        return content

    def delete(self, hash: str) -> None:
        """Delete an object, if it is there."""
        path = self.path(hash)
        if not is_real_folder(path):
            path.unlink(missing_ok=True)

    def delete_leftovers(self) -> None:
        """Delete what killed processes did not finish; only while no other one writes."""
        for path in self.leftovers():
            path.unlink(missing_ok=True)

    def leftovers(self) -> Iterator[Path]:
        """Find what killed processes did not finish."""
        folder = store_folder(self.root, self.folder)
        for name, status in entries(folder).items():
            if is_leftover(name) and stat.S_ISREG(status.st_mode):
                yield folder / name
