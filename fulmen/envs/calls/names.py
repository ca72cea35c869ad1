"""Names of tools, parameters, files and functions, each of which belongs to one part.

    zorbex_lookup   fetch_mido   getPrice   room_finder

Half of them are plain English, half are of syllables that mean nothing. The hash of a name is its
part, so a model that is tested meets no name that it learnt.
"""

import builtins
import sys
from collections.abc import Callable, Sequence
from keyword import kwlist
from random import Random
from typing import Final

from fulmen.envs.basics import part_of

_ONSETS: Final = (
    *("b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z"),
    *("b", "d", "g", "k", "l", "m", "n", "r", "s", "t", "br", "fl", "gr", "kl", "st", "tr"),
)
_VOWELS: Final = ("a", "e", "i", "o", "u")
_CODAS: Final = ("", "", "", "", "", "", "k", "l", "m", "n", "r", "s", "x")
_VERBS: Final = ("get", "find", "fetch", "show", "query", "read", "ask", "tell", "check", "give")
_ENDS: Final = ("lookup", "tool", "service", "finder", "query", "info", "api", "desk")
_MARKS: Final = ("1", "2", "v2", "x", "my", "the", "new", "in", "main", "our", "this", "one")
_PYTHON: Final = {*kwlist, *dir(builtins), *sys.stdlib_module_names}
_FEWEST_LETTERS: Final = 3
_MOST_DRAWS: Final = 10_000


class Names:
    """Names of one part, none of them twice."""

    def __init__(self, draw: Random, part: str) -> None:
        self._draw = draw
        self._part = part
        self._given: set[str] = set()

    def tool(self, words: Sequence[str]) -> str:
        """Return a tool's name. words: what it is about, such as price and cost"""
        return self._fresh(lambda: self._tool(words))

    def parameter(self, words: Sequence[str]) -> str:
        """Return a parameter's name. words: what it may be called, such as item and thing"""
        return self._fresh(lambda: self._parameter(words))

    def word(self, least: int = 2, most: int = 2) -> str:
        """Return a name of so many syllables alone, of three letters or more, which is none of
        Python's own."""
        while True:
            name = self._fresh(lambda: syllables(self._draw, least, most))
            if len(name) >= _FEWEST_LETTERS and name not in _PYTHON:
                return name

    def takes(self, text: str) -> bool:
        """Return whether a text is of the part."""
        return part_of(text) == self._part

    def _fresh(self, make: Callable[[], str]) -> str:
        for _ in range(_MOST_DRAWS):
            name = make()
            if name not in self._given and self.takes(name):
                self._given.add(name)
                return name
        raise AssertionError(f"no name is of the part {self._part}")

    def _tool(self, words: Sequence[str]) -> str:
        draw = self._draw
        subject = draw.choice(words) if draw.random() < 0.5 else syllables(draw)
        verb, end = draw.choice(_VERBS), draw.choice(_ENDS)
        return draw.choice(
            (
                f"{verb}_{subject}",
                f"{subject}_{end}",
                f"{verb}{subject.title().replace('_', '')}",
                f"{syllables(draw, 1, 2)}_{subject}",
                syllables(draw),
            )
        )

    def _parameter(self, words: Sequence[str]) -> str:
        draw = self._draw
        subject = draw.choice(words) if draw.random() < 0.5 else syllables(draw, 1, 2)
        mark = draw.choice(_MARKS)
        return draw.choice((subject, f"{subject}_{mark}", f"{mark}_{subject}", syllables(draw)))


def syllables(draw: Random, least: int = 2, most: int = 2) -> str:
    """Return a word that means nothing."""
    some = range(draw.randint(least, most))
    return "".join(draw.choice(_ONSETS) + draw.choice(_VOWELS) + draw.choice(_CODAS) for _ in some)
