"""Lines that a person types in a conversation: edited, remembered across runs, pasted whole.

At a terminal prompt_toolkit reads them. A terminal that cannot move its cursor gets plain input.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from fulmen.files import user_folder

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.output import Output

_PROMPT: Final = "> "
_CONTINUED: Final = "  "
_MOST_HISTORY_BYTES: Final = 2**20
"""Size of the file of earlier lines, above which its older half goes"""


class LineReader(Protocol):
    """Reads what a person types."""

    def read(self) -> str:
        """Read one text, of one or more lines. Raises EOFError where the input ends."""


def new_line_reader(commands: Iterable[str] = ()) -> LineReader:
    """Return a reader of stdin; commands are completed."""
    if os.environ.get("TERM") in (None, "dumb", "unknown") and os.name == "posix":
        return PlainReader()
    if sys.stdout.isatty():
        return PromptReader(commands)
    from prompt_toolkit.output import create_output

    return PromptReader(commands, output=create_output(sys.stderr))


def can_draw() -> bool:
    """Return whether stdin, stdout and stderr are a terminal that can move its cursor and shows
    Unicode."""
    if os.name != "posix" or os.environ.get("TERM") in (None, "", "dumb", "unknown"):
        return False
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower()
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return encoding.startswith("utf") and all(one.isatty() for one in streams)


def history_file() -> Path:
    """Return the file of earlier lines: $XDG_STATE_HOME/fulmen/history, else in ~/.local/state."""
    return user_folder("XDG_STATE_HOME", ".local/state") / "fulmen" / "history"


class PlainReader:
    """Reads lines as the terminal sends them; one that ends with a backslash goes on."""

    def read(self) -> str:
        """Read one text."""
        lines = [self._line(_PROMPT)]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._line(_CONTINUED))
        return "\n".join(lines)

    def _line(self, prompt: str) -> str:
        if sys.stdout.isatty():
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()


class PromptReader:
    """Reads lines with prompt_toolkit: history, search with Ctrl-R, pasted text as one message."""

    def __init__(self, commands: Iterable[str], *, output: "Output | None" = None) -> None:
        """output: where the prompt is drawn; stdout if omitted"""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.enums import DEFAULT_BUFFER
        from prompt_toolkit.filters import has_focus
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.shortcuts import CompleteStyle

        keys = KeyBindings()

        in_text = has_focus(DEFAULT_BUFFER)  # not in a search, where Enter takes what was found

        @keys.add("enter", filter=in_text)
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.document.text_before_cursor.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=in_text)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            history=open_history(),
            key_bindings=keys,
            multiline=True,
            prompt_continuation=_CONTINUED,
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_history_search=True,
            output=output,
        )

    def read(self) -> str:
        """Read one text."""
        text = self._session.prompt(_PROMPT)
        # Bytes that are no UTF-8 arrive as half surrogate pairs.
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def open_history() -> "History":
    """Return the lines of earlier runs; only those of this one where they cannot be kept."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class KeptHistory(FileHistory):
        """Lines in a file; a disk that is full costs the line, not the conversation."""

        def store_string(self, string: str) -> None:
            string = string.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            try:
                super().store_string(string)
            except OSError:
                return

    file = history_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # what was asked is nobody else's business
        shorten_history(file)
    except OSError:
        return InMemoryHistory()
    return KeptHistory(str(file))


def shorten_history(file: Path, most_bytes: int = _MOST_HISTORY_BYTES) -> None:
    """Drop the older half of a history that has grown too long."""
    size = file.stat().st_size
    if size <= most_bytes:
        return
    with file.open("rb+") as opened:
        opened.seek(size - most_bytes // 2)
        kept = opened.read()
        # An entry begins with an empty line and `# time`.
        begin = kept.find(b"\n\n# ")
        opened.seek(0)
        opened.write(kept[begin:] if begin >= 0 else b"")
        opened.truncate()
