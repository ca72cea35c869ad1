"""norinori: two black cells in each region, and each black cell beside exactly one other."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.grids import Cell, beside, cells_of, read_grid, write_grid
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.regions import divide

_SIZES: Final = {1: (4, 6), 2: (5, 6), 3: (6, 7), 4: (8, 8), 5: (10, 10)}
"""Least and most rows and columns, by level. Small grids of one size have so few solutions that one
of them is often right; a square of 4 has room for two dominoes wherever the first one lies"""
_BLACK: Final = "#"
_WHITE: Final = "."


def _dominoes(draw: Random, num_rows: int, num_columns: int) -> set[Cell]:
    """Return the cells of dominoes that share no side with each other, as many as find room."""
    pairs = [
        (cell, other)
        for cell in cells_of(num_rows, num_columns)
        for other in beside(cell, num_rows, num_columns)
        if cell < other
    ]
    black: set[Cell] = set()
    for pair in draw.sample(pairs, len(pairs)):
        near = {n for cell in pair for n in (cell, *beside(cell, num_rows, num_columns))}
        if black.isdisjoint(near):
            black.update(pair)
    return black


def _is_right(answer: str, regions: list[list[str]]) -> bool:
    size = len(regions), len(regions[0])
    grid = read_grid(answer, *size, is_packed=True)
    if grid is None or any(cell not in (_BLACK, _WHITE) for row in grid for cell in row):
        return False
    counts = dict.fromkeys((letter for row in regions for letter in row), 0)
    for row, column in cells_of(*size):
        if grid[row][column] == _BLACK:
            counts[regions[row][column]] += 1
            if sum(grid[r][c] == _BLACK for r, c in beside((row, column), *size)) != 1:
                return False
    return all(count == 2 for count in counts.values())


def _make(draw: Random, level: int) -> Puzzle:
    num_rows, num_columns = draw.randint(*_SIZES[level]), draw.randint(*_SIZES[level])
    black = _dominoes(draw, num_rows, num_columns)
    regions = divide(draw, num_rows, num_columns, black, 2)
    cells = range(num_columns)
    grid = [[_BLACK if (row, c) in black else _WHITE for c in cells] for row in range(num_rows)]
    question = (
        f"Solve this norinori. Paint cells of a grid of {num_rows} rows and {num_columns} columns "
        "black, so that each region has exactly two black cells, and that each black cell shares a "
        "side with exactly one other black cell, of its own region or of another one. Cells with "
        f"the same letter are one region:\n\n{write_grid(regions)}\n\n"
        f"Write the grid: {num_rows} lines of {num_columns} cells, # for black and a dot for "
        "white, with spaces between them. A line of another grid could be:\n\n# # . ."
    )
    return Puzzle(question, write_grid(grid), partial(_is_right, regions=regions), has_lines=True)


NORINORI: Final = PuzzleKind("norinori", _make, chances=(0.055, 0.03, 0.01, 0.0, 0.0))
