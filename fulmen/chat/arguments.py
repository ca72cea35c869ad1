"""The values of tool arguments: strict JSON in and out, and the types a JSON Schema allows.

MiniMax-M2 writes every parameter as bare text, so the schema decides what the text means:
`parameter_types` reads the schema, `convert` applies it. MiniMax-M1 writes JSON, which
`JsonObjectScanner` checks one character at a time so that arguments can stream as they come.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fulmen.files import MAX_JSON_DEPTH

_TYPES = frozenset({"null", "integer", "number", "boolean", "object", "array", "string"})
_TYPE_ALIASES = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "str": "string",
    "dict": "object",
    "list": "array",
}
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


def parameter_types(schema: Mapping[str, Any], parameter: str) -> frozenset[str]:
    """Return the JSON types that a schema allows a parameter; {"string"} if it tells none."""
    properties = schema.get("properties")
    open_schemas = [properties.get(parameter) if isinstance(properties, Mapping) else None]
    types: set[str] = set()
    seen: set[int] = set()  # a schema may contain itself, by reference or as an object
    while open_schemas:
        found = open_schemas.pop()
        if isinstance(found, Mapping) and id(found) not in seen:
            seen.add(id(found))
            types |= _own_types(found)
            open_schemas += _parts(found, schema)
    return frozenset(types) or frozenset({"string"})


def _own_types(schema: Mapping[str, Any]) -> set[str]:
    """Return the types that a schema itself names, or that its enum's values have."""
    named = schema.get("type")
    names = named if isinstance(named, list | tuple) else [named]
    found = {_TYPE_ALIASES.get(name, name) for name in names if isinstance(name, str)}
    types = (found & _TYPES) | ({"string"} if found - _TYPES else set())
    if not found:
        options = schema.get("enum", [schema["const"]] if "const" in schema else [])
        types |= {_type_of(value) for value in options} if isinstance(options, list) else set()
    return types | ({"null"} if schema.get("nullable") is True else set())


def _parts(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[object]:
    """Yield the schemas whose types count as well: branches, and the target of a reference."""
    for union in ("anyOf", "oneOf", "allOf"):
        branches = schema.get(union)
        yield from branches if isinstance(branches, list | tuple) else ()
    reference = schema.get("$ref")
    if isinstance(reference, str):
        yield resolve_reference(reference, root)


def resolve_reference(reference: str, root: Mapping[str, Any]) -> object:
    """Return the target of a reference such as #/$defs/Place, or None."""
    target: object = root
    for step in reference.removeprefix("#").split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        target = target.get(key) if isinstance(target, Mapping) else None
    return target


def _type_of(value: object) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object" if isinstance(value, Mapping) else "string"


def convert(text: str, types: frozenset[str]) -> Any:
    """Return the value that the text of a parameter has under a schema that allows these types.

    The first type that fits wins: null, integer, number, boolean, object or array, string. Text
    that fits none, where no string is allowed, is read as any JSON it may be (`null` for an integer
    is None) and else kept as it is, so a wrong value reaches the tool and its error the model.
    """
    is_text_allowed = "string" in types
    if types == {"string"}:
        return text
    word = text.strip().lower()
    if "null" in types:
        if (text.lower() if is_text_allowed else word) == "null":
            return None
        if not is_text_allowed and word in ("none", "nil"):
            return None
    if types & {"integer", "number"}:
        number = _number(word)
        if isinstance(number, int) or (number is not None and not is_text_allowed):
            return number
        if number is not None and "number" in types:
            return number
    if "boolean" in types:
        if word in _BOOLEANS:
            return _BOOLEANS[word]
        if word in _BOOLEAN_WORDS and not is_text_allowed:
            return _BOOLEAN_WORDS[word]
    if not is_text_allowed or types & {"object", "array"}:
        try:
            value = load_json(text, max_depth=MAX_JSON_DEPTH - 1)
            dump_json(value)
        except ValueError:
            return text
        if not is_text_allowed or _type_of(value) in types & {"object", "array"}:
            return value
    return text


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
        self._word = ""
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
                self._word += char
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
            self._word = char
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
        if self._word not in self._LITERALS and not self._JSON_NUMBER.fullmatch(self._word):
            raise ValueError(f"{self._word} is no JSON value")
        # json.loads of the whole must succeed too: no infinities, no numbers int() refuses.
        load_json(self._word)
        self._word = ""
        self._expected = "comma"
