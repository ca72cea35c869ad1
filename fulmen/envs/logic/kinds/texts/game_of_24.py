"""game_of_24: a formula of given numbers that has a given value, 24 at the lower levels."""

from collections import Counter
from functools import partial
from itertools import pairwise
from random import Random
from typing import Final

from fulmen.envs.logic.formula import plain_formula, tokens_of, value_of
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {1: (2, 90), 2: (3, 20), 3: (4, 13), 4: (5, 30), 5: (6, 99)}
"""Count of the numbers and the largest of them, by level"""
_TARGETS: Final = {1: (24, 24), 2: (24, 24), 3: (24, 24), 4: (24, 99), 5: (100, 999)}
_TRIES: Final = 100
_RULES: Final = """\
Make {target} from the numbers {numbers}. Use every one of them exactly once, and no other number. \
You may add (+), subtract (-), multiply (*) and divide (/), and set brackets. Results on the way \
may be fractions or negative. Numbers may not be joined to longer ones, and there are no signs: - \
stands between two values.

The answer is one formula, such as {example}."""


def _split(draw: Random, total: int) -> tuple[int, str, int]:
    """Return two numbers and the operator that makes the total of them."""
    factors = [i for i in range(2, 13) if total % i == 0 and total > i]
    operators = "-/" if total == 1 else "++--/"
    operator = draw.choice(operators + "*" * (2 if total > 40 else 1) if factors else operators)
    if operator == "+":
        left = draw.randrange(1, total)
        return left, operator, total - left
    if operator == "-":
        right = draw.randint(1, 20)
        return total + right, operator, right
    if operator == "/":
        right = draw.randint(2, 6)
        return total * right, operator, right
    factor = draw.choice(factors)
    left = draw.choice((factor, total // factor))
    return left, operator, total // left


def _formula(draw: Random, target: int, size: int, largest: int) -> list[str]:
    """Return the tokens of a formula that has the target as its value. The target is split again
    and again; if that leaves too large numbers every time, it is split into a sum."""
    for _ in range(_TRIES):
        tokens = [str(target)]
        for num in range(size - 1):
            places = [i for i, token in enumerate(tokens) if token.isdecimal()]
            place = max(places, key=lambda i: int(tokens[i]))
            left, operator, right = _split(draw, int(tokens[place]))
            new = [str(left), operator, str(right)]
            tokens[place : place + 1] = new if num == 0 else ["(", *new, ")"]
        if all(int(token) <= largest for token in tokens if token.isdecimal()):
            return tokens
    cuts = [target * i // size for i in range(size + 1)]  # as near to equal as whole numbers are
    return " + ".join(str(b - a) for a, b in pairwise(cuts)).split()


def _is_right(answer: str, numbers: Counter[str], target: int) -> bool:
    formula, equals, result = plain_formula(answer).partition("=")
    if equals and result.strip() != str(target):
        return False
    tokens = tokens_of(formula)
    if tokens is None or Counter(token for token in tokens if token.isdecimal()) != numbers:
        return False
    return value_of(tokens) == target


def _make(draw: Random, level: int) -> Puzzle:
    size, largest = _SIZES[level]
    target = draw.randint(*_TARGETS[level])
    tokens = _formula(draw, target, size, largest)
    numbers = [token for token in tokens if token.isdecimal()]
    draw.shuffle(numbers)
    example = "9 - 2" if size == 2 else "(9 - 2) * 3"
    question = _RULES.format(target=target, numbers=", ".join(numbers), example=example)
    answer = " ".join(tokens).replace("( ", "(").replace(" )", ")")
    return Puzzle(question, answer, partial(_is_right, numbers=Counter(numbers), target=target))


GAME_OF_24: Final = PuzzleKind("game_of_24", _make, chances=(0.085, 0.075, 0.045, 0.0, 0.0))
