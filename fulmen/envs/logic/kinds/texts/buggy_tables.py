"""buggy_tables: a sum over a table whose known errors must be undone first.

Errors are made one after the other in the right table, each so that it can be undone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import is_number
from fulmen.envs.logic.words import COLOURS, PEOPLE

_SIZES: Final = {1: (3, 1, 1), 2: (4, 2, 1), 3: (7, 3, 2), 4: (12, 4, 4), 5: (20, 5, 7)}
"""Rows, columns of numbers, and errors, by level"""
_COLUMNS: Final = ("apples", "pears", "plums", "lemons", "nuts", "eggs", "rolls")
_RULES: Final = """\
A table was copied with errors. It should say how many of each thing people bought{teams}. This is \
the copy:

{table}

{errors}

{asked} Answer by the table as it was before the errors. The answer is one number."""


@dataclass
class _Table:
    """A heading, and rows of a name, perhaps a team, and numbers."""

    heading: list[str]
    rows: list[list[str | int]]

    def places(self) -> list[int]:
        """Return the places of the columns of numbers."""
        return [i for i, value in enumerate(self.rows[0]) if isinstance(value, int)]


def _number(row: list[str | int], place: int) -> int:
    value = row[place]
    assert isinstance(value, int)
    return value


def _written(row: list[str | int]) -> str:
    return " | ".join(map(str, row))


def _offset(draw: Random, table: _Table) -> str:
    place, number = draw.choice(table.places()), draw.randint(1, 9)
    sign = draw.choice((-1, 1))
    for row in table.rows:
        row[place] = _number(row, place) + sign * number
    words = "large" if sign > 0 else "small"
    return f"Every number under {table.heading[place]} became {number} too {words}."


def _double(draw: Random, table: _Table) -> str:
    place = draw.choice(table.places())
    for row in table.rows:
        row[place] = 2 * _number(row, place)
    return f"Every number under {table.heading[place]} was doubled."


def _slide(draw: Random, table: _Table) -> str:
    place = draw.choice(table.places())
    column = [row[place] for row in table.rows]
    for row, value in zip(table.rows, [column[-1], *column[:-1]], strict=True):
        row[place] = value
    return (
        f"The numbers under {table.heading[place]} slid down by one row, and the last one came to "
        "the first row."
    )


def _headings(draw: Random, table: _Table) -> str:
    i, j = draw.sample(table.places(), 2)
    first, second = table.heading[i], table.heading[j]
    table.heading[i], table.heading[j] = second, first
    return f"The headings {first} and {second} changed places; the numbers below them stayed."


def _exchange(draw: Random, table: _Table) -> str:
    place = draw.choice(table.places())
    row, other = draw.sample(table.rows, 2)
    row[place], other[place] = other[place], row[place]
    return f"{row[0]} and {other[0]} got each other's number under {table.heading[place]}."


def _lose(draw: Random, table: _Table) -> str:
    place = draw.randrange(1, len(table.rows) - 1)
    row = table.rows.pop(place)
    above = table.rows[place - 1][0]
    return f"The row of {row[0]}, just below the row of {above}, was lost: {_written(row)}."


_ERRORS: Final[dict[int, tuple[Callable[[Random, _Table], str], ...]]] = {
    1: (_offset,),
    2: (_offset, _headings, _exchange),
    3: (_offset, _headings, _exchange, _slide, _lose),
    4: (_offset, _headings, _exchange, _slide, _lose, _double),
    5: (_offset, _headings, _exchange, _slide, _lose, _double),
}


def _table(draw: Random, level: int) -> _Table:
    num_rows, num_columns, _ = _SIZES[level]
    heading = ["name", *(["team"] if level > 2 else []), *draw.sample(_COLUMNS, num_columns)]
    teams = draw.sample(COLOURS, 3)
    rows: list[list[str | int]] = []
    for name in draw.sample(PEOPLE, num_rows):
        numbers = [draw.randint(10, 99) for _ in range(num_columns)]
        rows.append([name, *([draw.choice(teams)] if level > 2 else []), *numbers])
    return _Table(heading, rows)


def _asked(draw: Random, table: _Table, level: int) -> tuple[str, int]:
    """Return a question about a table, and its answer."""
    place = draw.choice(table.places())
    things = table.heading[place]
    if level == 1:
        row = draw.choice(table.rows)
        return f"How many {things} did {row[0]} buy?", _number(row, place)
    if level == 2:
        total = sum(_number(row, place) for row in table.rows)
        return f"How many {things} did all of them buy together?", total
    team = draw.choice(table.rows)[1]
    rows = [row for row in table.rows if row[1] == team]
    if level == 3:
        total = sum(_number(row, place) for row in rows)
        return f"How many {things} did the {team} team buy altogether?", total
    other = draw.choice([one for one in table.places() if one != place])
    limit = max(_number(row, other) for row in rows) - draw.randint(0, 20)
    limit = max(limit, 1)
    rows = [row for row in rows if _number(row, other) >= limit]
    total = sum(_number(row, place) for row in rows)
    return (
        f"How many {things} did those in the {team} team buy altogether who bought at least "
        f"{limit} {table.heading[other]}?",
        total,
    )


def _make(draw: Random, level: int) -> Puzzle:
    table = _table(draw, level)
    asked, right = _asked(draw, table, level)
    errors = [draw.choice(_ERRORS[level])(draw, table) for _ in range(_SIZES[level][2])]
    listed = "\n".join(f"{i}. {error}" for i, error in enumerate(errors, start=1))
    one = f"There was one error: {errors[0]}" if len(errors) == 1 else ""
    question = _RULES.format(
        teams=", and which team they are in" if level > 2 else "",
        table="\n".join([" | ".join(table.heading), *map(_written, table.rows)]),
        errors=one or f"These errors were made one after the other:\n{listed}",
        asked=asked,
    )
    return Puzzle(question, str(right), partial(is_number, number=right))


BUGGY_TABLES: Final = PuzzleKind("buggy_tables", _make, chances=(0.03, 0.02, 0.02, 0.03, 0.02))
