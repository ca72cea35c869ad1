"""Tags of MiniMax-M2's calls in a text that comes in pieces: which one stands at a place.

The answers never depend on how the text was cut: where the next piece could change one, it is
`Ahead.WAIT`, or None for a tag that is not whole. No wait is longer than `_LONGEST_TAG`.
"""

import re
from enum import Enum, auto
from typing import Final

TOOL_BLOCK, END_TOOL_BLOCK = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE, END_INVOKE = "<invoke", "</invoke>"
PARAMETER, END_PARAMETER = "<parameter", "</parameter>"

_LONGEST_TAG: Final = 1_000
"""Characters of the longest tag, and of the longest white space between tags of a value: more is
text, so that waiting for the next piece has an end"""

_SPACE = re.compile(rf"\s{{0,{_LONGEST_TAG}}}")
_BRACKET = re.compile("[<>]")
# The quotes around a name are double, single or missing. It may hold brackets or the quote itself;
# in an open name, a bracket may be part of it.
_NAME = re.compile(
    r"""\s+name\s*=\s*(?:(?:"(?P<double>[^"]*|[^<>]*?)"|'(?P<single>[^']*|[^<>]*?)')(?:\s[^<>]*)?"""
    r"""|(?P<bare>[^\s"'<>]+)\s*)>"""
)
_OPEN_NAME = re.compile(
    r"""\s+name\s*=\s*(?:"[^"]*(?:"(?:\s[^<>]*)?)?|'[^']*(?:'(?:\s[^<>]*)?)?)"""
)


class Ahead(Enum):
    """Outcome of a look ahead that finds none of the tags asked for."""

    WAIT = auto()
    """Only the next piece can tell."""
    END = auto()
    """Text that ends here, or inside one of the tags asked for"""
    OTHER = auto()
    """Other text"""


def look(text: str, at: int, tags: tuple[str, ...], *, is_final: bool) -> str | Ahead:
    """Return the tag at `at`."""
    for tag in tags:
        if text.startswith(tag, at):
            return tag
    rest = text[at : at + max(map(len, tags))]
    if any(tag.startswith(rest) for tag in tags):
        return Ahead.END if is_final else Ahead.WAIT
    return Ahead.OTHER


def look_after_space(
    text: str, at: int, tags: tuple[str, ...], *, is_final: bool
) -> tuple[str | Ahead, int]:
    """Return the tag after white space, and its start."""
    space = _SPACE.match(text, at)
    assert space is not None
    return look(text, space.end(), tags, is_final=is_final), space.end()


def read_tag(text: str, at: int, tag: str, *, is_final: bool) -> tuple[str | None, int] | None:
    """Return the name in the tag at `at`, and the tag's end; None while the tag is not whole.

    Without a good name, a tag ends at `>`, or before a `<` that breaks it off.
    """
    start = at + len(tag)
    limit = start + _LONGEST_TAG
    is_long = len(text) >= limit
    bracket = _BRACKET.search(text, start, limit)
    if bracket is None:
        return (None, limit) if is_long else None
    named = _NAME.match(text, start, limit)
    if named:
        return named["double"] or named["single"] or named["bare"] or None, named.end()
    if not is_long and not is_final and _OPEN_NAME.fullmatch(text, start):
        return None
    return None, bracket.start() if bracket.group() == "<" else bracket.end()


def follower(
    text: str, at: int, tags: tuple[str, ...], *, is_final: bool
) -> tuple[str | Ahead, int, str | None]:
    """Return the tag after white space, its start and its name; a tag that needs a name and has
    none is other text."""
    ahead, start = look_after_space(text, at, tags, is_final=is_final)
    if not isinstance(ahead, str) or ahead not in (PARAMETER, INVOKE):
        return ahead, start, None
    read = read_tag(text, start, ahead, is_final=is_final)
    if read is None:
        return (Ahead.END if is_final else Ahead.WAIT), start, None
    name, _ = read
    return (Ahead.OTHER if name is None else ahead), start, name
