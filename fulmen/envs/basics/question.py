"""A short question with the thought that leads to its answer, and a kind of such questions."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from fulmen.envs.logic.reading import bare
from fulmen.envs.marked import marked_answer
from fulmen.envs.number import final_number
from fulmen.envs.spelling import whole_number

_LONGEST: Final = 400
"""Characters of an answer; no right one comes near"""


@dataclass(frozen=True, slots=True)
class Question:
    """A question that has a right answer, or several."""

    text: str
    thought: str
    """Steps to the answer, each of which a small model can take"""
    answer: str
    """One right reply"""
    read: Callable[[str], str | None]
    """Reader of a reply: the answer in one spelling; None if there is none"""
    is_right: Callable[[str], bool] | None = None
    """Verifier of an answer that was read; None where only the one above is right"""
    asked: str | None = None
    """Content, where the thought and the answer do not tell it apart from others"""

    @property
    def content(self) -> str:
        """Text that two questions share if they ask the same in other words."""
        return f"{self.thought}\n{self.answer}" if self.asked is None else self.asked

    def is_answered_by(self, reply: str) -> bool:
        """Return True for a reply whose answer is right."""
        given = self.read(reply)
        if given is None:
            return False
        return given == self.read(self.answer) if self.is_right is None else self.is_right(given)


@dataclass(frozen=True, slots=True)
class BasicKind:
    """Questions of one name, at the one difficulty that is claimed for them."""

    name: str
    make: Callable[[Random], Question]
    """The question of a random draw; it always ends, and soon"""
    chance: float = 0.0
    """Bound on the probability that one fixed answer is right: 0.5 for True or False"""


def read_number(reply: str) -> str | None:
    """Return the number that a reply states last."""
    number = final_number(reply)
    return None if number is None else str(number)


def read_value(reply: str) -> str | None:
    """Return the number that stands after `Answer:`, or that is the whole reply."""
    number = whole_number(placed(reply) or "")
    return None if number is None else str(number)


def read_line(reply: str) -> str | None:
    """Return what stands after `Answer:`, or else the whole reply, without quotes around it."""
    return bare(placed(reply) or "") or None


def placed(reply: str) -> str | None:
    """Return what stands after `Answer:`, or else the whole reply; None if it is too long."""
    said = marked_answer(reply) or reply
    return said if len(said) <= _LONGEST else None
