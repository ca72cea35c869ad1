"""Questions whose answer is a number, from a JSONL file like GSM8K's."""

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path

from fulmen.envs.number import NumberTask, final_number


class Questions:
    """Lines of a file, each an object with `question` and `answer`, in their order.

    An answer is a number, or a text that states one last: GSM8K's ends with `#### 42`.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from None
        self._tasks = [
            _read(line, f"{path}, line {number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        if not self._tasks:
            raise ValueError(f"{path} is empty, it must have a question a line")
        self._path = path

    @property
    def num_tasks(self) -> int:
        """Number of questions in the file."""
        return len(self._tasks)

    @property
    def chance(self) -> float:
        """Share of the questions that one fixed number answers."""
        counts = Counter(task.number for task in self._tasks)
        return max(counts.values()) / len(self._tasks)

    def task(self, index: int) -> NumberTask:
        """Return the question of that line, counted from 0."""
        if not 0 <= index < len(self._tasks):
            raise ValueError(f"task {index} was asked for, {self._path} has {len(self._tasks)}")
        return self._tasks[index]


def _read(line: str, where: str) -> NumberTask:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("question"), str):
        raise ValueError(f"{where} must be an object with question, a text, and answer")
    answer = fields.get("answer")
    is_given = isinstance(answer, str | int | float) and not isinstance(answer, bool)
    # str() would write a small or large float with an exponent.
    text = format(Decimal(repr(answer)), "f") if isinstance(answer, float) else str(answer)
    number = final_number(text) if is_given else None
    if number is None:
        raise ValueError(f"{where} has the answer {answer!r}, it must have a number in it")
    return NumberTask(fields["question"], number)
