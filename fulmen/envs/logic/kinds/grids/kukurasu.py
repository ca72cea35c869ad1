"""kukurasu: ones and zeros; a one counts its column's number in its row, its row's in its
column."""

from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.grids import read_numbers, write_grid
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {1: 3, 2: 4, 3: 5, 4: 7, 5: 9}
"""Size, by level"""


def _sums(grid: list[list[int]]) -> tuple[list[int], list[int]]:
    """Return the sums of the rows and of the columns."""
    return list(map(_worth, grid)), list(map(_worth, zip(*grid, strict=True)))


def _worth(line: Iterable[int]) -> int:
    return sum(place * one for place, one in enumerate(line, start=1))


def _is_right(answer: str, sums: tuple[list[int], list[int]]) -> bool:
    size = len(sums[0])
    grid = read_numbers(answer, size, size, range(2))
    return grid is not None and _sums(grid) == sums


def _make(draw: Random, level: int) -> Puzzle:
    size = _SIZES[level]
    grid = [[draw.randrange(2) for _ in range(size)] for _ in range(size)]
    grid[draw.randrange(size)][draw.randrange(size)] = 1
    sums = _sums(grid)
    rows, columns = (" ".join(map(str, values)) for values in sums)
    question = (
        f"Solve this kukurasu. Fill a grid of {size} rows and {size} columns with 0 and 1. Rows "
        "and columns count from 1. In a row, a 1 is worth the number of its column; in a column, "
        "a 1 is worth the number of its row; a 0 is worth nothing. So the row `1 0 1` is worth "
        "1 + 3 = 4. The rows and columns must be worth this:\n\n"
        f"rows, from the top: {rows}\ncolumns, from the left: {columns}\n\n"
        f"Write the grid: {size} lines of {size} numbers, with spaces between them."
    )
    return Puzzle(question, write_grid(grid), partial(_is_right, sums=sums), has_lines=True)


KUKURASU: Final = PuzzleKind("kukurasu", _make, chances=(0.01, 0.003, 0.0, 0.0, 0.0))
