"""The values of tool arguments: strict JSON in and out, and text as values of given types.

MiniMax-M2 writes every parameter as bare text, so its schema (`parameters.py`) decides among the
`readings` of that text. MiniMax-M1 writes JSON, which `JsonObjectScanner` checks one character at a
time so that arguments can stream as they come.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fulmen.files import MAX_JSON_DEPTH

ALL_TYPES = frozenset({"null", "integer", "number", "boolean", "object", "array", "string"})
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_BOOLEAN_WORDS = {"yes": True, "on": True, "no": False, "off": False}
"""Words that are booleans only where no string is allowed: beside one they are likely text"""
_EXACT_FLOATS = 2.0**53


def load_json(text: str, *, max_depth: int = MAX_JSON_DEPTH) -> Any:
    """Read strict JSON: NaN, infinities, unreadable numbers and deep nesting are ValueErrors."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {max_depth} levels") from None
    check_depth(value, max_depth)
    return value


def check_depth(value: object, max_depth: int = MAX_JSON_DEPTH) -> None:
    """Raise ValueError for containers nested deeper than max_depth, or a value that holds itself.

    Code that walks a value, such as Python's own JSON and comparisons, recurses as deep.
    """
    level = [value]
    for _ in range(max_depth):
        inner: dict[int, object] = {}  # a value in two places is walked once
        for item in level:
            if isinstance(item, Mapping):
                inner.update((id(child), child) for child in item.values())
            elif isinstance(item, list | tuple):
                inner.update((id(child), child) for child in item)
        level = [child for child in inner.values() if isinstance(child, Mapping | list | tuple)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {max_depth} levels")


def dump_json(value: object) -> str:
    """Return JSON as MiniMax prompts have it: ", " and ": ", non-ASCII kept, no HTML escaping."""
    try:
        check_depth(value)
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a value cannot be written as JSON: {error}") from None
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: no UTF-8 for it, but an escape
        return json.dumps(value)
    return text


def escape_json(text: str) -> str:
    """Return the inside of a JSON string; escaped pieces join to the escape of the whole."""
    return dump_json(text)[1:-1]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"{text} is too large for a number")
    return value


def type_of(value: object) -> str:
    """Return the JSON type of a value; 1.0 is a number."""
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object" if isinstance(value, Mapping) else "string"


def readings(text: str, types: frozenset[str]) -> Iterator[Any]:
    """Yield the values that a parameter's text may mean under these types, the likeliest first.

    null, integer, number, boolean, object or array, string. Text that fits none, where no string
    is allowed, is read as any JSON it may be (`null` for an integer is None) and else kept as it
    is, so a wrong value reaches the tool and its error the model. Where every type is allowed, text
    is a value only if the prompt would show that value as the same text: 01234 stays text.
    """
    is_text_allowed = "string" in types
    if types == {"string"}:
        yield text
        return
    if types >= ALL_TYPES:
        yield from (value for value in _json_values(text) if _written(value) == text)
        yield text
        return
    word = text.strip().lower()
    if "null" in types and (
        (text.lower() if is_text_allowed else word) == "null"
        or (not is_text_allowed and word in ("none", "nil"))
    ):
        yield None
    if types & {"integer", "number"}:
        number = _number(word)
        is_whole = isinstance(number, int)
        if number is not None and (is_whole or not is_text_allowed or "number" in types):
            yield number
    if "boolean" in types:
        if word in _BOOLEANS:
            yield _BOOLEANS[word]
        elif word in _BOOLEAN_WORDS and not is_text_allowed:
            yield _BOOLEAN_WORDS[word]
    if not is_text_allowed or types & {"object", "array"}:
        for value in _json_values(text):
            if not is_text_allowed or type_of(value) in types & {"object", "array"}:
                yield value
    yield text


def _json_values(text: str) -> Iterator[Any]:
    """Yield the value of a text that is JSON, and can be written again."""
    try:
        value = load_json(text, max_depth=MAX_JSON_DEPTH - 1)
        dump_json(value)
    except ValueError:
        return
    yield value


def _written(value: object) -> str:
    return value if isinstance(value, str) else dump_json(value)


def _number(word: str) -> int | float | None:
    try:
        if _INTEGER.fullmatch(word):
            return int(word)
        if _NUMBER.fullmatch(word):
            value = _finite(word)
            # 3.0 and 3 are one number in JSON; beyond 2**53 the digits of an int would be invented.
            return int(value) if value.is_integer() and abs(value) < _EXACT_FLOATS else value
    except ValueError:  # too many digits for int(), or too large for a float
        pass
    return None


class JsonObjectScanner:
    """Checker of one JSON object, character by character; it tells where top-level values are.

    `push` takes a character and raises ValueError at the first one that no JSON object could have
    there. `depth` is 0 before and after the object; at depth 1, `key` is the last key read.
    """

    _PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
    _LITERALS = ("true", "false", "null")
    _JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")

    def __init__(self) -> None:
        self._open: list[str] = []
        self._expected = "value"
        self._is_in_string = False
        self._escape = ""
        self._string: list[str] = []
        self._word: list[str] = []  # of a number or a literal
        self.key = ""
        self.value_text: str | None = None
        """Top-level string value just completed, decoded; None otherwise"""

    @property
    def depth(self) -> int:
        """Number of open brackets."""
        return len(self._open)

    def skip_plain(self, text: str, start: int) -> int:
        """Return the end of the run of characters from `start` that only continue a string."""
        if not self._is_in_string or self._escape:
            return start
        end = self._PLAIN.match(text, start).end()  # type: ignore[union-attr]
        if self.depth == 1:
            self._string.append(text[start:end])
        return end

    def push(self, char: str) -> None:
        """Take the next character."""
        self.value_text = None
        if self._is_in_string:
            self._push_in_string(char)
            return
        if self._word:
            if char.isascii() and (char.isalnum() or char in "+-."):
                self._word.append(char)
                return
            self._end_word()
        if char in " \t\n\r":
            return
        expected = self._expected
        if char == '"' and expected in ("key", "first key", "value", "first item"):
            self._is_in_string = True
            self._string = []
        elif char in "{[" and expected in ("value", "first item"):
            if not self._open and char == "[":
                raise ValueError("a call is not a JSON object")
            if self.depth >= MAX_JSON_DEPTH:
                raise ValueError(f"a call is nested deeper than {MAX_JSON_DEPTH} levels")
            self._open.append(char)
            self._expected = "first key" if char == "{" else "first item"
        elif char in "}]" and expected in ("first key", "first item", "comma"):
            if self._open[-1] != {"}": "{", "]": "["}[char]:
                raise ValueError(f"{char} closes what was not opened")
            self._open.pop()
            self._expected = "comma"
        elif char == "," and expected == "comma":
            self._expected = "key" if self._open[-1] == "{" else "value"
        elif char == ":" and expected == "colon":
            self._expected = "value"
        elif (
            expected in ("value", "first item")
            and char.isascii()
            and char.isalnum() | (char == "-")
        ):
            self._word = [char]
        else:
            raise ValueError(f"{char!r} stands where JSON has no place for it")

    def _push_in_string(self, char: str) -> None:
        if self.depth == 1:
            self._string.append(char)
        if self._escape.startswith("u"):
            if char not in "0123456789abcdefABCDEF":
                raise ValueError(f"{char!r} is no hexadecimal digit")
            self._escape = self._escape + char if len(self._escape) < 4 else ""
        elif self._escape:
            if char not in '"\\/bfnrtu':
                raise ValueError(f"\\{char} is no JSON escape")
            self._escape = "u" if char == "u" else ""
        elif char == "\\":
            self._escape = "\\"
        elif char == '"':
            self._end_string()
        elif char < " ":
            raise ValueError("a string has a bare control character")

    def _end_string(self) -> None:
        self._is_in_string = False
        is_key = self._expected in ("key", "first key")
        self._expected = "colon" if is_key else "comma"
        if self.depth == 1:
            text: str = json.loads('"' + "".join(self._string))
            text.encode()  # half a surrogate pair raises, and no client could be sent it
            if is_key:
                self.key = text
            else:
                self.value_text = text

    def _end_word(self) -> None:
        word, self._word = "".join(self._word), []
        if word not in self._LITERALS and not self._JSON_NUMBER.fullmatch(word):
            cut = word if len(word) <= 80 else f"{word[:60]}... ({len(word):,} characters)"
            raise ValueError(f"{cut} is no JSON value")
        # json.loads of the whole must succeed too: no infinities, no numbers int() refuses.
        load_json(word)
        self._expected = "comma"
