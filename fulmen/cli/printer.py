"""An answer on stdout as it comes: raw text, or Markdown rendered where a person looks on.

Markdown is printed block by block. A block that is finished (a paragraph, a list, a table, code) is
printed once and stays; below it the block that still grows is drawn anew, its last lines only, so
that it never scrolls away and is never printed twice.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Protocol

from fulmen.cli.output import harmless

_SHORTEST_PAUSE: Final = 0.08
"""Seconds between two drawings of the growing block, at least"""
_PAUSE: Final = 5
"""Seconds to wait for each second that the last drawing took: drawing never slows the model much"""


class Printer(Protocol):
    """Prints one answer."""

    def write(self, text: str) -> None:
        """Print what comes next."""

    def close(self) -> None:
        """Print what is still held back, and end the line."""


def new_printer(*, plain: bool = False) -> Printer:
    """Return a printer for stdout: Markdown where it is a terminal that can draw it."""
    if not sys.stdout.isatty():
        return PlainPrinter()
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    can_draw = not console.is_dumb_terminal and console.encoding.startswith("utf")
    return MarkdownPrinter(console) if can_draw and not plain else PlainPrinter(harmless)


class PlainPrinter:
    """Prints text as it is."""

    def __init__(self, clean: Any = str) -> None:
        self._clean = clean
        self._is_begun = False

    def write(self, text: str) -> None:
        """Print what comes next."""
        self._is_begun = self._is_begun or bool(text)
        print(self._clean(text), end="", flush=True)

    def close(self) -> None:
        """End the line."""
        if self._is_begun:
            print(flush=True)


class MarkdownPrinter:
    """Prints Markdown block by block."""

    def __init__(self, console: Any) -> None:
        from rich.live import Live

        self._console = console
        self._drawing = ExitStack()
        """Ends when nothing is drawn any more"""
        self._growing: list[str] = []
        """Pieces of the block that is not finished"""
        self._is_begun = False
        self._next_drawing = 0.0
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def write(self, text: str) -> None:
        """Hold what comes next, and draw it now and then."""
        self._growing.append(harmless(text))
        started = time.monotonic()
        if started < self._next_drawing:
            return
        self._draw()
        took = time.monotonic() - started
        self._next_drawing = time.monotonic() + max(_SHORTEST_PAUSE, _PAUSE * took)

    def close(self) -> None:
        """Print the last block for good."""
        self._drawing.close()
        rest = "".join(self._growing)
        self._growing.clear()
        if rest.strip():
            self._print(rest)

    def _draw(self) -> None:
        """Print the blocks that are finished, and draw the end of the one that grows."""
        from fulmen.cli.markdown import split_blocks

        finished, growing = split_blocks("".join(self._growing))
        self._growing = [growing]
        if not self._live.is_started:
            self._drawing.enter_context(_without_echo())
            self._drawing.enter_context(self._live)
        if finished:
            self._live.update("")
            for block in finished:
                self._print(block)
        most = max(self._console.height - 1, 1)
        self._live.update(_Lines(growing, has_gap=self._is_begun, most=most), refresh=True)

    def _print(self, block: str) -> None:
        self._console.print(_Lines(block, has_gap=self._is_begun), end="")
        self._is_begun = True


class _Lines:
    """The lines of a block, or its last ones."""

    def __init__(self, block: str, *, has_gap: bool, most: int | None = None) -> None:
        """has_gap: True for an empty line before it"""
        self._block = block
        self._has_gap = has_gap
        self._most = most

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.segment import Segment

        from fulmen.cli.markdown import render

        lines = render(self._block, console)
        if lines and self._has_gap:
            lines.insert(0, [])
        for line in lines if self._most is None else lines[-self._most :]:
            yield from line
            yield Segment.line()


@contextmanager
def _without_echo() -> Iterator[None]:
    """Keep the terminal from showing keys among what is drawn; the next line still has them."""
    try:
        import termios
    except ImportError:  # on Windows
        yield
        return
    try:
        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard)
    except (OSError, ValueError, AttributeError, termios.error):  # stdin is no terminal
        yield
        return
    silent = list(before)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
