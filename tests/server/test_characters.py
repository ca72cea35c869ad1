"""Arguments of calls in fragments: halves of surrogate pairs are replaced, all else stays."""

import json

from hypothesis import given
from hypothesis import strategies as st

from fulmen.chat import Event, ToolCallDelta, ToolCallEnd, ToolCallStart, dump_json
from fulmen.server.characters import WholeCharacters, whole_characters


def paired(pieces: list[str]) -> str:
    """Return a text as JSON is read: two halves that meet are one character."""
    return "".join(pieces).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


TEXTS = st.lists(
    st.sampled_from(["\ud83d", "\ude00", "\\", "u", "\\ud83d", '"', "\n", "a", "é", "🦩"])
).map(paired)


def without_halves(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def joined(events: list[Event]) -> str:
    return "".join(event.arguments for event in events if isinstance(event, ToolCallDelta))


@given(TEXTS, TEXTS, st.booleans(), st.lists(st.integers(1, 9)))
def test_fragments_say_the_same_without_halves(
    key: str, value: str, is_ascii: bool, sizes: list[int]
) -> None:
    arguments = {key: value, "more": [value]}
    text = json.dumps(arguments) if is_ascii else dump_json(arguments)
    characters = WholeCharacters()
    assert len(characters.feed(ToolCallStart(0, "id", "f"))) == 1
    events: list[Event] = []
    rest = text
    for size in [*sizes, len(text)]:
        fragment, rest = rest[:size], rest[size:]
        events += characters.feed(ToolCallDelta(0, fragment)) if fragment else []
    *held, end = characters.feed(ToolCallEnd(0))
    assert end == ToolCallEnd(0)
    told = joined([*events, *held])
    told.encode()
    wanted = {without_halves(key): without_halves(value), "more": [without_halves(value)]}
    assert json.loads(told) == wanted == whole_characters(arguments)
    if wanted == arguments:
        assert told == text


def test_a_call_that_is_cut_in_an_escape_leaves_nothing_to_the_next() -> None:
    characters = WholeCharacters()
    assert joined(characters.feed(ToolCallDelta(0, '{"a": "\\ud83'))) == '{"a": "'
    characters.feed(ToolCallStart(1, "id", "f"))
    assert joined(characters.feed(ToolCallDelta(1, "{}"))) == "{}"
