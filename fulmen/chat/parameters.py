"""The parameters of a tool: which arguments a call may give, and what their values may be.

Read once from the tool's JSON Schema, for the parser that reads calls and the grammars that write
them, so both mean the same. A schema with alternatives (anyOf, oneOf) has several `Shape`s; the
arguments of a call fit one of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fulmen.chat.arguments import readings
from fulmen.chat.choices import types_of
from fulmen.chat.schemas import Document, TooLargeError
from fulmen.chat.validation import ANYTHING, NOTHING, Schema, checker


@dataclass(frozen=True)
class Shape:
    """One way to give a tool its arguments."""

    properties: dict[str, list[Schema]]
    """Simple schemas of each declared argument, of which its value must fit one"""
    required: tuple[str, ...]
    others: list[Schema] | None
    """Simple schemas of arguments that are not declared; None where there may be none"""
    forbidden: frozenset[str] = frozenset()
    """Names that no argument may have"""

    def choices(self, name: str) -> list[Schema] | None:
        """Return the simple schemas of an argument; None if there may be no such argument."""
        if name in self.forbidden:
            return None
        return self.properties.get(name, self.others)


class Parameters:
    """Parameters of one tool.

    schema  the tool's JSON Schema, as it came
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.document = Document(schema)
        self._checkers: dict[tuple[int, ...], Callable[[Any], bool]] = {}
        try:
            self.shapes = self._read_shapes()
        except TooLargeError as error:
            self.document.problem("", str(error))
            self.shapes = [Shape({}, (), None)]

    def _read_shapes(self) -> list[Shape]:
        flat = self.document.choices(self.document.root)
        objects = [one for one in flat if "object" in types_of(one) and "enum" not in one]
        if len(objects) < len(flat) or not flat:
            self.document.problem("", "must allow an object and nothing else: a call's arguments")
        shapes = [self._shape(one) for one in objects]
        return [one for one in shapes if one is not None] or [Shape({}, (), None)]

    @property
    def problems(self) -> list[str]:
        """Sentences on all that a grammar cannot follow."""
        return self.document.problems

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all declared arguments, in their order."""
        return tuple(dict.fromkeys(name for shape in self.shapes for name in shape.properties))

    @cached_property
    def required(self) -> frozenset[str]:
        """Names of the arguments that every call gives."""
        return frozenset.intersection(*(frozenset(shape.required) for shape in self.shapes))

    @property
    def is_open(self) -> bool:
        """True if a call may give arguments that are not declared."""
        return not self.names or any(shape.others is not None for shape in self.shapes)

    def types(self, name: str, given: Mapping[str, Any]) -> frozenset[str]:
        """Return the JSON types that an argument may have beside those given before it.

        An argument about which the schema tells nothing is text.
        """
        choices = self._choices(name, given)
        if not choices or (choices == [{}] and name in self.names):
            return frozenset({"string"})
        return frozenset[str]().union(*map(types_of, choices))

    def read(self, text: str, name: str, given: Mapping[str, Any]) -> Any:
        """Return the value that the text of an argument means: the first reading that fits."""
        choices = self._choices(name, given)
        if any(text in choice.get("enum", ()) for choice in choices):
            return text
        found = list(readings(text, self.types(name, given)))
        if len(found) > 1:
            fits = self._checker(choices or [ANYTHING])
            for value in found:
                if fits(value):
                    return value
        return found[0]

    def _checker(self, choices: list[Schema]) -> Callable[[Any], bool]:
        key = tuple(map(id, choices))
        if key not in self._checkers:
            self._checkers[key] = checker(choices, self.document)
        return self._checkers[key]

    def _choices(self, name: str, given: Mapping[str, Any]) -> list[Schema]:
        shapes = [shape for shape in self.shapes if self._may_be(shape, given)] or self.shapes
        if any(name in shape.properties for shape in shapes):
            shapes = [shape for shape in shapes if name in shape.properties]
        choices: list[Schema] = []
        for shape in shapes:
            choices += [one for one in shape.choices(name) or () if one not in choices]
        return choices

    def _may_be(self, shape: Shape, given: Mapping[str, Any]) -> bool:
        if len(self.shapes) == 1:
            return True
        return all(
            self._checker(shape.choices(name) or [NOTHING])(value) for name, value in given.items()
        )

    def _shape(self, schema: Schema) -> Shape | None:
        """Return the shape of a simple schema; None if it requires what cannot be."""
        declared = schema.get("properties", {})
        others = schema.get("additionalProperties")
        required = tuple(schema.get("required", ()))
        properties = {
            name: self.document.choices(declared.get(name, others or {}), name)
            for name in dict.fromkeys([*declared, *required])
        }
        impossible = frozenset(name for name, choices in properties.items() if not choices)
        if impossible & set(required):
            return None
        for key in ("minProperties", "maxProperties"):
            if key in schema:
                self.document.problem("", f"has {key}, which no call can be held to")
        return Shape(
            {name: choices for name, choices in properties.items() if choices},
            required,
            None if others is None else self.document.choices(others, "*") or None,
            impossible,
        )
