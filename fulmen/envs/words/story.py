"""Stories of steps from a frame: a quantity begins, and every step is a sentence that changes it.

draw, frame, number of steps -> sentences, the quantity that is asked for
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Final

from fulmen.envs.words.frames import Frame

_GIVEN: Final = (
    "{who} {has} {q}.",
    "It is known that {who} {has} {q}.",
    "At first {who} {has} {q}.",
)
_MORE: Final = (
    "{x} {has} {n} more{of} than {y}.",
    "Compared with {y}, {x} {has} {n} more{of}.",
)
_LESS: Final = (
    "{x} {has} {n} {fewer}{of} than {y}.",
    "Compared with {y}, {x} {has} {n} {fewer}{of}.",
)
_TIMES: Final = (
    "{x} {has} {n} times as {many}{of} as {y}.",
    "{x} {has} as {many}{of} as {y}, {n} times over.",
)
_SHARE_LOST: Final = (
    "Then {who} {loses} {share} of what {who} {has}.",
    "{share} of what {who} {has} is gone after that.",
    "After that {who} is without {share} of what {who} had.",
)
_SHARE_KEPT: Final = (
    "Then {who} {loses} all but {share} of what {who} {has}.",
    "{share} of what {who} {has} is all that remains after that.",
    "After that {who} is left with {share} of what {who} had.",
)
_GROWN: Final = (
    "Then what {who} {has} grows by {share}.",
    "After a while {who} {has} {share} more than before.",
)
_PERCENTS: Final = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80)
_SHARES: Final = tuple(
    map(Fraction, ("1/2", "1/3", "2/3", "1/4", "3/4", "1/5", "2/5", "3/5", "4/5", "1/8", "3/8"))
)
_PARTS: Final = tuple(map(Fraction, ("0", "1/2", "1/4", "3/4", "1/3", "2/3")))
"""Fractions that measures have at high levels"""
_MOST: Final = 100_000


@dataclass(frozen=True, slots=True)
class Story:
    """Text of what happens and is asked, with its answer."""

    text: str
    number: Fraction
    frame: Frame
    things: str


def make_story(draw: Random, frame: Frame, num_steps: int, level: int) -> Story:
    """Return a story of so many steps. Levels 4 and 5 have cents, fractions and shares."""
    return _Teller(draw, frame, level).tell(num_steps)


def spelled(number: Fraction) -> str:
    """Return a number as a story has it: 12, 3/4 or 1 1/2."""
    whole, part = divmod(number, 1)
    if part == 0:
        return str(whole)
    return f"{whole} {part}" if whole else str(part)


class _Teller:
    """A story while it is told: its holders, and the quantity of the one it is about."""

    def __init__(self, draw: Random, frame: Frame, level: int) -> None:
        self._draw = draw
        self._frame = frame
        self._level = level
        self._things = draw.choice(frame.things)
        self._others = draw.sample(frame.holders, min(4, len(frame.holders)))
        self._who = self._others.pop()
        self._q = Fraction(0)
        self._has_changed = False

    def tell(self, num_steps: int) -> Story:
        """Return the story."""
        sentences = []
        if self._draw.random() < 0.4:
            self._q = self._drawn()
            sentences.append(
                self._say(_GIVEN, q=self._amount(self._q), who=self._who, has=self._frame.has)
            )
        else:
            sentences.append(self._start())
            num_steps -= 1
        sentences += [self._turn() for _ in range(num_steps)]
        now = "now" if self._has_changed and self._draw.random() < 0.5 else ""
        asked = self._say(self._frame.asks, who=self._who, things=self._things, now=now)
        text = " ".join([*sentences, asked]).replace(" ?", "?").replace(" .", ".")
        return Story(text.replace(" ,", ","), self._q, self._frame, self._things)

    def _drawn(self, most: int | None = None) -> Fraction:
        """Return a quantity at random."""
        draw, most = self._draw, most or (20, 40, 100, 200, 400)[self._level - 1]
        if self._frame.kind == "money" and self._level >= 4:
            return Fraction(draw.randint(200, most * 100), 100)
        if self._frame.kind == "measure" and self._level >= 4:
            return draw.randint(2, max(most // 4, 3)) + draw.choice(_PARTS)
        return Fraction(draw.randint(3, most))

    def _amount(self, number: Fraction, *, with_things: bool = True) -> str:
        """Return a quantity as this frame writes it."""
        if self._frame.kind == "money":
            return f"${number}" if number.denominator == 1 else f"${float(number):.2f}"
        return f"{spelled(number)} {self._things}" if with_things else spelled(number)

    def _say(self, ways: Sequence[str], **words: str) -> str:
        """Return a sentence in one of several ways."""
        said = self._draw.choice(ways).format(**words)
        return said[0].upper() + said[1:]

    def _start(self) -> str:
        """Begin with one step of two numbers."""
        draw, frame = self._draw, self._frame
        kind = draw.choice(("products", "quotients", "sums", "rests"))
        is_count = frame.kind == "count"
        if kind == "products":
            times, one = draw.randint(2, 4 + 3 * self._level), self._drawn()
            self._q = times * one
            first, second = str(times), self._amount(one, with_things=not is_count)
        elif kind == "quotients":
            times, one = draw.randint(3, 4 + 3 * self._level), self._drawn()
            self._q = one
            first, second = self._amount(times * one, with_things=not is_count), str(times)
            return self._told(kind, first, second, b_less=str(times - 1))
        else:
            left, right = self._drawn(), self._drawn()
            if kind == "rests":
                self._q, left = left, left + right
            else:
                self._q = left + right
            first = self._amount(left, with_things=not is_count)
            second = self._amount(right, with_things=not is_count)
        return self._told(kind, first, second)

    def _told(self, kind: str, first: str, second: str, **words: str) -> str:
        ways: Sequence[str] = getattr(self._frame, kind)
        return self._say(ways, who=self._who, things=self._things, a=first, b=second, **words)

    def _turn(self) -> str:
        """Take one more step."""
        kinds = ["gain", "loss", "more", "less", "times", "part"]
        if self._level >= 4:
            kinds += ["lost", "kept", "grown"]
        self._draw.shuffle(kinds)
        for kind in kinds:
            sentence = {
                "gain": self._gain,
                "loss": self._loss,
                "more": self._more,
                "less": self._less,
                "times": self._times,
                "part": self._part,
                "lost": self._lost,
                "kept": self._kept,
                "grown": self._grown,
            }[kind]()
            if sentence is not None:
                return sentence
        return self._gain()  # it is always possible

    def _gain(self) -> str:
        number = self._drawn()
        self._q += number
        return self._changed(self._frame.gains, number)

    def _loss(self) -> str | None:
        number = self._drawn()
        if number >= self._q:
            return None
        self._q -= number
        return self._changed(self._frame.losses, number)

    def _changed(self, ways: Sequence[str], number: Fraction) -> str:
        self._has_changed = True
        n = self._amount(number, with_things=self._frame.kind != "count")
        return self._say(ways, who=self._who, things=self._things, n=n)

    def _more(self) -> str | None:
        """Go to somebody who has more."""
        return self._compared(self._drawn())

    def _less(self) -> str | None:
        """Go to somebody who has less."""
        number = self._drawn()
        return None if number >= self._q else self._compared(-number)

    def _compared(self, number: Fraction) -> str | None:
        if not self._others:
            return None
        old, self._who = self._who, self._others.pop()
        self._q += number
        self._has_changed = False
        amount = self._amount(abs(number), with_things=False)
        if self._frame.kind == "measure":
            amount = self._amount(abs(number))
        # The new one has more than the old one, or the old one has less than the new one.
        is_about_new = self._draw.random() < 0.5
        ways = _MORE if is_about_new == (number > 0) else _LESS
        return self._between(ways, old, amount, is_about_new)

    def _times(self) -> str | None:
        """Go to somebody who has several times as much."""
        times = self._draw.randint(2, 5)
        if not self._others or self._q * times > _MOST:
            return None
        old, self._who = self._who, self._others.pop()
        self._q *= times
        self._has_changed = False
        return self._between(_TIMES, old, str(times), True)

    def _part(self) -> str | None:
        """Go to somebody of whom the one before has several times as much."""
        fitting = [n for n in range(2, 10) if self._fits(self._q / n)]
        if not self._others or not fitting:
            return None
        times = self._draw.choice(fitting)
        old, self._who = self._who, self._others.pop()
        self._q /= times
        self._has_changed = False
        return self._between(_TIMES, old, str(times), False)

    def _between(self, ways: Sequence[str], old: str, n: str, is_about_new: bool) -> str:
        is_count = self._frame.kind == "count"
        return self._say(
            ways,
            x=self._who if is_about_new else old,
            y=old if is_about_new else self._who,
            has=self._frame.has,
            n=n,
            of=f" {self._things}" if is_count else "",
            fewer="fewer" if is_count else "less",
            many="many" if is_count else "much",
        )

    def _lost(self) -> str | None:
        """Lose a share."""
        return self._shared(_SHARE_LOST, lambda share: 1 - share)

    def _kept(self) -> str | None:
        """Keep a share."""
        return self._shared(_SHARE_KEPT, lambda share: share)

    def _grown(self) -> str | None:
        """Grow by some per cent."""
        fitting = [p for p in _PERCENTS if self._fits(self._q * (100 + p) / 100)]
        if not fitting or 2 * self._q > _MOST:
            return None
        percent = self._draw.choice(fitting)
        self._q = self._q * (100 + percent) / 100
        self._has_changed = True
        return self._say(_GROWN, who=self._who, has=self._frame.has, share=self._percent(percent))

    def _shared(self, ways: Sequence[str], left: Callable[[Fraction], Fraction]) -> str | None:
        percents = [Fraction(percent, 100) for percent in _PERCENTS]
        is_percent = self._draw.random() < 0.5
        shares = percents if is_percent else _SHARES
        fitting = [share for share in shares if self._fits(self._q * left(share))]
        if not fitting:
            return None
        share = self._draw.choice(fitting)
        self._q *= left(share)
        self._has_changed = True
        said = self._percent(int(share * 100)) if is_percent else str(share)
        frame = self._frame
        return self._say(ways, who=self._who, has=frame.has, loses=frame.loses, share=said)

    def _percent(self, percent: int) -> str:
        return f"{percent}%" if self._draw.random() < 0.5 else f"{percent} per cent"

    def _fits(self, number: Fraction) -> bool:
        """Return True for a quantity that this frame can have at this level."""
        if self._level < 4 or self._frame.kind == "count":
            return number.denominator == 1
        if self._frame.kind == "money":
            return (number * 100).denominator == 1
        return number.denominator <= 24
