"""Dockerfiles of which nothing has to be built: a plain image, files in one folder, variables.

There are no containers here. The sandbox has this machine's system and Python in place of the
image's, so a line that installs or runs something cannot be kept, and is refused by its number.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

from fulmen.envs.left import left_file
from fulmen.files import shorten

_FROM: Final = re.compile(
    r"(?:--platform=\S+\s+)?(?:docker\.io/)?(?:library/)?(python|debian|ubuntu)"
    r"(?::([\w.-]+))?(?:@sha256:[0-9a-f]{64})?(?:\s+as\s+\S+)?",
    re.IGNORECASE,
)
_VERSION: Final = re.compile(r"(\d{1,3})(?:\.(\d{1,3}))?")
_WITHOUT_EFFECT: Final = frozenset({"LABEL", "EXPOSE", "CMD", "STOPSIGNAL", "MAINTAINER", "USER"})
"""Instructions that change no file and no variable; the user is always the sandbox's"""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WILD: Final = re.compile(r"[*?\[]")
_MAX_LINES: Final = 1000
_MAX_FOUND: Final = 1000
"""Files that a pattern may name"""


@dataclass(frozen=True, slots=True)
class Copy:
    """Something of the context that is put into the folder."""

    source: str
    """Path in the context"""
    destination: str
    """Path in the folder, empty for the folder itself"""
    is_into: bool
    """True if the destination is a folder, in which a file keeps its name"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A folder as a Dockerfile makes it."""

    workdir: PurePosixPath
    variables: dict[str, str]
    copies: tuple[Copy, ...]
    folders: tuple[str, ...]
    """Folders in the folder that are there from the start"""


def read_dockerfile(path: Path, *, workdir: str | None = None) -> Recipe:
    """Return what a Dockerfile asks for; its folder is the context.

    workdir  folder in which work begins, in place of the file's last WORKDIR

    Raises ValueError, which names the first line that cannot be kept.
    """
    reader = _Reader(path)
    for number, instruction, words in _instructions(path):
        reader.read(number, instruction, words)
    return reader.recipe(workdir)


def _instructions(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield number, name and words of each instruction."""
    if (content := left_file(path)) is None:
        raise ValueError(f"{path} is missing or too large")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    if len(lines) > _MAX_LINES:
        raise ValueError(f"{path} has {len(lines):,} lines, at most {_MAX_LINES:,} are read")
    begun, parts = 0, list[str]()
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if re.match(r"#\s*escape\s*=", text, re.IGNORECASE):
            raise _refused(path, number, text, "changes what ends a line")
        if not text or text.startswith("#"):
            continue
        begun = begun or number
        parts.append(text.removesuffix("\\").strip())
        if not text.endswith("\\"):
            name, _, words = " ".join(parts).partition(" ")
            yield begun, name.upper(), words.strip()
            begun, parts = 0, []
    if parts:
        raise ValueError(f"{path} ends in the middle of line {begun}")


def _refused(path: Path, number: int, text: str, reason: str) -> ValueError:
    return ValueError(f"{path}, line {number} {reason}: {shorten(text)}")


class _Reader:
    """Instructions so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._has_image = False
        self._workdir = PurePosixPath("/")
        self._variables: dict[str, str] = {}
        self._copies: list[tuple[int, str, PurePosixPath, bool]] = []
        self._folders: list[tuple[int, PurePosixPath]] = []

    def read(self, number: int, name: str, words: str) -> None:
        """Take an instruction."""
        if (name == "FROM") == self._has_image:
            reason = "begins a second image" if self._has_image else "stands before an image"
            raise _refused(self._path, number, f"{name} {words}", reason)
        if "<<" in words:
            raise _refused(self._path, number, f"{name} {words}", "holds a file, which is not read")
        try:
            self._take(number, name, words)
        except ValueError as error:
            raise _refused(self._path, number, f"{name} {words}", str(error)) from None

    def _take(self, number: int, name: str, words: str) -> None:
        match name:
            case "FROM":
                _check_image(words)
                self._has_image = True
            case "WORKDIR":
                (word,) = _plain(words, 1)
                self._workdir = self._absolute(word)
                self._folders.append((number, self._workdir))
            case "ENV":
                self._variables |= _variables(words)
            case "COPY" | "ADD":
                self._copy(number, name, words)
            case "RUN":
                self._run(number, words)
            case _ if name not in _WITHOUT_EFFECT:
                raise ValueError("cannot be kept without containers")

    def _copy(self, number: int, name: str, words: str) -> None:
        while words.startswith("--"):
            flag, _, words = words.partition(" ")
            if not flag.startswith("--chown="):
                raise ValueError(f"has {flag}, which cannot be kept without containers")
        *sources, last = _listed(words)
        if not sources:
            raise ValueError("names no file to copy")
        for source in sources:
            if name == "ADD" and re.search(r"://|@|\.(tar|tgz|tbz|txz|tar\.\w+)$", source):
                raise ValueError("fetches or unpacks something, which is not done here")
            for found in _sources(self._path.parent, source):
                is_into = len(sources) > 1 or last.endswith("/") or last in (".", "..")
                self._copies.append((number, found, self._absolute(last), is_into))

    def _run(self, number: int, words: str) -> None:
        given = _listed(words) if words.startswith("[") else _plain(words)
        if given[:1] != ["mkdir"]:
            raise ValueError("runs something, which cannot be kept without containers")
        for word in given[1:]:
            if word in ("-p", "--parents"):
                continue
            if word.startswith("-"):
                raise ValueError(f"has {word}, which is not read")
            self._folders.append((number, self._absolute(word)))

    def _absolute(self, word: str) -> PurePosixPath:
        if not word or "\0" in word:
            raise ValueError("has an empty path")
        return PurePosixPath(os.path.normpath(self._workdir / word))

    def recipe(self, workdir: str | None) -> Recipe:
        """Return what all instructions come to."""
        if not self._has_image:
            raise ValueError(f"{self._path} has no FROM")
        folder = self._workdir if workdir is None else PurePosixPath(os.path.normpath(workdir))
        if not folder.is_absolute() or len(folder.parts) < 2:
            raise ValueError(f"{self._path} has no WORKDIR, a task needs a folder of its own")
        copies = tuple(
            Copy(source, self._inside(number, place, folder), is_into)
            for number, source, place, is_into in self._copies
        )
        folders = tuple(
            self._inside(number, place, folder)
            for number, place in self._folders
            if not folder.is_relative_to(place)
        )
        return Recipe(folder, self._variables, copies, folders)

    def _inside(self, number: int, place: PurePosixPath, folder: PurePosixPath) -> str:
        if not place.is_relative_to(folder):
            reason = f"needs a place outside of the folder {folder}, and there is only that one"
            raise _refused(self._path, number, str(place), reason)
        return "" if place == folder else str(place.relative_to(folder))


def _check_image(words: str) -> None:
    if (found := _FROM.fullmatch(words)) is None:
        raise ValueError("needs an image other than a plain python, debian or ubuntu")
    version = _VERSION.match(found[2] or "")
    if found[1].lower() == "python" and version is not None:
        wanted = (int(version[1]), int(version[2] or 0))
        if wanted > sys.version_info[:2]:
            here = ".".join(map(str, sys.version_info[:2]))
            raise ValueError(f"needs a newer Python than the one here, {here}")


def _plain(words: str, number: int | None = None) -> list[str]:
    """Return the words of a line that no shell changes."""
    try:
        found = shlex.split(words)
    except ValueError as error:
        raise ValueError(f"cannot be read ({error})") from None
    if re.search(r"[$`;&|<>(){}*?~]", words):
        raise ValueError("has something that a shell computes, which is not read")
    if not found or (number is not None and len(found) != number):
        raise ValueError(f"has {len(found)} words")
    return found


def _listed(words: str) -> list[str]:
    """Return the words of a line, which may be a list in JSON."""
    if words.startswith("["):
        try:
            found = json.loads(words)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise ValueError("has no list of texts")
        return found
    if "$" in words:
        raise ValueError("has a variable in a path, which is not read")
    try:
        return shlex.split(words)
    except ValueError as error:
        raise ValueError(f"cannot be read ({error})") from None


def _variables(words: str) -> dict[str, str]:
    if "$" in words:
        raise ValueError("has a variable in a value, which is not read")
    try:
        given = shlex.split(words)
    except ValueError as error:
        raise ValueError(f"cannot be read ({error})") from None
    if given and "=" not in given[0]:  # the old way: ENV NAME the rest
        name, _, rest = words.partition(" ")
        pairs = {name: rest.strip()}
    else:
        pairs = {name: value for name, _, value in (one.partition("=") for one in given)}
    for name in pairs:
        if not _NAME.fullmatch(name):
            raise ValueError(f"has {shorten(name, 40)!r}, which is no variable")
    return pairs


def _sources(context: Path, source: str) -> list[str]:
    """Return the paths in the context that a source names."""
    path = os.path.normpath(source.lstrip("/") or ".")
    if path.startswith("../") or path == "..":
        raise ValueError("leads out of the context")
    if "**" in path:
        raise ValueError("has **, which is not read")
    is_wild = _WILD.search(path) is not None
    found = sorted(islice(context.glob(path), _MAX_FOUND + 1)) if is_wild else [context / path]
    if len(found) > _MAX_FOUND:
        raise ValueError(f"names more than {_MAX_FOUND:,} files")
    if not found or not all(one.exists() for one in found):
        raise ValueError(f"names {shorten(source, 100)}, which is not there")
    for one in found:
        if not one.resolve().is_relative_to(context.resolve()):
            raise ValueError("leads out of the context")
    return [str(one.relative_to(context)) for one in found]
