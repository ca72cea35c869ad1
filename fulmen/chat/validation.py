"""Values against schemas: standard JSON Schema, for the jsonschema library and for llguidance."""

from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from fulmen.chat.arguments import type_of
from fulmen.chat.expressions import matches

Schema = dict[str, Any]
"""Schema of standard keywords, as `schemas.py` reads it; {} allows everything, NOTHING nothing"""
ANYTHING: Final[Schema] = {}
"""Schema that every value fits"""
NOTHING: Final[Schema] = {"enum": []}
"""Schema that no value fits"""


class Source(Protocol):
    """Document that references lead into, and that problems are told."""

    definitions: dict[str, Schema]
    """Targets of references by name"""

    def problem(self, where: str, text: str) -> None:
        """Note what is wrong at a place in the document, such as `place.city`."""

    def spend(self, count: int) -> None:
        """Count steps of work on the document; ValueError when they are too many."""


def checker(choices: list[Schema], source: Source) -> Callable[[Any], bool]:
    """Return a function that tells if a value fits one of the schemas."""
    if {} in choices:
        return lambda value: True
    if all(choice.keys() == {"type"} for choice in choices):
        types = {name for choice in choices for name in choice["type"]}
        return lambda value: not types.isdisjoint(_types_of_value(value))
    from jsonschema import Draft202012Validator  # takes long to import, and few values need it
    from jsonschema.validators import extend
    from referencing import Registry

    make: Any = extend
    validator = make(Draft202012Validator, {"pattern": _check_pattern})
    is_valid = validator(as_json(source, {"anyOf": choices}), registry=Registry()).is_valid

    def fits(value: Any) -> bool:
        try:
            return bool(is_valid(value))
        except RecursionError:  # the library goes as deep as value and schema together
            return False

    return fits


def _types_of_value(value: object) -> set[str]:
    kind = type_of(value)
    if kind == "integer":
        return {"integer", "number"}
    return {kind, "integer"} if isinstance(value, float) and value.is_integer() else {kind}


def as_json(source: Source, schema: Schema) -> dict[str, Any]:
    """Return a schema as standard JSON Schema, with the definitions that it refers to."""
    written = _as_json(schema)
    if source.definitions:
        written["$defs"] = {name: _as_json_or_bool(one) for name, one in source.definitions.items()}
    return written


def _as_json(schema: Schema) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for key, value in schema.items():
        match key:
            case "patterns":
                first, *more = (f"^(?:{pattern})$" for pattern in value)
                written["pattern"] = first
                if more:
                    written["allOf"] = [{"pattern": one} for one in more]
            case "properties":
                written[key] = {name: _as_json_or_bool(inner) for name, inner in value.items()}
            case "items" | "additionalProperties":
                written[key] = _as_json_or_bool(value)
            case "prefixItems" | "anyOf" | "oneOf":
                written[key] = [_as_json_or_bool(inner) for inner in value]
            case "allOf":
                inner = [_as_json_or_bool(one) for one in value]
                written[key] = [*written.get(key, ()), *inner]
            case "$ref":
                written[key] = f"#/$defs/{value}"
            case "type":
                written[key] = value[0] if len(value) == 1 else value
            case _:
                written[key] = value
    return written


def _as_json_or_bool(schema: Schema) -> dict[str, Any] | bool:
    return False if schema == NOTHING else _as_json(schema)


def _check_pattern(validator: Any, pattern: str, value: object, schema: object) -> Iterator[Any]:
    """Check a `pattern` in time linear in the text, which Python's own `re` does not promise."""
    if isinstance(value, str) and not matches(pattern.removeprefix("^").removesuffix("$"), value):
        from jsonschema import ValidationError

        yield ValidationError("the text does not match the pattern")
