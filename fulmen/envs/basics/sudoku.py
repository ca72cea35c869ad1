"""sudoku: a square of 4 rows, filled by cells of which only one number is left.

The thought fills one cell after the other: its row and column, the numbers that its row, its column
and its box have, and the one that they leave, such as `23:14 2 4=3`.
"""

from collections.abc import Sequence
from functools import cache, partial
from itertools import permutations
from random import Random
from typing import Final

from fulmen.envs.basics.question import BasicKind, Question, placed
from fulmen.envs.logic.grids import is_latin, keeps, read_numbers

_WAYS: Final = (
    "Solve this sudoku:\n{grid}",
    "Fill in this sudoku:\n{grid}",
    "Sudoku with 4 rows:\n{grid}",
    "Please complete this sudoku:\n{grid}",
    "Löse dieses Sudoku:\n{grid}",
)
_SIZE: Final = 4
_BOX: Final = 2
_NUMBERS: Final = frozenset(range(1, _SIZE + 1))
_CELLS: Final = tuple((row, column) for row in range(_SIZE) for column in range(_SIZE))
_ROWS: Final = tuple(permutations(range(1, _SIZE + 1)))

_Rows = tuple[tuple[int, ...], ...]
_Grid = list[list[int | None]]


def _sudoku(draw: Random) -> Question:
    full = draw.choice(_squares())
    grid: _Grid = [list(row) for row in full]
    num_empty = draw.randint(3, 6)
    for row, column in draw.sample(_CELLS, len(_CELLS)):
        if num_empty == 0:
            break
        number, grid[row][column] = grid[row][column], None
        if _steps(grid) is None:
            grid[row][column] = number
        else:
            num_empty -= 1
    steps = _steps(grid)
    assert steps is not None
    text = draw.choice(_WAYS).format(grid=_written(grid))
    is_right = partial(_is_right, givens=grid)
    return Question(text, " ".join(steps), _written(full), _read, is_right)


@cache
def _squares() -> tuple[_Rows, ...]:
    """Return all 288 full squares."""
    squares: list[_Rows] = [()]
    for _ in range(_SIZE):
        squares = [(*rows, row) for rows in squares for row in _ROWS if _has_no_twice((*rows, row))]
    return tuple(squares)


def _has_no_twice(rows: Sequence[Sequence[int]]) -> bool:
    """Return True if no number is twice in a column or box of some rows from the top."""
    columns = [[row[column] for row in rows] for column in range(_SIZE)]
    boxes = [
        [number for row in rows[top : top + _BOX] for number in row[left : left + _BOX]]
        for top in range(0, _SIZE, _BOX)
        for left in range(0, _SIZE, _BOX)
    ]
    return all(len(set(group)) == len(group) for group in (*columns, *boxes))


def _steps(grid: _Grid) -> list[str] | None:
    """Return the steps that fill a square, in the order of its cells as often as needed; None if
    some cell never has only one number left."""
    cells = [list(row) for row in grid]
    steps: list[str] = []
    while any(None in row for row in cells):
        before = len(steps)
        for row, column in _CELLS:
            if cells[row][column] is not None:
                continue
            seen = _seen(cells, row, column)
            left = _NUMBERS.difference(*seen)
            if len(left) == 1:
                (number,) = left
                cells[row][column] = number
                groups = " ".join("".join(map(str, group)) or "-" for group in seen)
                steps.append(f"{row + 1}{column + 1}:{groups}={number}")
        if len(steps) == before:
            return None
    return steps


def _seen(cells: _Grid, row: int, column: int) -> tuple[list[int], ...]:
    """Return the numbers in a cell's row, column and box, each in order of their places."""
    top, left = row - row % _BOX, column - column % _BOX
    groups = (
        cells[row],
        [each[column] for each in cells],
        [number for each in cells[top : top + _BOX] for number in each[left : left + _BOX]],
    )
    return tuple([number for number in group if number is not None] for group in groups)


def _written(grid: Sequence[Sequence[int | None]]) -> str:
    return "\n".join("".join("." if cell is None else str(cell) for cell in row) for row in grid)


def _read(reply: str) -> str | None:
    grid = read_numbers(placed(reply) or "", _SIZE, _SIZE, range(1, _SIZE + 1))
    return None if grid is None else _written(grid)


def _is_right(answer: str, givens: _Grid) -> bool:
    rows = [[int(cell) for cell in line] for line in answer.splitlines()]
    return keeps(rows, givens) and is_latin(rows) and _has_no_twice(rows)


SUDOKU: Final = BasicKind("sudoku", _sudoku, chance=0.03)
