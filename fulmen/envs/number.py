"""Tasks whose answer is a number: what a reply says last counts."""

import re
from dataclasses import dataclass
from fractions import Fraction

from fulmen.chat import Message, Reply, Tool

_NUMBER = re.compile(r"(?:(?<![\w)])[-\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
"""A minus behind a digit or a bracket is a difference's."""
_MARK = re.compile(r"####|\\boxed\{|\banswer\b(?: is|:)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|[\n}]")


def final_number(text: str) -> Fraction | None:
    """The number that a text ends up with: the last one in the sentence behind its last mark
    (`####` as in GSM8K, `\\boxed{`, "answer is", "answer:"), without a mark the last of all."""
    for mark in reversed(list(_MARK.finditer(text))):
        sentence = _SENTENCE_END.split(text[mark.end() :].lstrip(), maxsplit=1)[0]
        found = _NUMBER.findall(sentence)
        if found:
            return _read(found[-1])
    found = _NUMBER.findall(text)
    return _read(found[-1]) if found else None


def _read(number: str) -> Fraction:
    return Fraction(number.replace(",", "").replace("\u2212", "-"))


@dataclass(frozen=True, slots=True)
class NumberTask:
    """A question with one number as its answer."""

    question: str
    number: Fraction

    @property
    def messages(self) -> tuple[Message, ...]:
        return (Message("user", self.question),)

    @property
    def tools(self) -> tuple[Tool, ...]:
        return ()

    def score(self, reply: Reply) -> float:
        return float(final_number(reply.content) == self.number)

    def answer_of(self, reply: Reply) -> str | None:
        number = final_number(reply.content)
        return None if number is None else str(number)
