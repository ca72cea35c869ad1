"""The environment of instruction following.

ifeval.jsonl -> rows of prompt, instruction_id_list and kwargs -> InstructionTask -> all rules kept?
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.hub import hub_file
from fulmen.envs.instructions.language import has_detector
from fulmen.envs.instructions.rules import RULES, checked_settings
from fulmen.envs.row_files import read_rows
from fulmen.envs.task import Task

_HUB: Final = ("google/IFEval", "ifeval_input_data.jsonl")
_LONGEST: Final = 100_000
"""Characters of an answer; a longer one keeps no rule"""


@dataclass(frozen=True)
class InstructionTask(Task):
    """A prompt with rules for the form of its answer."""

    prompt: str
    rules: tuple[tuple[str, Mapping[str, Any]], ...]
    """Names of rules, each with its settings"""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt, as a user's message."""
        return (Message("user", self.prompt),)

    @property
    def key(self) -> str:
        """The prompt and its rules."""
        return f"{self.prompt}\n{json.dumps(self.rules, sort_keys=True)}"

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if the answer keeps all rules as it stands. Parts, as IFEval names them: its
        prompt and instruction levels (all rules; share of the rules), strict and loose."""
        text = "" if trajectory.reply is None else trajectory.reply.content
        strict = [_is_kept(text, *rule) for rule in self.rules]
        variants = _loosened(text)
        loose = [any(_is_kept(one, *rule) for one in variants) for rule in self.rules]
        parts = {
            "prompt_strict": float(all(strict)),
            "prompt_loose": float(all(loose)),
            "instruction_strict": sum(strict) / len(strict),
            "instruction_loose": sum(loose) / len(loose),
        }
        return Score(parts["prompt_strict"], parts)


class Instructions:
    """Rows of a file, each with `prompt`, `instruction_id_list` and `kwargs`, in their order."""

    def __init__(self, path: Path) -> None:
        self._tasks = [_read(row, where) for where, row in read_rows(path)]
        self._path = path

    @property
    def num_tasks(self) -> int:
        """Number of prompts in the file."""
        return len(self._tasks)

    @property
    def chance(self) -> float:
        """Return 1: rules of form may be kept by an answer that says nothing."""
        return 1.0

    def task(self, index: int) -> InstructionTask:
        """Return the prompt of that row, counted from 0."""
        if not 0 <= index < len(self._tasks):
            raise ValueError(f"task {index} was asked for, {self._path} has {len(self._tasks)}")
        return self._tasks[index]


def ifeval(words: str) -> Instructions:
    """Return the prompts of a local file, or of IFEval on the hub if none is named."""
    return Instructions(Path(words) if words else hub_file(*_HUB))


def _is_kept(text: str, name: str, settings: Mapping[str, Any]) -> bool:
    if not text.strip() or len(text) > _LONGEST:
        return False
    return RULES[name].is_kept(text, **settings)


def _loosened(text: str) -> list[str]:
    """Return an answer as it stands, without its first line, its last or both, and each of these
    without stars: what surrounds an answer shall not count."""
    lines = text.split("\n")
    parts = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = [text, *("\n".join(part).strip() for part in parts[1:])]
    return [*texts, *(one.replace("*", "") for one in texts)]


def _read(row: dict[str, Any], where: str) -> InstructionTask:
    prompt, names, given = (row.get(key) for key in ("prompt", "instruction_id_list", "kwargs"))
    if not isinstance(prompt, str) or not isinstance(names, list) or not isinstance(given, list):
        raise ValueError(
            f"{where} must be an object with prompt, a text, and instruction_id_list and kwargs, "
            "two lists"
        )
    if not names or len(names) != len(given):
        raise ValueError(
            f"{where} has {len(names)} instructions and {len(given)} kwargs, it must have as many"
            " of both, and one or more"
        )
    rules = []
    for name, settings in zip(names, given, strict=True):
        if not isinstance(settings, dict) or not isinstance(name, str):
            raise ValueError(f"{where} must have names in instruction_id_list, objects in kwargs")
        try:
            rules.append((name, checked_settings(name, settings)))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if RULES[name].needs_language and not has_detector():
            raise ValueError(
                f"{where}: {name} is unsupported without langdetect, which must be installed "
                "(pip install langdetect)"
            )
    return InstructionTask(prompt, tuple(rules))
