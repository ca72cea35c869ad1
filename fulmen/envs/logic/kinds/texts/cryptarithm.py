"""cryptarithm: digits for letters that make an equation true."""

import re
from collections.abc import Mapping
from functools import partial
from math import prod
from random import Random
from string import ascii_uppercase
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import bare

_SIZES: Final = {
    1: ((1, 1), "+", 1),
    2: ((2, 2), "+", 2),
    3: ((3, 3), "+", 4),
    4: ((4, 4, 4), "+", 9),
}
_HARDEST: Final = ((3, 2), "*", 10)
"""Digits of the numbers on the left, the operator, and letters whose digit is not told, by level"""
_PAIR: Final = r"([A-Z]) ?(?:=|:|->|→|IS) ?([0-9])"
_PAIRS: Final = re.compile(rf"{_PAIR}(?:(?: ?[,;] ?| ){_PAIR}){{0,9}}")
_RULES: Final = """\
Each letter stands for one digit, the same one everywhere, and different letters stand for \
different digits. No number of several digits begins with 0. This equation is true:

{equation}
{hints}
Which digits do the letters stand for? If several solutions are right, give one. The answer has \
every letter of the equation with its digit, such as {example}."""


def _equation(numbers: tuple[str, ...], operator: str) -> str:
    return f"{f' {operator} '.join(numbers[:-1])} = {numbers[-1]}"


def _is_true(numbers: list[int], operator: str) -> bool:
    result = sum(numbers[:-1]) if operator == "+" else prod(numbers[:-1])
    return result == numbers[-1]


def _is_right(
    answer: str, numbers: tuple[str, ...], operator: str, hints: Mapping[str, str]
) -> bool:
    text = re.sub(r"[\"'{}()]", "", bare(answer).upper())
    text = " ".join(text.split())
    if _PAIRS.fullmatch(text) is None:
        return False
    pairs = re.findall(_PAIR, text)
    digits = dict(pairs)
    letters = set("".join(numbers))
    if not (len(pairs) == len(digits) == len(set(digits.values())) and set(digits) == letters):
        return False
    if any(digits[letter] != digit for letter, digit in hints.items()):
        return False
    written = [number.translate(str.maketrans(digits)) for number in numbers]
    if any(len(number) > 1 and number[0] == "0" for number in written):
        return False
    return _is_true([int(number) for number in written], operator)


def _make(draw: Random, level: int) -> Puzzle:
    sizes, operator, num_unknown = _SIZES.get(level, _HARDEST)
    left = [draw.randrange(10 ** (size - 1), 10**size) for size in sizes]
    result = sum(left) if operator == "+" else prod(left)
    written = [str(number) for number in (*left, result)]
    names = dict(zip("0123456789", draw.sample(ascii_uppercase, 10), strict=True))
    numbers = tuple("".join(names[digit] for digit in number) for number in written)
    digits = {names[digit]: digit for number in written for digit in number}
    known = draw.sample(list(digits), max(0, len(digits) - num_unknown))
    hints = {letter: digits[letter] for letter in known}
    told = ", ".join(f"{letter} is {digit}" for letter, digit in hints.items())
    question = _RULES.format(
        equation=_equation(numbers, operator),
        hints=f"\n{told}.\n" if hints else "",
        example="A=3, B=0, C=5",
    )
    answer = ", ".join(f"{letter}={digit}" for letter, digit in digits.items())
    check = partial(_is_right, numbers=numbers, operator=operator, hints=hints)
    return Puzzle(question, answer, check)


CRYPTARITHM: Final = PuzzleKind("cryptarithm", _make)
