"""math_path: an equation some of whose digits are hidden."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.formula import plain_formula, tokens_of, value_of
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {1: (2, 1, 1), 2: (2, 2, 2), 3: (3, 2, 3), 4: (4, 3, 6), 5: (6, 3, 12)}
"""Terms, most digits of a number, and hidden digits, by level"""
_RULES: Final = """\
In this equation each ? hides one digit. Different ? may hide different digits or the same one. No \
number of several digits begins with 0. Multiplication and division come before addition and \
subtraction, as usual.

{equation}

Which equation can it be? It must be true; if several are right, give one. The answer is the whole \
equation with a digit in place of each ?, and nothing else changed."""


def _term(draw: Random, level: int, num_digits: int) -> tuple[str, int]:
    """Return a number, a product or a quotient without a remainder, and its value."""
    least = 1 if num_digits == 1 else 10 ** (num_digits - 2)
    number = draw.randrange(least, 10**num_digits)
    other = draw.randint(2, 99 if level > 3 else 9)
    kind = draw.choice("n*/" if level > 3 else "n*" if level == 3 else "n")
    if kind == "*":
        return f"{number} * {other}", number * other
    if kind == "/":
        return f"{number * other} / {other}", number
    return str(number), number


def _equation(draw: Random, level: int) -> str:
    """Return a true equation."""
    num_terms, num_digits, _ = _SIZES[level]
    text, value = _term(draw, level, num_digits)
    for _ in range(num_terms - 1):
        term, number = _term(draw, level, num_digits)
        if number <= value and draw.random() < 0.5:
            text, value = f"{text} - {term}", value - number
        elif level > 3 and draw.random() < 0.3:
            factor = draw.randint(2, 9)
            text, value = f"({text} + {term}) * {factor}", (value + number) * factor
        else:
            text, value = f"{text} + {term}", value + number
    return f"{text} = {value}"


def _is_right(answer: str, equation: str) -> bool:
    formula = plain_formula(answer)
    dense, wanted = formula.replace(" ", ""), equation.replace(" ", "")
    if len(dense) != len(wanted):
        return False
    for char, hidden in zip(dense, wanted, strict=True):
        if char != hidden and not (hidden == "?" and char in "0123456789"):
            return False
    sides = [tokens_of(side) for side in formula.split("=")]
    if any(len(token) > 1 and token[0] == "0" for side in sides for token in side or ()):
        return False
    left, right = (side and value_of(side) for side in sides)
    return left is not None and left == right


def _make(draw: Random, level: int) -> Puzzle:
    answer = _equation(draw, level)
    digits = [place for place, char in enumerate(answer) if char.isdecimal()]
    hidden = set(draw.sample(digits, min(_SIZES[level][2], len(digits) - 1)))
    equation = "".join("?" if place in hidden else char for place, char in enumerate(answer))
    question = _RULES.format(equation=equation)
    return Puzzle(question, answer, partial(_is_right, equation=equation))


MATH_PATH: Final = PuzzleKind("math_path", _make, chances=(0.027, 0.006, 0.0, 0.0, 0.0))
