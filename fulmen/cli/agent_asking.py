"""A person beside an agent: what is asked at a terminal, and signals that interrupt.

Where there is no terminal nobody can be asked: what asks is refused, and counted.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

from fulmen.agent import (
    Archive,
    ChangedSince,
    NotSaved,
    Setup,
    Verdict,
    agent_folder,
    project_file,
)
from fulmen.chat import ToolCall
from fulmen.cli.agent_view import View, show_preview
from fulmen.cli.output import harmless
from fulmen.cli.progress import stderr

_SLOW_SECONDS: Final = 3.0
"""Time after which somebody wants to know what is done"""
SAVING: Final = "all files of the folder are read and saved, which takes long where there are many"
NOT_ALLOWED: Final = "the user did not allow this"


def question(text: str) -> str:
    """Ask on stderr; return the line that is typed, empty where the input ends."""
    forget_typed()
    show_question(text)
    return sys.stdin.readline().strip()


def forget_typed() -> None:
    """Drop what was typed before a question was there to be seen: it is no answer to it."""
    with suppress(ImportError, OSError, ValueError):  # no terminal, or none of this kind
        import termios

        with suppress(termios.error):
            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


def show_question(text: str) -> None:
    """Print a question on stderr, and leave the cursor behind it."""
    stderr.print(text, end="", markup=False, soft_wrap=True, style="yellow")


class Interruptible(Protocol):
    """Work that a signal can end."""

    def interrupt(self) -> None:
        """End what is under way."""


class Interrupts:
    """Signals as calls: SIGINT ends an answer, SIGTERM and SIGHUP also the process, in good order;
    a second one leaves at once."""

    def __init__(self) -> None:
        self.work: Interruptible | None = None
        """Run that is interrupted first"""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.question: asyncio.Future[bool] | None = None
        """Wait for a line that a person types, which a signal ends"""
        self.exit_code: int | None = None
        """Exit code of the process, once a signal asked for its end, not for that of one answer"""
        self.is_closing = False
        """True once all is put in order for the end, which only SIGINT may break off"""
        self._count = 0
        self._turn: object | None = None
        """Stands for the work that is interrupted first, so that no signal meets the next one"""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals over, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        hangup = getattr(signal, "SIGHUP", None)  # a terminal that is closed
        kinds = [signal.SIGINT, signal.SIGTERM]
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # as nohup does
            kinds.append(hangup)
        before = [signal.signal(one, self._handle) for one in kinds]
        try:
            yield
        finally:
            for one, handler in zip(kinds, before, strict=True):
                signal.signal(one, handler)

    @contextmanager
    def interrupting(self, work: Interruptible) -> Iterator[None]:
        """Let a first signal end what a run does."""
        self.work, self._count, self._turn = work, 0, object()
        try:
            yield
        finally:
            self.work = None

    def ended(self) -> None:
        """Take note that the work came to its end: what is interrupted from now on is over."""
        self._turn = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            if self.is_closing:
                return
            self.exit_code = self.exit_code or 128 + number
        if self.work is None or self.loop is None:
            if self.exit_code is not None:
                raise SystemExit(self.exit_code)
            raise KeyboardInterrupt
        self._count += 1
        self.loop.call_soon_threadsafe(self._interrupt, self._turn)
        if self._count > 1:
            raise KeyboardInterrupt

    def _interrupt(self, turn: object | None) -> None:
        if self.work is not None and turn is not None and turn is self._turn:
            self.work.interrupt()
        self._answer(False)

    def _answer(self, has_line: bool) -> None:
        if self.question is not None and not self.question.done():
            self.question.set_result(has_line)

    async def has_line(self) -> bool:
        """Wait until a person has typed a line; False if a signal came first. The event loop goes
        on meanwhile, and with it all that the sandbox tells."""
        loop = asyncio.get_running_loop()
        self.question = loop.create_future()
        try:
            loop.add_reader(sys.stdin.fileno(), self._answer, True)
        except (OSError, ValueError):  # a file, of which reading never waits
            self.question = None
            return True
        try:
            return await self.question
        finally:
            loop.remove_reader(sys.stdin.fileno())
            self.question = None


class Asker:
    """Asks a person about calls, or refuses where there is none."""

    def __init__(self, view: View, interrupts: Interrupts, *, asks: bool) -> None:
        self.num_refused = 0
        """Calls for which nobody could be asked"""
        self.remember: Callable[[Verdict], Any] | None = None
        self._view = view
        self._interrupts = interrupts
        self.asks = asks

    async def __call__(self, call: ToolCall, verdict: Verdict, preview: str) -> str | None:
        """Return None if a call may be made, else a sentence for the model."""
        if not self.asks:
            self.num_refused += 1
            self._view.refuse(call, verdict)
            return f"not allowed, and nobody can be asked: {verdict.reason}"
        rules = ", ".join(sorted(map(str, verdict.rules)))
        is_cut = show_preview(preview, is_diff=call.name in ("edit", "write"))
        self._view.note(f"? {call.name}: {verdict.reason}")
        always = f", [a]lways {harmless(rules)}" if rules else ""
        show = ", [s]how all of it" if is_cut else ""
        text = f"  [y]es{always}, [n]o{show}, or what to do instead > "
        answer = await self._answer(text)
        while is_cut and answer is not None and answer.lower() in ("s", "show"):
            show_preview(preview, is_diff=call.name in ("edit", "write"), is_whole=True)
            answer = await self._answer(text)
        match None if answer is None else answer.lower():
            case None:
                return NOT_ALLOWED
            case "y" | "yes":
                return None
            case "a" | "always" if rules and self.remember is not None:
                self.remember(verdict)
                return None
            case "" | "n" | "no" | "a" | "always":
                return NOT_ALLOWED
        return f"{NOT_ALLOWED}, and says: {answer}"

    async def _answer(self, text: str) -> str | None:
        """Ask; return None if that was interrupted."""
        forget_typed()
        show_question(text)
        if not await self._interrupts.has_line():
            stderr.print()
            return None
        return sys.stdin.readline().strip()


@contextmanager
def told_if_slow(view: View, text: str) -> Iterator[None]:
    """Tell what is done if it takes long."""
    timer = threading.Timer(_SLOW_SECONDS, view.note, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_setup(
    folder: Path, *, seen_as: Path, asks: bool, view: View, declined: set[bytes]
) -> Setup:
    """Read what is said about an agent in a folder; the folder's own settings hold once they are
    approved, which is asked for where somebody can be.

    declined  settings that this was said or asked about already, and more of them from now on
    """
    setup = Setup.read(folder, agent_folder())
    if setup.waiting is not None and seen_as != folder:
        setup.approve_as(seen_as)
        setup = Setup.read(folder, agent_folder())
    if setup.waiting is None or setup.waiting in declined:
        return setup
    declined.add(setup.waiting)
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


def check_overwriting(error: ChangedSince | NotSaved, *, asks: bool) -> None:
    """Ask whether files may be overwritten. Raises ValueError if they may not, or nobody can be
    asked."""
    is_kept = isinstance(error, ChangedSince)
    if not asks:
        how = "they are kept aside" if is_kept else "what is there is lost"
        raise ValueError(f"{error}; --force overwrites them all the same, {how}") from None
    stderr.print(str(error), style="yellow", markup=False, soft_wrap=True)
    what = "overwrite them? they are kept aside" if is_kept else "go back all the same?"
    if question(f"{what} [y]es, [n]o > ") not in ("y", "yes"):
        raise ValueError("nothing was changed") from None


def rewind_asking(
    archive: Archive, name: str, num_steps: int, *, asks: bool, overwrite: bool = False
) -> None:
    """Take a run back; where files would be overwritten that somebody changed since, ask first."""
    try:
        restored = archive.rewind(name, num_steps, overwrite=overwrite)
    except (ChangedSince, NotSaved) as error:
        check_overwriting(error, asks=asks)
        restored = archive.rewind(name, num_steps, overwrite=True)
    told = f"run {name} is back at step {num_steps}: "
    told += f"{restored.num_written} files written, {restored.num_deleted} deleted"
    stderr.print(told, style="dim", markup=False, soft_wrap=True)
    for path, reason in restored.left:
        shown = harmless(f"{path} is left as it is: {reason}")
        stderr.print(shown, style="yellow", markup=False, soft_wrap=True)
