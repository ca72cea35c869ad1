"""JSON Schemas as servers really send them, read once for parsers and grammars alike.

    {"type": "dict", "nullable": true, "maxLength": 5.0, ...}    a schema as it came
      -> read      standard keywords, names and numbers
      -> settle    oneOf as an anyOf of choices that cannot overlap (`choices.py`)

What cannot be read or followed becomes a sentence in `problems`: a parser reads on without that
part, a grammar refuses the schema. So no parser fails for a schema, and no grammar ignores one.

One key is ours: `patterns` lists expressions for the whole text, where a JSON Schema's `pattern`
may match anywhere. `validation.py` writes them as `pattern` again.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard
from urllib.parse import unquote

from fulmen.chat.arguments import ALL_TYPES, dump_json, readings, type_of
from fulmen.chat.choices import (
    LARGEST,
    children,
    flatten,
    has_value,
    is_among,
    settle,
    simple_has_value,
)
from fulmen.chat.expressions import is_text, whole_text
from fulmen.chat.validation import NOTHING, Schema
from fulmen.files import MAX_JSON_DEPTH
from fulmen.sampling import shown

_TYPE_ALIASES: Final = {
    "none": "null",
    "nil": "null",
    "int": "integer",
    "int32": "integer",
    "int64": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "decimal": "number",
    "bool": "boolean",
    "dict": "object",
    "map": "object",
    "list": "array",
    "tuple": "array",
    "str": "string",
    "text": "string",
}
_LABEL: Final = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_GROUP: Final = "[0-9a-fA-F]{1,4}"
_DAYS: Final = "([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)"
_HOURS: Final = "T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)"
_DATE: Final = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
_FORMATS: Final = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt ]{_TIME}",
    "uuid": r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
    "ipv4": r"((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])",
    "email": r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]*",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "ipv6": "|".join(
        [f"({_GROUP}:){{7}}{_GROUP}", f"({_GROUP}:){{1,7}}:", f":(:{_GROUP}){{1,7}}"]
        + [f"({_GROUP}:){{1,{7 - n}}}(:{_GROUP}){{1,{n}}}" for n in range(1, 7)]
    ),
    "duration": rf"P({_DAYS}({_HOURS})?|{_HOURS}|[0-9]+W)",
}
"""Texts a `format` asks for; any other format is a remark, as the standard has it"""
_COUNTS: Final = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
)
_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_UNFOLLOWED: Final = (
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "propertyNames",
    "patternProperties",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedProperties",
    "unevaluatedItems",
    "$dynamicRef",
    "$recursiveRef",
)
_KIND_OF_KEY: Final = {
    "minLength": "string",
    "maxLength": "string",
    "patterns": "string",
    "items": "array",
    "prefixItems": "array",
    "minItems": "array",
    "maxItems": "array",
    "properties": "object",
    "required": "object",
    "additionalProperties": "object",
    "minProperties": "object",
    "maxProperties": "object",
    "minimum": "number",
    "maximum": "number",
    "exclusiveMinimum": "number",
    "exclusiveMaximum": "number",
    "multipleOf": "number",
}
"""Type that a schema without one means by its keywords"""
_NUM_COMPARED: Final = 8
"""Last problems that a new one may repeat: places are looked at more than once"""
_MAX_NODES: Final = 20_000
_MAX_STEPS: Final = 50_000
"""Bounds on the parts of a schema and on the work that its choices make: about a second"""


class TooLargeError(ValueError):
    """A schema whose choices multiply beyond all measure."""


class Document:
    """One JSON Schema document: its schema, its definitions, and what is wrong with it."""

    def __init__(self, document: object) -> None:
        self.problems: list[str] = []
        """Sentences on everything that could not be read as it stands"""
        self.definitions: dict[str, Schema] = {}
        """Targets of references, by the names that `$ref` has here"""
        self._document = document
        self._names: dict[str, str] = {}  # reference as it came -> name
        self.root: Schema = {}
        self._num_nodes = self._num_steps = 0
        self._open: list[int] = []  # ids of the schemas that the one being read is in
        self._waiting: list[tuple[str, object, str]] = []  # definitions that are not read yet
        self._known: set[str] = set()  # definitions that a finite value fits
        try:
            self.root = self._read(document, "")
            while self._waiting:
                name, target, where = self._waiting.pop()
                self.definitions[name] |= self._read(target, where)
            self._resolve()
        except TooLargeError as error:
            self.problem("", str(error))
            self.root, self.definitions = {}, {}

    def _resolve(self) -> None:
        """Settle what the parts of the document mean together."""
        for schema in (self.root, *self.definitions.values()):
            settle(self, schema)
        self._find_known()
        for name in self.definitions.keys() - self._known:
            del self.definitions[name]
        for schema in (self.root, *self.definitions.values()):
            self._drop_dead(schema)
        if not self.choices(self.root):
            self.problem("", "allows no value that has an end")

    def spend(self, count: int) -> None:
        """Count steps of work on the document; TooLargeError when they are too many."""
        self._num_steps += count
        if self._num_steps > _MAX_STEPS:
            raise TooLargeError("has too many choices inside one another")

    # ---- read ------------------------------------------------------------------------------

    def problem(self, where: str, text: str) -> None:
        """Note what is wrong at a place in the document, such as `place.city`."""
        sentence = f"{where or 'the schema'} {text}"
        if sentence not in self.problems[-_NUM_COMPARED:]:
            self.problems.append(sentence)

    def _read(self, raw: object, where: str) -> Schema:
        raw = _without_single_choices(raw)
        self._num_nodes += 1
        if self._num_nodes > _MAX_NODES:
            raise TooLargeError(f"has more than {_MAX_NODES:,} parts")
        if raw is None or raw is True or raw == []:  # PHP writes {} as []
            return {}
        if raw is False:
            return dict(NOTHING)
        if isinstance(raw, str):  # {"city": "string"} for {"city": {"type": "string"}}
            raw = {"type": raw}
        if not isinstance(raw, Mapping):
            self.problem(where, f"is {shown(raw)}, it must be a schema: an object")
            return {}
        if id(raw) in self._open or len(self._open) >= MAX_JSON_DEPTH:
            self.problem("", f"is nested deeper than {MAX_JSON_DEPTH} levels")
            return dict(NOTHING)
        self._open.append(id(raw))
        try:
            return self._read_keywords(raw, where)
        finally:
            self._open.pop()

    def _read_keywords(self, raw: Mapping[str, Any], where: str) -> Schema:
        given = {key: value for key, value in raw.items() if value is not None or key == "const"}
        schema: Schema = {}
        self._read_type(given, schema, where)
        self._read_numbers(given, schema, where)
        self._read_text(given, schema, where)
        self._read_array(given, schema, where)
        self._read_object(given, schema, where)
        self._read_choices(given, schema, where)
        for key in _UNFOLLOWED:
            if key in given and not _says_nothing(key, given):
                self.problem(where, f"has {key}, which no answer can be held to while it is made")
        if "type" not in schema and "enum" not in schema:
            kinds = {kind for key, kind in _KIND_OF_KEY.items() if key in schema}
            if len(kinds) == 1:
                schema["type"] = sorted(kinds)
        if given.get("nullable") is True:
            schema = {"anyOf": [schema, {"type": ["null"]}]}
        return schema

    def _read_type(self, given: Mapping[str, Any], schema: Schema, where: str) -> None:
        named = given.get("type", ())
        names = named if _is_list(named) else [named]
        types: list[str] = []
        for name in names:
            if isinstance(name, Mapping):  # draft 3 had schemas here
                self.problem(where, "has a schema as its type, it must be a name such as string")
                continue
            word = "null" if name is None else str(name)
            word = _TYPE_ALIASES.get(word.lower(), word.lower())
            if word in ALL_TYPES:
                types.append(word)
            elif word != "any":
                self.problem(
                    where, f"has the type {shown(name)}, types are {', '.join(sorted(ALL_TYPES))}"
                )
                types.append("string")
        if types and "any" not in map(str, names):
            schema["type"] = sorted(set(types))
        options = given.get("enum")
        if isinstance(options, Mapping):
            options = list(options)
        if options is not None and not _is_list(options):
            self.problem(where, f"has the enum {shown(options)}, it must be a list")
            options = None
        if options:
            schema["enum"] = [_as_type(option, types) for option in options]
        if "const" in given and (given["const"] is not None or not types or "null" in types):
            const = _as_type(given["const"], types)
            schema["enum"] = [const] if not options or is_among(const, options) else []
        try:
            text = dump_json(schema.get("enum", []))
            if re.search(r"\\ud[89a-f]", text):  # dump_json escapes no other character so
                raise ValueError("it has half a surrogate pair, which is no text")
        except ValueError as error:
            self.problem(where, f"has an enum that cannot be written: {error}")
            del schema["enum"]

    def _read_numbers(self, given: Mapping[str, Any], schema: Schema, where: str) -> None:
        for key in _COUNTS:
            if key in given:
                number = _number(given[key])
                if number is None or number < 0 or number != int(number) or number >= LARGEST:
                    self.problem(where, f"has {key} {shown(given[key])}, it must be a whole number")
                else:
                    schema[key] = int(number)
        for key in _BOUNDS:
            value = given.get(key)
            if value is None or isinstance(value, bool):  # draft 4's exclusiveMinimum: true
                continue
            number = _number(value)
            is_far = number is not None and abs(number) >= LARGEST
            if is_far and (number > 0) == key.lower().endswith("maximum"):  # type: ignore[operator]
                continue  # such as the range of a 64-bit number, which limits nothing here
            if number is None or is_far or (key == "multipleOf" and number <= 0):
                need = "a number above 0" if key == "multipleOf" else "a number of 64 bits"
                self.problem(where, f"has {key} {shown(value)}, it must be {need}")
            else:
                schema[key] = number
        for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if given.get(key) is True and bound in schema:
                schema[key] = schema.pop(bound)

    def _read_text(self, given: Mapping[str, Any], schema: Schema, where: str) -> None:
        patterns = []
        if "pattern" in given:
            try:
                patterns.append(whole_text(given["pattern"]))
            except ValueError as error:
                self.problem(where, f"has a pattern that cannot be followed: {error}")
        name = given.get("format")
        form = _FORMATS.get(name) if isinstance(name, str) else None
        if form is not None and schema.get("type", ["string"]) == ["string"]:
            patterns.append(form)
        if patterns:
            schema["patterns"] = patterns

    def _read_array(self, given: Mapping[str, Any], schema: Schema, where: str) -> None:
        first, rest = given.get("prefixItems"), given.get("items")
        if _is_list(rest):  # until draft 2019-09, `items` took both
            first, rest = rest, given.get("additionalItems")
        if _is_list(first):
            inner = [self._read(item, f"{where}[{i}]") for i, item in enumerate(first)]
            if inner:
                schema["prefixItems"] = inner
        if rest is not None:
            schema["items"] = self._read(rest, f"{where}[]")
        if given.get("uniqueItems") is True and schema.get("maxItems", 2) > 1:
            self.problem(where, "has uniqueItems, which no answer can be held to while it is made")

    def _read_object(self, given: Mapping[str, Any], schema: Schema, where: str) -> None:
        properties, required = given.get("properties"), given.get("required")
        if _is_list(properties) and not properties:  # an empty array of PHP
            properties = {}
        if properties is not None and not isinstance(properties, Mapping):
            self.problem(where, f"has properties {shown(properties)}, they must be an object")
            properties = None
        names: list[str] = []
        if isinstance(required, str):
            required = [required]
        if _is_list(required) and all(isinstance(one, str) for one in required):
            names = list(dict.fromkeys(required))
        elif required is not None and not isinstance(required, bool):
            self.problem(where, f"has required {shown(required)}, it must be a list of names")
        if properties:
            schema["properties"] = {}
            for name, raw in properties.items():
                inside = f"{where}.{name}" if where else str(name)
                if not is_text(str(name)):
                    self.problem(where, f"has the name {shown(name)}, which is no text")
                schema["properties"][str(name)] = self._read(raw, inside)
                if isinstance(raw, Mapping) and raw.get("required") is True:
                    names.append(str(name))  # draft 3 said it on the property
        if names:
            schema["required"] = list(dict.fromkeys(names))
        others = given.get("additionalProperties")
        if others is None and given.get("unevaluatedProperties") is False:
            others = False if not _COMBINERS & given.keys() else None
        if others is not None:
            schema["additionalProperties"] = self._read(others, f"{where}.*" if where else "*")

    def _read_choices(self, given: Mapping[str, Any], schema: Schema, where: str) -> None:
        for key in ("anyOf", "oneOf", "allOf"):
            value = given.get(key)
            if value is None or (_is_list(value) and not value):
                continue
            if _is_list(value):
                schema[key] = [self._read(choice, where) for choice in value]
            else:
                self.problem(where, f"has {key} {shown(value)}, it must be a list of schemas")
        reference = given.get("$ref")
        if reference is not None:
            name = self._define(reference, where)
            if name is not None:
                schema["$ref"] = name

    def _define(self, reference: object, where: str) -> str | None:
        """Return the name of a reference's target, which is read once."""
        seen: list[str] = []
        while True:
            if not isinstance(reference, str) or not reference.startswith("#"):
                self.problem(where, f"has $ref {shown(reference)}, it must point into the schema")
                return None
            if reference in seen:
                self.problem(where, f"has $ref {shown(reference)}, which only refers to itself")
                return None
            seen.append(reference)
            try:
                target = resolve_reference(reference, self._document)
            except LookupError:
                self.problem(where, f"has $ref {shown(reference)}, which points at nothing")
                return None
            if not isinstance(target, Mapping) or set(target) - _REMARKS != {"$ref"}:
                break
            reference = target["$ref"]
        if reference not in self._names:
            name = self._names[reference] = f"d{len(self._names)}"
            self.definitions[name] = {}
            self._waiting.append((name, target, where))
        return self._names[reference]

    def choices(self, schema: Schema, where: str = "") -> list[Schema]:
        """Return the simple schemas of which a value of `schema` must fit one, where any can."""
        return [
            one for one in flatten(self, schema, where) if simple_has_value(self, one, self._known)
        ]

    def _drop_dead(self, schema: Schema) -> None:
        """Replace references to definitions that no value fits."""
        if schema.get("$ref", "") and schema["$ref"] not in self.definitions:
            schema.clear()
            schema |= NOTHING
        for _, inner in children(schema):
            self._drop_dead(inner)

    def _find_known(self) -> None:
        """Find the definitions that a finite value fits: references may go round for ever."""
        while True:
            rest = {n: one for n, one in self.definitions.items() if n not in self._known}
            new = {name for name, one in rest.items() if has_value(self, one, self._known)}
            if not new:
                return
            self._known |= new


_COMBINERS: Final = frozenset({"$ref", "anyOf", "oneOf", "allOf", "if"})
_REMARKS: Final = frozenset({"title", "description", "default", "examples", "$comment"})


def resolve_reference(reference: str, root: object) -> object:
    """Return the target of a reference such as #/$defs/Place; LookupError if there is none."""
    target = root
    first, *steps = unquote(reference.removeprefix("#")).split("/")
    if first:
        target = _anchored(first, root)
    for step in steps:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, Mapping) and key in target:
            target = target[key]
        elif _is_list(target) and key.isdecimal() and int(key) < len(target):
            target = target[int(key)]
        else:
            raise LookupError(reference)
    return target


def _anchored(name: str, root: object) -> object:
    """Return the schema with this `$anchor`; LookupError if there is none."""
    found, seen = [root], set[int]()
    while found:
        one = found.pop()
        if id(one) in seen or not isinstance(one, Mapping | list | tuple):
            continue
        seen.add(id(one))
        if isinstance(one, Mapping) and one.get("$anchor") == name:
            return one
        found += one.values() if isinstance(one, Mapping) else one
    raise LookupError(name)


def _says_nothing(key: str, given: Mapping[str, Any]) -> bool:
    """Return True if a keyword that cannot be followed changes nothing here."""
    value = given[key]
    match key:
        case "if":
            return not {"then", "else"} & given.keys()
        case "then" | "else":
            return "if" not in given
        case "minContains" | "maxContains":
            return "contains" not in given
        case "propertyNames":
            return value is True or value in ({}, [], {"type": "string"})
        case "unevaluatedProperties":
            return value in (True, {}) or not _COMBINERS & given.keys()
        case "unevaluatedItems":
            return value in (True, {})
        case "patternProperties" | "dependentRequired" | "dependentSchemas" | "dependencies":
            return value in ({}, [])
    return False


def _as_type(option: Any, types: Sequence[str]) -> Any:
    """Return an option of an enum; one given as text, where none is allowed, as it is meant."""
    if isinstance(option, str) and types and "string" not in types:
        for value in readings(option, frozenset(types)):
            if type_of(value) in types or (type_of(value) == "integer" and "number" in types):
                return value
    return option


def _without_single_choices(raw: object) -> object:
    """Return a schema without the anyOf, oneOf and allOf of one choice around it."""
    seen: set[int] = set()  # a schema may hold itself
    while isinstance(raw, Mapping) and len(raw) == 1 and id(raw) not in seen:
        seen.add(id(raw))
        ((key, inner),) = raw.items()
        if key in ("anyOf", "oneOf", "allOf") and _is_list(inner) and len(inner) == 1:
            raw = inner[0]
    return raw


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _number(value: object) -> int | float | None:
    if isinstance(value, str):
        try:
            value = int(value) if re.fullmatch(r"[+-]?[0-9]{1,19}", value) else float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
        return None
    return value
