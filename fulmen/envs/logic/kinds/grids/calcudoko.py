"""calcudoko: a Latin square in cages, of each of which a sum, difference, product or ratio is
known."""

from functools import partial
from math import prod
from random import Random
from typing import Final

from fulmen.envs.logic.grids import (
    LETTERS,
    Cell,
    beside,
    cells_of,
    is_latin,
    latin_square,
    read_numbers,
    write_grid,
)
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {
    1: (3, 2, "+"),
    2: (4, 2, "+-"),
    3: (5, 3, "+-*"),
    4: (6, 4, "+-*/"),
    5: (7, 5, "+-*/"),
}
"""Size, largest cage, and operations, by level"""
_MEANINGS: Final = {
    "+": "`5+` means that the numbers of the cage have the sum 5.",
    "-": "`2-` means that the larger of the two numbers minus the smaller is 2.",
    "*": "`6*` means that the numbers of the cage have the product 6.",
    "/": "`3/` means that the larger of the two numbers divided by the smaller is 3.",
}

Cage = tuple[list[Cell], str, int]
"""Cells, operation (a sum if it is one cell), and what it must give"""


def _value(numbers: list[int], operation: str) -> int | None:
    """Return what an operation gives; None if a ratio is no whole number."""
    if operation == "+":
        return sum(numbers)
    if operation == "*":
        return prod(numbers)
    small, large = sorted(numbers)
    if operation == "-":
        return large - small
    return large // small if large % small == 0 else None


def _parts(draw: Random, size: int, largest: int) -> list[list[Cell]]:
    """Return connected parts of a square of up to `largest` cells, by growing one after another."""
    left = dict.fromkeys(cells_of(size, size))
    parts = []
    while left:
        part = [next(iter(left))]
        del left[part[0]]
        for _ in range(draw.randint(1 if draw.random() < 0.4 else 2, largest) - 1):
            near = [n for cell in part for n in beside(cell, size, size) if n in left]
            if near:
                part.append(draw.choice(near))
                del left[part[-1]]
        parts.append(part)
    return parts


def _cage(draw: Random, square: list[list[int]], part: list[Cell], operations: str) -> Cage:
    numbers = [square[row][column] for row, column in part]
    possible = [
        operation
        for operation in operations
        if operation in "+*" or (len(part) == 2 and _value(numbers, operation) is not None)
    ]
    operation = draw.choice(possible) if len(part) > 1 else "+"
    value = _value(numbers, operation)
    assert value is not None
    return part, operation, value


def _is_right(answer: str, size: int, cages: list[Cage]) -> bool:
    grid = read_numbers(answer, size, size, range(1, size + 1))
    if grid is None or not is_latin(grid):
        return False
    return all(
        _value([grid[row][column] for row, column in cells], operation) == value
        for cells, operation, value in cages
    )


def _make(draw: Random, level: int) -> Puzzle:
    size, largest, operations = _SIZES[level]
    square = latin_square(draw, size)
    cages = [_cage(draw, square, part, operations) for part in _parts(draw, size, largest)]
    letters = [[""] * size for _ in range(size)]
    for letter, (cells, _, _) in zip(LETTERS, cages, strict=False):
        for row, column in cells:
            letters[row][column] = letter
    values = "\n".join(
        f"{letter}: {value}{operation if len(cells) > 1 else ''}"
        for letter, (cells, operation, value) in zip(LETTERS, cages, strict=False)
    )
    question = (
        f"Solve this calcudoko. Fill a grid of {size} rows and {size} columns, so that each row "
        f"and each column has each number from 1 to {size} exactly once. The grid is divided into "
        "cages; cells with the same letter are one cage:\n\n"
        f"{write_grid(letters)}\n\n"
        "Each cage must give its value. A value without a sign is the number of its only cell. "
        f"{' '.join(_MEANINGS[operation] for operation in operations)}\n\n{values}\n\n"
        f"Write the whole grid: {size} lines of {size} numbers, with spaces between them."
    )
    is_right = partial(_is_right, size=size, cages=cages)
    return Puzzle(question, write_grid(square), is_right, has_lines=True)


CALCUDOKO: Final = PuzzleKind("calcudoko", _make, chances=(0.13, 0.01, 0.0, 0.0, 0.0))
