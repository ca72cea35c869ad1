"""Fragments of a stream: their sum, and their sizes."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from fulmen.chat import (
    ContentDelta,
    Event,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    sum_events,
)
from fulmen.server.packets import MAX_CHARS, MIN_CHARS, Packer

TEXTS = st.lists(st.text(min_size=1, max_size=12), max_size=40)


def pack(events: Sequence[Event]) -> list[Event]:
    packer = Packer()
    ready = [out for event in events for out in packer.feed(event)]
    return [*ready, *packer.flush()]


def size(event: Event) -> int:
    return len(event.arguments if isinstance(event, ToolCallDelta) else getattr(event, "text", ""))


@given(TEXTS, TEXTS, st.lists(st.integers(0, 999), max_size=20))
def test_packed_events_add_up_to_the_same_reply(
    thought: list[str], content: list[str], numbers: list[int]
) -> None:
    events: list[Event] = [*map(ThinkingDelta, thought), *map(ContentDelta, content)]
    for index, number in enumerate(numbers):
        events.append(ToolCallStart(index, f"call_{index}", "add"))
        events += [ToolCallDelta(index, piece) for piece in f'{{"n": {number}}}']
        events.append(ToolCallEnd(index))
    assert sum_events(pack(events)) == sum_events(events)


@given(TEXTS)
def test_no_fragment_is_tiny_but_a_text_that_is(pieces: list[str]) -> None:
    sizes = [size(event) for event in pack([ContentDelta(piece) for piece in pieces])]
    total = sum(map(len, pieces))
    assert all(count >= min(MIN_CHARS, total) for count in sizes)


@given(st.text(min_size=1, max_size=3000), st.booleans())
def test_no_fragment_is_large(text: str, is_call: bool) -> None:
    events: list[Event] = [ToolCallDelta(0, text) if is_call else ContentDelta(text)]
    assert all(size(event) <= MAX_CHARS for event in pack(events))


def test_text_that_waits_goes_out_when_flushed() -> None:
    packer = Packer()
    assert packer.feed(ContentDelta("Hi")) == []
    assert packer.is_holding
    assert packer.flush() == [ContentDelta("Hi")]
    assert not packer.is_holding
