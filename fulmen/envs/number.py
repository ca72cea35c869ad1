"""Tasks whose answer is a number: the last number that a reply states."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.task import Task

_NUMBER = re.compile(r"(?:(?<![\w)])[-\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
"""Number with an optional sign; a minus after a digit or a bracket is a subtraction instead."""
_MARK = re.compile(r"####|\\boxed\{|\banswer\b(?: is|:)", re.IGNORECASE)
_LONGEST_NUMBER = 1000
"""Characters of a number that can be an answer; Python refuses to read 4,300 digits."""
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|[\n}]")


def final_number(text: str) -> Fraction | None:
    """Return the number that a text states last; None if it has none.

    It is the last number of the sentence after the last mark (`####` as in GSM8K, `\\boxed{`,
    "answer is", "answer:"), and without a mark the last number of the text.
    """
    for mark in reversed(list(_MARK.finditer(text))):
        sentence = _SENTENCE_END.split(text[mark.end() :].lstrip(), maxsplit=1)[0]
        found = _NUMBER.findall(sentence)
        if found:
            return _read(found[-1])
    found = _NUMBER.findall(text)
    return _read(found[-1]) if found else None


def _read(number: str) -> Fraction | None:
    if len(number) > _LONGEST_NUMBER:
        return None
    return Fraction(number.replace(",", "").replace("\u2212", "-"))


@dataclass(frozen=True)
class NumberTask(Task):
    """Question whose answer is one number."""

    question: str
    number: Fraction

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question, as a user's message."""
        return (Message("user", self.question),)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """The number, as an answer of a model."""
        return (Message("assistant", f"The answer is {_written(self.number)}."),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if the last number of the last answer is the number, else 0."""
        return Score(float(_number_of(trajectory) == self.number))

    def answer_of(self, trajectory: Trajectory) -> str | None:
        """Return the last number of the last answer; None if there is none."""
        number = _number_of(trajectory)
        return None if number is None else str(number)


def _written(number: Fraction) -> str:
    """Return a number as `final_number` reads it."""
    if number.denominator == 1:
        return str(number.numerator)
    return f"{Decimal(number.numerator) / Decimal(number.denominator):f}"


def _number_of(trajectory: Trajectory) -> Fraction | None:
    return None if trajectory.reply is None else final_number(trajectory.reply.content)
