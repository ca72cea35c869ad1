"""Schemas as lists of simple ones: what anyOf, oneOf, allOf and $ref come to.

A simple schema has none of the four. `flatten` returns those of which a value must fit one, so a
grammar writes one rule for each, and a parser tries one after the other.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from fulmen.chat.arguments import ALL_TYPES, type_of
from fulmen.chat.expressions import have_common_text
from fulmen.chat.validation import NOTHING, Schema, Source, checker

LARGEST: Final = 2**63
"""Numbers and lengths in a schema are smaller"""
_MAX_CHOICES: Final = 64
"""Most simple schemas that one schema may come to: anyOf inside allOf multiplies them"""
_MAX_DEPTH: Final = 16
"""Levels of required values that are searched for one without an end"""
_COMBINERS: Final = ("$ref", "allOf", "anyOf", "oneOf")


def flatten(
    source: Source,
    schema: Schema,
    where: str = "",
    *,
    known: Collection[str] | None = None,
    active: tuple[str, ...] = (),
) -> list[Schema]:
    """Return the simple schemas of which a value of `schema` must fit one.

    known   definitions that count; a reference to another one fits nothing. None: all
    active  definitions that this schema is a part of
    """

    def inner(part: Schema, active: tuple[str, ...] = active) -> list[Schema]:
        return flatten(source, part, where, known=known, active=active)

    found = [{key: value for key, value in schema.items() if key not in _COMBINERS}]
    factors: list[list[Schema]] = []
    name = schema.get("$ref")
    if name is not None:
        if name in active:
            source.problem(where, "refers to itself without end")
            return []
        if known is not None and name not in known:
            return []
        factors.append(inner(source.definitions[name], (*active, name)))
    factors += [inner(part) for part in schema.get("allOf", ())]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            factors.append([one for part in schema[key] for one in inner(part)])
    source.spend(1 + sum(map(len, factors)))
    for choices in factors:
        if len(found) * len(choices) > _MAX_CHOICES:
            source.problem(where, f"has more than {_MAX_CHOICES} choices")
            return found[:1]
        pairs = ((mine, theirs) for mine in found for theirs in choices)
        merged = [_merge(source, mine, theirs, where) for mine, theirs in pairs]
        found = [one for one in merged if one is not None]
    found = [_with_fitting_types(_with_fitting_enum(source, one)) for one in found]
    return [one for one in found if one.get("enum") != [] and one.get("type") != []]


def _with_fitting_types(schema: Schema) -> Schema:
    """Return a simple schema without the types whose limits leave no value."""
    if "type" not in schema:
        return schema
    low, high = _lowest(schema), _highest(schema)
    is_open = low == schema.get("exclusiveMinimum") or high == schema.get("exclusiveMaximum")
    first, last = whole_range(schema)
    empty = {
        "number": low > high or (low == high and is_open),
        "integer": first is not None and last is not None and first > last,
        "string": schema.get("minLength", 0) > schema.get("maxLength", LARGEST),
        "array": schema.get("minItems", 0) > schema.get("maxItems", LARGEST),
        "object": schema.get("minProperties", 0) > schema.get("maxProperties", LARGEST),
    }
    return {**schema, "type": [kind for kind in schema["type"] if not empty.get(kind)]}


def _with_fitting_enum(source: Source, schema: Schema) -> Schema:
    """Return a simple schema whose enum, if it has one, is all that it says."""
    rest = {key: value for key, value in schema.items() if key != "enum"}
    if not rest or "enum" not in schema:
        return schema
    source.spend(len(schema["enum"]) // 16)
    fits = checker([rest], source)
    return {"enum": [value for value in schema["enum"] if fits(value)]}


def _merge(source: Source, mine: Schema, theirs: Schema, where: str) -> Schema | None:
    """Return the simple schema of the values that fit both, or None if there are none."""
    if not mine or not theirs:
        return dict(mine or theirs)
    merged = {**mine, **theirs}
    if "type" in mine and "type" in theirs:
        types = _common_types(set(mine["type"]), set(theirs["type"]))
        if not types:
            return None
        merged["type"] = sorted(types)
    if "enum" in mine and "enum" in theirs:
        keys = {_key(value) for value in theirs["enum"]}
        merged["enum"] = [value for value in mine["enum"] if _key(value) in keys]
    for key in mine.keys() & theirs.keys():
        first, second = mine[key], theirs[key]
        if key.startswith("min") or key == "exclusiveMinimum":
            merged[key] = max(first, second)
        elif key.startswith("max") or key == "exclusiveMaximum":
            merged[key] = min(first, second)
        elif key == "patterns":
            merged[key] = list(dict.fromkeys([*first, *second]))
        elif key == "items":
            merged[key] = _both(first, second)
        elif key == "multipleOf" and first != second:
            source.problem(where, f"has two {key} to hold at once, which cannot be followed")
    if "prefixItems" in merged and _differ(mine, theirs, ("items", "prefixItems")):
        source.problem(where, "has prefixItems beside other items, which cannot be followed")
    if {"properties", "required", "additionalProperties"} & merged.keys():
        _merge_objects(mine, theirs, merged)
    return merged


def _differ(mine: Schema, theirs: Schema, keys: Iterable[str]) -> bool:
    """Return True if both schemas have some of the keys, and not the same."""
    ours, others = ({key: one[key] for key in keys if key in one} for one in (mine, theirs))
    return bool(ours and others and ours != others)


def _merge_objects(mine: Schema, theirs: Schema, merged: Schema) -> None:
    properties = {}
    for name in dict.fromkeys([*mine.get("properties", ()), *theirs.get("properties", ())]):
        found = [
            one.get("properties", {}).get(name, one.get("additionalProperties"))
            for one in (mine, theirs)
        ]
        first, *rest = [schema for schema in found if schema is not None]
        properties[name] = _both(first, rest[0]) if rest else first
    if properties:
        merged["properties"] = properties
    required = dict.fromkeys([*mine.get("required", ()), *theirs.get("required", ())])
    if required:
        merged["required"] = list(required)
    if "additionalProperties" in mine and "additionalProperties" in theirs:
        merged["additionalProperties"] = _both(
            mine["additionalProperties"], theirs["additionalProperties"]
        )


def settle(source: Source, schema: Schema, where: str = "") -> None:
    """Turn each oneOf in a schema into an anyOf of choices of which a value can fit only one.

    Choices that share values lose a part: an object choice may not give a property that another one
    requires. What cannot be set apart so is a problem.
    """
    for name, inner in children(schema):
        settle(source, inner, f"{where}.{name}".strip(".") if name else where)
    if "oneOf" not in schema:
        return
    choices = schema["oneOf"]
    flat = [flatten(source, choice, where) for choice in choices]
    del schema["oneOf"]
    if sum(map(len, flat)) > _MAX_CHOICES:
        source.problem(where, f"has more than {_MAX_CHOICES} choices")
        choices = choices[:_MAX_CHOICES]
        flat = flat[:_MAX_CHOICES]
    union: list[Schema] = []
    for index, choice in enumerate(choices):
        others = [one for other in (*flat[:index], *flat[index + 1 :]) for one in other]
        found = [_forbidden(source, one, others) for one in flat[index]]
        if None in found:
            source.problem(where, "has a oneOf whose choices overlap: a value may fit two")
        names = sorted({name for forbidden in found for name in forbidden or ()})
        limit = {"properties": {name: dict(NOTHING) for name in names}}
        union.append({"allOf": [choice, limit]} if names else choice)
    apart = {"anyOf": union or [dict(NOTHING)]}
    if "anyOf" in schema:
        schema["allOf"] = [*schema.get("allOf", ()), apart]
    else:
        schema |= apart


def _forbidden(source: Source, one: Schema, others: Iterable[Schema]) -> set[str] | None:
    """Return names that keep values of a simple schema from fitting the others, if forbidden.

    None if there are no such names.
    """
    names: set[str] = set()
    for other in others:
        limit = {"properties": {name: dict(NOTHING) for name in names}}
        if _is_disjoint(source, _merge(source, one, limit, "") or NOTHING, other, 0):
            continue
        required = one.get("required", ())
        missing = [name for name in other.get("required", ()) if name not in required]
        if types_of(one) != {"object"} or not missing:
            return None
        names.add(missing[0])
    return names


def are_disjoint(source: Source, ones: list[Schema], others: list[Schema], depth: int = 0) -> bool:
    """Return True if it is plain that no value fits one of each."""
    return all(_is_disjoint(source, one, other, depth) for one in ones for other in others)


def _is_disjoint(source: Source, one: Schema, other: Schema, depth: int) -> bool:
    """Return True if it is plain that no value fits both of two simple schemas."""
    source.spend(1)
    if one.get("enum") == [] or other.get("enum") == []:
        return True
    common = _common_types(types_of(one), types_of(other))
    pairs = ((one, other), (other, one))
    if not common:
        return True
    if "enum" in one and "enum" in other:
        return set(map(_key, one["enum"])).isdisjoint(map(_key, other["enum"]))
    if common <= {"integer", "number"}:
        return any(_lowest(a) > _highest(b) for a, b in pairs)
    if common == {"string"}:
        if any(a.get("minLength", 0) > b.get("maxLength", LARGEST) for a, b in pairs):
            return True
        patterns = [*one.get("patterns", ()), *other.get("patterns", ())]
        return bool(patterns) and not have_common_text(patterns)
    if common != {"object"} or depth > 4:
        return False
    for a, b in pairs:
        declared, others = b.get("properties", {}), b.get("additionalProperties")
        if any(declared.get(name, others) == NOTHING for name in a.get("required", ())):
            return True
    for name in set(one.get("required", ())) & set(other.get("required", ())):
        mine, theirs = (
            flatten(source, schema.get("properties", {}).get(name, {}), name)
            for schema in (one, other)
        )
        if are_disjoint(source, mine, theirs, depth + 1):
            return True
    return False


def has_value(source: Source, schema: Schema, known: Collection[str], depth: int = 0) -> bool:
    """Return True if a finite value may fit.

    known  names of the definitions that have a finite value; others count as having none
    """
    if depth > _MAX_DEPTH or (schema.keys() == {"$ref"} and schema["$ref"] in known):
        return True
    flat = flatten(source, schema, known=known)
    return any(simple_has_value(source, one, known, depth + 1) for one in flat)


def simple_has_value(
    source: Source, schema: Schema, known: Collection[str], depth: int = 0
) -> bool:
    """Return True if a finite value may fit a simple schema."""
    types = types_of(schema)
    if "enum" in schema or types - {"object", "array"}:
        return True
    if "object" in types:
        declared, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        needed = [declared.get(name, others) for name in schema.get("required", ())]
        if all(has_value(source, one, known, depth) for one in needed):
            return True
    if "array" in types:
        count, first = schema.get("minItems", 0), schema.get("prefixItems", ())
        rest = [schema.get("items", {})] if count > len(first) else []
        return all(has_value(source, one, known, depth) for one in (*first[:count], *rest))
    return False


def children(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield the schemas in a schema, with the names of those that are properties."""
    yield from schema.get("properties", {}).items()
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield "", schema[key]
    for key in ("prefixItems", "anyOf", "oneOf", "allOf"):
        for inner in schema.get(key, ()):
            yield "", inner


def types_of(schema: Schema) -> set[str]:
    """Return the JSON types that a simple schema allows."""
    if "type" in schema:
        return set(schema["type"])
    if "enum" in schema:
        return {type_of(value) for value in schema["enum"]}
    return set(ALL_TYPES)


def is_among(value: object, options: Iterable[object]) -> bool:
    """Return True if JSON's equality finds the value: 1 is 1.0, and true is not 1."""
    return _key(value) in map(_key, options)


def _key(value: object) -> object:
    """Return a hashable value that is equal for equal JSON values only."""
    if isinstance(value, Mapping):
        return ("object", frozenset((name, _key(inner)) for name, inner in value.items()))
    if isinstance(value, list | tuple):
        return ("array", tuple(map(_key, value)))
    return (isinstance(value, bool), value)


def _common_types(first: set[str], second: set[str]) -> set[str]:
    common = first & second
    for a, b in ((first, second), (second, first)):
        if "integer" in a and "number" in b:  # a whole number is both
            common = common | {"integer"}
    return common


def _both(first: Schema, second: Schema) -> Schema:
    if not first or not second or first == second:
        return first or second
    return {"allOf": [first, second]}


def _lowest(schema: Schema) -> float:
    return float(max(schema.get("minimum", -LARGEST), schema.get("exclusiveMinimum", -LARGEST)))


def _highest(schema: Schema) -> float:
    return float(min(schema.get("maximum", LARGEST), schema.get("exclusiveMaximum", LARGEST)))


def whole_range(schema: Schema) -> tuple[int | None, int | None]:
    """Return the first and the last whole number within a simple schema's bounds, None for none."""
    lows = [math.ceil(schema[key]) for key in ("minimum",) if key in schema]
    lows += [math.floor(schema[key]) + 1 for key in ("exclusiveMinimum",) if key in schema]
    highs = [math.floor(schema[key]) for key in ("maximum",) if key in schema]
    highs += [math.ceil(schema[key]) - 1 for key in ("exclusiveMaximum",) if key in schema]
    return max(lows, default=None), min(highs, default=None)
