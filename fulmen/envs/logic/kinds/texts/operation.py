"""operation: the value of an expression with operators that the question defines."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import is_number

_SIZES: Final = {1: (1, 1), 2: (1, 2), 3: (2, 4), 4: (3, 7), 5: (5, 16)}
"""Operators, and how often they are applied, by level"""
_SIGNS: Final = ("@", "#", "&", "$", "~")
_RULES: Final = """\
Operators are defined for whole numbers a and b:

{definitions}
{notes}
What is the value of {expression}? The answer is one number."""
_REMAINDER_NOTE: Final = (
    "\nA remainder of a division by n is one of the numbers from 0 to n - 1, for negative numbers "
    "too: the remainder of -1 divided by 7 is 6.\n"
)


@dataclass(frozen=True, slots=True)
class _Operator:
    """Sign, definition and meaning of an operator."""

    sign: str
    definition: str
    apply: Callable[[int, int], int]


def _linear(draw: Random, sign: str) -> _Operator:
    i, j, k = draw.randint(1, 4), draw.randint(1, 4), draw.randint(1, 9)
    first, second = "a" if i == 1 else f"{i} * a", "b" if j == 1 else f"{j} * b"
    if draw.random() < 0.5:
        return _Operator(sign, f"{first} + {second} + {k}", lambda a, b: i * a + j * b + k)
    return _Operator(sign, f"{first} - {second} + {k}", lambda a, b: i * a - j * b + k)


def _remainder(draw: Random, sign: str) -> _Operator:
    i, j, n = draw.randint(1, 5), draw.randint(1, 9), draw.choice((11, 13, 17, 19, 23))
    words = f"the remainder of a * b + {i} * a + {j} divided by {n}"
    return _Operator(sign, words, lambda a, b: (a * b + i * a + j) % n)


def _choice(draw: Random, sign: str) -> _Operator:
    i, j, k = draw.randint(2, 4), draw.randint(1, 9), draw.randint(1, 9)
    words = f"{i} * b - {j} if a is greater than b, and a + b + {k} if it is not"
    return _Operator(sign, words, lambda a, b: i * b - j if a > b else a + b + k)


def _distance(draw: Random, sign: str) -> _Operator:
    i, k = draw.randint(2, 4), draw.randint(1, 9)
    words = f"{i} times the distance of a and b, that is, the greater minus the lesser, minus {k}"
    return _Operator(sign, words, lambda a, b: i * abs(a - b) - k)


def _parity(draw: Random, sign: str) -> _Operator:
    i, j = draw.randint(1, 9), draw.randint(2, 4)
    words = f"a - b + {i} if a + b is even, and {j} * a + b if it is odd"
    return _Operator(sign, words, lambda a, b: a - b + i if (a + b) % 2 == 0 else j * a + b)


def _expression(draw: Random, size: int, operators: list[_Operator]) -> tuple[str, int]:
    """Return an expression in which operators are applied so many times, and its value."""
    if size == 0:
        number = draw.randint(1, 12)
        return str(number), number
    operator = draw.choice(operators)
    num_left = draw.randrange(size)
    left, a = _expression(draw, num_left, operators)
    right, b = _expression(draw, size - 1 - num_left, operators)
    left = left if num_left == 0 else f"({left})"
    right = right if num_left == size - 1 else f"({right})"
    return f"{left} {operator.sign} {right}", operator.apply(a, b)


def _make(draw: Random, level: int) -> Puzzle:
    num_operators, size = _SIZES[level]
    makers = (_linear, _remainder, _choice, _distance, _parity)
    chosen = [_linear] if num_operators == 1 else draw.sample(makers, num_operators)
    signs = draw.sample(_SIGNS, num_operators)
    operators = [make(draw, sign) for make, sign in zip(chosen, signs, strict=True)]
    expression, value = _expression(draw, size, operators)
    question = _RULES.format(
        definitions="\n".join(f"a {one.sign} b is {one.definition}." for one in operators),
        notes=_REMAINDER_NOTE if _remainder in chosen else "",
        expression=expression,
    )
    return Puzzle(question, str(value), partial(is_number, number=value))


OPERATION: Final = PuzzleKind("operation", _make, chances=(0.034, 0.02, 0.036, 0.038, 0.032))
