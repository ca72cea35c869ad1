"""Exact replacement of text in a file, and what to say when it is not there."""

import difflib
from typing import Final

from fulmen.agent.tools import ToolError

_MAX_COMPARED: Final = 20_000
"""Lines of a file that are looked through for what is nearest"""
_MAX_LINE: Final = 300
"""Characters of a line that is compared: comparing takes their square"""
_MAX_SHOWN: Final = 1_500
"""Characters of it that are shown"""


def replaced(text: str, old: str, new: str, *, path: str, all: bool = False) -> str:
    """Return a text with old replaced by new. Lines may end in CR LF in the file and in LF in old.

    Raises ToolError, with the text that is nearest, if old is not there, or more than once.
    """
    if old == new:
        raise ToolError("old and new are the same, there is nothing to change")
    if not old:
        raise ToolError("old is empty; write makes a new file")
    if old not in text and "\r\n" in text:
        old, new = (part.replace("\r\n", "\n").replace("\n", "\r\n") for part in (old, new))
    count = text.count(old)
    if count == 0:
        raise ToolError(f"old is not in {path}{_nearest(text, old)}")
    if count > 1 and not all:
        lines = ", ".join(str(line) for line in _lines_of(text, old)[:10])
        raise ToolError(
            f"old is {count} times in {path}, at lines {lines}: give more text around it, or all"
        )
    return text.replace(old, new)


def _lines_of(text: str, part: str) -> list[int]:
    """Return the lines on which a part begins, the first ten."""
    lines: list[int] = []
    place = text.find(part)
    while place >= 0 and len(lines) < 10:
        lines.append(text.count("\n", 0, place) + 1)
        place = text.find(part, place + len(part))
    return lines


def _nearest(text: str, old: str) -> str:
    """Say which lines of a text are most like old."""
    lines, wanted = _lines(text)[:_MAX_COMPARED], _lines(old)
    if not lines or not wanted:
        return ", which is empty" if not lines else ""
    stripped, sought = ([line.strip() for line in part] for part in (lines, wanted))
    for first, line in enumerate(stripped):
        if line == sought[0] and stripped[first : first + len(sought)] == sought:
            return _shown(lines, first, len(wanted), "only spaces differ")
    anchor = max(sought, key=len)[:_MAX_LINE]
    known = dict.fromkeys(line for line in stripped if len(line) <= _MAX_LINE)
    found = difflib.get_close_matches(anchor, known, n=1, cutoff=0.5)
    if not found:
        return "; nothing like it is there, read the file first"
    first = max(0, stripped.index(found[0]) - sought.index(max(sought, key=len)))
    return _shown(lines, first, len(wanted), "nearest")


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _shown(lines: list[str], first: int, count: int, why: str) -> str:
    part = "\n".join(lines[first : first + count])
    if len(part) > _MAX_SHOWN:
        part = part[:_MAX_SHOWN] + " ..."
    last = min(first + count, len(lines))
    return f"; {why}, lines {first + 1} to {last}:\n{part}"
