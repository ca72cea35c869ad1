"""story: word problems of one to three steps, each of them worked out by columns."""

from random import Random
from typing import Final

from fulmen.envs.basics.columns import difference_steps, product_steps, sum_steps
from fulmen.envs.basics.question import BasicKind, Question, read_number

_NAMES: Final = ("Tom", "Ann", "Ben", "Mia", "Leo", "Eva", "Sam", "Ida", "Max", "Lea")
_THINGS: Final = (
    *("apples", "books", "coins", "cards", "eggs", "pens", "stamps", "shells", "nuts", "balls"),
)
_GIVEN: Final = ("{who} has {a} {things}.", "At first {who} has {a} {things}.")
_PRODUCTS: Final = (
    "{who} has {b} boxes with {a} {things} in each.",
    "There are {a} {things} in each of the {b} boxes of {who}.",
    "{who} gets {a} {things} a day for {b} days.",
)
_SUMS: Final = (
    "{who} has {a} red {things} and {b} blue ones.",
    "{who} has {a} {things} at home and {b} at school.",
)
_SHARES: Final = (
    "{a} {things} are shared equally by {b} children. One of them is {who}.",
    "{who} is one of {b} children who share {a} {things} equally.",
)
_GAINS: Final = (
    "Then {who} buys {b} more.",
    "{who} finds {b} more.",
    "A friend gives {who} {b} more.",
)
_LOSSES: Final = (
    "Then {who} sells {b} of them.",
    "{who} loses {b}.",
    "{who} gives {b} to a friend.",
)
_MORE: Final = ("{other} has {b} more than {who}.", "{who} has {b} fewer than {other}.")
_FEWER: Final = ("{other} has {b} fewer than {who}.", "{who} has {b} more than {other}.")
_TIMES: Final = ("{other} has {b} times as many as {who}.",)
_ASKED: Final = (
    "How many {things} does {who} have?",
    "How many {things} does {who} have now?",
    "How many {things} has {who}?",
)
_MOST: Final = 200
"""Largest number of things before the last step"""


class _Teller:
    """A story while it is told."""

    def __init__(self, draw: Random) -> None:
        self._draw = draw
        self._who, *self._others = draw.sample(_NAMES, 4)
        self._things = draw.choice(_THINGS)
        self._count = 0
        self._sentences: list[str] = []
        self._steps: list[str] = []

    def tell(self, num_steps: int) -> Question:
        """Return the story of so many steps."""
        draw = self._draw
        if draw.random() < 0.5:
            self._count = draw.randint(2, 99)
            self._say(_GIVEN, a=self._count)
        else:
            draw.choice((self._multiply, self._join, self._share))()
        while len(self._steps) < num_steps:
            self._turn()
        self._say(_ASKED)
        text = " ".join(self._sentences)
        return Question(text, "; ".join(self._steps), str(self._count), read_number)

    def _say(self, ways: tuple[str, ...], **words: object) -> None:
        said = self._draw.choice(ways)
        self._sentences.append(said.format(who=self._who, things=self._things, **words))

    def _multiply(self) -> None:
        a, b = self._draw.randint(2, 20), self._draw.randint(2, 9)
        self._say(_PRODUCTS, a=a, b=b)
        self._times(a, b)

    def _join(self) -> None:
        a, b = self._draw.randint(2, 99), self._draw.randint(2, 99)
        self._say(_SUMS, a=a, b=b)
        self._add(a, b)

    def _share(self) -> None:
        self._count, b = self._draw.randint(2, 9), self._draw.randint(2, 9)
        a = self._count * b
        self._say(_SHARES, a=a, b=b)
        self._steps.append(f"{a}/{b}={self._count}")

    def _turn(self) -> None:
        """Take one more step: a gain or a loss, or go on to somebody who is compared."""
        kinds = ["gain", "more"] if self._count < _MOST else []
        if self._count > 2:
            kinds += ["loss", "fewer"]
        if self._count < _MOST // 4:
            kinds.append("times")
        kind = self._draw.choice(kinds)
        if kind in ("gain", "more"):
            number = self._draw.randint(2, 99)
        elif kind == "times":
            number = self._draw.randint(2, 5)
        else:
            number = self._draw.randint(1, min(self._count - 1, 99))
        if kind in ("gain", "loss"):
            self._say(_GAINS if kind == "gain" else _LOSSES, b=number)
        else:
            other = self._others.pop()
            ways = {"more": _MORE, "fewer": _FEWER, "times": _TIMES}[kind]
            self._say(ways, b=number, other=other)
            self._who = other
        if kind == "times":
            self._times(self._count, number)
        elif kind in ("gain", "more"):
            self._add(self._count, number)
        else:
            self._subtract(self._count, number)

    def _add(self, a: int, b: int) -> None:
        self._count = a + b
        self._steps.append(f"{a}+{b}: {sum_steps(a, b)} {self._count}")

    def _subtract(self, a: int, b: int) -> None:
        self._count = a - b
        self._steps.append(f"{a}-{b}: {difference_steps(a, b)} {self._count}")

    def _times(self, a: int, b: int) -> None:
        self._count = a * b
        self._steps.append(f"{a}*{b}: {product_steps(a, b)} {self._count}")


def _story(draw: Random) -> Question:
    return _Teller(draw).tell(draw.randint(1, 3))


STORY: Final = BasicKind("story", _story, chance=0.05)
