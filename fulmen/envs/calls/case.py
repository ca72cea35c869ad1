"""A case of calls: a question, tools that answer from a table that only the task knows, and the
calls that lead to the answer."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from fulmen.chat import Message, Tool, ToolCall
from fulmen.envs.calls.names import Names

Arguments = Mapping[str, Any]
_KINDS: Final = {"string": str, "integer": int}


@dataclass(frozen=True, slots=True)
class Device:
    """A tool and its work."""

    tool: Tool
    work: Callable[[Arguments], str]
    """Result of arguments of the right kinds. Raises ValueError for values that it cannot take"""
    form: Callable[[Arguments], object] = dict
    """Arguments in a form that all calls have in common that ask the same"""

    def run(self, call: ToolCall) -> str:
        """Return the result of a call. Raises ValueError, with a sentence for the model, for
        arguments that are not those of the tool."""
        self._check(call.arguments)
        return self.work(call.arguments)

    def form_of(self, call: ToolCall) -> str:
        """Return a text that is equal for calls that ask the same."""
        try:
            self._check(call.arguments)
        except ValueError:
            return f"wrong {call.name} {json.dumps(call.arguments, sort_keys=True, default=str)}"
        form = self.form(call.arguments)
        return f"{call.name} {json.dumps(form, sort_keys=True, default=str)}"

    def _check(self, arguments: Arguments) -> None:
        name, properties = self.tool.name, self.tool.parameters["properties"]
        for key, value in arguments.items():
            if key not in properties:
                known = ", ".join(properties)
                raise ValueError(f"{name} has no parameter {key[:40]}, it has {known}")
            kind = properties[key]["type"]
            if not isinstance(value, _KINDS[kind]) or isinstance(value, bool):
                raise ValueError(f"{key} must be of the type {kind}")
        for key in properties:
            if key not in arguments:
                raise ValueError(f"{name} needs {key}")


def device(
    name: str,
    description: str,
    work: Callable[[Arguments], str],
    parameters: Mapping[str, str],
    form: Callable[[Arguments], object] = dict,
) -> Device:
    """Return a device. parameters: string or integer by name; all of them are required"""
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return Device(Tool(name, description, schema), work, form)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A question that calls lead to the answer of."""

    question: str
    devices: tuple[Device, ...]
    play: tuple[Message, ...]
    """Answers of a model that does all of it right"""
    is_told: Callable[[str], bool]
    """True for a last answer that is right"""


@dataclass(frozen=True, slots=True)
class CallKind:
    """Cases of one name, at the one difficulty that is claimed for them."""

    name: str
    make: Callable[[Random, Names], Case]


def called(thought: str, device: Device, *values: Any) -> Message:
    """Return the answer that makes a call, with values in the order of the parameters."""
    keys = device.tool.parameters["properties"]
    call = ToolCall(device.tool.name, dict(zip(keys, values, strict=True)))
    return Message("assistant", "", thinking=thought, tool_calls=(call,))


def chosen(device: Device) -> str:
    """Return the thought that chooses a device: its description, as the prompt has it, leads a
    small model to its name."""
    return f'"{device.tool.description}" is "{device.tool.name}".'


def said(thought: str, words: str) -> Message:
    """Return the answer that ends a case."""
    return Message("assistant", words, thinking=thought)


def mixed(draw: Random, devices: Sequence[Device]) -> tuple[Device, ...]:
    """Return devices in a random order."""
    return tuple(draw.sample(devices, len(devices)))
