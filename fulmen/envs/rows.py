"""Tasks of rows: a question, its answer, and the verifier that the row names.

    row -> read_row -> NumberTask, RowTask or FunctionTask

A verifier is a row of VERIFIERS. Patterns and functions of users run in a worker process, with a
time limit; a row cannot name a function, only Python code can.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.marked import ASKED, ASKED_LINES, marked_answer
from fulmen.envs.number import NumberTask, final_number
from fulmen.envs.task import Task
from fulmen.envs.workers import WorkerError, shared_workers
from fulmen.files import shorten

_LONGEST: Final = 20_000
"""Characters of a reply that are read"""
_LONGEST_PATTERN: Final = 1000
_PATTERN_SECONDS: Final = 1.0
_FUNCTION_SECONDS: Final = 10.0
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CHOICE: Final = re.compile(r"\(?([A-Za-z])\)?(?:[.):]?\s*\Z|[.):]\s|\)\s)")
_FUNCTION: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_ASKED_CHOICE: Final = (
    "End with a line that begins with `Answer:` and has nothing but the letter of the right choice "
    "after it."
)


def read_row(fields: Any, where: str, default: str = "number") -> Task:
    """Return the task of a row. where: names it in a ValueError; default: its verifier, or the
    `module:function` that judges it, if it names none."""
    if not isinstance(fields, dict) or not isinstance(fields.get("question"), str):
        raise ValueError(f"{where} must be an object with question, a text, and answer")
    question, answer = fields["question"], fields.get("answer")
    named = fields.get("verifier")
    if named is not None and not (isinstance(named, str) and named in VERIFIERS):
        raise ValueError(
            f"{where} has the verifier {_shown(named)}, it must be one of: {', '.join(VERIFIERS)}"
        )
    verifier = default if named is None else named
    if verifier not in VERIFIERS:
        return FunctionTask(question, verifier, fields)
    try:
        return VERIFIERS[verifier].task(question, answer, fields)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None


def check_verifier(name: str) -> None:
    """Raise ValueError unless a name is that of a verifier or of a function."""
    if name not in VERIFIERS and not _FUNCTION.fullmatch(name):
        raise ValueError(
            f"verifier is {name!r}, it must be a function as module:function, or one of: "
            f"{', '.join(VERIFIERS)}"
        )


@dataclass(frozen=True, slots=True)
class Verifier:
    """Way to judge the answer of a row."""

    help: str
    """One line for people"""
    task: Callable[[str, Any, Mapping[str, Any]], Task]
    """The task of question, answer and the whole row; a ValueError if the answer is none"""


@dataclass(frozen=True)
class RowTask(Task):
    """Question of a row, whose answer is compared in this process."""

    question: str
    answer: Any
    known: str
    """The answer as a model may write it"""
    asked: str
    """Sentence that says where the answer has to stand; empty for all of the reply"""
    spelled: Callable[[str], str | None] = field(repr=False, compare=False)
    """The answer of a reply in one spelling; None if there is none"""
    is_right: Callable[[str], bool] = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self._judge(self.known):
            raise ValueError(f"has the answer {_shown(self.answer)}, which cannot be told as one")
        if self._judge(self.messages[0].content):
            raise ValueError("has a question that is itself a right answer")

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question, and where the answer has to stand."""
        return (Message("user", "\n\n".join(filter(None, (self.question, self.asked)))),)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """The row's answer."""
        return (Message("assistant", self.known),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if the last answer is the row's, else 0; the part `format`: there is one."""
        said = self.answer_of(trajectory)
        if said is None:
            return Score(0.0, {"format": 0.0})
        return Score(float(self.is_right(said)), {"format": 1.0})

    def answer_of(self, trajectory: Trajectory) -> str | None:
        """Return the last answer in one spelling; None if there is none."""
        return None if trajectory.reply is None else self._said(trajectory.reply.content)

    def _said(self, text: str) -> str | None:
        read = (marked_answer(text) or "") if self.asked else text
        return self.spelled(read) if 0 < len(read) <= _LONGEST else None

    def _judge(self, text: str) -> bool:
        said = self._said(text)
        return said is not None and self.is_right(said)


@dataclass(frozen=True)
class PatternTask(Task):
    """Question of a row whose answer is a regular expression."""

    question: str
    pattern: str
    known: str | None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question, and where the answer has to stand."""
        return (Message("user", f"{self.question}\n\n{ASKED}"),)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """The row's field `known`, if it has one."""
        return () if self.known is None else (Message("assistant", f"Answer: {self.known}"),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if the pattern matches all of the last answer, else 0; the part `format`: there
        is one. Raises WorkerError if matching takes more than a second."""
        said = self.answer_of(trajectory)
        if said is None:
            return Score(0.0, {"format": 0.0})
        found = await shared_workers().acall(
            "matches", self.pattern, said, seconds=_PATTERN_SECONDS
        )
        return Score(float(found), {"format": 1.0})

    def answer_of(self, trajectory: Trajectory) -> str | None:
        """Return the last answer; None if there is none."""
        return None if trajectory.reply is None else marked_answer(trajectory.reply.content)


@dataclass(frozen=True)
class FunctionTask(Task):
    """Question of a row that a function of the user judges, in a worker process."""

    question: str
    function: str
    """Path as `module:function`; it takes the reply's text and the row, and returns 0 to 1"""
    row: Mapping[str, Any]

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question."""
        return (Message("user", self.question),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return the function's score. Raises WorkerError if it raises, takes more than ten
        seconds, or returns what is no score."""
        if trajectory.reply is None:
            return Score(0.0)
        module = self.function.partition(":")[0]
        value = await shared_workers().acall(
            *("call", self.function, [trajectory.reply.content[-_LONGEST:], dict(self.row)]),
            seconds=_FUNCTION_SECONDS,
            module=module,
        )
        if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
            raise WorkerError(f"{self.function} returned {value!r}, a score is from 0 to 1")
        return Score(float(value))


# ---- verifiers ----------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    return shorten(repr(value))


def _number(question: str, answer: Any, row: Mapping[str, Any]) -> Task:
    is_given = isinstance(answer, str | int | float) and not isinstance(answer, bool)
    # str() would write a small or large float with an exponent.
    text = format(Decimal(repr(answer)), "f") if isinstance(answer, float) else str(answer)
    number = final_number(text) if is_given else None
    if number is None:
        raise ValueError(f"has the answer {_shown(answer)}, it must have a number in it")
    return NumberTask(question, number)


def _spaced(text: str) -> str | None:
    return " ".join(text.split()) or None


def _plain(text: str) -> str | None:
    """Return a text without case, odd forms of characters, and marks around it."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(" .,;:!?\"'\u2018\u2019\u201c\u201d") or None


def _compared(spelled: Callable[[str], str | None]) -> Callable[..., Task]:
    def task(question: str, answer: Any, row: Mapping[str, Any]) -> Task:
        wanted = spelled(answer) if isinstance(answer, str) else None
        if wanted is None:
            raise ValueError(f"has the answer {_shown(answer)}, it must be a text")
        lines = "\n" in answer.strip()
        known = f"Answer:\n{answer.strip()}" if lines else f"Answer: {answer.strip()}"
        asked = ASKED_LINES if lines else ASKED
        return RowTask(question, answer, known, asked, spelled, lambda said: said == wanted)

    return task


def _choice(question: str, answer: Any, row: Mapping[str, Any]) -> Task:
    choices: Any = row.get("choices")
    is_list = isinstance(choices, list) and all(isinstance(one, str) for one in choices)
    if not is_list or not 2 <= len(choices) <= len(_LETTERS):
        raise ValueError("must have choices, a list of 2 to 26 texts")
    texts = [_plain(one) for one in choices]
    if isinstance(answer, str) and answer in choices:
        letter = _LETTERS[choices.index(answer)]
    elif isinstance(answer, str) and len(answer) == 1 and answer in _LETTERS[: len(choices)]:
        letter = answer
    else:
        raise ValueError(f"has the answer {_shown(answer)}, it must be a choice or its letter")

    def spelled(text: str) -> str | None:
        plain = _plain(text)
        if plain is not None and len(plain) > 1 and texts.count(plain) == 1:
            return _LETTERS[texts.index(plain)]  # "B. Jones" may be a choice, and not B
        found = _CHOICE.match(text.strip())
        if found is not None and (said := found[1].upper()) in _LETTERS[: len(choices)]:
            return said
        return _LETTERS[texts.index(plain)] if texts.count(plain) == 1 else None

    lines = [f"{one}. {text}" for one, text in zip(_LETTERS, choices, strict=False)]
    shown = "\n".join([question, "", *lines])
    known = f"Answer: {letter}"
    return RowTask(shown, letter, known, _ASKED_CHOICE, spelled, lambda said: said == letter)


def _pattern(question: str, answer: Any, row: Mapping[str, Any]) -> Task:
    if not isinstance(answer, str) or not 0 < len(answer) <= _LONGEST_PATTERN:
        raise ValueError(f"must have a pattern of 1 to {_LONGEST_PATTERN:,} characters as answer")
    try:
        re.compile(answer)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"has a pattern that cannot be read: {error}") from None
    known = row.get("known")
    if known is not None and not isinstance(known, str):
        raise ValueError("has a known answer that is no text")
    return PatternTask(question, answer, known)


def _contains(question: str, answer: Any, row: Mapping[str, Any]) -> Task:
    wanted = [answer] if isinstance(answer, str) else answer
    is_list = isinstance(wanted, list) and all(isinstance(one, str) for one in wanted)
    if not is_list or not wanted or any(_plain(one) is None for one in wanted):
        raise ValueError(f"has the answer {_shown(answer)}, it must be a text or a list of texts")
    words = [re.compile(rf"(?<!\w){re.escape(_plain(one) or '')}(?!\w)") for one in wanted]
    return RowTask(
        *(question, tuple(wanted), "\n".join(wanted), "", _plain),
        lambda said: all(one.search(said) for one in words),
    )


def _json(question: str, answer: Any, row: Mapping[str, Any]) -> Task:
    wanted = _canonical(answer)

    def spelled(text: str) -> str | None:
        try:
            return _canonical(json.loads(text))
        except (ValueError, RecursionError):
            return None

    known = f"Answer: {json.dumps(answer)}"
    return RowTask(question, answer, known, ASKED, spelled, lambda said: said == wanted)


def _canonical(value: Any) -> str:
    """Return a value of JSON in one spelling: 1 and 1.0 are one number, true is none."""
    return json.dumps(_canonical_value(value), sort_keys=True, allow_nan=False)


def _canonical_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical_value(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_canonical_value(one) for one in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


VERIFIERS: Final = {
    "number": Verifier("the last number of the reply", _number),
    "exact": Verifier("the text after `Answer:`, but for white space", _compared(_spaced)),
    "text": Verifier("the same without case and marks around it", _compared(_plain)),
    "choice": Verifier("a letter of the row's `choices`", _choice),
    "regex": Verifier("a pattern that matches all of the answer", _pattern),
    "contains": Verifier("a text, or all texts of a list, as words of the reply", _contains),
    "json": Verifier("a value of JSON", _json),
}
"""Verifiers that a row may name"""
