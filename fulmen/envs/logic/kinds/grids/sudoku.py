"""sudoku: a square whose rows, columns and boxes have each number once. It has one solution."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.filling import Filling
from fulmen.envs.logic.grids import is_latin, keeps, read_numbers, write_grid
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {1: (2, 2, 4), 2: (2, 2, 9), 3: (2, 3, 20), 4: (3, 3, 40), 5: (3, 3, 56)}
"""Rows and columns of a box, and at most how many cells are empty, by level"""
_MAX_STEPS: Final = 300
"""Steps of the search for a full square"""
_MAX_STEPS_EACH: Final = 2
"""Steps of the search that shows that a cell's number follows from the others"""


def _boxes(height: int, width: int) -> list[list[int]]:
    """Return the places of each box's cells, counted row by row."""
    size = height * width
    return [
        [(top + i) * size + left + j for i in range(height) for j in range(width)]
        for top in range(0, size, height)
        for left in range(0, size, width)
    ]


def _full(draw: Random, filling: Filling, height: int, width: int) -> list[int]:
    """Return the numbers of a full square, row by row."""
    found = filling.find(draw, _MAX_STEPS)
    if found is not None:
        return found
    size = height * width
    numbers = draw.sample(range(1, size + 1), size)  # a pattern that always holds
    return [
        numbers[(row % height * width + row // height + column) % size]
        for row in range(size)
        for column in range(size)
    ]


def _is_right(answer: str, givens: list[list[int | None]], boxes: list[list[int]]) -> bool:
    size = len(givens)
    grid = read_numbers(answer, size, size, range(1, size + 1))
    if grid is None or not keeps(grid, givens) or not is_latin(grid):
        return False
    cells = [number for row in grid for number in row]
    return all(len({cells[place] for place in box}) == size for box in boxes)


def _make(draw: Random, level: int) -> Puzzle:
    height, width, num_empty = _SIZES[level]
    size = height * width
    boxes = _boxes(height, width)
    rows = [list(range(row * size, row * size + size)) for row in range(size)]
    columns = [list(range(column, size * size, size)) for column in range(size)]
    filling = Filling(size, [*rows, *columns, *boxes])
    full = _full(draw, filling, height, width)
    kept = filling.thin_out(draw, full, num_empty, _MAX_STEPS_EACH)
    givens = [kept[row * size : row * size + size] for row in range(size)]
    solution = [full[row * size : row * size + size] for row in range(size)]
    question = (
        f"Solve this sudoku. Put a number from 1 to {size} in place of each dot, so that each row, "
        f"each column and each box has each number from 1 to {size} exactly once. The boxes are "
        f"the blocks of {height} rows and {width} columns that the grid is made of. The given "
        f"numbers stay.\n\n{write_grid(givens)}\n\n"
        f"Write the whole grid: {size} lines of {size} numbers, with spaces between them."
    )
    is_right = partial(_is_right, givens=givens, boxes=boxes)
    return Puzzle(question, write_grid(solution), is_right, has_lines=True)


SUDOKU: Final = PuzzleKind("sudoku", _make, chances=(0.025, 0.025, 0.0, 0.0, 0.0))
