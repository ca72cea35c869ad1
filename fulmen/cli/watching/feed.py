"""Events of a run and its agents, for those who watch: kept in order, bounded, read by many.

The work adds events in its own thread; the server reads them in another one. An event that was
dropped, since there are too many, is told of as such. A question is answered once, by whoever is
first.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from fulmen.chat import ContentDelta, Event, ThinkingDelta

LEAD: Final = "lead"
"""Name of the run itself among its agents"""
_MAX_EVENTS: Final = 20_000
_MAX_CHARACTERS: Final = 32 * 2**20
_MAX_TEXT: Final = 100_000
"""Characters of one text in an event"""
_MAX_LIVE: Final = 4000
"""Last characters of what grows"""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a question."""

    kind: str
    """once, always or no"""
    words: str = ""
    """Sentence for the model: do this instead"""


@dataclass(slots=True)
class Question:
    """A call that waits for somebody's consent."""

    id: int
    has_rules: bool
    reply: "Future[Reply]" = field(default_factory=Future)


class Feed:
    """All that those who watch are told; any thread may use it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._events: deque[tuple[int, str]] = deque()
        self._size = 0
        self._last = 0
        self._agents: set[str] = set()
        self._live: dict[str, dict[str, str]] = {}
        self._questions: dict[int, Question] = {}
        self._num_watching = 0
        self._has_watched = False
        self._told = 0
        self._left = 0.0
        self._clock = clock
        self.num_changes = 0
        """Grows with all that is to be told"""

    def add(self, agent: str, event: Mapping[str, Any]) -> int:
        """Tell of an event of an agent; return its number."""
        with self._lock:
            return self._add(agent, event)

    def _add(self, agent: str, event: Mapping[str, Any]) -> int:
        self._last += 1
        self._agents.add(agent)
        told = {"number": self._last, "of": agent, **_cut(event)}
        line = json.dumps(told, ensure_ascii=False, default=str)
        self._events.append((self._last, line))
        self._size += len(line)
        while len(self._events) > _MAX_EVENTS or self._size > _MAX_CHARACTERS:
            self._size -= len(self._events.popleft()[1])
        if event["type"] not in ("call", "note"):
            self._live.pop(agent, None)
        self.num_changes += 1
        return self._last

    def begin(self) -> None:
        """Forget what was told: another run is shown, or this one from another step on."""
        with self._lock:
            self._events.clear()
            self._live.clear()
            self._agents.clear()
            self._size = 0
            self.num_changes += 1

    def knows(self, agent: str) -> bool:
        """Return whether an agent was told of."""
        with self._lock:
            return agent in self._agents

    def grow(self, agent: str, event: Event) -> None:
        """Tell of a piece of an answer."""
        if isinstance(event, ThinkingDelta):
            self._grow(agent, "thinking", event.text)
        elif isinstance(event, ContentDelta):
            self._grow(agent, "content", event.text)

    def print(self, agent: str, text: str) -> None:
        """Tell of what a command prints."""
        self._grow(agent, "output", text)

    def _grow(self, agent: str, kind: str, text: str) -> None:
        with self._lock:
            live = self._live.get(agent)
            before = live["text"] if live is not None and live["kind"] == kind else ""
            self._live[agent] = {"kind": kind, "text": (before + text)[-_MAX_LIVE:]}
            self.num_changes += 1

    def since(self, number: int) -> tuple[list[str], int]:
        """Return the events after one as JSON, and the number of the last one; first that some are
        missing, if they are."""
        with self._lock:
            found = [line for id, line in self._events if id > number]
            first = self._events[0][0] if self._events else self._last + 1
            if first > number + 1:
                cut = {"number": first - 1, "of": LEAD, "type": "cut", "is_all": number == 0}
                found.insert(0, json.dumps(cut))
            return found, self._last

    def live(self) -> str:
        """Return what grows now, by agents, as JSON."""
        with self._lock:
            return json.dumps({"live": self._live}, ensure_ascii=False)

    # ---- questions -----------------------------------------------------------------------------

    def ask(self, agent: str, asked: Mapping[str, Any]) -> Question:
        """Put a question; its id is the number of its event."""
        with self._lock:
            id = self._add(agent, {"type": "question", **asked})
            question = Question(id, bool(asked["rules"]))
            self._questions[id] = question
            return question

    def answer(self, id: int, reply: Reply) -> bool:
        """Answer a question; return False if it waits no more. Raises ValueError for an answer that
        it does not have."""
        with self._lock:
            question = self._questions.get(id)
            if question is None:
                return False
            if reply.kind == "always" and not question.has_rules:
                raise ValueError("there is no rule for this call, it can be allowed once")
            del self._questions[id]
        question.reply.set_result(reply)
        return True

    def close(self, question: Question, agent: str, how: str) -> None:
        """Tell how a question was answered, and by whom."""
        with self._lock:
            self._questions.pop(question.id, None)
            self._add(agent, {"type": "answered", "question": question.id, "how": how})

    # ---- those who watch -----------------------------------------------------------------------

    def watching(self, change: int) -> int:
        """Count somebody who comes, or goes; return how many there are."""
        with self._lock:
            self._num_watching += change
            self._has_watched = True
            self._left = self._clock()
            return self._num_watching

    def told(self, number: int) -> None:
        """Take note that somebody has all events up to one."""
        with self._lock:
            self._told = max(self._told, number)

    def owes(self, seconds: float) -> bool:
        """Return whether nobody has the last event yet, and somebody watches, or did so many
        seconds ago at most."""
        with self._lock:
            left = self._clock() - self._left
            was_here = self._num_watching > 0 or (self._has_watched and left < seconds)
            return was_here and self._told < self._last

    def seconds_alone(self) -> float | None:
        """Return for how long nobody has watched; None while somebody does."""
        with self._lock:
            return None if self._num_watching else self._clock() - self._left


def _cut(value: Any) -> Any:
    """Return a value whose texts are no longer than an event's may be."""
    if isinstance(value, str):
        if len(value) <= _MAX_TEXT:
            return value
        half = _MAX_TEXT // 2
        left = len(value) - 2 * half
        return f"{value[:half]}\n... {left:,} characters are left out ...\n{value[-half:]}"
    if isinstance(value, Mapping):
        return {str(key): _cut(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(one) for one in value]
    return value
