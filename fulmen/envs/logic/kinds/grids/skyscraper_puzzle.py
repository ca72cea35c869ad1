"""skyscraper_puzzle: a Latin square of heights; from outside it is known how many are seen."""

from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.grids import is_latin, keeps, latin_square, read_numbers, without, write_grid
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {1: (3, 5), 2: (4, 12), 3: (5, 21), 4: (6, 34), 5: (7, 49)}
"""Size, and how many cells are empty, by level"""


def _num_seen(heights: Iterable[int]) -> int:
    """Return how many buildings are higher than all before them."""
    num, highest = 0, 0
    for height in heights:
        if height > highest:
            num, highest = num + 1, height
    return num


def _clues(grid: list[list[int]]) -> list[list[int]]:
    """Return how many are seen from the left, the right, the top and the bottom."""
    columns = list(zip(*grid, strict=True))
    return [
        [_num_seen(row) for row in grid],
        [_num_seen(reversed(row)) for row in grid],
        [_num_seen(column) for column in columns],
        [_num_seen(reversed(column)) for column in columns],
    ]


def _is_right(answer: str, givens: list[list[int | None]], clues: list[list[int]]) -> bool:
    size = len(givens)
    grid = read_numbers(answer, size, size, range(1, size + 1))
    if grid is None or not keeps(grid, givens) or not is_latin(grid):
        return False
    return _clues(grid) == clues


def _make(draw: Random, level: int) -> Puzzle:
    size, num_empty = _SIZES[level]
    square = latin_square(draw, size)
    givens = without(draw, square, num_empty)
    clues = _clues(square)
    left, right, top, bottom = (" ".join(map(str, seen)) for seen in clues)
    question = (
        "Solve this skyscraper puzzle. Each cell is a building, and its number is the building's "
        f"height. Put a number from 1 to {size} in place of each dot, so that each row and each "
        f"column has each number from 1 to {size} exactly once. The given numbers stay.\n\n"
        f"{write_grid(givens)}\n\n"
        "A building is seen from a side if all buildings between it and that side are lower. "
        "So many must be seen:\n\n"
        f"from the left, row by row: {left}\nfrom the right, row by row: {right}\n"
        f"from the top, column by column: {top}\nfrom the bottom, column by column: {bottom}\n\n"
        f"Write the whole grid: {size} lines of {size} numbers, with spaces between them."
    )
    is_right = partial(_is_right, givens=givens, clues=clues)
    return Puzzle(question, write_grid(square), is_right, has_lines=True)


SKYSCRAPER_PUZZLE: Final = PuzzleKind(
    "skyscraper_puzzle", _make, chances=(0.14, 0.02, 0.0, 0.0, 0.0)
)
