"""minesweeper: hidden cells are mines or free; a shown number counts the mines around it."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.grids import around, cells_of, keeps, read_grid, write_grid
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {
    1: (3, 4, 2, 3),
    2: (5, 5, 4, 7),
    3: (6, 6, 7, 13),
    4: (8, 8, 14, 26),
    5: (10, 10, 24, 42),
}
"""Rows, columns, mines, and hidden cells that are free, by level"""
_MINE: Final = "*"
_FREE: Final = "."


def _is_right(answer: str, shown: list[list[str | None]], num_mines: int) -> bool:
    num_rows, num_columns = len(shown), len(shown[0])
    grid = read_grid(answer, num_rows, num_columns, is_packed=True, has_stars=True)
    if grid is None or not keeps(grid, shown):
        return False
    num_found = 0
    for row, column in cells_of(num_rows, num_columns):
        if shown[row][column] is None:
            if grid[row][column] not in (_MINE, _FREE):
                return False
            num_found += grid[row][column] == _MINE
        else:
            near = around((row, column), num_rows, num_columns)
            if str(sum(grid[r][c] == _MINE for r, c in near)) != shown[row][column]:
                return False
    return num_found == num_mines


def _make(draw: Random, level: int) -> Puzzle:
    num_rows, num_columns, num_mines, num_free = _SIZES[level]
    cells = cells_of(num_rows, num_columns)
    hidden = draw.sample(cells, num_mines + num_free)
    mines = set(hidden[:num_mines])
    grid = [[_FREE] * num_columns for _ in range(num_rows)]
    shown: list[list[str | None]] = [[None] * num_columns for _ in range(num_rows)]
    for row, column in cells:
        if (row, column) in mines:
            grid[row][column] = _MINE
        elif (row, column) not in hidden:
            near = around((row, column), num_rows, num_columns)
            shown[row][column] = grid[row][column] = str(sum(cell in mines for cell in near))
    field = [["?" if cell is None else cell for cell in row] for row in shown]
    question = (
        "Solve this minesweeper. Each ? is either a mine or free. A number says how many of the "
        "up to eight cells around it, those at its corners too, are mines. Cells with a number "
        f"are no mines. There are {num_mines} mines.\n\n{write_grid(field)}\n\n"
        f"Write the whole grid with * in place of each ? that is a mine and a dot in place of each "
        f"other ?: {num_rows} lines of {num_columns} cells, with spaces between them. The numbers "
        "stay. Two lines of another grid could be:\n\n1 * 1\n1 2 ."
    )
    is_right = partial(_is_right, shown=shown, num_mines=num_mines)
    return Puzzle(question, write_grid(grid), is_right, has_lines=True)


MINESWEEPER: Final = PuzzleKind("minesweeper", _make, chances=(0.004, 0.002, 0.0, 0.0, 0.0))
