"""Grammars of tool calls: what M1 and M2 may write for the tools they were given.

M1 writes a call as JSON, so its grammar is a JSON Schema. M2 writes each parameter as bare text
between tags, so its grammar is a rule for each parameter. Both are made from the same `Parameters`,
so both take the same values.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Final

from fulmen.chat.arguments import dump_json, type_of
from fulmen.chat.choices import are_disjoint, types_of, whole_range
from fulmen.chat.expressions import (
    NUMBER,
    in_lark,
    integers,
    json_rule,
    literal,
    text_rule,
    text_without,
)
from fulmen.chat.m2_tags import END_PARAMETER
from fulmen.chat.messages import Tool
from fulmen.chat.parameters import Parameters, Shape
from fulmen.chat.schemas import TooLargeError
from fulmen.chat.validation import Schema, as_json
from fulmen.sampling import shown

_CARRIED: Final = r'[^"<>\r\n]{1,256}'
"""Name that a tag of M2's can carry, as its parser reads it"""
_NAME: Final = r'[^"<>\n]{1,64}'
"""Name of an argument that the schema does not declare"""
_NUMBER_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


class StrictTool:
    """Parameters of a tool that a grammar can follow.

    Raises ValueError with the first thing that cannot be followed.
    """

    def __init__(self, tool: Tool) -> None:
        parameters = Parameters(tool.parameters)
        self.document = parameters.document
        self.shapes = parameters.shapes
        self.values = [_values_of(shape) for shape in self.shapes]
        for named in self.values:
            for name, value in named.items():
                if name != "*" and not re.fullmatch(_CARRIED, name):
                    value.problems.append("is a name that no tag of M2's can carry")
                for problem in value.problems:
                    self.document.problem(shown(name)[1:-1], problem)
        if not re.fullmatch(_CARRIED, tool.name):
            self.document.problem("", "belongs to a tool whose name no tag of M2's can carry")
        try:
            for pair in permutations(zip(self.shapes, self.values, strict=True), 2):
                self._check_apart(*pair)
        except TooLargeError as error:
            self.document.problem("", str(error))
        if self.document.problems:
            raise ValueError(self.document.problems[0])

    def limited_values(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the JSON Schemas of arguments whose text has limits, with their names."""
        for named in self.values:
            for name, value in named.items():
                if any(not text.is_free for text in value.texts):
                    schema: Schema = {"anyOf": value.as_schemas()}
                    yield shown(name)[1:-1], as_json(self.document, schema)

    def _check_apart(
        self, one: tuple[Shape, dict[str, "_Value"]], other: tuple[Shape, dict[str, "_Value"]]
    ) -> None:
        """Note a problem if the same words may be text in one shape, another value in another.

        M2 writes both alike. An argument before it may tell which shape it is.
        """
        (mine, my_values), (theirs, their_values) = one, other
        for name, value in my_values.items():
            other_value = their_values.get(name, their_values.get("*"))
            if other_value is None or name in theirs.forbidden:
                continue
            if value.is_bare != other_value.is_bare or (
                value.is_bare and value.has_others != other_value.has_others
            ):
                self.document.problem(
                    name,
                    "is text in one choice and another type in another, and no argument "
                    "before it tells which",
                )
            tells = name in mine.required and name in theirs.required
            if tells and are_disjoint(
                self.document, mine.properties[name], theirs.properties[name]
            ):
                return


def check_name(tool: Tool) -> None:
    """Raise ValueError for a tool whose calls no grammar can hold because of its name."""
    if not re.fullmatch(_CARRIED, tool.name):
        raise ValueError(
            f"a tool is named {shown(tool.name)}, which no tag of M2's can carry: the calls cannot "
            "be limited"
        )


def free_tool(tool: Tool) -> Tool:
    """Return a tool of the same name that takes any arguments."""
    return Tool(tool.name, parameters={"type": "object", "additionalProperties": True})


def strict_tool(tool: Tool) -> StrictTool:
    """Return a tool as a grammar follows it; ValueError names the tool and the place."""
    try:
        return StrictTool(tool)
    except ValueError as error:
        raise ValueError(
            f"strict_tools: the schema of tool {shown(tool.name)[1:-1]} cannot be followed: {error}"
        ) from None


def _values_of(shape: Shape) -> dict[str, "_Value"]:
    named = shape.properties | ({} if shape.others is None else {"*": shape.others})
    return {name: _Value(choices) for name, choices in named.items()}


@dataclass
class _Text:
    """Text that a value may be."""

    min_length: int = 0
    max_length: int | None = None
    patterns: list[str] = field(default_factory=list)

    @property
    def is_free(self) -> bool:
        return not (self.min_length or self.max_length is not None or self.patterns)


class _Value:
    """Kinds of values that an argument may have, as both formats need them apart."""

    def __init__(self, choices: list[Schema]) -> None:
        self.problems: list[str] = []
        self.texts: list[_Text] = []
        self.words: list[str] = []
        """Texts of an enum"""
        self.scalars: list[Schema] = []
        """Simple schemas of null, booleans and numbers"""
        self.containers: list[Schema] = []
        """Simple schemas of arrays and objects"""
        for choice in choices:
            if "enum" in choice:
                self._add_options(choice["enum"])
            else:
                self._add(choice)
        if self.is_free:
            self.texts = [_Text()]
        elif self.texts and self.containers:
            # Both formats tell the two apart by the first character.
            for text in self.texts:
                text.patterns.append(r"(?:[^\[\{](?s:.*))?")
        if self.is_bare and not self.is_free and None in map(_expression, self.scalars):
            self.problems.append(
                "mixes text that has limits with numbers that have a multipleOf or a range of "
                "fractions, which cannot be followed"
            )

    @property
    def is_bare(self) -> bool:
        """True if M2 writes some values as bare text."""
        return bool(self.texts or self.words)

    @property
    def has_others(self) -> bool:
        """True if some values are no text."""
        return bool(self.scalars or self.containers)

    @property
    def is_free(self) -> bool:
        """True if any text is a value."""
        return any(text.is_free for text in self.texts)

    def _add_options(self, options: list[Any]) -> None:
        for option in options:
            kind = type_of(option)
            if kind == "string":
                self.words.append(option)
            elif kind in ("array", "object"):
                self.containers.append({"enum": [option]})
            else:
                self.scalars.append({"enum": [option]})

    def _add(self, choice: Schema) -> None:
        types = types_of(choice)
        if "string" in types:
            low, high = choice.get("minLength", 0), choice.get("maxLength")
            self.texts.append(_Text(low, high, list(choice.get("patterns", ()))))
        for kinds, into in (
            ({"null", "boolean", "integer", "number"}, self.scalars),
            ({"array", "object"}, self.containers),
        ):
            if types & kinds:
                into.append({**choice, "type": sorted(types & kinds)})

    def as_schemas(self) -> list[Schema]:
        """Return simple schemas of the values."""
        texts = [
            {
                "type": ["string"],
                "minLength": text.min_length,
                **({} if text.max_length is None else {"maxLength": text.max_length}),
                **({"patterns": text.patterns} if text.patterns else {}),
            }
            for text in self.texts
        ]
        words = [{"enum": self.words}] if self.words else []
        return [*texts, *words, *self.scalars, *self.containers]


def _expression(scalar: Schema) -> str | None:
    """Return an expression for the JSON of null, booleans or numbers; None if there is none."""
    if "enum" in scalar:
        return "|".join(literal(dump_json(option)) for option in scalar["enum"])
    types, found = types_of(scalar), []
    if "null" in types:
        found.append("null")
    if "boolean" in types:
        found.append("true|false")
    if types & {"integer", "number"}:
        if "multipleOf" in scalar and scalar["multipleOf"] != 1:
            return None
        is_bounded = any(bound in scalar for bound in _NUMBER_BOUNDS)
        if is_bounded and "number" in types:
            return None
        found.append(NUMBER if "number" in types else integers(*whole_range(scalar)))
    return "|".join(found)


def m1_call_schema(tool: Tool) -> dict[str, Any]:
    """Return the JSON Schema of a call of the tool."""
    strict = strict_tool(tool)

    def union(choices: list[Schema]) -> Schema:
        found = _Value(choices).as_schemas()
        return found[0] if len(found) == 1 else {"anyOf": found}

    shapes = [
        {
            "type": ["object"],
            "properties": {
                **{name: union(choices) for name, choices in shape.properties.items()},
                **{name: {"enum": []} for name in shape.forbidden},
            },
            "required": list(shape.required),
            "additionalProperties": {"enum": []} if shape.others is None else union(shape.others),
        }
        for shape in strict.shapes
    ]
    call: Schema = {
        "type": ["object"],
        "properties": {"name": {"enum": [tool.name]}, "arguments": {"anyOf": shapes}},
        "required": ["name", "arguments"],
        "additionalProperties": {"enum": []},
    }
    return as_json(strict.document, call)


def m2_call_rules(call: str, tool: Tool, tags: tuple[str, ...]) -> Iterator[str]:
    """Yield the rule `call` and those it needs: a call of the tool, whose text holds no tags."""
    strict = strict_tool(tool)
    shapes = []
    for index, shape in enumerate(strict.shapes):
        name = f"{call}_{index}"
        shapes.append(name)
        yield from _m2_shape(name, strict, shape, tags)
    opening, closing = text_rule(f'<invoke name="{tool.name}">\n'), text_rule("</invoke>\n")
    yield f"{call}: {opening} ({' | '.join(shapes)}) {closing}"


def _m2_shape(rule: str, strict: StrictTool, shape: Shape, tags: tuple[str, ...]) -> Iterator[str]:
    parts = []
    for index, (name, choices) in enumerate(shape.properties.items()):
        part = f"{rule}_{index}"
        parts.append(part if name in shape.required else f"{part}?")
        opening = text_rule(f'<parameter name="{name}">')
        if any(one.others is not None for one in strict.shapes):  # a lexeme of its own, as theirs
            opening = f'"<parameter name=\\"" {text_rule(name)} "\\">"'
        yield f'{part}: {opening} {part}_value "\\n"'
        yield from _m2_value(f"{part}_value", strict, choices, tags)
    if shape.others is not None:
        part = f"{rule}_other"
        parts.append(f"{part}*")
        taken = [*shape.properties, *shape.forbidden]
        names = in_lark(_NAME) + "".join(f" & ~{in_lark(literal(name))}" for name in taken)
        yield f"{part.upper()}_NAME: {names}"
        yield f'{part}: "<parameter name=\\"" {part.upper()}_NAME "\\">" {part}_value "\\n"'
        yield from _m2_value(f"{part}_value", strict, shape.others, tags)
    nothing = '""'
    yield f"{rule}: {' '.join(parts) or nothing}"


def _m2_value(
    rule: str, strict: StrictTool, choices: list[Schema], tags: tuple[str, ...]
) -> Iterator[str]:
    """Yield the rules of a value and its closing tag: bare text where it may be, else JSON.

    Text, and all else that may stand in its place, is one expression up to the first closing tag:
    llguidance splits text into lexemes, of which the longest wins, before it looks at rules.
    """
    value = _Value(choices)
    end = text_rule(END_PARAMETER)
    json_schemas = list(value.containers)
    found = []
    if value.is_bare:
        free = text_without(tags)
        for text in value.texts:
            length = f"{{{text.min_length},{'' if text.max_length is None else text.max_length}}}"
            limits = [f"(?s:.{length})"] if text.min_length or text.max_length is not None else []
            found.append(" & ".join(map(in_lark, [*limits, *text.patterns, free])))
        if not value.is_free:
            found += [in_lark(literal(word)) for word in value.words if word]
            found += ['""'] * ("" in value.words)
            found += [in_lark(_expression(scalar) or "") for scalar in value.scalars]
        else:
            json_schemas = []
        yield f"{rule.upper()}: {' | '.join(f'({one})' for one in found)}"
        yield f"{rule}_text[lazy]: {rule.upper()} {end}"
    else:
        json_schemas = [*value.scalars, *value.containers]
    branches = [f"{rule}_text"] * bool(found)
    if json_schemas:
        schema = json_schemas[0] if len(json_schemas) == 1 else {"anyOf": json_schemas}
        yield f"{rule}_json: {json_rule(as_json(strict.document, schema))}"
        branches.append(f"{rule}_json {end}")
    yield f"{rule}: {' | '.join(branches)}"
