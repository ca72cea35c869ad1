"""arrow_maze: lines of arrows lead away from numbers, each of which counts its arrows."""

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.grids import Cell, cells_of, keeps, read_grid, write_grid
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {1: (2, 3, 4), 2: (4, 4, 4), 3: (5, 5, 8), 4: (7, 7, 8), 5: (10, 10, 8)}
"""Rows, columns, and directions of arrows, by level"""
_STEPS: Final = {
    "\u2191": (-1, 0),
    "\u2193": (1, 0),
    "\u2190": (0, -1),
    "\u2192": (0, 1),
    "\u2196": (-1, -1),
    "\u2197": (-1, 1),
    "\u2199": (1, -1),
    "\u2198": (1, 1),
}
"""Change of row and column, by arrow"""
_EMOJI: Final = "\ufe0f"
"""Character after an arrow that asks for it as a picture"""


def _ahead(cell: Cell, arrow: str, num_rows: int, num_columns: int) -> Iterator[Cell]:
    """Yield the cells that follow a cell in the direction of an arrow."""
    step, shift = _STEPS[arrow]
    row, column = cell[0] + step, cell[1] + shift
    while 0 <= row < num_rows and 0 <= column < num_columns:
        yield row, column
        row, column = row + step, column + shift


def _counts(grid: dict[Cell, str | None], num_rows: int, num_columns: int) -> dict[Cell, int]:
    """Return how many arrows lead away from each cell that has none, in unbroken lines."""
    counts = {}
    for start, value in grid.items():
        if value not in _STEPS:
            counts[start] = 0
            for arrow in _STEPS:
                for cell in _ahead(start, arrow, num_rows, num_columns):
                    if grid[cell] != arrow:
                        break
                    counts[start] += 1
    return counts


def _filled(draw: Random, num_rows: int, num_columns: int, arrows: list[str]) -> dict[Cell, str]:
    """Return arrows and, as an empty text, numbers; every arrow leads away from a number.

    A cell drawn lengthens a line of arrows where it can. Else it is a number, and the first arrows
    of its lines are drawn. There is always an arrow: the last cell has something beside it.
    """
    cells = cells_of(num_rows, num_columns)
    filled: dict[Cell, str] = {}
    for cell in draw.sample(cells, len(cells)):
        if cell in filled:
            continue
        lengthened = [
            arrow
            for arrow, (step, shift) in _STEPS.items()
            if arrow in arrows and filled.get((cell[0] - step, cell[1] - shift)) in ("", arrow)
        ]
        if lengthened:
            filled[cell] = draw.choice(lengthened)
            continue
        filled[cell] = ""
        for arrow in arrows:
            for place in _ahead(cell, arrow, num_rows, num_columns):
                if place in filled or draw.random() < 0.5:
                    break
                filled[place] = arrow
    return filled


def _is_right(answer: str, givens: list[list[str | None]], arrows: list[str]) -> bool:
    num_rows, num_columns = len(givens), len(givens[0])
    grid = read_grid(answer.replace(_EMOJI, ""), num_rows, num_columns, is_packed=True)
    if grid is None or not keeps(grid, givens):
        return False
    cells = cells_of(num_rows, num_columns)
    if any(givens[r][c] is None and grid[r][c] not in arrows for r, c in cells):
        return False
    counts = _counts({(r, c): grid[r][c] for r, c in cells}, num_rows, num_columns)
    num_arrows = sum(given is None for row in givens for given in row)
    return sum(counts.values()) == num_arrows and all(
        str(count) == givens[row][column] for (row, column), count in counts.items()
    )


def _make(draw: Random, level: int) -> Puzzle:
    num_rows, num_columns, num_directions = _SIZES[level]
    arrows = list(_STEPS)[:num_directions]
    filled = _filled(draw, num_rows, num_columns, arrows)
    grid = [[filled[row, column] for column in range(num_columns)] for row in range(num_rows)]
    givens: list[list[str | None]] = [[None] * num_columns for _ in range(num_rows)]
    for (row, column), count in _counts(dict(filled), num_rows, num_columns).items():
        givens[row][column] = grid[row][column] = str(count)
    question = (
        f"Solve this arrow maze. Put one of the arrows {' '.join(arrows)} in place of each dot. "
        "Lines of arrows begin beside a number and lead straight away from it: all arrows of a "
        "line point the same way, away from the number, with no other cell between. Each arrow "
        "must be in such a line. A number says how many arrows all lines that begin at it have "
        f"together. The numbers stay.\n\n{write_grid(givens)}\n\n"
        f"Write the whole grid: {num_rows} lines of {num_columns} cells, with spaces between them. "
        "Two lines of another grid could be:\n\n\u2191 1 \u2192\n2 \u2192 0"
    )
    is_right = partial(_is_right, givens=givens, arrows=arrows)
    return Puzzle(question, write_grid(grid), is_right, has_lines=True)


ARROW_MAZE: Final = PuzzleKind("arrow_maze", _make, chances=(0.11, 0.003, 0.0, 0.0, 0.0))
