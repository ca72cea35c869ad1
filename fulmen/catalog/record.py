"""Record of a model that was trained here: its data, its time, its machine, its scores.

It lies beside the weights as record.json. `fulmen train speedrun` writes it, the model's card
shows it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from fulmen.files import read_json, write_text

RECORD_FILE: Final = "record.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """One stage of a training."""

    name: str
    """learn for next tokens, practice for reinforcement learning"""
    tokens: int
    """Tokens that were read, or sampled and then read"""
    seconds: float
    is_kept: bool = True
    """False for a stage after which the model was no better: its result was left"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRecord:
    """Right answers of the model on tasks that it was not trained on."""

    name: str
    """Environment, such as basics:add:test, or what else was counted"""
    tasks: int
    right: int
    low: float
    """Ends of the 95 % interval of the share that is right"""
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """All that a model's card shows of its training."""

    machine: str
    """Processor, and how many cores of it"""
    stages: tuple[StageRecord, ...]
    scores: tuple[ScoreRecord, ...]
    seed: int
    """Seed of the tasks that were scored"""

    @property
    def seconds(self) -> float:
        """Time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the record in a model's folder, None where there is none.

        Raises ValueError for a file that is no record.
        """
        file = folder / RECORD_FILE
        if not file.exists():
            return None
        given: dict[str, Any] = dict(read_json(file))
        try:
            stages = tuple(StageRecord(**each) for each in given.pop("stages"))
            scores = tuple(ScoreRecord(**each) for each in given.pop("scores"))
            return cls(stages=stages, scores=scores, **given)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} is no record of a training: {error}") from None

    def write(self, folder: Path) -> None:
        """Write the record into a model's folder."""
        write_text(folder / RECORD_FILE, json.dumps(asdict(self), indent=1) + "\n")
