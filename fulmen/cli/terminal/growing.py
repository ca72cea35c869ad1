"""Text that comes in pieces: blocks that are finished, and the one that still grows.

A finished block is printed once, for good. What grows is drawn again and again, so it is kept
short: a block that grows beyond a bound is cut, code inside its fence. Time and memory are then in
proportion to the text, whatever it is.
"""

import re
from typing import Final, Protocol

from fulmen.cli.output import harmless

_MAX_GROWING: Final = 6_000
"""Characters of a block that are drawn anew with each piece"""
_MAX_CHUNK: Final = 8_000
"""Characters that are looked at together"""
MAX_TAKEN: Final = 64_000
"""Characters that one `take` looks at: keys are answered in between"""
_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})")


class Growing(Protocol):
    """A text that comes in pieces."""

    def write(self, text: str) -> None:
        """Take what comes next."""

    def take(self) -> list[tuple[str, bool]]:
        """Return the blocks that were finished since, and whether each begins one, so that there
        is a gap before it."""

    def close(self) -> list[tuple[str, bool]]:
        """Return all that is left."""

    @property
    def rest(self) -> tuple[str, bool]:
        """The block that grows, and whether it begins one."""


class _Pieces:
    """Text that is yet to be looked at."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.growing = ""
        self.is_begin = True
        """True if what grows begins a block"""

    def write(self, text: str) -> None:
        """Take what comes next, without control characters."""
        self._pieces.append(harmless(text))

    @property
    def rest(self) -> tuple[str, bool]:
        """The block that grows, and whether it begins one."""
        return self.growing, self.is_begin

    def chunks(self, most: int | None) -> list[str]:
        """Return the next text in chunks; all of it if there is no bound."""
        text = "".join(self._pieces)
        taken = text if most is None else text[:most]
        self._pieces = [text[len(taken) :]] if len(taken) < len(text) else []
        return [taken[at : at + _MAX_CHUNK] for at in range(0, len(taken), _MAX_CHUNK)]


class GrowingMarkdown(_Pieces):
    """Markdown, in blocks."""

    def take(self) -> list[tuple[str, bool]]:
        """Return the blocks that were finished since."""
        return self._take(MAX_TAKEN)

    def close(self) -> list[tuple[str, bool]]:
        """Return all that is left."""
        found = self._take(None)
        rest, self.growing = self.growing, ""
        return [*found, (rest, self.is_begin)] if rest.strip() else found

    def _take(self, most: int | None) -> list[tuple[str, bool]]:
        from fulmen.cli.markdown import split_blocks

        found: list[tuple[str, bool]] = []
        for chunk in self.chunks(most):
            finished, self.growing = split_blocks(self.growing + chunk)
            for block in finished:
                found.append((block, self.is_begin))
                self.is_begin = True
            while len(self.growing) > _MAX_GROWING:
                begin, self.growing = _cut_block(self.growing)
                found.append((begin, self.is_begin))
                self.is_begin = False
        return found


class GrowingLines(_Pieces):
    """Plain text, in lines."""

    def take(self) -> list[tuple[str, bool]]:
        """Return the lines that were finished since, as one block."""
        return self._take(MAX_TAKEN)

    def close(self) -> list[tuple[str, bool]]:
        """Return all that is left."""
        found = self._take(None)
        rest, self.growing = self.growing.rstrip("\n"), ""
        rest = rest.lstrip("\n") if self.is_begin else rest
        return [*found, (rest, self.is_begin)] if rest.strip() else found

    def _take(self, most: int | None) -> list[tuple[str, bool]]:
        found = []
        for chunk in self.chunks(most):
            self.growing += chunk
            # Empty lines wait for a line after them: there may be none.
            lines = self.growing.rpartition("\n")[0].rstrip("\n")
            if lines.strip():
                self.growing = self.growing[len(lines) + 1 :]
                found.append((lines.lstrip("\n") if self.is_begin else lines, self.is_begin))
                self.is_begin = False
            if len(self.growing) > _MAX_GROWING:
                found.append((self.growing, self.is_begin))
                self.growing, self.is_begin = "", False
        return found


def _cut_block(text: str) -> tuple[str, str]:
    """Cut a block that is long; both parts of code stand in its fence."""
    half = _MAX_GROWING // 2
    at = max(text.rfind("\n", 0, half), text.rfind(" ", 0, half) if "\n" not in text[:half] else -1)
    at = at if at > half // 2 else half
    begin, rest = text[:at], text[at:].removeprefix("\n")
    first, _, _ = text.partition("\n")
    fence = _FENCE.match(first)
    if fence is None or len(first) > 200:
        return begin, rest
    return f"{begin}\n{fence[1]}", f"{first}\n{rest}"
