"""numbrix: the numbers from 1 on, each beside the next one, on a way through all cells."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.grids import Cell, beside, keeps, read_numbers, without, write_grid
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {1: (3, 4), 2: (4, 9), 3: (5, 17), 4: (7, 39), 5: (9, 66)}
"""Size, and how many cells are empty, by level"""


def _way(draw: Random, size: int) -> list[Cell]:
    """Return all cells, each beside the next one.

    It begins as a snake. Then an end bites: joined to a cell beside it, it cuts the way there, and
    what lay between is turned around.
    """
    way = [
        (row, column) for row in range(size) for column in range(size)[:: 1 if row % 2 == 0 else -1]
    ]
    for _ in range(4 * size * size):
        if draw.random() < 0.5:
            way.reverse()
        i = way.index(draw.choice(beside(way[0], size, size)))
        way[:i] = way[:i][::-1]
    return way


def _is_right(answer: str, givens: list[list[int | None]]) -> bool:
    size = len(givens)
    grid = read_numbers(answer, size, size, range(1, size * size + 1))
    if grid is None or not keeps(grid, givens):
        return False
    place = {number: (r, c) for r, row in enumerate(grid) for c, number in enumerate(row)}
    return len(place) == size * size and all(
        place[number + 1] in beside(place[number], size, size) for number in range(1, size * size)
    )


def _make(draw: Random, level: int) -> Puzzle:
    size, num_empty = _SIZES[level]
    grid = [[0] * size for _ in range(size)]
    for number, (row, column) in enumerate(_way(draw, size), start=1):
        grid[row][column] = number
    givens = without(draw, grid, num_empty)
    question = (
        f"Solve this numbrix. Put numbers in place of the dots, so that the grid has each number "
        f"from 1 to {size * size} exactly once, and that each number shares a side with the next "
        f"one: 1 with 2, 2 with 3, and so on up to {size * size}. A corner is not enough. The "
        f"given numbers stay.\n\n{write_grid(givens)}\n\n"
        f"Write the whole grid: {size} lines of {size} numbers, with spaces between them."
    )
    return Puzzle(question, write_grid(grid), partial(_is_right, givens=givens), has_lines=True)


NUMBRIX: Final = PuzzleKind("numbrix", _make, chances=(0.095, 0.02, 0.0, 0.0, 0.0))
