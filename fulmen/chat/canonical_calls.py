"""The canonical form of a call: its arguments as JavaScript would read them, without defaults.

Coding clients check a call with their schema before they carry it out, and send back what the check
made of it: with the defaults of the arguments that the model left out. The call is the same.

    tools -> CallForms -> of(call): JSON without what the tool's schema has as `default`
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fulmen.chat.mending import whole_text
from fulmen.chat.messages import Tool, ToolCall

_MAX_DEPTH: Final = 16
"""Levels of a schema whose defaults are known"""


class CallForms:
    """Canonical forms of calls to some tools. Time is linear in the schemas, then in each call."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._fields = {tool.name: _read_fields(tool.parameters, _MAX_DEPTH) for tool in tools}

    def of(self, call: ToolCall) -> str:
        """Return the canonical form of a call, which equal calls have in common."""
        arguments = _value(call.arguments)
        fields = self._fields.get(call.name)
        if fields is not None:
            arguments = fields.without_defaults(arguments)
        return _dump([whole_text(call.name), arguments])


@dataclass(frozen=True, slots=True)
class _Fields:
    """Defaults of a schema, and where deeper ones are."""

    defaults: Mapping[str, str]
    """JSON of the default of each property that has one"""
    properties: Mapping[str, "_Fields"]
    items: "_Fields | None"

    def without_defaults(self, value: Any) -> Any:
        """Return a value without the properties that have their defaults."""
        if isinstance(value, list) and self.items is not None:
            return [self.items.without_defaults(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {
            key: self.properties[key].without_defaults(one) if key in self.properties else one
            for key, one in value.items()
            if key not in self.defaults or _dump(one) != self.defaults[key]
        }


def _read_fields(schema: object, depth: int) -> _Fields | None:
    """Return the defaults of a schema; None if it has none."""
    if not isinstance(schema, Mapping) or not depth:
        return None
    given = schema.get("properties")
    properties = {
        whole_text(str(name)): one
        for name, one in (given.items() if isinstance(given, Mapping) else ())
        if isinstance(one, Mapping)
    }
    defaults = {
        name: _dump(_value(one["default"])) for name, one in properties.items() if "default" in one
    }
    inner = {name: _read_fields(one, depth - 1) for name, one in properties.items()}
    known = {name: fields for name, fields in inner.items() if fields is not None}
    items = _read_fields(schema.get("items"), depth - 1)
    return _Fields(defaults, known, items) if defaults or known or items is not None else None


def _value(value: Any) -> Any:
    """Return a JSON value as JavaScript would read it; its depth is bounded where it was read."""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, Mapping):
        return {whole_text(str(key)): _value(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_value(one) for one in value]
    return str(value)


def _number(value: float) -> float | None:
    try:
        number = float(value) + 0.0  # -0 becomes 0
    except OverflowError:
        return None
    return number if number - number == 0 else None


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
