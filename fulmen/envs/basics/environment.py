"""The environment of basics: a closed set of questions, in three parts that have none in common.

    seed, kind, index -> BasicKind.make, drawn until the part fits -> BasicTask -> a short reply

The hash of what a question asks, in whichever words, is its part, whatever seed and index it was
drawn with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.basics.letters import LETTERS
from fulmen.envs.basics.logic import LOGIC
from fulmen.envs.basics.orders import ORDERS
from fulmen.envs.basics.question import BasicKind, Question
from fulmen.envs.basics.story import STORY
from fulmen.envs.basics.sudoku import SUDOKU
from fulmen.envs.basics.sums import SUMS
from fulmen.envs.basics.talk import TALK
from fulmen.envs.basics.trying import COUNTDOWN
from fulmen.envs.task import Task
from fulmen.files import shorten

KINDS: Final[Mapping[str, BasicKind]] = {
    kind.name: kind for kind in (*SUMS, *LETTERS, *ORDERS, STORY, COUNTDOWN, *LOGIC, SUDOKU, *TALK)
}
"""All kinds of questions, by name"""
PARTS: Final = ("training", "validation", "test")
"""Parts of the questions, of which the first has eight tenths and the others one each"""
_TENTHS: Final = 10
_MOST_DRAWS: Final = 1000
"""Questions that are drawn until one is of a part: of a tenth that there is none has a chance of
1e-46"""


@dataclass(frozen=True)
class BasicTask(Task):
    """A short question, whose reply is the answer alone."""

    kind: str
    question: Question

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question, as a user's message."""
        return (Message("user", self.question.text),)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """The answer, after the thought that leads to it."""
        return (Message("assistant", self.question.answer, thinking=self.question.thought),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 for a right answer. Parts: format (it can be read), correct."""
        reply = "" if trajectory.reply is None else trajectory.reply.content
        is_right = self.question.is_answered_by(reply)
        is_read = self.question.read(reply) is not None
        return Score(float(is_right), {"format": float(is_read), "correct": float(is_right)})

    def answer_of(self, trajectory: Trajectory) -> str | None:
        """Return the answer in one spelling; None if there is none."""
        return None if trajectory.reply is None else self.question.read(trajectory.reply.content)


class Basics:
    """Questions of one kind, or of all kinds in turn; of one part, or of all parts."""

    num_tasks: Final = None

    def __init__(self, seed: int, *, kind: str | None = None, part: str | None = None) -> None:
        if kind is not None and kind not in KINDS:
            raise ValueError(
                f"{shorten(kind)} is no kind of basics, it must be one of {', '.join(KINDS)}"
            )
        if part is not None and part not in PARTS:
            raise ValueError(f"{part} is no part of basics, it must be one of {', '.join(PARTS)}")
        self._seed = seed
        self._kinds = tuple(KINDS.values() if kind is None else (KINDS[kind],))
        self._part = part

    @property
    def chance(self) -> float:
        """Bound on the probability that one fixed answer is right."""
        return max(kind.chance for kind in self._kinds)

    def task(self, index: int) -> BasicTask:
        """Return the question at an index; there is no last one."""
        kind = self._kinds[index % len(self._kinds)]
        draw = Random(f"basics {kind.name} {self._seed} {index}")
        for _ in range(_MOST_DRAWS):
            question = kind.make(draw)
            is_of_part = self._part is None or part_of(question.content) == self._part
            if is_of_part and not question.is_answered_by(question.text):
                return BasicTask(kind.name, question)
        raise AssertionError(f"no question of {kind.name} is of the part {self._part}")


def part_of(text: str) -> str:
    """Return the part that a question belongs to, by the hash of its content."""
    tenth = int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) % _TENTHS
    return PARTS[max(0, tenth - (_TENTHS - len(PARTS)))]
