"""boolean_expressions: the value of an expression of and, or, not, True and False."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import is_word

_NUM_OPERATORS: Final = {1: 2, 2: 4, 3: 8, 4: 14, 5: 24}
"""Operators of an expression, by level"""


def _expression(draw: Random, num_operators: int) -> tuple[str, bool]:
    """Return an expression and its value."""
    if num_operators == 0:
        value = draw.random() < 0.5
        return str(value), value
    if draw.random() < 0.3:
        text, value = _expression(draw, num_operators - 1)
        return f"not {text}", not value
    num_left = draw.randrange(num_operators)
    left, a = _expression(draw, num_left)
    right, b = _expression(draw, num_operators - 1 - num_left)
    if draw.random() < 0.5:
        return f"({left} and {right})", a and b
    return f"({left} or {right})", a or b


def _make(draw: Random, level: int) -> Puzzle:
    text, value = _expression(draw, _NUM_OPERATORS[level])
    right = str(value)
    question = f"What is the value of this expression, True or False?\n\n{text}"
    return Puzzle(question, right, partial(is_word, word=right))


BOOLEAN_EXPRESSIONS: Final = PuzzleKind(
    "boolean_expressions", _make, chances=(0.5, 0.5, 0.5, 0.5, 0.5)
)
