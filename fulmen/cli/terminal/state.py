"""The terminal as a state machine: what was typed, what waits, what is asked. It draws nothing.

    keys -> Front.submit -> queue -> Front.next -> the agent works
    a question or a list -> Choice -> the key and the row that were chosen

Words that are sent while the agent works wait in the queue. A question that comes up by itself
takes no key before a moment in which nothing was typed: what was typed before it could be seen is
no answer to it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

MAX_WAITING: Final = 100
"""Messages and commands that can wait"""
QUIET_SECONDS: Final = 0.4
"""Time without a key after which a question takes keys"""
MAX_TEXT: Final = 4 * 2**20
"""Characters of one message"""


@dataclass(frozen=True, slots=True)
class Said:
    """Words for the model; empty to go on where the run was ended."""

    text: str


@dataclass(frozen=True, slots=True)
class Shell:
    """A command that a person runs in the sandbox."""

    command: str


@dataclass(frozen=True, slots=True)
class Slash:
    """A command to the terminal."""

    name: str
    rest: str = ""


Entry = Said | Shell | Slash


def read_entry(text: str, commands: Sequence[str]) -> Entry:
    """Return what a typed text is: /NAME or a beginning that only one command has, !COMMAND, or
    words; // begins words with a slash. Raises ValueError for what is no command."""
    if text.startswith("//"):
        return Said(text[1:])
    if text.startswith("!") and text[1:].strip():
        return Shell(text[1:].strip())
    if not text.startswith("/"):
        return Said(text)
    name, _, rest = text[1:].partition(" ")
    known = [one for one in commands if one == name] or [
        one for one in commands if name and one.startswith(name)
    ]
    if len(known) == 1:
        return Slash(known[0], rest.strip())
    if known:
        raise ValueError(f"/{name[:40]} begins {', '.join(f'/{one}' for one in known)}")
    raise ValueError(f"/{name[:40]} is no command, /help lists them; // begins words with a slash")


@dataclass(frozen=True, slots=True)
class Option:
    """A row that can be chosen."""

    label: str
    key: str = ""
    """Key that chooses it at once"""


@dataclass(slots=True)
class Choice:
    """Rows of which a person chooses one."""

    title: str
    options: Sequence[Option]
    answer: "asyncio.Future[tuple[str, int]]"
    """The key that chose, Enter or one of `actions` or Escape, and the row"""
    index: int = 0
    actions: Mapping[str, str] = field(default_factory=dict)
    """Keys that choose the row for something else, and for what"""
    is_sudden: bool = False
    """It came up by itself, and takes no key before a quiet moment"""
    shown: float = field(default_factory=time.monotonic)

    def move(self, by: int) -> None:
        """Go up or down, and stay inside."""
        self.index = min(max(self.index + by, 0), len(self.options) - 1)

    def press(self, key: str) -> bool:
        """Take a key; return whether it means something here."""
        by_key = [at for at, one in enumerate(self.options) if one.key and one.key == key]
        if by_key:
            self.index = by_key[0]
            self._choose("enter")
        elif key in self.actions or key in ("enter", "escape"):
            self._choose(key)
        else:
            return False
        return True

    def _choose(self, key: str) -> None:
        if not self.answer.done():
            self.answer.set_result((key, self.index))


class Front:
    """Everything that a person types and is asked, beside the work on a run."""

    def __init__(
        self, commands: Sequence[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """commands: names, without the slash"""
        self.commands = tuple(commands)
        self.queue: deque[Entry] = deque()
        self.choice: Choice | None = None
        self.is_working = False
        self.is_leaving = False
        self.can_go_on = False
        """True where the last work was ended before it was done"""
        self.notice = ""
        """Sentence beside the bottom line, until the next key"""
        self.changed: Callable[[], None] = lambda: None
        """Is called when rows appear or go"""
        self._clock = clock
        self._last_key = 0.0
        self._wake = asyncio.Event()
        self._choosing = asyncio.Lock()

    # ---- keys ------------------------------------------------------------------------------------

    def key_pressed(self) -> None:
        """Take note of a key, before it means something."""
        now, choice = self._clock(), self.choice
        if choice is not None and choice.is_sudden:
            quiet = now - max(choice.shown, self._last_key)
            choice.is_sudden = quiet < QUIET_SECONDS
        self._last_key = now
        self.notice = ""

    @property
    def takes_choice(self) -> bool:
        """True if keys go to the rows, not to the text."""
        return self.choice is not None and not self.choice.is_sudden

    def submit(self, text: str) -> bool:
        """Take a text that somebody sends; return whether it was taken, else see `notice`."""
        text = text.strip()
        if not text and not (self.can_go_on and not self.is_working):
            return False
        try:
            if len(text) > MAX_TEXT:
                raise ValueError(f"a message has at most {MAX_TEXT:,} characters")
            if len(self.queue) >= MAX_WAITING:
                raise ValueError(f"{MAX_WAITING} messages wait already")
            self.queue.append(read_entry(text, self.commands))
        except ValueError as error:
            self.notice = str(error)
            return False
        self._wake.set()
        return True

    def take_back(self) -> str | None:
        """Return the text that was sent last and still waits, which waits no more."""
        if not self.queue:
            return None
        match self.queue.pop():
            case Said(text):
                return f"/{text}" if text.startswith("/") else text
            case Shell(command):
                return f"!{command}"
            case Slash(name, rest):
                return f"/{name} {rest}".rstrip()

    def leave(self) -> None:
        """End the conversation, once nothing is under way."""
        self.is_leaving = True
        self._wake.set()

    # ---- the work --------------------------------------------------------------------------------

    async def next(self) -> Entry | None:
        """Wait for what is to be done next; None to leave. Words that wait together are one
        message."""
        while not self.queue and not self.is_leaving:
            self._wake.clear()
            await self._wake.wait()
        if self.is_leaving:
            return None
        entry = self.queue.popleft()
        while isinstance(entry, Said) and self.queue and isinstance(self.queue[0], Said):
            more = self.queue.popleft()
            assert isinstance(more, Said)
            entry = Said("\n\n".join(text for text in (entry.text, more.text) if text))
        return entry

    def at_once(self, names: Sequence[str]) -> Slash | None:
        """Return a command among those that came last which need not wait for the work."""
        if self.queue and isinstance(last := self.queue[-1], Slash) and last.name in names:
            self.queue.pop()
            return last
        return None

    async def choose(
        self,
        title: str,
        options: Sequence[Option],
        *,
        index: int = 0,
        actions: Mapping[str, str] | None = None,
        is_sudden: bool = False,
    ) -> tuple[str, int]:
        """Show rows, once no others are shown, and wait until one is chosen; return the key that
        did, and its row."""
        async with self._choosing:
            return await self._choose(title, options, index, actions or {}, is_sudden=is_sudden)

    async def _choose(
        self,
        title: str,
        options: Sequence[Option],
        index: int,
        actions: Mapping[str, str],
        *,
        is_sudden: bool,
    ) -> tuple[str, int]:
        answer: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        choice = Choice(
            title, options, answer, index, actions, is_sudden=is_sudden, shown=self._clock()
        )
        self.choice = choice
        self.changed()
        try:
            return await answer
        finally:
            self.choice = None
            self.changed()
