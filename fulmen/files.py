"""Files of others, read within bounds, and our own: either the old one or the whole new one.

A new file is written aside, synced and renamed. A JSON file is read once its size is known to be
harmless: whatever it holds, it costs at most a second and about 100 MB, or it is a ValueError.
"""

import errno
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

MAX_JSON_BYTES: Final = 32 * 2**20
"""Largest JSON text we read. The largest published one, M2's model.safetensors.index.json, has
11 MB."""

MAX_JSON_MARKS: Final = 1_000_000
"""Most brackets, colons and commas in a JSON text: a bound on the objects it becomes in memory.
M2's index has 192,000; a safetensors header has 13 a tensor."""

MAX_JSON_DEPTH: Final = 100
"""Deepest nesting in a JSON text. No published file goes past 10, and code that walks a value may
recurse this deep safely."""

MAX_JSON_DIGITS: Final = 100
"""Most digits of an integer. The longest in published files is transformers' model_max_length,
with 31."""

_WRITE_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Failures of a write, for which the system names no file"""


def shorten(text: object, limit: int = 200) -> str:
    """Return a text as an error's sentence can hold it: on one line, and cut to a length that says
    how much was left out."""
    text = str(text)
    line = printable(text[:limit])
    return line if len(text) <= limit else f"{line}... ({len(text):,} characters)"


def printable(text: str) -> str:
    """Return one line of text with control characters written out: a stranger's text could move the
    cursor. A joiner that spelling needs stays."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or joins_letters(text, place) else _escaped(char)
        for place, char in enumerate(text)
    )


def harmless(text: str) -> str:
    """Return text for a terminal: lines and tabs stay, other control characters are written out."""
    text = text.replace("\r\n", "\n")
    if text.isprintable():
        return text
    parts = re.split(r"([\n\t])", text)
    return "".join(part if part in ("\n", "\t") else printable(part) for part in parts)


_JOINERS: Final = "\u200c\u200d"
"""Zero-width non-joiner and joiner"""
_JOINED_SCRIPTS: Final = frozenset(
    {
        *("ARABIC", "SYRIAC", "MONGOLIAN", "NKO", "MANDAIC"),
        *("DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA", "TAMIL", "TELUGU", "KANNADA"),
        *("MALAYALAM", "SINHALA", "KHMER", "MYANMAR", "TIBETAN", "BALINESE", "JAVANESE"),
    }
)
"""Scripts whose spelling uses joiners, as the names of their characters begin"""


def joins_letters(text: str, place: int) -> bool:
    """Return whether the character there is a joiner between two letters of one script that is
    spelled with joiners, as Persian and the languages of India are."""
    if text[place] not in _JOINERS or not 0 < place < len(text) - 1:
        return False
    before, after = _script(text[place - 1]), _script(text[place + 1])
    return before == after and before in _JOINED_SCRIPTS


def _script(letter: str) -> str:
    """Return the first word of a letter's or mark's name; nothing for any other character."""
    is_letter = unicodedata.category(letter)[0] in "LM"
    return unicodedata.name(letter, "").partition(" ")[0] if is_letter else ""


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


@contextmanager
def replacing_path(destination: Path) -> Iterator[Path]:
    """Give a path beside `destination` for a new file, which replaces it when the block ends.

    A link stays, and what it leads to is replaced. Raises ValueError for a device or a
    pipe. If the block fails the new file vanishes and the old one stays. An OSError then names
    `destination`, also where the system did not say which file was too much for the disk.
    """
    check_replaceable(destination)
    target = Path(os.path.realpath(destination))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name may have 255 bytes, and this one is longer than the destination's.
    beginning = target.name.encode(errors="ignore")[:200].decode(errors="ignore")
    temporary = target.with_name(f".{beginning}.{uuid4().hex}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename in (str(temporary), temporary):
            raise OSError(error.errno, error.strerror, str(destination)) from error
        named = naming(error, destination)
        if named is error:
            raise
        raise named from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_replaceable(destination: Path) -> None:
    """Raise where something is there that is no file of bytes: to write a device anew would replace
    it by a file. It is a ValueError, or an IsADirectoryError for a folder."""
    try:
        mode = destination.stat().st_mode
    except OSError:  # nothing is there, or what writes will say why it cannot
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(destination))
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise ValueError(f"{destination} is a {kind}, the name of a file is needed")


def full_reason(error: BaseException) -> str | None:
    """Return which limit a write ran into, such as "no space left on device"; None for any other
    error. Libraries in other languages tell it in the text of an error of theirs."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason = os.strerror(number)
        is_told = not isinstance(error, OSError) and reason in str(error)
        if is_told or getattr(error, "errno", None) == number:
            return reason.lower()
    return None


def naming(error: OSError, file: Path) -> OSError:
    """Return an error of a write to a file as one that names it; any other error as it is."""
    if error.filename is not None or error.errno not in _WRITE_ERRORS:
        return error
    return OSError(error.errno, error.strerror or str(error), str(file))


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(destination: Path) -> Iterator[BinaryIO]:
    """Give a new file, open for writing, that becomes `destination` when the block ends."""
    with replacing_path(destination) as temporary, temporary.open("xb") as file:
        yield file


def user_folder(variable: str, fallback: str) -> Path:
    """Return a folder of the user's, by the XDG specification; it may not exist.

    The environment's `variable` names it; else it is `fallback` in the home folder.
    """
    xdg = Path(os.environ.get(variable, ""))
    # The specification says to ignore a relative path.
    return xdg if xdg.is_absolute() else Path.home() / fallback


def explain(error: OSError) -> str:
    """Return a failed file operation as one sentence with the file the caller named."""
    name = error.filename2 or error.filename
    if name is None and error.errno in _WRITE_ERRORS:  # every file that we write is named
        name = "the output"
    return str(error) if name is None else f"{name}: {(error.strerror or str(error)).lower()}"


def write_text(destination: Path, text: str) -> None:
    """Write a whole text file in UTF-8."""
    with replacing(destination) as file:
        file.write(text.encode())


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON file whose root is an object; ValueError, one sentence, for anything else."""
    if not path.exists():
        raise ValueError(f"{path} is missing")
    if not path.is_file():
        raise ValueError(f"{path} is not a file, a JSON object is needed there")
    with path.open("rb") as file:
        return parse_json(file.read(MAX_JSON_BYTES + 1), str(path))


def read_json_if_present(path: Path) -> dict[str, object]:
    """Read a JSON file like `read_json`; an empty object if there is no such file."""
    return read_json(path) if path.exists() else {}


def parse_json(text: bytes, where: str) -> dict[str, object]:
    """Return the object that a JSON text in UTF-8 holds, once it is known to stay within bounds.

    where  names the text in a ValueError, such as its path
    """
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{where} has more than {MAX_JSON_BYTES:,} bytes, no such JSON is known")
    if sum(text.count(mark) for mark in b"{[:,") > MAX_JSON_MARKS:
        raise ValueError(
            f"{where} holds more than {MAX_JSON_MARKS:,} values, no such JSON is known"
        )
    try:
        value = json.loads(text.decode(), parse_int=_short_integer)
    except RecursionError:
        raise ValueError(_too_deep(where)) from None
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, found {type(value).__name__}")
    level: list[object] = [value]
    for _ in range(MAX_JSON_DEPTH):
        if not level:
            break
        level = [child for parent in level for child in _children(parent)]
    if level:
        raise ValueError(_too_deep(where))
    if b"\\ud" in text.lower():
        _check_surrogates(value, where)
    return value


def _check_surrogates(value: object, where: str) -> None:
    """Raise for half a surrogate pair, with which a name could be neither printed nor opened."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} holds half of a surrogate pair, it must be Unicode") from None


def _short_integer(digits: str) -> int:
    if len(digits) > MAX_JSON_DIGITS:
        raise ValueError(
            f"it has an integer of {len(digits)} digits, at most {MAX_JSON_DIGITS} fit"
        )
    return int(digits)


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_deep(where: str) -> str:
    return f"{where} is nested too deeply, at most {MAX_JSON_DEPTH} levels are read"
