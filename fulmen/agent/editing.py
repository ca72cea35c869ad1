"""Exact replacement of text in a file: what to say when it is not there, and what it changed.

Comparing texts may take the cube of their length. Here it takes so many steps and no more: what is
not compared by then counts as different.
"""

import difflib
import io
from collections.abc import Sequence
from heapq import nlargest
from itertools import accumulate
from typing import Final

from fulmen.agent.tools import ToolError

_MAX_COMPARED: Final = 10_000
"""Lines of a file that are looked through for what is nearest"""
_MAX_LINE: Final = 300
"""Characters of a line that is compared: comparing takes their square"""
_MAX_NEAR: Final = 20
"""Lines with the most characters in common with it that are compared in full"""
_MAX_RESULT: Final = 8 * 2**20
"""Characters of a text after a replacement"""
MAX_DIFF: Final = 20_000
"""Characters of a diff"""
_MAX_DIFF_LINES: Final = 20_000
"""Lines before and after, together, of which a diff is made"""
_MAX_STEPS: Final = 1_000_000
"""Pairs of equal lines that are looked at for a diff"""
_MAX_SHOWN: Final = 1_500
"""Characters of it that are shown"""


def replaced(
    text: str, old: str, new: str, *, path: str, all: bool = False, has_all: bool = True
) -> str:
    """Return a text with old replaced by new. Lines may end in CR LF in the file and in LF in old.

    has_all  the model could ask for all; without that, and without write, it is not told of them

    Raises ToolError, with the text that is nearest, if old is not there, or more than once.
    """
    if old == new:
        raise ToolError("old and new are the same, there is nothing to change")
    if not old:
        how = "write makes a new file" if has_all else f"{path} is there already, read it"
        raise ToolError(f"old is empty; {how}")
    if old not in text and "\r\n" in text:
        old, new = (part.replace("\r\n", "\n").replace("\n", "\r\n") for part in (old, new))
    count = text.count(old)
    if count == 0:
        raise ToolError(f"old is not in {path}{_nearest(text, old)}")
    if count > 1 and not all:
        lines = ", ".join(str(line) for line in _lines_of(text, old)[:10])
        how = "give more text around it" + (", or all" if has_all else "")
        raise ToolError(f"old is {count} times in {path}, at lines {lines}: {how}")
    if len(text) + count * (len(new) - len(old)) > _MAX_RESULT:
        raise ToolError(f"{path} would have more than {_MAX_RESULT:,} characters")
    return text.replace(old, new)


def diff(path: str, before: str, after: str, *, max_characters: int = MAX_DIFF) -> str:
    """Return the unified diff of two texts, cut; nothing where they are too long for one."""
    old, new = (list(io.StringIO(text, newline="\n")) for text in (before, after))
    if len(old) + len(new) > _MAX_DIFF_LINES:
        return ""
    rows = [f"--- a/{path}\n", f"+++ b/{path}\n"]
    for group in _Bounded(old, new).get_grouped_opcodes(3):
        (_, a, _, b, _), (_, _, a_end, _, b_end) = group[0], group[-1]
        rows.append(f"@@ -{_range(a, a_end)} +{_range(b, b_end)} @@\n")
        for kind, first, last, first_new, last_new in group:
            if kind == "equal":
                rows += [f" {line}" for line in old[first:last]]
                continue
            rows += [f"-{line}" for line in old[first:last]]
            rows += [f"+{line}" for line in new[first_new:last_new]]
    if len(rows) == 2:
        return ""
    text = "".join(row if row.endswith("\n") else f"{row}\n" for row in rows)
    return text if len(text) <= max_characters else text[:max_characters] + "...\n"


def _range(first: int, last: int) -> str:
    """Return lines as a hunk names them."""
    count = last - first
    begin = first + 1 if count else first
    return str(begin) if count == 1 else f"{begin},{count}"


class _Bounded(difflib.SequenceMatcher[str]):
    """A comparison of lines that ends: when its steps are used up nothing more is alike."""

    def __init__(self, old: Sequence[str], new: Sequence[str]) -> None:
        super().__init__(None, old, new)
        costs = (1 + len(self.b2j.get(line, ())) for line in old)  # type: ignore[attr-defined]
        self._costs = [0, *accumulate(costs)]
        self._steps = _MAX_STEPS

    def find_longest_match(
        self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None
    ) -> difflib.Match:
        """Return the longest run of equal lines in two ranges."""
        self._steps -= self._costs[-1 if ahi is None else ahi] - self._costs[alo]
        if self._steps < 0:
            return difflib.Match(alo, blo, 0)
        return super().find_longest_match(alo, ahi, blo, bhi)


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
    place = "\n".join(["", *stripped, ""]).find("\n".join(["", *sought, ""]))
    if place >= 0:
        first = "\n".join(["", *stripped, ""]).count("\n", 0, place)
        return _shown(lines, first, len(wanted), "only spaces differ")
    longest = max(sought, key=len)
    found = _nearest_line(longest[:_MAX_LINE], stripped)
    if found is None:
        return "; nothing like it is there, read the file first"
    first = max(0, stripped.index(found) - sought.index(longest))
    return _shown(lines, first, len(wanted), "nearest")


def _nearest_line(line: str, lines: Sequence[str]) -> str | None:
    """Return the line that is most like another one; None if none is."""
    matcher = difflib.SequenceMatcher(None, b=line, autojunk=False)
    # Two times the characters in common over all characters, of which a half must be alike.
    known = {
        one: _num_common(line, one) / (len(line) + len(one))
        for one in dict.fromkeys(lines)
        if len(one) <= _MAX_LINE and 3 * len(one) >= len(line) and 3 * len(line) >= len(one) > 0
    }
    best: tuple[float, str] | None = None
    for one in nlargest(_MAX_NEAR, known, key=lambda one: known[one]):
        if 2 * known[one] < max(0.5, best[0] if best else 0):
            break
        matcher.set_seq1(one)
        ratio = matcher.ratio()
        if ratio >= 0.5 and (best is None or ratio > best[0]):
            best = ratio, one
    return None if best is None else best[1]


def _num_common(one: str, other: str) -> int:
    """Return how many characters two texts have in common, in whatever order."""
    return sum(min(one.count(char), other.count(char)) for char in set(one))


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _shown(lines: list[str], first: int, count: int, why: str) -> str:
    part = "\n".join(lines[first : first + count])
    if len(part) > _MAX_SHOWN:
        part = part[:_MAX_SHOWN] + " ..."
    last = min(first + count, len(lines))
    return f"; {why}, lines {first + 1} to {last}:\n{part}"
