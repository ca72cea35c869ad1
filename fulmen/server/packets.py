"""Events of an answer, joined into fragments of a size that clients like.

One token a frame costs more to send and to read than to say. Text is held until a fragment has
`MIN_CHARS`; enough is always kept back that the last fragment has them too. What waits too long
goes out by `flush`, however short it is. No fragment has more than `MAX_CHARS`.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Final

from fulmen.chat import ContentDelta, Event, ThinkingDelta, ToolCallDelta

MIN_CHARS: Final = 5
MAX_CHARS: Final = 200


class Packer:
    """Joins the events of one answer; their sum stays the same."""

    def __init__(self) -> None:
        self._kind: Event | None = None
        """First event of the held text, which says of what kind it is"""
        self._held = ""

    @property
    def is_holding(self) -> bool:
        """True if text waits."""
        return bool(self._held)

    @property
    def held_content(self) -> str:
        """Text of the content that waits."""
        return self._held if isinstance(self._kind, ContentDelta) else ""

    def feed(self, event: Event) -> list[Event]:
        """Take an event; return those that can go out."""
        text = text_of(event)
        if text is None:
            return [*self.flush(), event]
        ready: list[Event] = []
        if self._kind is None or not is_same_text(self._kind, event):
            ready = self.flush()
            self._kind = event
        self._held += text
        if len(self._held) >= 2 * MIN_CHARS:
            out, self._held = self._held[:-MIN_CHARS], self._held[-MIN_CHARS:]
            ready += self._pieces(out)
        return ready

    def flush(self) -> list[Event]:
        """Return what is held."""
        held, self._held = self._held, ""
        return self._pieces(held)

    def _pieces(self, text: str) -> list[Event]:
        """Return a text as events of nearly the same size."""
        if not text:
            return []
        assert self._kind is not None
        count = -(-len(text) // MAX_CHARS)
        bounds = [len(text) * place // count for place in range(count + 1)]
        return [with_text(self._kind, text[start:stop]) for start, stop in pairwise(bounds)]


def text_of(event: Event) -> str | None:
    """Return the text of a fragment; None for any other event."""
    if isinstance(event, ThinkingDelta | ContentDelta):
        return event.text
    return event.arguments if isinstance(event, ToolCallDelta) else None


def is_same_text(one: Event, other: Event) -> bool:
    """Return whether two fragments belong to one text."""
    if isinstance(one, ToolCallDelta) and isinstance(other, ToolCallDelta):
        return one.index == other.index
    return type(one) is type(other)


def with_text(event: Event, text: str) -> Event:
    """Return a fragment with another text."""
    if isinstance(event, ToolCallDelta):
        return replace(event, arguments=text)
    return ThinkingDelta(text) if isinstance(event, ThinkingDelta) else ContentDelta(text)
