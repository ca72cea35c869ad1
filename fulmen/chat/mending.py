"""Repairs of what clients send back broken: arguments that are nearly JSON, and cut characters.

    {'a': True}   a Python literal     {"a": [1, 2,]}   a comma too many    {"a": [1   cut short

`mend_arguments` goes over the text once, token by token, writes the JSON that it means, and gives
up at the first token that neither language has: nothing is guessed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from fulmen.chat.arguments import load_json
from fulmen.chat.messages import Message

_TOKEN: Final = re.compile(
    r"""\s+|(?P<mark>[{}\[\](),:])|(?P<word>[\w.+-]+)"""
    r"""|(?P<text>"[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*')""",
    re.DOTALL,
)
_WORDS: Final = {"True": "true", "False": "false", "None": "null"}
_CLOSING: Final = {"{": "}", "[": "]"}
_ESCAPE: Final = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(.))", re.DOTALL
)
_LETTERS: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a"}
_KEPT: Final = "\\'\"/"


def mend_arguments(text: str) -> dict[str, Any] | None:
    """Return the object that a text means, or None if it is not clear."""
    pieces: list[str] = []
    opened: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)  # to search would try an open quote from every place
        if match is None or match.end() == at:
            return None
        at = match.end()
        if match["mark"]:
            if not _add_mark(match["mark"], pieces, opened):
                return None
        elif match["word"]:
            pieces.append(_WORDS.get(match["word"], match["word"]))
        elif match["text"]:
            string = _read_string(match["text"])
            if string is None:
                return None
            pieces.append(json.dumps(string))
    if pieces[-1:] == [","]:
        pieces.pop()
    pieces += [_CLOSING[mark] for mark in reversed(opened)]
    try:
        value = load_json(" ".join(pieces))
        if isinstance(value, str):  # JSON in JSON
            value = load_json(value)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _add_mark(mark: str, pieces: list[str], opened: list[str]) -> bool:
    """Add a bracket, a comma or a colon; return False for a bracket that closes another kind."""
    mark = {"(": "[", ")": "]"}.get(mark, mark)
    if mark in _CLOSING:
        opened.append(mark)
    elif mark in "]}":
        if not opened or _CLOSING[opened.pop()] != mark:
            return False
        if pieces[-1:] == [","]:
            pieces.pop()
    pieces.append(mark)
    return True


def _read_string(quoted: str) -> str | None:
    """Return the text of a JSON or a Python string; None if it has an escape of neither."""
    if quoted[0] == '"':
        try:
            text: str = json.loads(quoted, strict=False)
            return text
        except ValueError:
            pass
    is_known = True

    def read(match: re.Match[str]) -> str:
        nonlocal is_known
        code = match[1] or match[2] or match[3]
        number = int(code, 16) if code else int(match[4], 8) if match[4] else None
        if number is not None and number <= 0x10FFFF:
            return chr(number)
        letter = match[5] or ""
        if letter == "\n":
            return ""
        is_known = is_known and bool(letter) and (letter in _LETTERS or letter in _KEPT)
        return _LETTERS.get(letter, letter)

    text = _ESCAPE.sub(read, quoted[1:-1])
    return text if is_known else None


def whole_characters(message: Message) -> Message:
    """Return a message with U+FFFD for halves of surrogate pairs, which no tokenizer can encode;
    the message itself if it has none. JavaScript that cuts a text by its length leaves them."""
    changes: dict[str, Any] = {}
    for name in ("content", "thinking", "tool_call_id", "name", "current_date", "current_location"):
        text = getattr(message, name)
        if text is not None and not _is_whole(text):
            changes[name] = whole_text(text)
    if message.parts is not None:
        parts = tuple(
            replace(part, text=whole_text(part.text), name=whole_value(part.name))
            for part in message.parts
        )
        if parts != message.parts:
            changes["parts"] = parts
    calls = tuple(
        replace(
            call,
            name=whole_text(call.name),
            arguments=whole_value(call.arguments),
            id=whole_value(call.id),
        )
        for call in message.tool_calls
    )
    if [(call, call.id) for call in calls] != [(call, call.id) for call in message.tool_calls]:
        changes["tool_calls"] = calls
    return replace(message, **changes) if changes else message


def whole_text(text: str) -> str:
    """Return a text with U+FFFD for each half of a surrogate pair that stands alone."""
    if _is_whole(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def whole_value(value: Any) -> Any:
    """Return a JSON value with `whole_text` for each text in it; its nesting must be bounded."""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, Mapping):
        return {whole_value(key): whole_value(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [whole_value(one) for one in value]
    return value


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
