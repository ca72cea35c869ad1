"""Problems without end, made by rules: what small models can be seen to learn, or not.

Each generator draws a problem from a seed and an index. A problem has a prompt, a trace of steps a
small model can take one by one, and an answer. The traces are those that worked on models of 4 to 9
million parameters: copies carry index marks, sums go column by column, sorting takes the smallest
of what is left.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_CHARACTERS: Final = _LETTERS + "0123456789"


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt, the steps to its answer (empty where there are none), and the answer."""

    prompt: str
    trace: str
    answer: str


def copy(draw: random.Random, size: int) -> Problem:
    """Return a string of letters and digits to say again."""
    text = "".join(draw.choices(_CHARACTERS, k=size))
    return Problem(f"copy {text}", "", text)


def spell(draw: random.Random, size: int) -> Problem:
    """Return a string to say again by index: repeats inside it cannot be lost."""
    text = "".join(draw.choices(_CHARACTERS, k=size))
    return Problem(f"spell {text}", " ".join(f"{i}{c}" for i, c in enumerate(text)), text)


def reverse(draw: random.Random, size: int) -> Problem:
    """Return a string to say backwards, by index."""
    text = "".join(draw.choices(_LETTERS, k=size))
    turned = text[::-1]
    return Problem(f"reverse {text}", " ".join(f"{i}{c}" for i, c in enumerate(turned)), turned)


def add(draw: random.Random, size: int) -> Problem:
    """Return a sum of two numbers of at most `size` digits, by columns with carries."""
    first, second = (_number(draw, size) for _ in range(2))
    steps, digits, carry = [], "", 0
    for a, b in _columns(first, second):
        total = a + b + carry
        steps.append(f"{a}+{b}+{carry}={total:02}")
        digits, carry = digits + str(total % 10), total // 10
    digits += str(carry) * (carry > 0)
    answer = str(first + second)
    return Problem(f"{first}+{second}=", f"{' '.join(steps)} {digits}", answer)


def sub(draw: random.Random, size: int) -> Problem:
    """Return a difference of two numbers of at most `size` digits that is not negative."""
    first, second = sorted((_number(draw, size) for _ in range(2)), reverse=True)
    steps, digits, borrow = [], "", 0
    for a, b in _columns(first, second):
        left = a - b - borrow
        now = int(left < 0)
        steps.append(f"{a}-{b}-{borrow}={left % 10}{now}")
        digits, borrow = digits + str(left % 10), now
    return Problem(f"{first}-{second}=", f"{' '.join(steps)} {digits}", str(first - second))


def mul(draw: random.Random, size: int) -> Problem:
    """Return a product of a number of at most `size` digits and one digit."""
    first, second = _number(draw, size), draw.randint(0, 9)
    steps, digits, carry = [], "", 0
    for a in map(int, reversed(str(first))):
        total = a * second + carry
        steps.append(f"{a}*{second}+{carry}={total:02}")
        digits, carry = digits + str(total % 10), total // 10
    digits += str(carry) * (carry > 0)
    return Problem(f"{first}*{second}=", f"{' '.join(steps)} {digits}", str(first * second))


def sort(draw: random.Random, size: int) -> Problem:
    """Return numbers up to 99 to put in order: what is left, then the smallest of it."""
    numbers = [draw.randint(0, 99) for _ in range(size)]
    left, steps = list(numbers), []
    while left:
        smallest = min(left)
        steps.append(f"{' '.join(map(str, left))}>{smallest}")
        left.remove(smallest)
    answer = " ".join(map(str, sorted(numbers)))
    return Problem(f"sort {' '.join(map(str, numbers))}", "; ".join(steps), answer)


def countdown(draw: random.Random, size: int) -> Problem:
    """Return numbers to reach a target from with + and -: signs are tried in a fixed order."""
    numbers = [draw.randint(1, 20) for _ in range(max(size, 2))]
    patterns = range(2 ** (len(numbers) - 1))
    target = _signed(numbers, draw.choice(patterns))[1]
    steps = []
    for pattern in patterns:
        text, value = _signed(numbers, pattern)
        steps.append(f"{text}={value}")
        if value == target:
            break
    return Problem(f"reach {target} from {' '.join(map(str, numbers))}", "; ".join(steps), text)


GENERATORS: Final[Mapping[str, Callable[[random.Random, int], Problem]]] = {
    made.__name__: made for made in (copy, spell, reverse, add, sub, mul, sort, countdown)
}
"""Generators by name; each takes a source of random numbers and a size."""


def make_problem(generator: str, seed: int, index: int, smallest: int, largest: int) -> Problem:
    """Return the problem at an index, of a size from smallest to largest, always the same one."""
    draw = random.Random(f"{generator} {seed} {index}")
    return GENERATORS[generator](draw, draw.randint(smallest, largest))


def _number(draw: random.Random, size: int) -> int:
    """Return a number whose number of digits is drawn first: short ones are as frequent as long
    ones."""
    return draw.randrange(10 ** draw.randint(1, size))


def _columns(first: int, second: int) -> list[tuple[int, int]]:
    """Return the digits of two numbers, least first, the shorter one with zeros."""
    width = max(len(str(first)), len(str(second)))
    texts = [f"{number:0{width}}"[::-1] for number in (first, second)]
    return [(int(a), int(b)) for a, b in zip(*texts, strict=True)]


def _signed(numbers: list[int], pattern: int) -> tuple[str, int]:
    """Return numbers joined by the signs of a pattern, a set bit for each minus, and the value."""
    text, value = str(numbers[0]), numbers[0]
    for place, number in enumerate(numbers[1:]):
        is_minus = bool(pattern >> place & 1)
        text += f"{'-' if is_minus else '+'}{number}"
        value += -number if is_minus else number
    return text, value
