"""Tasks whose answer is a number: the last number that a reply states."""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.spelling import plain, spelled_numbers
from fulmen.envs.task import Task

_LONGEST: Final = 20_000
"""Characters at the end of a reply that are read"""
_REACH: Final = 300
"""Characters after a mark within which its numbers begin"""
_MOST_MARKS: Final = 20
_WINDOW: Final = 3_000
"""Characters before the last digit; numbers are shorter"""
_MARK: Final = re.compile(
    r"####(?![ \t#*_]{0,9}(?:[A-Za-z]|\d{1,3}[.)] +\S))"  # and no heading such as #### Step 2
    r"|\\(?:boxed|fbox) ?\{|\banswer\b[*_ ]{0,4}(?:is\b|:|=)",
    re.IGNORECASE,
)
_SENTENCE_END: Final = re.compile(r"[.!?](?=[\s*_\"')\]]|\Z)|\n")
_BRACE: Final = re.compile(r"[{}]")


def final_number(text: str) -> Fraction | None:
    """Return the number that a text states last; None if it has none that can be read.

    It is the last number of the box or sentence after the last mark that has one (`####` as in
    GSM8K, but no heading, `\\boxed{`, "answer is", "answer:"), and without a mark the last number
    of the text.
    """
    text = plain(text[-_LONGEST:])
    for mark in reversed(list(_MARK.finditer(text))[-_MOST_MARKS:]):
        begin = mark.end()
        if mark[0].endswith("{"):
            numbers = spelled_numbers(text, begin, _closing(text, begin))
        else:
            numbers = spelled_numbers(text, begin, begin + _REACH)
            ended = _SENTENCE_END.search(text, numbers[0].end) if numbers else None
            if ended is not None:
                numbers = [number for number in numbers if number.begin < ended.start()]
        if numbers:
            return numbers[-1].value
    last = next((i for i in reversed(range(len(text))) if text[i].isnumeric()), 0)
    numbers = spelled_numbers(text, max(0, last - _WINDOW))
    return numbers[-1].value if numbers else None


def _closing(text: str, begin: int) -> int:
    """Return the place of the brace that closes a box; a box that nothing closes is soon over."""
    depth = 1
    for brace in _BRACE.finditer(text, begin, begin + _REACH):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return min(begin + _REACH, len(text))


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
        return (Message("assistant", f"The answer is {written_number(self.number)}."),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if the last number of the last answer is the number, else 0."""
        return Score(float(_number_of(trajectory) == self.number))

    def answer_of(self, trajectory: Trajectory) -> str | None:
        """Return the last number of the last answer; None if there is none."""
        number = _number_of(trajectory)
        return None if number is None else str(number)


def written_number(number: Fraction) -> str:
    """Return a number with a point if it ends after some digits, else as a fraction."""
    for places in range(40):
        shifted = number * 10**places
        if shifted.denominator == 1:
            digits = str(abs(shifted.numerator)).rjust(places + 1, "0")
            point = f".{digits[-places:]}" if places else ""
            sign = "-" if number < 0 else ""
            return f"{sign}{digits[: len(digits) - places]}{point}"
    return str(number)


def _number_of(trajectory: Trajectory) -> Fraction | None:
    return None if trajectory.reply is None else final_number(trajectory.reply.content)
