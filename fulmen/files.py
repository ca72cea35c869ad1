"""Files that are either the old one or the whole new one: written aside, synced, renamed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

import os
from contextlib import contextmanager
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def replacing_path(destination: Path) -> Iterator[Path]:
    """A path beside `destination` for a new file, which replaces it when the block ends.

    If the block fails the new file vanishes and the old one stays.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{uuid4().hex}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(destination)
        _sync_folder(destination.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Makes a rename last, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(destination: Path) -> Iterator[BinaryIO]:
    """A new file, open for writing, that becomes `destination` when the block ends."""
    with replacing_path(destination) as temporary, temporary.open("xb") as file:
        yield file


def user_folder(variable: str, fallback: str) -> Path:
    """A folder of the user's, by the XDG specification: what the environment's variable names, else
    `fallback` in the home folder. It may not exist."""
    xdg = Path(os.environ.get(variable, ""))
    # The specification says to ignore a relative path.
    return xdg if xdg.is_absolute() else Path.home() / fallback


def explain(error: OSError) -> str:
    """A failed file operation as one sentence with the file the caller named."""
    name = error.filename2 or error.filename
    return str(error) if name is None else f"{name}: {(error.strerror or str(error)).lower()}"


def write_text(destination: Path, text: str) -> None:
    """Writes a whole text file in UTF-8."""
    with replacing(destination) as file:
        file.write(text.encode())


def read_json(path: Path) -> dict[str, object]:
    """A JSON file whose root is an object; anything else is a sentence."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply, no such JSON is needed here") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value
