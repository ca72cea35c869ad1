"""Grammars of tool calls: what M1 and M2 may write for the tools they were given.

M1 writes a call as JSON, so its grammar is a JSON Schema. M2 writes each parameter as bare text
between tags, so its grammar is a rule for each parameter.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fulmen.chat.arguments import dump_json, parameter_types, resolve_reference
from fulmen.chat.grammar import DEFINITIONS, json_rule, text_rule, text_without
from fulmen.chat.m2_parser import END_PARAMETER
from fulmen.chat.messages import Tool


def m1_call_schema(tool: Tool) -> dict[str, Any]:
    """Return the JSON Schema of a call of the tool, with no arguments but the declared ones."""
    parameters = dict(tool.parameters)
    # A reference counts from the root, where these go.
    shared = {key: parameters.pop(key) for key in DEFINITIONS if key in parameters}
    arguments = {"type": "object", "additionalProperties": False} | parameters
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    } | shared


def m2_call_rules(call: str, tool: Tool, tags: tuple[str, ...]) -> Iterator[str]:
    """Yield the rule `call` and those it needs: a call of the tool, whose text holds no tags."""
    declared, required = tool.parameters.get("properties", {}), tool.parameters.get("required", ())
    parts = []
    for index, name in enumerate(dict.fromkeys([*declared, *required])):
        part = f"{call}_{index}"
        parts.append(part if name in required else f"{part}?")
        opening = text_rule(f'<parameter name="{name}">')
        yield f'{part}: {opening} {part}_value "\\n"'
        yield from _m2_value_rules(f"{part}_value", tool.parameters, name, tags)
    opening, closing = text_rule(f'<invoke name="{tool.name}">\n'), text_rule("</invoke>\n")
    yield f"{call}: {opening} {' '.join(parts)} {closing}"


def _m2_value_rules(
    rule: str, schema: Mapping[str, Any], parameter: str, tags: tuple[str, ...]
) -> Iterator[str]:
    """Yield the rules of a value and its closing tag: text where the schema allows, else JSON."""
    own = schema.get("properties", {}).get(parameter)
    if isinstance(own, Mapping) and isinstance(own.get("$ref"), str):
        own = resolve_reference(own["$ref"], schema)
    own = own if isinstance(own, Mapping) else {}
    types = parameter_types(schema, parameter)
    end = text_rule(END_PARAMETER)
    options = own.get("enum", [own["const"]] if "const" in own else None)
    if "string" not in types:
        shared = {key: schema[key] for key in DEFINITIONS if key in schema}
        yield f"{rule}_json: {json_rule({**own, **shared})}"
        yield f"{rule}: {rule}_json {end}"
    elif options is not None:
        texts = [value if isinstance(value, str) else dump_json(value) for value in options]
        yield f"{rule}: ({' | '.join(map(text_rule, texts))}) {end}"
    else:
        low, high = own.get("minLength", 0), own.get("maxLength")
        if types != {"string"}:  # the lengths are for text only, a number may be shorter
            low, high = 0, None
        yield f"{rule.upper()}: ({text_without(tags, low, high)}) {end}"
        yield f"{rule}: {rule.upper()}"
