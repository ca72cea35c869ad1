"""star_placement_puzzle: so many stars in each row, column and region, none touching another."""

from functools import partial
from itertools import combinations, pairwise
from random import Random
from typing import Final

from fulmen.envs.logic.grids import Cell, around, cells_of, read_grid, write_grid
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.regions import divide

_SIZES: Final = {1: (5, 1, 2), 2: (6, 1, 0), 3: (7, 1, 0), 4: (9, 1, 0), 5: (10, 2, 0)}
"""Size, stars of a row, and stars that are given, by level"""
_MAX_STEPS: Final = 400
"""Rows that are tried in a search for a placement"""
_MAX_TRIES: Final = 4
"""Searches, of which one in ten finds nothing at level 5"""
_STAR: Final = "*"
_EMPTY: Final = "."


class _Placing:
    """Search for columns of stars, row by row; it ends after some steps."""

    def __init__(self, draw: Random, size: int, num_each: int) -> None:
        self._draw = draw
        self._steps = _MAX_STEPS
        self._rows = [
            columns
            for columns in combinations(range(size), num_each)
            if all(b - a > 1 for a, b in pairwise(columns))
        ]

    def rest(
        self, before: tuple[int, ...], room: list[int], num_left: int
    ) -> list[tuple[int, ...]] | None:
        """Return the rows that follow a row; None if there are none or no step is left.

        room   stars that each column still needs
        """
        if num_left == 0:
            return []
        for row in self._draw.sample(self._rows, len(self._rows)):
            if any(room[column] == 0 for column in row):
                continue
            if any(abs(column - other) < 2 for column in row for other in before):
                continue
            if self._steps == 0:
                return None
            self._steps -= 1
            left = [num - (column in row) for column, num in enumerate(room)]
            if max(left) <= num_left - 1:
                rows = self.rest(row, left, num_left - 1)
                if rows is not None:
                    return [row, *rows]
        return None


def _place(draw: Random, size: int, num_each: int) -> list[tuple[int, ...]]:
    """Return the columns of the stars, row by row."""
    for _ in range(_MAX_TRIES):
        rows = _Placing(draw, size, num_each).rest((), [num_each] * size, size)
        if rows is not None:
            return rows
    # A pattern that always holds: odd periods, of at least 5, go round; an even one is the size.
    period = size // num_each
    if period % 2 == 0:
        return [((2 * row + 1) % (size + 1),) for row in range(size)]
    return [tuple(2 * row % period + i * period for i in range(num_each)) for row in range(size)]


def _is_right(answer: str, regions: list[list[str]], num_each: int, given: list[Cell]) -> bool:
    size = len(regions)
    grid = read_grid(answer, size, size, is_packed=True, has_stars=True)
    if grid is None or any(cell not in (_STAR, _EMPTY) for row in grid for cell in row):
        return False
    stars = {(row, column) for row, column in cells_of(size, size) if grid[row][column] == _STAR}
    if len(stars) != size * num_each or not stars.issuperset(given):
        return False
    counts: dict[str, int] = {}
    for row, column in stars:
        if not stars.isdisjoint(around((row, column), size, size)):
            return False
        for line in (f"row {row}", f"column {column}", regions[row][column]):
            counts[line] = counts.get(line, 0) + 1
    # There are three times `size` lines: so many stars in each if no line has more.
    return max(counts.values()) == num_each


def _make(draw: Random, level: int) -> Puzzle:
    size, num_each, num_given = _SIZES[level]
    rows = _place(draw, size, num_each)
    stars = [(row, column) for row, columns in enumerate(rows) for column in columns]
    regions = divide(draw, size, size, set(stars), num_each)
    given = sorted(draw.sample(stars, num_given))
    grid = [[_STAR if (r, c) in stars else _EMPTY for c in range(size)] for r in range(size)]
    are = "is exactly 1 star" if num_each == 1 else f"are exactly {num_each} stars"
    known = ", ".join(f"({row + 1},{column + 1})" for row, column in given)
    stay = f"Given stars, as (row,column) counted from 1: {known}. They stay.\n\n" if given else ""
    question = (
        f"Place stars in a grid of {size} rows and {size} columns. In each row, in each column "
        f"and in each region there {are}. Two stars never touch, not even at a corner. Cells with "
        f"the same letter are one region:\n\n{write_grid(regions)}\n\n{stay}"
        f"Write the grid: {size} lines of {size} cells, * for a star and a dot for an empty cell, "
        "with spaces between them. A line of another grid could be:\n\n. . * ."
    )
    is_right = partial(_is_right, regions=regions, num_each=num_each, given=given)
    return Puzzle(question, write_grid(grid), is_right, has_lines=True)


STAR_PLACEMENT_PUZZLE: Final = PuzzleKind(
    "star_placement_puzzle", _make, chances=(0.16, 0.2, 0.09, 0.03, 0.01)
)
