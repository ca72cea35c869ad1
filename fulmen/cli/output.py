"""Output of commands: text, JSON and tables, on any stream.

A stream that cannot write a character writes its escape (`\\u2192`) instead: nothing is lost, and
nothing stops. A reader of our output that has gone ends the command quietly.
"""

import io
import json
import os
import sys
from typing import Any

from fulmen.files import harmless as harmless


def write_anything() -> None:
    """Make stdout and stderr write every character, escaped where their encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Send what is still to be written to nowhere, once the reader of stdout has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def print_json(value: Any, indent: int | None = None) -> None:
    """Print one JSON value, on a line unless it is to be indented."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # an escape of Python's would be no JSON
        text = json.dumps(value, allow_nan=False, indent=indent)
    print(text)


def write_bytes(content: bytes) -> None:
    """Write bytes to stdout as they are; as text where it takes nothing else."""
    sys.stdout.flush()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write(content.decode(errors="backslashreplace"))


def print_table(renderable: object) -> None:
    """Print a table on stdout: as wide as the terminal, or as it needs to be into a file."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=1000, no_color=True)
    console.print(renderable)


def readable_argument(text: str) -> str:
    """Return an argument as the text that was typed, where the locale is not UTF-8.

    Python keeps bytes that the locale's encoding lacks as half surrogate pairs.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode()
        except UnicodeError:
            raise ValueError(f"{text[:40]!r} is not UTF-8 text") from None
    return text
