"""add, subtract, multiply and long_multiply: whole numbers by columns."""

from collections.abc import Sequence
from random import Random
from typing import Final

from fulmen.envs.basics.columns import (
    difference_steps,
    long_product_steps,
    product_steps,
    sum_steps,
)
from fulmen.envs.basics.question import BasicKind, Question, read_number

_ADD: Final = (
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a}+{b}=",
    "Add {a} and {b}.",
    "How much is {a} plus {b}?",
    "Please calculate {a} + {b}.",
    "What is the sum of {a} and {b}?",
    "Was ist {a} + {b}?",
    "Wie viel ist {a} plus {b}?",
    "Addiere {a} und {b}.",
)
_SUBTRACT: Final = (
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a}-{b}=",
    "Subtract {b} from {a}.",
    "How much is {a} minus {b}?",
    "Please calculate {a} - {b}.",
    "What is the difference between {a} and {b}?",
    "Was ist {a} - {b}?",
    "Wie viel ist {a} minus {b}?",
    "Subtrahiere {b} von {a}.",
)
_MULTIPLY: Final = (
    "What is {a} * {b}?",
    "{a} * {b}",
    "{a}*{b}=",
    "Multiply {a} by {b}.",
    "How much is {a} times {b}?",
    "Please calculate {a} * {b}.",
    "What is the product of {a} and {b}?",
    "Was ist {a} * {b}?",
    "Wie viel ist {a} mal {b}?",
    "Multipliziere {a} mit {b}.",
)


def _add(draw: Random) -> Question:
    a, b = _number(draw, 6), _number(draw, 6)
    return _question(draw, _ADD, a, b, sum_steps(a, b), a + b)


def _subtract(draw: Random) -> Question:
    b, a = sorted((_number(draw, 6), _number(draw, 6)))
    return _question(draw, _SUBTRACT, a, b, difference_steps(a, b), a - b)


def _multiply(draw: Random) -> Question:
    a, b = _number(draw, 5), draw.randint(2, 9)
    return _question(draw, _MULTIPLY, a, b, product_steps(a, b), a * b)


def _long_multiply(draw: Random) -> Question:
    a, b = _number(draw, 3), draw.randint(11, 99)
    return _question(draw, _MULTIPLY, a, b, long_product_steps(a, b), a * b)


def _number(draw: Random, most_digits: int) -> int:
    """Return a number from 1, whose number of digits is drawn first: short ones are as frequent as
    long ones."""
    return draw.randrange(1, 10 ** draw.randint(1, most_digits))


def _question(
    draw: Random, ways: Sequence[str], a: int, b: int, thought: str, result: int
) -> Question:
    text = draw.choice(ways).format(a=a, b=b)
    return Question(text, thought, str(result), read_number)


SUMS: Final = (
    BasicKind("add", _add, chance=0.02),
    BasicKind("subtract", _subtract, chance=0.04),
    BasicKind("multiply", _multiply, chance=0.03),
    BasicKind("long_multiply", _long_multiply, chance=0.02),
)
