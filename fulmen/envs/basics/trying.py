"""countdown: a number to be reached from others with + and -, by trying one way after another."""

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Final, NamedTuple

from fulmen.envs.basics.question import BasicKind, Question, placed
from fulmen.envs.logic.formula import plain_formula, tokens_of, value_of

_WAYS: Final = (
    "Make {target} from {numbers} with + and -, each number once.",
    "Reach {target} with {numbers}. Use + and -.",
    "Use {numbers} and the signs + and - to get {target}.",
    "Countdown: {numbers}. The target is {target}. Use + and -.",
)
_LARGEST: Final = 12
_MOST_STEPS: Final = 12
"""Steps of a thought; a longer one is drawn anew"""


def _countdown(draw: Random) -> Question:
    while True:
        numbers = [draw.randint(1, _LARGEST) for _ in range(draw.randint(3, 4))]
        ends = sorted({try_.end for try_ in _tried(numbers) if try_.end})
        if not ends:
            continue
        target = draw.choice(ends)
        steps, formula = _searched(numbers, target)
        if len(steps) <= _MOST_STEPS:
            break
    shown = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    text = draw.choice(_WAYS).format(target=target, numbers=shown)
    is_right = partial(_is_right, numbers=sorted(numbers), target=target)
    return Question(text, " ".join(steps), formula, _read, is_right)


class _Try(NamedTuple):
    """A step of a search."""

    step: str
    formula: str
    """All that led to it"""
    end: int | None
    """Result of a formula that has all numbers; None for one that has not"""


def _tried(numbers: list[int]) -> Iterator[_Try]:
    """Yield the steps of a search, depth first and + before -. What falls below zero is not
    followed."""
    waiting = [(str(numbers[0]), numbers[0], 1, sign) for sign in "-+"]
    while waiting:
        formula, value, place, sign = waiting.pop()
        number = numbers[place]
        result = value + number if sign == "+" else value - number
        if result < 0:
            continue
        formula = f"{formula}{sign}{number}"
        is_end = place == len(numbers) - 1
        yield _Try(f"{value}{sign}{number}={result}", formula, result if is_end else None)
        if not is_end:
            waiting += [(formula, result, place + 1, sign) for sign in "-+"]


def _searched(numbers: list[int], target: int) -> tuple[list[str], str]:
    """Return the steps up to the first formula that reaches a target, and the formula."""
    steps: list[str] = []
    for one in _tried(numbers):
        if one.end is None:
            steps.append(one.step)
        elif one.end != target:
            steps.append(f"{one.step} no")
        else:
            return [*steps, f"{one.step} yes"], one.formula
    raise AssertionError("the target is one of the ends")


def _read(reply: str) -> str | None:
    formula, _, _ = plain_formula(placed(reply) or "").partition("=")
    return formula.replace(" ", "") or None


def _is_right(formula: str, numbers: list[int], target: int) -> bool:
    tokens = tokens_of(formula)
    if tokens is None or set(tokens) & set("*/"):
        return False
    used = sorted(int(token) for token in tokens if token.isdecimal())
    return used == numbers and value_of(tokens) == target


COUNTDOWN: Final = BasicKind("countdown", _countdown)
