"""People at a desk: names, PINs, days, and the messages that a right conversation is made of."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from fulmen.chat import Message, ToolCall
from fulmen.envs.tools.domain import (
    CHECK,
    Arguments,
    Case,
    Database,
    Fact,
    Operation,
    Row,
    operation,
    row_of,
)
from fulmen.envs.tools.values import day

_FIRST: Final = ("Mia", "Leo", "Ida", "Noah", "Eva", "Omar", "Lena", "Hugo", "Zoe", "Paul", "Rosa")
_LAST: Final = (
    "Berg",
    "Costa",
    "Dahl",
    "Evans",
    "Fischer",
    "Gomez",
    "Horn",
    "Ito",
    "Klein",
    "Lund",
)
ASK_PIN: Final = "Please tell me your number and your PIN."
"""Question of a right conversation"""


def today(draw: Random) -> str:
    """Return a date."""
    return day("2026-01-01", draw.randrange(700))


def ids(draw: Random, letter: str, count: int) -> list[str]:
    """Return different ids in a random order, such as C4711."""
    return [f"{letter}{number}" for number in draw.sample(range(1000, 10_000), count)]


def people(draw: Random, keys: list[str], **more: Any) -> dict[str, Row]:
    """Return a table of people with different names. more: fields that they all have"""
    names = draw.sample([f"{one} {other}" for one in _FIRST for other in _LAST], len(keys))
    pins = [f"{draw.randrange(10_000):04}" for _ in keys]
    pairs = zip(keys, names, pins, strict=True)
    return {key: {"name": name, "pin": pin, **more} for key, name, pin in pairs}


def identity(table: str, key: str) -> Operation:
    """Return the tool that checks a PIN. key: name of its argument for the id of a person"""

    def run(database: Database, arguments: Arguments) -> object:
        row = row_of(database, table, arguments[key])
        if row["pin"] != arguments["pin"]:
            raise ValueError("the PIN is not right")
        return {"identity": "right", "name": row["name"]}

    about = {key: "string: Number of the person, such as C4711", "pin": "string: Four digits"}
    return operation(CHECK, "Check who it is that you serve.", run, about)


def identity_fact(key: str, row: Row) -> Fact:
    """Return the answer to the question who it is. key: the person's number"""
    words = f"I am {row['name']}, number {key}, and my PIN is {row['pin']}."
    return Fact(r"\b(PIN|code|identi\w+|verif\w+|(your|account|customer|member) number)\b", words)


def says(text: str) -> Message:
    """Return an answer in words."""
    return Message("assistant", text)


def calls(name: str, **arguments: Any) -> Message:
    """Return an answer that makes a call."""
    return Message("assistant", "", tool_calls=(ToolCall(name, arguments),))


def case(
    today: str,
    tables: Mapping[str, Mapping[str, Row]],
    user: tuple[str, str],
    talk: tuple[str, Sequence[str], Sequence[Message]],
    **more: Any,
) -> Case:
    """Return a case.

    tables  rows by id; the first table is that of people
    user    the user's id, and the name of tools' arguments for it
    talk    the opening, the values to be told, and the answers of a right conversation; with
            `has_check` among more, a check of the identity goes before them
    """
    database: Database = {name: dict(sorted(rows.items())) for name, rows in tables.items()}
    row = next(iter(database.values()))[user[0]]
    opening, told, play = talk
    if more.get("has_check"):
        more["facts"] = (identity_fact(user[0], row),)
        check = calls(CHECK, **{user[1]: user[0], "pin": row["pin"]})
        play = (says(ASK_PIN), check, *play)
    return Case(
        database={"clock": {"now": {"date": today}}, **database},
        user=user[0],
        opening=opening,
        told=tuple(told),
        play=tuple(play),
        **more,
    )
