"""The environment of word problems.

seed, level, index -> frame -> story of as many steps as the level -> WordTask -> `Answer:`
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.marked import ASKED, marked_answer
from fulmen.envs.number import written_number
from fulmen.envs.spelling import unwrapped, whole_number
from fulmen.envs.task import Task
from fulmen.envs.words.amounts import AMOUNTS
from fulmen.envs.words.clock import clock_story, written_time
from fulmen.envs.words.frames import COUNTS
from fulmen.envs.words.story import make_story, spelled

LEVELS: Final = range(1, 6)
FRAMES: Final = (*COUNTS, *AMOUNTS)
_UNITS: Final = {
    "dollars": ("$", "dollars", "dollar", "usd"),
    "litres": ("litres", "litre", "liters", "liter", "l"),
    "metres": ("metres", "metre", "meters", "meter", "m"),
    "kilograms": ("kilograms", "kilogram", "kg"),
}
_SINGULARS: Final = {
    **{"people": "person", "children": "child", "loaves": "loaf"},
    **{"lilies": "lily", "daisies": "daisy"},
}
"""Things that are not one thing without their s"""
_FORMS: Final = {
    "count": "The answer is a whole number.",
    "money": "The answer is an amount in dollars, such as $12 or $12.50.",
    "measure": "The answer is a number of {things}, such as 12 or 2 3/4.",
}
_TIME_FORM: Final = "The answer is a time of the day from 00:00 to 23:59, as HH:MM."
_TIME: Final = re.compile(r"(\d{1,2}):(\d{2})(?: ?([ap])\.?m\.?)?", re.IGNORECASE)
_LONGEST: Final = 200


@dataclass(frozen=True)
class WordTask(Task):
    """A story as a question."""

    level: int
    frame: str
    question: str
    """Story and question, without the form of the answer"""
    form: str
    """Form of the answer, as a sentence"""
    answer: str
    """The answer in this form"""
    units: tuple[str, ...] | None
    """Units that may stand with the number; None if the answer is a time"""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The story, and the form of its answer, as a user's message."""
        return (Message("user", f"{self.question}\n\n{self.form} {ASKED}"),)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """The answer in its place."""
        return (Message("assistant", f"Answer: {self.answer}"),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 for the right answer in its place. Parts: format (one number or time stands in
        that place, with no other unit), correct."""
        given = self.answer_of(trajectory)
        is_right = given is not None and given == self._read(self.answer)
        parts = {"format": float(given is not None), "correct": float(is_right)}
        return Score(float(is_right), parts)

    def answer_of(self, trajectory: Trajectory) -> str | None:
        """Return the answer in one spelling; None if there is none in its place."""
        answer = None if trajectory.reply is None else marked_answer(trajectory.reply.content)
        return None if answer is None or len(answer) > _LONGEST else self._read(answer)

    def _read(self, answer: str) -> str | None:
        if self.units is None:
            return read_time(answer)
        number = whole_number(answer, self.units)
        return None if number is None else str(number)


def read_time(text: str) -> str | None:
    """Return the time of the day that a text is as HH:MM; None if it is none."""
    found = _TIME.fullmatch(unwrapped(text))
    if found is None:
        return None
    hour, minute = int(found[1]), int(found[2])
    if found[3]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if found[3] in "pP" else 0)
    return written_time(60 * hour + minute) if hour < 24 and minute < 60 else None


class WordProblems:
    """Stories of one level, or of all levels in turn; a level is a number of steps."""

    num_tasks: Final = None

    def __init__(self, seed: int, *, level: int | None = None) -> None:
        if level is not None and level not in LEVELS:
            raise ValueError(f"level is {level}, it must be from {LEVELS[0]} to {LEVELS[-1]}")
        self._seed = seed
        self._level = level

    @property
    def chance(self) -> float:
        """Bound on the probability that one fixed answer is right."""
        return 0.06 if self._level in (None, 1) else 0.04

    def task(self, index: int) -> WordTask:
        """Return the story at an index; there is no last one."""
        level = self._level or LEVELS[index % len(LEVELS)]
        draw = Random(f"word_problems {self._seed} {level} {index}")
        place = draw.randrange(len(FRAMES) + 1)
        if place == len(FRAMES):
            text, minutes = clock_story(draw, level, level)
            return WordTask(level, "clock", text, _TIME_FORM, written_time(minutes), None)
        frame = FRAMES[place]
        story = make_story(draw, frame, level, level)
        one = _SINGULARS.get(story.things) or story.things.removesuffix("s")
        units = _UNITS.get(story.things) or (story.things, one)
        form = _FORMS[frame.kind].format(things=story.things)
        answer = _written(story.number, frame.kind)
        return WordTask(level, frame.name, story.text, form, answer, units)


def _written(number: Fraction, kind: str) -> str:
    if kind == "money":
        return f"${number}" if number.denominator == 1 else f"${float(number):.2f}"
    return spelled(number) if kind == "measure" else written_number(number)
