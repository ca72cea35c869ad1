"""survo: the numbers from 1 on, each once, in a grid whose rows and columns have known sums."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.grids import keeps, read_numbers, without, write_grid
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {1: (2, 3, 3), 2: (3, 3, 5), 3: (3, 4, 8), 4: (4, 4, 12), 5: (5, 6, 26)}
"""Rows, columns, and how many cells are empty, by level"""


def _sums(grid: list[list[int]]) -> tuple[list[int], list[int]]:
    """Return the sums of the rows and of the columns."""
    return [sum(row) for row in grid], [sum(column) for column in zip(*grid, strict=True)]


def _is_right(
    answer: str, givens: list[list[int | None]], sums: tuple[list[int], list[int]]
) -> bool:
    num_rows, num_columns = len(givens), len(givens[0])
    num_cells = num_rows * num_columns
    grid = read_numbers(answer, num_rows, num_columns, range(1, num_cells + 1))
    if grid is None or not keeps(grid, givens):
        return False
    return len({number for row in grid for number in row}) == num_cells and _sums(grid) == sums


def _make(draw: Random, level: int) -> Puzzle:
    num_rows, num_columns, num_empty = _SIZES[level]
    num_cells = num_rows * num_columns
    numbers = draw.sample(range(1, num_cells + 1), num_cells)
    grid = [numbers[row * num_columns : (row + 1) * num_columns] for row in range(num_rows)]
    givens = without(draw, grid, num_empty)
    sums = _sums(grid)
    rows, columns = (" ".join(map(str, values)) for values in sums)
    question = (
        f"Solve this survo puzzle. Put numbers in place of the dots, so that the grid has each "
        f"number from 1 to {num_cells} exactly once, and that its rows and columns have the sums "
        f"below. The given numbers stay.\n\n{write_grid(givens)}\n\n"
        f"sums of the rows, from the top: {rows}\nsums of the columns, from the left: {columns}\n\n"
        f"Write the whole grid without the sums: {num_rows} lines of {num_columns} numbers, with "
        "spaces between them."
    )
    is_right = partial(_is_right, givens=givens, sums=sums)
    return Puzzle(question, write_grid(grid), is_right, has_lines=True)


SURVO: Final = PuzzleKind("survo", _make, chances=(0.015, 0.01, 0.0, 0.0, 0.0))
