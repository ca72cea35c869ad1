"""Patterns of .gitignore files, as git reads them, and the repository that a folder is in.

A pattern becomes a regular expression in which nothing is tried twice: each piece between two stars
is found where it first fits and stays there, so a hostile pattern costs no more than a long one.
"""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

MAX_RULES_BYTES: Final = 64 * 1024
"""Bytes of an ignore file that are read"""
MAX_RULES: Final = 1_000
"""Patterns that count in any folder, those of the folders above it first"""
_MAX_RULE_BYTES: Final = 1_000
_NAME: Final = ".gitignore"

_CLASSES: Final = {
    b"alnum": rb"a-zA-Z0-9",
    b"alpha": rb"a-zA-Z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"\x21-\x7e",
    b"lower": rb"a-z",
    b"print": rb"\x20-\x7e",
    b"punct": rb"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    b"space": rb"\x09-\x0d\x20",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9a-fA-F",
}
_NEVER: Final = rb"(?!)"


@dataclass(frozen=True, slots=True)
class _Rule:
    is_negative: bool
    only_folders: bool
    has_path: bool
    """It is compared with the path from its file's folder, not with the name"""
    text: bytes
    expression: "re.Pattern[bytes] | None"
    """None for a text without wildcards"""


@dataclass(frozen=True)
class Rules:
    """Patterns that hold in a folder: its own, and those of the folders above it."""

    key: bytes = b""
    """Names all patterns: equal keys, equal answers"""
    above: "Rules | None" = None
    base: str = ""
    """Path of the folder with a slash at the end; empty for the root"""
    way: str = ""
    """Path to the root from a folder above it, which they stand in, with a slash at the end"""
    rules: tuple[_Rule, ...] = ()
    num_rules: int = 0
    """With those above"""
    _globs: tuple[int, ...] = ()
    _any_name: "re.Pattern[bytes] | None" = None
    _any_path: "re.Pattern[bytes] | None" = None
    """Wildcards of all patterns at once"""
    _literals: dict[bytes, list[int]] = field(default_factory=dict)

    def below(self, base: str, text: bytes, *, way: str = "") -> "Rules":
        """Return these patterns and those of a file in the folder `base`, or in one above the root,
        from which `way` leads to it."""
        lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        room = MAX_RULES - self.num_rules
        rules = tuple(rule for line in lines if (rule := _read(line)) is not None)[:room]
        literals: dict[bytes, list[int]] = {}
        globs = []
        any_of: dict[bool, list[bytes]] = {False: [], True: []}
        for place, rule in enumerate(rules):
            if rule.expression is None:
                literals.setdefault(rule.text, []).append(place)
            else:
                globs.append(place)
                any_of[rule.has_path].append(rule.expression.pattern)
        return Rules(
            self.key_below(base, text, way=way),
            self,
            base,
            way,
            rules,
            self.num_rules + len(rules),
            tuple(globs),
            _joined(any_of[False]),
            _joined(any_of[True]),
            literals,
        )

    def key_below(self, base: str, text: bytes, *, way: str = "") -> bytes:
        """Return the key of `below`."""
        place = os.fsencode(base) + (b"\0\0" + os.fsencode(way) if way else b"")
        return sha256(self.key + place + b"\0" + text).digest()

    def ignores(self, path: str, *, is_folder: bool) -> bool:
        """Return whether git would ignore a path whose folders it does not ignore."""
        level: Rules | None = self
        name = os.fsencode(path.rpartition("/")[2])
        while level is not None:
            if level.rules:
                below = os.fsencode(level.way + path[len(level.base) :])
                found = level._last(name, below, is_folder)
                if found is not None:
                    return not found.is_negative
            level = level.above
        return False

    def _last(self, name: bytes, below: bytes, is_folder: bool) -> _Rule | None:
        best = -1
        for text in {name, below}:
            for place in self._literals.get(text, ()):
                rule = self.rules[place]
                if text == (below if rule.has_path else name) and (
                    is_folder or not rule.only_folders
                ):
                    best = max(best, place)
        has_wildcard = (self._any_name is not None and self._any_name.fullmatch(name)) or (
            self._any_path is not None and self._any_path.fullmatch(below)
        )
        for place in reversed(self._globs) if has_wildcard else ():
            if place < best:
                break
            rule = self.rules[place]
            if (is_folder or not rule.only_folders) and rule.expression is not None:
                subject = below if rule.has_path else name
                if rule.expression.fullmatch(subject):
                    return rule
        return self.rules[best] if best >= 0 else None


def _joined(expressions: list[bytes]) -> "re.Pattern[bytes] | None":
    if not expressions:
        return None
    return re.compile(b"|".join(b"(?:" + one + b")" for one in expressions), re.S)


def _read(line: bytes) -> _Rule | None:
    """Return the pattern of a line; None for a comment and an empty line."""
    line = line.removesuffix(b"\r")
    if line.startswith(b"#"):
        return None
    line = _without_last_spaces(line)
    if not line or len(line) > _MAX_RULE_BYTES or b"\0" in line:
        return None
    is_negative = line.startswith(b"!")
    line = line[is_negative:]
    only_folders = line.endswith(b"/")
    line = line[: len(line) - only_folders]
    has_path = b"/" in line
    line = line[1:] if line.startswith(b"/") else line
    if not re.search(rb"[*?\[\\]", line):
        return _Rule(is_negative, only_folders, has_path, line, None)
    expression = re.compile(_translated(line, has_path), re.S)
    return _Rule(is_negative, only_folders, has_path, line, expression)


def _without_last_spaces(line: bytes) -> bytes:
    """Cut off spaces at the end, all but one after a backslash."""
    kept = line.rstrip(b" ")
    num_backslashes = len(kept) - len(kept.rstrip(b"\\"))
    return kept + line[len(kept) :][: num_backslashes % 2]


def _translated(pattern: bytes, has_path: bool) -> bytes:
    """Return a pattern as a regular expression.

    Stars cut it into pieces. A piece that another star follows matches at the first place where it
    can, which leaves the most to that star; only the last one is bound to the end.
    """
    # git compares what comes before the first wildcard as it is, and reads the rest as a pattern of
    # its own: "a**/b" means "a" and then "**/b".
    start = re.match(rb"[^*?\[\\]*", pattern)
    literal = start[0] if start else b""
    place = len(literal)
    deep = [b""]
    """Pieces between stars that pass slashes, each a list of those between other stars, joined"""
    piece = b""
    star: bytes | None = None

    def close(is_last: bool) -> None:
        nonlocal piece, star
        if star is None:
            deep[-1] += piece
        elif is_last:
            deep[-1] += star + piece
        else:
            deep[-1] += b"(?>" + star + b"?" + piece + b")"
        piece = b""

    joints: list[bytes] = []
    first = place
    while place < len(pattern):
        char = pattern[place : place + 1]
        if char == b"*":
            end = place
            while pattern[end : end + 1] == b"*":
                end += 1
            before = pattern[place - 1 : place] if place > first else b"/"
            after = pattern[end : end + 1]
            is_deep = (
                has_path
                and end - place > 1
                and before == b"/"
                and (after in (b"", b"/") or pattern[end : end + 2] == b"\\/")
            )
            close(False)
            if is_deep:
                star = None
                if after == b"/":
                    joints.append(rb"(?:.*?/)??")
                    end += 1
                else:
                    joints.append(rb".*?")
                deep.append(b"")
            else:
                star = rb"[^/]*" if has_path else rb".*"
            place = end
            continue
        if char == b"?":
            piece += rb"[^/]" if has_path else rb"."
            place += 1
        elif char == b"[":
            found = _bracket(pattern, place, has_path)
            if found is None:
                return _NEVER
            text, place = found
            piece += text
        elif char == b"\\":
            if place + 1 == len(pattern):
                return _NEVER
            piece += re.escape(pattern[place + 1 : place + 2])
            place += 2
        else:
            piece += re.escape(char)
            place += 1
    close(True)
    whole = re.escape(literal) + deep[0]
    for number, (joint, part) in enumerate(zip(joints, deep[1:], strict=True), 1):
        is_last = number == len(joints)
        whole += joint + part if is_last else b"(?>" + joint + part + b")"
    return whole


def _bracket(pattern: bytes, place: int, has_path: bool) -> tuple[bytes, int] | None:
    """Return a bracket as a regular expression and where it ends; None if it does not end."""
    place += 1
    is_negative = pattern[place : place + 1] in (b"!", b"^")
    place += is_negative
    chars: set[int] = set()
    previous: int | None = None
    is_first = True
    while True:
        char = pattern[place : place + 1]
        if not char:
            return None
        if char == b"]" and not is_first:
            break
        is_first = False
        following = pattern[place + 1 : place + 2]
        if char == b"-" and previous is not None and following not in (b"", b"]"):
            place += 1
            if following == b"\\":
                place += 1
                following = pattern[place : place + 1]
                if not following:
                    return None
            chars.update(range(previous, following[0] + 1))
            previous = None
            place += 1
            continue
        if char == b"[" and following == b":":
            end = pattern.find(b"]", place + 2)
            if end < 0:
                return None
            name = pattern[place + 2 : end]
            if len(name) > 0 and name.endswith(b":"):
                if name[:-1] not in _CLASSES:
                    return None
                chars.update(_members(name[:-1]))
                previous = None
                place = end + 1
                continue
        if char == b"\\":
            place += 1
            char = pattern[place : place + 1]
            if not char:
                return None
        chars.add(char[0])
        previous = char[0]
        place += 1
    if is_negative:
        chars = set(range(256)) - chars
    if has_path:
        chars.discard(ord("/"))
    if not chars:
        return _NEVER, place + 1
    return b"[" + b"".join(b"\\x%02x" % char for char in sorted(chars)) + b"]", place + 1


def _members(name: bytes) -> list[int]:
    expression = re.compile(b"[" + _CLASSES[name] + b"]")
    return [char for char in range(128) if expression.match(bytes([char]))]


def small_file(path: str, parent: int | None = None) -> bytes | None:
    """Return the beginning of an ignore file; None for what is no file, a link included."""
    try:
        names = ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC")
        flags = sum(getattr(os, name, 0) for name in names)
        descriptor = os.open(path, os.O_RDONLY | flags, dir_fd=parent)
    except (OSError, ValueError):  # a zero byte in a path
        return None
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, MAX_RULES_BYTES) if is_file else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def user_excludes(folder: Path) -> bytes:
    """Return the patterns of a repository's info/exclude, a linked worktree's included."""
    git = folder / ".git"
    pointer = small_file(str(git))
    if pointer is not None:
        if not pointer.startswith(b"gitdir:"):
            return b""
        git = folder / os.fsdecode(pointer.removeprefix(b"gitdir:").strip())
        common = small_file(str(git / "commondir")) or b"."
        git = git / os.fsdecode(common.strip())
    return small_file(str(git / "info" / "exclude")) or b""


def repository_above(folder: Path) -> Path | None:
    """Return where the repository begins that a folder is in; None for one that begins here, for
    none, for another user's, and for one that ignores the folder.

    folder  absolute, no link in it
    """
    if os.path.lexists(folder / ".git"):
        return None
    for one in folder.parents:
        try:
            status = os.lstat(one / ".git")
        except OSError:
            continue
        if status.st_uid != os.geteuid():  # git does not trust it either
            return None
        rules, parts = Rules(), folder.relative_to(one).parts
        for count, name in enumerate(parts):
            base = "".join(f"{part}/" for part in parts[:count])
            for text in _texts(one, parts[:count]):
                rules = rules.below(base, text)
            if rules.ignores(base + name, is_folder=True):
                return None
        return one
    return None


def _texts(top: Path, parts: Sequence[str]) -> list[bytes]:
    """Return the patterns that a folder of a repository brings; at its top also its owner's."""
    texts = (b"" if parts else user_excludes(top), small_file(str(top.joinpath(*parts, _NAME))))
    return [text for text in texts if text]


def first_rules(folder: Path) -> Rules:
    """Return the patterns that hold for a folder before any of its own files: those of its
    repository's owner, and those of the folders above it in the repository."""
    top = repository_above(folder)
    if top is None:
        text = user_excludes(folder)
        return Rules().below("", text) if text else Rules()
    rules, parts = Rules(), folder.relative_to(top).parts
    for count in range(len(parts)):
        way = "".join(f"{part}/" for part in parts[count:])
        for text in _texts(top, parts[:count]):
            rules = rules.below("", text, way=way)
    return rules
