"""A person beside an agent: what is asked at a terminal, and signals that interrupt.

Where there is no terminal nobody can be asked: what asks is refused, and counted.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from fulmen.agent import (
    Archive,
    ChangedSince,
    Setup,
    Verdict,
    Work,
    agent_folder,
    project_file,
)
from fulmen.chat import ToolCall
from fulmen.cli.agent_view import View
from fulmen.cli.output import harmless
from fulmen.cli.progress import stderr

TERMINATED: Final = 143
"""Exit code of a process that SIGTERM ended"""
_NOT_ALLOWED: Final = "the user did not allow this"


def question(text: str) -> str:
    """Ask on stderr; return the line that is typed, empty where the input ends."""
    stderr.print(text, end="", markup=False, soft_wrap=True, style="yellow")
    return sys.stdin.readline().strip()


class Interrupts:
    """SIGINT and SIGTERM as calls; a second one leaves."""

    def __init__(self) -> None:
        self.work: Work | None = None
        """Run that is interrupted first"""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_asking = False
        """True while a person is asked: then a signal ends the question"""
        self.is_over = False
        """True once a signal asked for the end of the process, not of one answer"""
        self._count = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals over, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(one, self._handle) for one in kinds]
        try:
            yield
        finally:
            for one, handler in zip(kinds, before, strict=True):
                signal.signal(one, handler)

    @contextmanager
    def interrupting(self, work: Work) -> Iterator[None]:
        """Let a first signal end what a run does."""
        self.work, self._count = work, 0
        try:
            yield
        finally:
            self.work = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.is_over = self.is_over or number == signal.SIGTERM
        if self.work is None or self.loop is None:
            if number == signal.SIGTERM:
                raise SystemExit(TERMINATED)
            raise KeyboardInterrupt
        self._count += 1
        self.loop.call_soon_threadsafe(self.work.interrupt)
        if self.is_asking or self._count > 1:
            raise KeyboardInterrupt


class Asker:
    """Asks a person about calls, or refuses where there is none."""

    def __init__(self, view: View, interrupts: Interrupts, *, asks: bool) -> None:
        self.num_refused = 0
        """Calls for which nobody could be asked"""
        self.remember: Callable[[Verdict], Any] | None = None
        self._view = view
        self._interrupts = interrupts
        self._asks = asks

    async def __call__(self, call: ToolCall, verdict: Verdict) -> str | None:
        """Return None if a call may be made, else a sentence for the model."""
        if not self._asks:
            self.num_refused += 1
            self._view.refuse(call, verdict)
            return f"not allowed, and nobody can be asked: {verdict.reason}"
        rules = ", ".join(sorted(map(str, verdict.rules)))
        self._view.note(f"? {call.name}: {verdict.reason}")
        always = f", [a]lways {harmless(rules)}" if rules else ""
        text = f"  [y]es{always}, [n]o, or what to do instead > "
        try:
            self._interrupts.is_asking = True
            answer = question(text)
        except KeyboardInterrupt:
            stderr.print()
            return _NOT_ALLOWED
        finally:
            self._interrupts.is_asking = False
        match answer.lower():
            case "y" | "yes":
                return None
            case "a" | "always" if rules and self.remember is not None:
                self.remember(verdict)
                return None
            case "" | "n" | "no" | "a" | "always":
                return _NOT_ALLOWED
        return f"{_NOT_ALLOWED}, and says: {answer}"


def read_setup(folder: Path, *, seen_as: Path, asks: bool, view: View) -> Setup:
    """Read what is said about an agent in a folder; the folder's own settings hold once they are
    approved, which is asked for where somebody can be."""
    setup = Setup.read(folder, agent_folder())
    if setup.waiting is not None and seen_as != folder:
        setup.approve_as(seen_as)
        setup = Setup.read(folder, agent_folder())
    if setup.waiting is None:
        return setup
    path = project_file(folder)
    if not asks:
        view.note(
            f"{path} is not approved: only its ask and deny rules hold; run fulmen agent at a "
            "terminal to approve it"
        )
        return setup
    view.note(f"{path} holds settings for an agent:")
    text = harmless(setup.waiting.decode(errors="replace"))
    stderr.print(text.rstrip("\n"), markup=False, soft_wrap=True)
    if question("let them hold, as long as they stay so? [y]es, [n]o > ") in ("y", "yes"):
        return setup.approve()
    return setup


def rewind_asking(
    archive: Archive, name: str, num_steps: int, *, asks: bool, overwrite: bool = False
) -> None:
    """Take a run back; where files would be overwritten that somebody changed since, ask first."""
    try:
        restored = archive.rewind(name, num_steps, overwrite=overwrite)
    except ChangedSince as error:
        if not asks:
            raise
        stderr.print(str(error), style="yellow", markup=False, soft_wrap=True)
        if question("overwrite them? they are kept aside [y]es, [n]o > ") not in ("y", "yes"):
            raise ValueError("nothing was changed") from None
        restored = archive.rewind(name, num_steps, overwrite=True)
    told = f"run {name} is back at step {num_steps}: "
    told += f"{restored.num_written} files written, {restored.num_deleted} deleted"
    stderr.print(told, style="dim", markup=False, soft_wrap=True)
    for path, reason in restored.left:
        shown = harmless(f"{path} is left as it is: {reason}")
        stderr.print(shown, style="yellow", markup=False, soft_wrap=True)
