"""Grids: read from an answer leniently in form and strictly in size, written into a question, made.

An answer's rows are lines or brackets, `[[1, 2], [3, 4]]`; its cells are parted by white space,
commas, bars, quotes or brackets. What a cell may be is for the puzzle to say.
"""

import re
from collections.abc import Sequence
from random import Random
from string import ascii_letters
from typing import Final, TypeVar

Cell = tuple[int, int]
"""Row and column, counted from 0"""
Value = TypeVar("Value", int, str)

LETTERS: Final = ascii_letters[26:] + ascii_letters[:26]
"""Names of regions: A to Z, then a to z"""
_LONGEST: Final = 20_000
"""Characters of an answer that is read; the largest grid needs some hundred"""
_ROW_END: Final = re.compile(r"[\])}]")
_BETWEEN: Final = re.compile(r"[\s,;|\u2500-\u257f\[({\"'`]+")
_RULE: Final = re.compile(r"[\s,|+:=\u2500-\u257f-]*")
"""Line of a drawn table that has no cells"""
_BOLD: Final = re.compile(r"\A\s*(\*\*|__)(.*)\1\s*\Z", re.DOTALL)
_BOLD_ROW: Final = re.compile(r"^[ \t]*(\*\*|__)(.*)\1[ \t]*$", re.MULTILINE)


def read_grid(
    text: str, num_rows: int, num_columns: int, *, is_packed: bool = False, has_stars: bool = False
) -> list[list[str]] | None:
    """Return the cells of a grid, without bold marks around all of it, a row or a cell; None if the
    text is not one of this size.

    is_packed   every cell is one character, so nothing need stand between two of them
    has_stars   a cell may be a star, so stars are bold marks only where they are too many; every
                cell is one character, and none is bold by itself
    """
    if len(text) > _LONGEST:
        return None
    if not has_stars:
        return _read_cells(text, num_rows, num_columns, is_packed, "*_")
    for plain in (text, _BOLD.sub(r"\2", text), _BOLD_ROW.sub(r"\2", text)):
        grid = _read_cells(plain, num_rows, num_columns, is_packed, "")
        if grid is not None and all(len(cell) == 1 for row in grid for cell in row):
            return grid
    return None


def _read_cells(
    text: str, num_rows: int, num_columns: int, is_packed: bool, marks: str
) -> list[list[str]] | None:
    """Return the cells of a grid, without marks around them; None if it has another size."""
    rows: list[list[str]] = []
    for line in _ROW_END.sub("\n", text).splitlines():
        if _RULE.fullmatch(line):
            continue
        cells = [cell for part in _BETWEEN.split(line) if (cell := part.strip(marks))]
        if not cells:
            continue
        if is_packed and len(cells) != num_columns:
            cells = list("".join(cells))
        if len(cells) != num_columns or len(rows) == num_rows:
            return None
        rows.append(cells)
    return rows if len(rows) == num_rows else None


def read_numbers(
    text: str, num_rows: int, num_columns: int, numbers: range
) -> list[list[int]] | None:
    """Return the numbers of a grid; None if the text is not one of this size, or if a cell has
    anything but one of these numbers, none of which is negative."""
    grid = read_grid(text, num_rows, num_columns, is_packed=numbers.stop <= 10)
    if grid is None:
        return None
    for cell in (cell for row in grid for cell in row):
        # isdigit alone would take digits of other scripts and superscripts.
        if not (cell.isascii() and cell.isdigit() and len(cell) <= 4 and int(cell) in numbers):
            return None
    return [[int(cell) for cell in row] for row in grid]


def write_grid(grid: Sequence[Sequence[Value | None]]) -> str:
    """Return a grid as lines of cells with spaces between them; a cell that is None is a dot."""
    return "\n".join(" ".join("." if cell is None else str(cell) for cell in row) for row in grid)


def keeps(grid: Sequence[Sequence[Value]], givens: Sequence[Sequence[Value | None]]) -> bool:
    """Return True if a grid has every given cell as it was given; None is a cell not given."""
    return all(
        given is None or given == cell
        for row, given_row in zip(grid, givens, strict=True)
        for cell, given in zip(row, given_row, strict=True)
    )


def without(
    draw: Random, grid: Sequence[Sequence[Value]], num_empty: int
) -> list[list[Value | None]]:
    """Return a grid of which that many cells, drawn at random, are None."""
    empty = set(draw.sample(cells_of(len(grid), len(grid[0])), num_empty))
    return [
        [None if (row, column) in empty else value for column, value in enumerate(values)]
        for row, values in enumerate(grid)
    ]


def cells_of(num_rows: int, num_columns: int) -> list[Cell]:
    """Return all cells of a grid, row by row."""
    return [(row, column) for row in range(num_rows) for column in range(num_columns)]


def beside(cell: Cell, num_rows: int, num_columns: int) -> list[Cell]:
    """Return the two to four cells that share a side with a cell."""
    row, column = cell
    near = ((row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column))
    return [(r, c) for r, c in near if 0 <= r < num_rows and 0 <= c < num_columns]


def around(cell: Cell, num_rows: int, num_columns: int) -> list[Cell]:
    """Return the three to eight cells that share a side or a corner with a cell."""
    row, column = cell
    return [
        (r, c)
        for r in range(max(row - 1, 0), min(row + 2, num_rows))
        for c in range(max(column - 1, 0), min(column + 2, num_columns))
        if (r, c) != cell
    ]


def is_latin(grid: Sequence[Sequence[int]]) -> bool:
    """Return True if no row and no column of a grid has a number twice."""
    lines: list[Sequence[int]] = [*grid, *zip(*grid, strict=True)]
    return all(len(set(line)) == len(line) for line in lines)


def latin_square(draw: Random, size: int) -> list[list[int]]:
    """Return a square whose rows and columns have each number from 1 to size once.

    A row is a matching of columns and numbers still free there, found by augmenting paths. By
    Hall's theorem there is one for every next row, so nothing is ever taken back.
    """
    free = [set(range(1, size + 1)) for _ in range(size)]
    square = []
    for _ in range(size):
        column_of: dict[int, int] = {}
        for column in draw.sample(range(size), size):
            _match(draw, column, free, column_of, set())
        row = sorted(column_of, key=column_of.__getitem__)
        for column, number in enumerate(row):
            free[column].remove(number)
        square.append(row)
    return square


def _match(
    draw: Random, column: int, free: list[set[int]], column_of: dict[int, int], seen: set[int]
) -> bool:
    """Give a column a number, moving others where there must be; False if there is none for it."""
    numbers = sorted(free[column] - seen)
    for number in draw.sample(numbers, len(numbers)):
        if number in seen:
            continue
        seen.add(number)
        other = column_of.get(number)
        if other is None or _match(draw, other, free, column_of, seen):
            column_of[number] = column
            return True
    return False
