"""futoshiki: a Latin square with signs of less than between neighbours. It has one solution."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.filling import Filling
from fulmen.envs.logic.grids import (
    Cell,
    beside,
    cells_of,
    is_latin,
    keeps,
    latin_square,
    read_numbers,
    write_grid,
)
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {1: (3, 4, 3), 2: (4, 10, 6), 3: (5, 18, 11), 4: (6, 28, 18), 5: (7, 42, 28)}
"""Size, at most how many cells are empty, and signs, by level"""
_MAX_STEPS_EACH: Final = 2
"""Steps of the search that shows that a cell's number follows from the rest"""


def _is_right(answer: str, givens: list[list[int | None]], less: list[tuple[Cell, Cell]]) -> bool:
    size = len(givens)
    grid = read_numbers(answer, size, size, range(1, size + 1))
    if grid is None or not keeps(grid, givens) or not is_latin(grid):
        return False
    return all(grid[a][b] < grid[c][d] for (a, b), (c, d) in less)


def _make(draw: Random, level: int) -> Puzzle:
    size, num_empty, num_signs = _SIZES[level]
    square = latin_square(draw, size)
    cells = cells_of(size, size)
    pairs = [
        (cell, other)
        for cell in cells
        for other in beside(cell, size, size)
        if square[cell[0]][cell[1]] < square[other[0]][other[1]]
    ]
    less = sorted(draw.sample(pairs, num_signs), key=min)
    rows = [list(range(row * size, row * size + size)) for row in range(size)]
    columns = [list(range(column, size * size, size)) for column in range(size)]
    places = [(cells.index(a), cells.index(b)) for a, b in less]
    filling = Filling(size, [*rows, *columns], places)
    numbers = [number for row in square for number in row]
    kept = filling.thin_out(draw, numbers, num_empty, _MAX_STEPS_EACH)
    givens = [kept[row * size : row * size + size] for row in range(size)]
    signs = "\n".join(f"({a + 1},{b + 1}) < ({c + 1},{d + 1})" for (a, b), (c, d) in less)
    question = (
        f"Solve this futoshiki. Put a number from 1 to {size} in place of each dot, so that each "
        f"row and each column has each number from 1 to {size} exactly once. The given numbers "
        f"stay.\n\n{write_grid(givens)}\n\n"
        "These must hold as well; (2,1) is the number in row 2 and column 1, and rows and columns "
        f"count from 1:\n\n{signs}\n\n"
        f"Write the whole grid: {size} lines of {size} numbers, with spaces between them."
    )
    is_right = partial(_is_right, givens=givens, less=less)
    return Puzzle(question, write_grid(square), is_right, has_lines=True)


FUTOSHIKI: Final = PuzzleKind("futoshiki", _make, chances=(0.105, 0.013, 0.0, 0.0, 0.0))
