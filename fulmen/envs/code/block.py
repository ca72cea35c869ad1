"""The program in a reply: its last block of Python.

A block begins with a line of three or more backticks or tildes, with `python`, `py`, `python3` or
nothing after them, and ends with a line of at least as many alone. Where blocks have a name of
Python and others have none, the last that has it counts. A block that is not closed is none.
"""

import re
from typing import Final

MAX_PROGRAM: Final = 50_000
"""Longest program, in characters"""
_MAX_REPLY: Final = 400_000
_FENCE: Final = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})[ \t]*([^`\n]*?)[ \t]*")
_NAMES: Final = ("python", "python3", "py")


def last_program(text: str) -> str | None:
    """Return the program of a reply; None if it has none, or one that is too long."""
    named, other = None, None
    fence, name, lines = "", "", list[str]()
    for line in text[-_MAX_REPLY:].replace("\r\n", "\n").split("\n"):
        found = _FENCE.fullmatch(line)
        if not fence:
            if found is not None:
                fence, name, lines = found[1], found[2].lower(), []
        elif found is None or found[2] or found[1][0] != fence[0] or len(found[1]) < len(fence):
            lines.append(line)
        else:
            if name in _NAMES:
                named = "\n".join(lines)
            elif not name:
                other = "\n".join(lines)
            fence = ""
    program = other if named is None else named
    if program is None or not program.strip() or len(program) > MAX_PROGRAM:
        return None
    return program + "\n"
