"""A domain of tool use: tools over a small database, rules, and cases that users come with.

Tools do what they are asked as long as the database stays in order. Rules are for the model to
keep: a refund that comes too late is made, and the task is lost.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from fulmen.chat import Message, Tool, ToolCall

Row = dict[str, Any]
Database = dict[str, dict[str, Row]]
"""Rows by id, in tables by name; `clock` has one row, `now`, with the date of today"""
Arguments = Mapping[str, Any]
LEVELS: Final = range(1, 6)
CHECK: Final = "check_identity"
"""Name of the tool that checks a PIN, in every domain"""
MAX_TEXT: Final = 200
"""Longest text of an argument"""


@dataclass(frozen=True, slots=True)
class Operation:
    """A tool and its work."""

    tool: Tool
    run: Callable[[Database, Arguments], object]
    """Work on a database with arguments of the right kinds; what it returns is told as JSON. It
    raises ValueError before it changes anything, or does all of it"""
    is_write: bool


@dataclass(frozen=True, slots=True)
class Fact:
    """Words of a user that answer a question."""

    asked: str
    """Regular expression that is found in the question"""
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A database and a user who wants something of it."""

    database: Database
    user: str
    """Id of the user's row in the domain's table of people"""
    opening: str
    """Words that the conversation begins with"""
    words: tuple[str, ...] = ()
    """Words that follow, one at a time, whatever the answers"""
    facts: tuple[Fact, ...] = ()
    """Words that are only said when they are asked for"""
    consent: int | None = None
    """Index of the words before which nothing may be changed; None: nothing to wait for"""
    has_check: bool = False
    """True if the user's identity has to be checked before any other call"""
    told: tuple[str, ...]
    """Values that the user has to be told"""
    bases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Values that calls have to show, by the one of `told` that is computed of them; any other is
    shown itself"""
    is_refused: bool = False
    """True if a rule forbids what the user insists on: the last answer has to say no"""
    untold: tuple[str, ...] = ()
    """Values that the user must not be told"""
    play: tuple[Message, ...]
    """Answers of a model that does all of it right"""


@dataclass(frozen=True, slots=True)
class Domain:
    """A desk that serves people."""

    name: str
    place: str
    """Place where the desk is, as in `a shop`"""
    people: str
    """Name of the table of people"""
    operations: tuple[Operation, ...]
    """Tools; level 1 has the first four"""
    rules: tuple[str, ...]
    """Sentences of the policy, from level 2 on"""
    forbidden: Callable[[Database, str, ToolCall], str | None]
    """The rule that a call to a writing tool breaks, as the database stands and for this user; None
    if it breaks none. Arguments are of the right kinds, but may name rows that there are not"""
    make: Callable[[Random, int], Case]
    """The case of a random draw and a level"""
    problems: Callable[[Database], list[str]]
    """Sentences about a database that is out of order; none, whatever tools were called"""


def operation(
    name: str,
    description: str,
    run: Callable[[Database, Arguments], object],
    arguments: Mapping[str, str],
    *,
    is_write: bool = False,
) -> Operation:
    """Return a tool. arguments: `string: words about it` or `integer: words` by name; all of them
    are required."""
    properties = {}
    for key, text in arguments.items():
        kind, _, words = text.partition(": ")
        properties[key] = {"type": kind, "description": words}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return Operation(Tool(name, description, schema), run, is_write)


def check_arguments(tool: Tool, arguments: Arguments) -> None:
    """Raise ValueError, with a sentence for the model, unless arguments are those of a tool."""
    properties = tool.parameters["properties"]
    for key, value in arguments.items():
        if key not in properties:
            raise ValueError(f"{tool.name} has no {key[:40]}, it has {', '.join(properties)}")
        kind = properties[key]["type"]
        is_right = isinstance(value, str if kind == "string" else int)
        if not is_right or isinstance(value, bool):
            raise ValueError(f"{key} must be of the type {kind}")
        if isinstance(value, str) and not 0 < len(value) <= MAX_TEXT:
            raise ValueError(f"{key} must have from 1 to {MAX_TEXT} characters")
        if isinstance(value, int) and not 0 < value < 1000:
            raise ValueError(f"{key} must be from 1 to 999")
    for key in properties:
        if key not in arguments:
            raise ValueError(f"{tool.name} needs {key}")


def row_of(database: Database, table: str, key: str) -> Row:
    """Return a row. Raises ValueError if there is none of this id."""
    if key not in database[table]:
        raise ValueError(f"there is no {key} among the {table}")
    return database[table][key]
