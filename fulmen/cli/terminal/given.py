"""Parts of a message beside a person's words: files behind an @, and commands that they ran."""

import re
from collections.abc import Sequence
from typing import Final

from fulmen.agent import Work

_MAX_GIVEN: Final = 20_000
"""Characters of a file or an output"""
_MAX_TOGETHER: Final = 80_000
_MENTIONED: Final = re.compile(r'(?:^|(?<=\s))@(?:"([^"\n]+)"|([^\s"@]+))')
_MAX_MENTIONED: Final = 20
_SEARCHED: Final = 100_000
"""Characters in which names are looked for"""


def mentioned(text: str) -> list[str]:
    """Return the paths behind an @ in a text, each once, at most twenty."""
    found = (one[1] or one[2] for one in _MENTIONED.finditer(text[:_SEARCHED]))
    return list(dict.fromkeys(found))[:_MAX_MENTIONED]


async def read_mentioned(work: Work, text: str) -> tuple[list[str], list[str]]:
    """Return the files that a text names and that can be read in the sandbox, and for each a part
    of a message with its content; long ones are cut."""
    names, parts, left = [], [], _MAX_TOGETHER
    for name in mentioned(text):
        try:
            content = await work.read_file(name, max_bytes=4 * _MAX_GIVEN)
        except (OSError, ValueError):
            continue  # it is no file, and the words stay as they are
        if b"\0" in content or left <= 0:
            continue
        shown = _cut(content.decode("utf-8", "replace"), min(_MAX_GIVEN, left))
        left -= len(shown)
        names.append(name)
        parts.append(f"The file {name}:\n{_fenced(shown)}")
    return names, parts


def told_command(command: str, text: str) -> str:
    """Return the part of a message that tells of a command, and what it came to."""
    told = _fenced(_cut(text, _MAX_GIVEN))
    return f"I ran this command:\n{_fenced(_cut(command, _MAX_GIVEN))}\nIt printed:\n{told}"


def kept_commands(parts: Sequence[str]) -> list[str]:
    """Return the last parts that are not too much together."""
    kept = list(parts)
    while sum(map(len, kept)) > _MAX_TOGETHER:
        del kept[0]
    return kept


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n({len(text) - 2 * half:,} characters left out)\n{text[-half:]}"


def _fenced(text: str) -> str:
    """Return text in a fence that it does not hold."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.rstrip()}\n{fence}"
