"""The environment of logic puzzles.

seed, kind, level, index -> PuzzleKind.make -> PuzzleTask -> the answer after `Answer:`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.logic.kinds import KINDS
from fulmen.envs.logic.puzzle import LEVELS, Puzzle, PuzzleKind
from fulmen.envs.marked import ASKED, ASKED_LINES, marked_answer
from fulmen.envs.task import Task
from fulmen.files import shorten


@dataclass(frozen=True)
class PuzzleTask(Task):
    """A puzzle as a question."""

    kind: str
    level: int
    puzzle: Puzzle

    @property
    def messages(self) -> tuple[Message, ...]:
        """The puzzle, and where its answer is to stand, as a user's message."""
        asked = ASKED_LINES if self.puzzle.has_lines else ASKED
        return (Message("user", f"{self.puzzle.question}\n\n{asked}"),)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """A right answer."""
        space = "\n" if self.puzzle.has_lines else " "
        return (Message("assistant", f"Answer:{space}{self.puzzle.answer}"),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 for a right answer in its place. Parts: format (it is in its place), correct."""
        answer = self.answer_of(trajectory)
        is_right = answer is not None and self.puzzle.is_right(answer)
        parts = {"format": float(answer is not None), "correct": float(is_right)}
        return Score(float(is_right), parts)

    def answer_of(self, trajectory: Trajectory) -> str | None:
        """Return the answer with single spaces; None if there is none in its place."""
        answer = None if trajectory.reply is None else marked_answer(trajectory.reply.content)
        return answer and "\n".join(" ".join(line.split()) for line in answer.splitlines())


class Logic:
    """Puzzles of one kind, or of all kinds in turn; of one level, or of all levels in turn."""

    num_tasks: Final = None

    def __init__(self, seed: int, *, kind: str | None = None, level: int | None = None) -> None:
        if kind is not None and kind not in KINDS:
            raise ValueError(f"{shorten(kind)} is no puzzle, it must be one of {', '.join(KINDS)}")
        if level is not None and level not in LEVELS:
            raise ValueError(f"level is {level}, it must be from {LEVELS[0]} to {LEVELS[-1]}")
        self._seed = seed
        self._kinds: Mapping[str, PuzzleKind] = KINDS if kind is None else {kind: KINDS[kind]}
        self._level = level

    @property
    def chance(self) -> float:
        """Bound on the probability that one fixed answer is right."""
        levels = LEVELS if self._level is None else (self._level,)
        kinds = self._kinds.values()
        return max(kind.chances[level - LEVELS[0]] for kind in kinds for level in levels)

    def task(self, index: int) -> PuzzleTask:
        """Return the puzzle at an index; there is no last one."""
        names = list(self._kinds)
        name, turn = names[index % len(names)], index // len(names)
        level = self._level or LEVELS[turn % len(LEVELS)]
        draw = Random(f"logic {name} {self._seed} {level} {index}")
        return PuzzleTask(name, level, self._kinds[name].make(draw, level))
