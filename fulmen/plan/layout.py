"""Text within the width of a terminal: sentences, tables and commands.

A table that is too wide becomes a paragraph for each row; a command goes on after a backslash. Only
a single word, such as a long path, may be wider.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

WIDTH: Final = 80
"""Columns of a text whose reader is not known"""
_WORD: Final = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")
"""Word of a shell's command, with its quotes"""


def wrapped(text: str, width: int, indent: str = "", later: str | None = None) -> str:
    """Return text in lines; `later` indents all but the first."""
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent if later is None else later,
        break_on_hyphens=False,
        break_long_words=False,
    )


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], width: int, *, right: Sequence[int] = ()
) -> str:
    """Return rows in columns, or as a paragraph each where columns would be too wide.

    A row may be shorter than the header: its last cell then reaches over the columns that it lacks.
    right  columns that are set to the right
    """
    rows = list(rows)
    in_columns = [row if len(row) == len(header) else row[:-1] for row in rows]
    widths = [
        max(len(row[column]) for row in (header, *in_columns) if column < len(row))
        for column in range(len(header))
    ]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(widths[column]) if column in right else cell.ljust(widths[column])
            for column, cell in enumerate(row)
        ]
        if len(row) < len(header):
            cells[-1] = row[-1]
        lines.append(("  " + "  ".join(cells)).rstrip())
    if max(map(len, lines)) <= width:
        return "\n".join(lines)
    return "\n".join(wrapped(_sentence(header, row), width, "  ", "    ") for row in rows)


def _sentence(header: Sequence[str], row: Sequence[str]) -> str:
    """Return a row as words: its first cell, then each value after the name of its column."""
    is_short = len(row) < len(header)
    named = [
        cell if is_short and column == len(row) - 1 else f"{header[column]} {cell}"
        for column, cell in enumerate(row)
        if column and cell not in ("", "-")
    ]
    return f"{row[0]}: " + ", ".join(named)


def command(text: str, width: int) -> str:
    """Return a shell's command, an option a line where it does not fit on one."""
    if len(text) + 2 <= width:
        return f"  {text}"
    lines: list[str] = []
    for word in _WORD.findall(text):
        has_room = bool(lines) and len(lines[-1]) + 1 + len(word) <= width - 2
        if has_room and not word.startswith("--"):
            lines[-1] += f" {word}"
        else:
            lines.append(("    " if lines else "  ") + word)
    return " \\\n".join(lines)
