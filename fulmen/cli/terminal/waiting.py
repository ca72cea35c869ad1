"""Words that are sent while the agent works: it reads them behind the call that it makes then."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fulmen.agent import said_record
from fulmen.chat import Message
from fulmen.cli.terminal.state import Front, Said


class WaitingWords:
    """The words at the head of the queue, as the agent's `Inbox`.

    What stands behind a command waits with it for the end of the work, and so do words that bring
    files along. Until they are delivered they can be taken back.
    """

    def __init__(
        self,
        front: Front,
        *,
        brings: Callable[[str], bool],
        delivered: Callable[[str], None],
    ) -> None:
        """
        brings     tells whether words bring more along than themselves
        delivered  is given words that the agent has
        """
        self._front = front
        self._brings = brings
        self._delivered = delivered

    def take(self) -> Sequence[Mapping[str, Any]]:
        """Return the records of words that can be delivered, the first sent first."""
        found = []
        for entry in self._front.queue:
            if not isinstance(entry, Said) or not entry.text or self._brings(entry.text):
                break
            found.append(said_record([Message("user", entry.text)]))
        return found

    def taken(self, record: Mapping[str, Any]) -> None:
        """Take the first words from the queue: the run has them."""
        entry = self._front.queue.popleft()
        assert isinstance(entry, Said)
        assert entry.text == record["messages"][0]["content"]
        self._delivered(entry.text)

    def rest(self) -> bool:
        """Return whether the agent may end: no words wait that it could have."""
        return not self.take()

    async def ended(self) -> None:
        """Do nothing: what waits is sent next."""
