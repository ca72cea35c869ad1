"""Halves of surrogate pairs in the arguments of calls: clients get U+FFFD in their place.

JSON can write half of a pair as an escape, and a model that writes JSON does. No client can send it
back in UTF-8, and Anthropic's SDK ends a stream that has one with an error.
"""

import re
from typing import Any, Final

from fulmen.chat import Event, ToolCallDelta, ToolCallEnd, ToolCallStart, dump_json, load_json

_HIGH: Final = r"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW: Final = r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE: Final = re.compile(rf"({_HIGH}{_LOW})|({_HIGH}|{_LOW}|[\ud800-\udfff])|\\.", re.S)
_SETTLED: Final = re.compile(
    r"(?:[^\\]+"
    rf"|{_HIGH}{_LOW}"
    rf"|{_HIGH}(?=[^\\]|\\[^u]|\\u[^dD]|\\u[dD][^c-fC-F])"
    rf"|(?!{_HIGH})\\u[0-9a-fA-F]{{4}}"
    r"|\\u(?=[0-9a-fA-F]{0,3}[^0-9a-fA-F])"
    r"|\\[^u])*",
    re.S,
)
"""Beginning of a JSON text that says the same whatever follows"""


def whole_characters(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call with U+FFFD for each half of a surrogate pair."""
    text = dump_json(arguments)
    mended = _mended(text)
    if mended == text:
        return arguments
    whole: dict[str, Any] = load_json(mended)
    return whole


class WholeCharacters:
    """Events of one answer, in whose arguments U+FFFD is each half of a surrogate pair."""

    def __init__(self) -> None:
        self._held = ""
        """Beginning of an escape"""

    def feed(self, event: Event) -> list[Event]:
        """Take an event; return what can go on."""
        match event:
            case ToolCallDelta(index, arguments):
                text = self._held + arguments
                settled = _SETTLED.match(text)
                assert settled is not None
                self._held = text[settled.end() :]
                mended = _mended(settled[0])
                return [ToolCallDelta(index, mended)] if mended else []
            case ToolCallEnd(index):
                held, self._held = self._held, ""
                return [ToolCallDelta(index, _mended(held)), event] if held else [event]
            case ToolCallStart():
                self._held = ""
        return [event]


def _mended(text: str) -> str:
    return _ESCAPE.sub(lambda found: "\ufffd" if found[2] else found[0], text)
