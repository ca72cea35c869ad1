"""Sums and differences told as a little story; this environment needs no data.

More steps and larger numbers make a story harder. No intermediate number is negative, so that every
story makes sense. The last number of a story is never its answer, so to repeat it gains nothing.
"""

import math
import random
from fractions import Fraction
from typing import Final

from fulmen.envs.number import NumberTask

_NAMES: Final = ("Tom", "Ann", "Ben", "Mia", "Leo", "Eva", "Sam", "Ida")
_THINGS: Final = ("apples", "books", "coins", "marbles", "pencils", "stamps", "shells", "cards")
_GAINS: Final = ("buys {} more", "finds {} more", "is given {} more")
_LOSSES: Final = ("gives {} away", "loses {}", "sells {}")


class Arithmetic:
    """Stories of `num_steps` additions and subtractions of numbers from 1 to `largest`."""

    num_tasks: Final = None

    def __init__(self, seed: int, *, num_steps: int = 2, largest: int = 9) -> None:
        for name, value, most in (("num_steps", num_steps, 1000), ("largest", largest, 10**9)):
            if value < 1:
                raise ValueError(f"{name} is {value}, it must be 1 or more")
            if value > most:
                raise ValueError(f"{name} is {value}, it must be at most {most}")
        self._seed = seed
        self._num_steps = num_steps
        self._largest = largest

    @property
    def chance(self) -> float:
        """Bound on the probability that one fixed number is right.

        A start is each number equally often. Every other step is a subtraction, and leaves little
        about log(largest) times as often as much; several in a row do so again and again.
        """
        part, whole = 1.0, 1.0
        for step in range(1, self._num_steps + 1):
            part *= math.log(self._largest) / 2 / step
            whole += part
        return min(1.0, whole / self._largest)

    def task(self, index: int) -> NumberTask:
        """Return the story at an index; there is no last one."""
        draw = random.Random(f"arithmetic {self._seed} {index}")
        name, things = draw.choice(_NAMES), draw.choice(_THINGS)
        have = draw.randint(1, self._largest)
        parts = [f"{name} has {have} {things}"]
        for step in range(self._num_steps):
            is_last = step == self._num_steps - 1
            if draw.random() < 0.5 and have > 1 + is_last:
                number = draw.randint(1, min(have - 1, self._largest))
                if is_last and have == 2 * number:
                    number -= 1  # else as many would be left
                have -= number
                parts.append(draw.choice(_LOSSES).format(number))
            else:
                number = draw.randint(1, self._largest)
                have += number
                parts.append(draw.choice(_GAINS).format(number))
        story = f"{', '.join(parts[:-1])}, then {parts[-1]}."
        return NumberTask(f"{story} How many {things} does {name} have now?", Fraction(have))
