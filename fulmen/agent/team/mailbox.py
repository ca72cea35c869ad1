"""Messages between the agents of a team: kept until they are read, each read once.

    send -> the journal -> Mailbox -> a record of the receiver's run, between two of its calls

A message counts from the moment it is noted in the team's journal, and waits until the receiver's
run has it on disk. One that cannot be read any more goes back to its sender. No name is used twice,
so a message never reaches another agent than it was meant for.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from fulmen.agent.cutting import cut_text
from fulmen.agent.team.config import USER
from fulmen.agent.tools import ToolError
from fulmen.agent.trajectory import said_record
from fulmen.chat import Message

MAX_WAITING: Final = 32
"""Messages that may wait for one agent; reports are beyond them"""
MAX_TEXT: Final = 20_000
"""Characters of a message"""
_MAX_RETURNED: Final = 200
"""Characters of a message that its sender is shown when it comes back"""
POST: Final = "post"
"""Sender of what comes back"""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message of one agent to another."""

    id: str
    sender: str
    """An agent; `USER` where a program that the user runs gives the task"""
    to: str
    text: str
    is_report: bool = False
    """It tells how a task ended, or comes back: its sender waits for no room"""
    is_task: bool = False
    """It gives the receiver its task: it waits for no room either"""

    @property
    def needs_room(self) -> bool:
        """True for what an agent sends of its own accord."""
        return not self.is_report and not self.is_task

    @property
    def record(self) -> dict[str, Any]:
        """The message as a record of the receiver's run. One that an agent sent says so, and is
        never taken for the user's."""
        is_agent = self.sender != USER
        head = f"(Message of the agent {self.sender}, not of the user)\n" if is_agent else ""
        text = head + self.text
        return said_record([Message("user", text)], agent=self.sender, message=self.id)


class Mailbox:
    """Messages that wait for one agent; its `Inbox`."""

    def __init__(
        self,
        post: "Post",
        name: str,
        *,
        stays: bool,
        when_ended: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """
        stays       it takes messages between two pieces of work too, as the lead's does
        when_ended  is called each time the agent stops
        """
        self.name = name
        self.waiting: list[Letter] = []
        self.is_open = stays
        self._post = post
        self._stays = stays
        self._when_ended = when_ended
        self._arrived = asyncio.Event()

    def open(self) -> None:
        """Take messages from now on."""
        self.is_open = True

    def put(self, letter: Letter) -> None:
        """Add a message."""
        self.waiting.append(letter)
        self._arrived.set()

    def take(self) -> Sequence[Mapping[str, Any]]:
        """Return the records of messages that wait."""
        return [letter.record for letter in self.waiting]

    def taken(self, record: Mapping[str, Any]) -> None:
        """Take note that a message is a record of the receiver's run."""
        id = record["sender"]["message"]
        self.waiting = [letter for letter in self.waiting if letter.id != id]
        if not self.waiting:
            self._arrived.clear()
        self._post.note({"type": "taken", "message": id})

    def rest(self) -> bool:
        """Take no more messages if none waits; return whether that is so."""
        if self.waiting:
            return False
        self.is_open = self._stays
        return True

    async def ended(self) -> None:
        """Take note that the agent stopped."""
        if self._when_ended is not None:
            await self._when_ended()

    async def arrival(self) -> None:
        """Return once a message waits."""
        await self._arrived.wait()

    def close(self) -> None:
        """Take no more messages; those that wait go back to their senders."""
        self.is_open = False
        unread, self.waiting = self.waiting, []
        self._arrived.clear()
        for letter in unread:
            self._post.give_back(letter)


class Post:
    """All mailboxes of a team."""

    def __init__(self, note: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        """note: keeps a record of what happens, on disk where the team is to outlive a crash"""
        self.boxes: dict[str, Mailbox] = {}
        self._note = note
        self._numbers: Counter[str] = Counter()

    def note(self, record: Mapping[str, Any]) -> None:
        """Keep a record."""
        if self._note is not None:
            self._note(record)

    def new_box(
        self,
        name: str,
        *,
        stays: bool = False,
        when_ended: Callable[[], Awaitable[None]] | None = None,
    ) -> Mailbox:
        """Make the mailbox of an agent."""
        assert name not in self.boxes, "a name is that of one agent"
        box = Mailbox(self, name, stays=stays, when_ended=when_ended)
        self.boxes[name] = box
        return box

    def letter(
        self, sender: str, to: str, text: str, *, is_report: bool = False, is_task: bool = False
    ) -> Letter:
        """Return a message that is yet to be sent."""
        self._numbers[sender] += 1
        number = self._numbers[sender]
        return Letter(
            f"{sender}/{number}", sender, to, cut_text(text, MAX_TEXT), is_report, is_task
        )

    def send(self, sender: str, to: str, text: str) -> Letter:
        """Send a message. Raises ToolError, a sentence for the sender, if it cannot be read."""
        if to == sender:
            raise ToolError("a message to oneself is never read")
        box = self.boxes.get(to)
        if box is None:
            known = ", ".join(name for name in self.boxes if name != sender) or "nobody"
            raise ToolError(f"there is no agent {to}; there are: {known}")
        if not box.is_open:
            raise ToolError(
                f"{to} has ended its work and reads no messages; it can be given a task"
            )
        if len(text) > MAX_TEXT:
            raise ToolError(f"the message has {len(text):,} characters, at most {MAX_TEXT:,} go")
        if sum(letter.needs_room for letter in box.waiting) >= MAX_WAITING:
            raise ToolError(f"{to} has {MAX_WAITING} messages that it has not read yet")
        letter = self.letter(sender, to, text)
        self.note({"type": "sent", "letter": asdict(letter)})
        box.put(letter)
        return letter

    def deliver(self, letter: Letter) -> None:
        """Put a message that is noted already, such as a report, into its mailbox."""
        self.boxes[letter.to].put(letter)

    def give_back(self, letter: Letter) -> None:
        """Tell a sender that its message was not read; where it reads nothing any more, nobody. How
        tasks and reports end is told elsewhere."""
        box = self.boxes.get(letter.sender)
        told = None
        if box is not None and box.is_open and letter.needs_room:
            start = cut_text(letter.text, _MAX_RETURNED)
            text = f"{letter.to} ended before it read your message: {start}"
            told = self.letter(POST, letter.sender, text, is_report=True)
        record = {"type": "returned", "message": letter.id}
        self.note(record if told is None else {**record, "letter": asdict(told)})
        if told is not None and box is not None:
            box.put(told)

    def restore(self, record: Mapping[str, Any]) -> None:
        """Let a record of an earlier process count: numbers go on after those that it has."""
        letter = record.get("letter")
        if letter is not None:
            number = int(letter["id"].rpartition("/")[2])
            self._numbers[letter["sender"]] = max(self._numbers[letter["sender"]], number)
