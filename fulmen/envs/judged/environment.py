"""Questions of a file whose answers a model judges.

{"prompt": "...", "reference": "..."}                    five grades, by the reference
{"prompt": "..."}                                        five grades, by the judge alone
{"prompt": "...", "reference": "...", "judged": "pair"}  better or worse than the reference
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.judged.judge import NUM_GRADES, Judge
from fulmen.envs.judged.length import LengthMonitor
from fulmen.envs.judged.words import says_nothing, spoken
from fulmen.envs.task import Task
from fulmen.files import parse_json, shorten

_FIELDS: Final = ("prompt", "reference", "judged")


@dataclass(frozen=True)
class JudgedTask(Task):
    """A question whose answer a model judges."""

    prompt: str
    reference: str | None
    judged: Literal["grade", "pair"]
    judge: Judge = field(repr=False)
    monitor: LengthMonitor | None = field(default=None, repr=False)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question, as a user's message."""
        return (Message("user", self.prompt),)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """The reference, where answers are graded by it."""
        if self.reference is None or self.judged == "pair":
            return ()
        return (Message("assistant", self.reference),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 0, 0.25, 0.5, 0.75 or 1 for the five grades; 0, 0.5 or 1 for an answer that is
        worse than the reference, neither, or better.

        Parts: grade or comparison as the judge gave it; judged, 0 for an answer that says nothing:
        the judge is not asked then. Raises GraderError if the judge does not say, ModelError if it
        fails.
        """
        said = "" if trajectory.reply is None else spoken(trajectory.reply.content)
        if said != self.reference and says_nothing(said, self.prompt):
            return Score(0.0, {"judged": 0.0})
        if self.judged == "pair":
            assert self.reference is not None
            comparison = await self.judge.compare(self.prompt, said, self.reference)
            score = Score((comparison + 1) / 2, {"comparison": float(comparison), "judged": 1.0})
        else:
            grade = await self.judge.grade(self.prompt, said, reference=self.reference)
            score = Score((grade - 1) / (NUM_GRADES - 1), {"grade": float(grade), "judged": 1.0})
        if self.monitor is not None:
            self.monitor.add(score.value, len(said), prompt=self.prompt)
        return score


class Judged:
    """Lines of a JSONL file, in their order, and a judge."""

    def __init__(self, path: Path, judge: Judge, *, monitor: LengthMonitor | None = None) -> None:
        """monitor: is told every reward and the length of its answer"""
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        self._rows = [
            _row(parse_json(line, where), where)
            for number, line in enumerate(lines, start=1)
            if line.strip() and (where := f"{path}, line {number}")
        ]
        if not self._rows:
            raise ValueError(f"{path} is empty, it must have a question a line")
        self._path = path
        self._judge = judge
        self._monitor = monitor

    @property
    def num_tasks(self) -> int:
        """Number of questions in the file."""
        return len(self._rows)

    def task(self, index: int) -> JudgedTask:
        """Return the question of that line, counted from 0."""
        if not 0 <= index < len(self._rows):
            raise ValueError(f"task {index} was asked for, {self._path} has {len(self._rows)}")
        prompt, reference, judged = self._rows[index]
        return JudgedTask(prompt, reference, judged, self._judge, self._monitor)


def _row(fields: dict[str, Any], where: str) -> tuple[str, str | None, Literal["grade", "pair"]]:
    for name in fields:
        if name not in _FIELDS:
            raise ValueError(f"{where} has {shorten(name, 40)}, known are {', '.join(_FIELDS)}")
    prompt, reference = fields.get("prompt"), fields.get("reference")
    judged = fields.get("judged", "grade")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where} must have prompt, a text")
    if reference is not None and (not isinstance(reference, str) or not reference.strip()):
        raise ValueError(f"{where} has a reference that is no text")
    if judged not in ("grade", "pair"):
        raise ValueError(f"{where} has judged {shorten(judged, 40)}, it must be grade or pair")
    if judged == "pair" and reference is None:
        raise ValueError(f"{where} is judged as a pair, and has no reference")
    return prompt, reference, judged
