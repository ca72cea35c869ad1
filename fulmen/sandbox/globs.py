"""Patterns for the names of files, as `src/**/*.py`, in a time that only their length decides.

Runs inside, with nothing but the standard library. A star that once fits is never tried again
behind the next one, so time grows with the pattern's length times the path's, whatever they are.
"""

import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Final, TypeVar

T = TypeVar("T")

MAX_PATTERN: Final = 1000
_MAX_SPELLINGS: Final = 200
"""Most patterns that the braces of one stand for"""
_PIECE: Final = re.compile(r"\*+|\?|\[[!^]?\]?[^\]/]*\]|\\.|.", re.S)

_Tests = Sequence[Callable[[T], bool] | None]
"""Tests of one item each; None for any number of items"""


def glob_matcher(pattern: str) -> Callable[[str], bool]:
    """Return a test for paths with slashes between their parts.

    `*` and `?` match within a part, `**` any parts, `[a-z]` and `[!a-z]` a character, `{a,b}` one
    of some texts; a backslash takes a character's meaning away. A pattern without a slash is the
    name of a file in any folder. Raises ValueError for what is no pattern.
    """
    if not 0 < len(pattern) <= MAX_PATTERN:
        raise ValueError(f"a pattern for names has from 1 to {MAX_PATTERN} characters")
    spellings = [_tests(one) for one in _spellings(pattern.removeprefix("./"))]

    def matches(path: str) -> bool:
        parts = path.split("/")
        return any(_fits(tests, parts) for tests in spellings)

    return matches


def _spellings(pattern: str) -> list[str]:
    """Return the patterns that braces stand for."""
    pieces = re.findall(r"\\.|\{[^{}/]*\}|[^{\\]+|.", pattern, re.S)
    choices = [
        piece[1:-1].split(",") if len(piece) > 1 and piece[0] == "{" else [piece]
        for piece in pieces
    ]
    count = 1
    for choice in choices:
        count *= len(choice)
        if count > _MAX_SPELLINGS:
            raise ValueError(f"the braces of a pattern stand for at most {_MAX_SPELLINGS} others")
    return ["".join(chosen) for chosen in product(*choices)]


def _tests(pattern: str) -> "_Tests[str]":
    """Return a test for each part of a path."""
    parts = pattern.split("/") if "/" in pattern else ["**", pattern]
    if parts[-1] == "**":
        parts.append("*")  # something is below it
    return [None if part == "**" else _part_test(part) for part in parts]


def _part_test(part: str) -> Callable[[str], bool]:
    tests = [_char_test(piece) for piece in _PIECE.findall(part)]
    return lambda text: _fits(tests, text)


def _char_test(piece: str) -> Callable[[str], bool] | None:
    if piece[0] == "*":
        return None
    if piece == "?":
        return lambda char: True
    if piece[0] == "[" and len(piece) > 2:
        return _class_test(piece[1:-1])
    literal = piece[-1]
    return lambda char: char == literal


def _class_test(text: str) -> Callable[[str], bool]:
    is_negative = text[0] in "!^" and len(text) > 1
    ranges: list[tuple[str, str]] = []
    for first, last, single in re.findall(r"(.)-(.)|(.)", text[is_negative:], re.S):
        ranges.append((single, single) if single else (first, last))
    return lambda char: any(low <= char <= high for low, high in ranges) is not is_negative


def _fits(tests: "_Tests[Any]", items: Sequence[Any]) -> bool:
    """Return whether tests hold for items in their order."""
    at = place = 0
    star: int | None = None
    after = 0
    """Item from which on the tests behind the last star are tried"""
    while at < len(items):
        if place < len(tests):
            test = tests[place]
            if test is None:
                star, after = place, at
                place += 1
                continue
            if test(items[at]):
                place, at = place + 1, at + 1
                continue
        if star is None:
            return False
        after += 1
        place, at = star + 1, after
    return all(test is None for test in tests[place:])
