"""Tools as the model is told of them, and their arguments as they came.

Two profiles: `coding` for models made for such work, and `minimal` for small ones, whose whole
description takes a few hundred tokens of any vocabulary. They never change during a run: a changed
list would be read again, with everything after it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fulmen.chat import Tool, ToolCall
from fulmen.files import shorten

_KINDS: Final = {"string": str, "integer": int, "boolean": bool, "array": list}


class ToolError(Exception):
    """A call that cannot be made; the sentence is for the model."""


def tool(name: str, description: str, required: Mapping[str, Any], **optional: Any) -> Tool:
    properties = {key: _schema(value) for key, value in {**required, **optional}.items()}
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return Tool(name, description, schema)


def _schema(value: Any) -> dict[str, Any]:
    kind, _, description = value.partition(": ") if isinstance(value, str) else ("", "", "")
    if not kind:
        return dict(value)
    return {"type": kind, "description": description} if description else {"type": kind}


_TODO_ITEM: Final = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "state": {"type": "string", "enum": ["open", "doing", "done"]},
    },
    "required": ["text", "state"],
}

CODING: Final = (
    tool(
        "bash",
        "Run a command in a shell that keeps its folder and exported variables. Prefer read, edit, "
        "grep and glob for files. With background it goes on by itself: its job number, or 0 for "
        "all jobs, in `job` shows new output; `stop` ends it.",
        {},
        command="string",
        timeout="integer: Seconds, 120 if omitted",
        background="boolean",
        job="integer",
        stop="boolean",
    ),
    tool(
        "read",
        "Read a text file, with line numbers.",
        {"path": "string"},
        offset="integer: First line, from 1",
        limit="integer: Lines, at most 2000",
    ),
    tool(
        "edit",
        "Replace text in a file. `old` must be exactly what stands there, without line numbers, "
        "and only once unless all is true.",
        {"path": "string", "old": "string", "new": "string"},
        all="boolean",
    ),
    tool("write", "Write a file whole.", {"path": "string", "content": "string"}),
    tool(
        "grep",
        "Find lines that match a regular expression.",
        {"pattern": "string"},
        path="string",
        glob="string: Only files of this name, as *.py",
        ignore_case="boolean",
    ),
    tool("glob", "Find files by name, as src/**/*.py.", {"pattern": "string"}, path="string"),
    tool(
        "todo",
        "Write down the steps of a longer task and how far they are; the whole list each time.",
        {"items": {"type": "array", "items": _TODO_ITEM}},
    ),
)
MINIMAL: Final = (
    tool("read", "Show a file.", {"path": "string"}),
    tool(
        "edit",
        "Replace old text by new. Empty old makes a new file.",
        {"path": "string", "old": "string", "new": "string"},
    ),
    tool("run", "Run a shell command.", {"command": "string"}),
)
PROFILES: Final[Mapping[str, tuple[Tool, ...]]] = {"coding": CODING, "minimal": MINIMAL, "none": ()}
"""Tool profiles by name"""

READING: Final = frozenset({"read", "grep", "glob"})
"""Tools that change nothing, so that several may run at once"""

_SYSTEM: Final = {
    "coding": (
        "You are an agent that works in a folder of files by calling tools. Paths are relative to "
        "that folder. Look before you change something; change no more than the task needs; check "
        "what you changed by running it. When the task is done, say in a few words what you did, "
        "without a call. There is no network unless you are told so."
    ),
    "minimal": "Work in this folder with the tools. When done, say so.",
    "none": "",
}


def system_prompt(profile: str, instructions: str = "") -> str:
    """Return the system prompt of a profile, with a project's instructions.

    It has no date, no path and no name of a run, so forks and later runs share what was read.
    """
    if profile not in PROFILES:
        known = ", ".join(PROFILES)
        raise ValueError(f"{shorten(profile, 40)} is no tool profile, known are {known}")
    return "\n\n".join(part for part in (_SYSTEM[profile], instructions.strip()) if part)


def tools_record(tools: Iterable[Tool]) -> dict[str, Any]:
    """Return the record of the tools that a model is told of."""
    written = [
        {"name": one.name, "description": one.description, "parameters": one.parameters}
        for one in tools
    ]
    return {"type": "tools", "tools": written}


def read_tools(written: Iterable[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Return the tools of a record. Raises ValueError, KeyError or TypeError for what is none."""
    return tuple(Tool(one["name"], one["description"], one["parameters"]) for one in written)


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments of a call, each read as the kind that its tool declares."""

    tool: Tool
    given: Mapping[str, Any]

    @classmethod
    def of(cls, call: ToolCall, tools: tuple[Tool, ...]) -> "Arguments":
        """Read a call. Raises ToolError for a tool that there is not, for arguments of another
        kind, and for names that the tool does not declare."""
        tool = next((one for one in tools if one.name == call.name), None)
        if tool is None:
            known = ", ".join(one.name for one in tools) or "none"
            raise ToolError(f"there is no tool {shorten(call.name, 60)}; there are: {known}")
        properties = tool.parameters["properties"]
        for name in tool.parameters["required"]:
            if name not in call.arguments:
                raise ToolError(f"{tool.name} needs {name}")
        for name, value in call.arguments.items():
            if name not in properties:
                known = ", ".join(properties)
                raise ToolError(f"{tool.name} has no {shorten(name, 60)}, it has {known}")
            kind = properties[name]["type"]
            if not isinstance(value, _KINDS[kind]) or (kind == "integer" and value is True):
                raise ToolError(f"{name} of {tool.name} is {shorten(value, 60)}, it must be {kind}")
        return cls(tool, call.arguments)

    def text(self, name: str, default: str = "") -> str:
        """Return a text."""
        return str(self.given.get(name, default))

    def number(self, name: str, default: int, *, least: int = 1, most: int) -> int:
        """Return a whole number. Raises ToolError if it is outside its bounds."""
        value = int(self.given.get(name, default))
        if not least <= value <= most:
            raise ToolError(f"{name} is {value}, it must be from {least} to {most:,}")
        return value

    def flag(self, name: str) -> bool:
        """Return a switch, off if omitted."""
        return self.given.get(name) is True
