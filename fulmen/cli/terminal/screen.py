"""The normal screen of a terminal: what is finished scrolls away, what is not is drawn below it.

    scrollback   printed once, and never touched again: it can be selected, searched, copied
    region       what grows, what waits, a question, the line that is typed, the bottom line

The region alone is drawn again. Each change, the text above it and the new region, reaches the
terminal in one write, so that nothing flickers.
"""

import asyncio
import io
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from prompt_toolkit.application import Application, in_terminal
from prompt_toolkit.application.current import set_app
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.output.vt100 import Vt100_Output
from rich.console import Console, ConsoleDimensions

_PAUSE_SECONDS: Final = 0.03
"""Time in which what is printed is gathered"""
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
"""Synchronised output: terminals that know it show nothing before the end"""
_PASTE_END: Final = "\x1b[201~"
MAX_PASTE: Final = 4 * 2**20
"""Characters of a paste that are taken"""


class WholeOutput(Vt100_Output):
    """A terminal that gets each change in one write; one that is gone gets nothing more."""

    _is_held = False
    is_gone = False

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Hold what is written until the end of the block."""
        if self._is_held:
            yield
            return
        self._is_held = True
        self.write_raw(_BEGIN)
        try:
            yield
        finally:
            self.write_raw(_END)
            self._is_held = False
            self.flush()

    def flush(self) -> None:
        """Write what there is, unless it is held."""
        if self._is_held:
            return
        try:
            super().flush()
        except OSError:  # somebody closed the terminal, and a signal says so
            self._buffer = []
            self.is_gone = True


class PasteParser(Vt100Parser):
    """A parser of keys that takes a paste in linear time, and cuts one that is huge."""

    def __init__(self, feed_key_callback: Callable[[KeyPress], None]) -> None:
        super().__init__(feed_key_callback)
        self._pasted: list[str] = []
        self._num_pasted = 0
        self._tail = ""

    def feed(self, data: str) -> None:
        """Take what the terminal sends."""
        if not self._in_bracketed_paste:
            super().feed(data)
            return
        seen = self._tail + data
        at = seen.find(_PASTE_END)
        if at < 0:
            keep = len(_PASTE_END) - 1
            self._keep(seen[:-keep])
            self._tail = seen[-keep:]
            return
        self._keep(seen[:at])
        content = "".join(self._pasted)
        self._pasted, self._num_pasted, self._tail = [], 0, ""
        self._in_bracketed_paste = False
        self.feed_key_callback(KeyPress(Keys.BracketedPaste, content))
        self.feed(seen[at + len(_PASTE_END) :])

    def _keep(self, text: str) -> None:
        kept = text[: max(MAX_PASTE - self._num_pasted, 0)]
        if kept:
            self._pasted.append(kept)
            self._num_pasted += len(kept)


def open_input() -> Input:
    """Return stdin as a source of keys."""
    found = create_input()
    if isinstance(found, Vt100Input):
        bound_pastes(found)
    return found


def bound_pastes(keys: Vt100Input) -> None:
    """Give an input the parser that bounds pastes."""
    keys.vt100_parser = PasteParser(lambda key: keys._buffer.append(key))


class Screen:
    """The scrollback, and an application that draws the region below it."""

    def __init__(self, output: WholeOutput | None = None) -> None:
        """output: stdout if omitted"""
        self.output: WholeOutput = output or WholeOutput.from_pty(sys.stdout)  # type: ignore[assignment]
        self.output.enable_cpr = False  # its answer could come among the keys
        self.app: Application[Any] | None = None
        """Draws the region, once it runs"""
        self._printed = _Printed(self._gather)
        self._console = Console(
            file=self._printed, force_terminal=True, highlight=False, emoji=False
        )
        self._is_suspended = False
        self._is_waiting = False

    @property
    def console(self) -> Console:
        """Prints on the scrollback, as wide as the terminal is now."""
        size = self.output.get_size()
        self._console.size = ConsoleDimensions(max(size.columns, 20), max(size.rows, 4))
        return self._console

    @property
    def is_drawn(self) -> bool:
        """True while there is a region."""
        return self.app is not None and self.app.is_running and not self._is_suspended

    def _gather(self) -> None:
        """Print soon what was written, together with what is written until then."""
        if not self.is_drawn:
            self.print_now()
        elif not self._is_waiting:
            self._is_waiting = True
            asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self.print_now)

    def print_now(self) -> None:
        """Put what was written on the scrollback, and the region below it."""
        self._is_waiting = False
        text = self._printed.take().replace("\n", "\r\n")
        if not text:
            return
        app = self.app
        with self.output.frame():
            if app is None or not self.is_drawn:
                self.output.write_raw(text)
                return
            app.renderer.erase()
            self.output.write_raw(text if text.endswith("\n") else f"{text}\r\n")
            with set_app(app):
                app.renderer.render(app, app.layout)

    def clear(self) -> None:
        """Clear what is seen; what was scrolled away stays."""
        with self.output.frame():
            if self.app is not None and self.is_drawn:
                self.app.renderer.clear()
                self.app.invalidate()

    @asynccontextmanager
    async def suspended(self) -> AsyncIterator[None]:
        """Take the region away, so that lines can be printed and read as without it."""
        self.print_now()
        if not self.is_drawn:
            yield
            return
        async with in_terminal():
            self._is_suspended = True
            try:
                yield
            finally:
                self._is_suspended = False


class _Printed(io.StringIO):
    """Text on its way to the scrollback."""

    def __init__(self, told: Callable[[], None]) -> None:
        super().__init__()
        self._told = told

    def write(self, text: str, /) -> int:
        """Keep a text, and tell."""
        count = super().write(text)
        self._told()
        return count

    def take(self) -> str:
        """Return all that was written since."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text
