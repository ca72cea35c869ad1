"""Questions whose answer is a number, from files like GSM8K's.

questions.jsonl -> rows of question and answer -> NumberTask
"""

from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from fulmen.envs.hub import hub_file
from fulmen.envs.number import NumberTask, final_number
from fulmen.envs.rows import read_rows

_GSM8K: Final = "openai/gsm8k"
SPLITS: Final = ("test", "train")
"""Parts of GSM8K on the hub"""


class Questions:
    """Rows of a file, each with `question` and `answer`, in their order.

    An answer is a number, or a text that states one last: GSM8K's ends with `#### 42`. With a mark
    every answer must be a text that has it.
    """

    def __init__(self, path: Path, *, mark: str | None = None) -> None:
        self._tasks = [_read(row, where, mark) for where, row in read_rows(path)]
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
        """Return the question of that row, counted from 0."""
        if not 0 <= index < len(self._tasks):
            raise ValueError(f"task {index} was asked for, {self._path} has {len(self._tasks)}")
        return self._tasks[index]


def gsm8k(words: str) -> Questions:
    """Return GSM8K's questions: of a local file, or of one part on the hub (test if none is
    named), which needs pyarrow."""
    if words in ("", *SPLITS):
        path = hub_file(_GSM8K, f"main/{words or SPLITS[0]}-00000-of-00001.parquet")
    else:
        path = Path(words)
    return Questions(path, mark="####")


def _read(row: dict[str, Any], where: str, mark: str | None) -> NumberTask:
    if not isinstance(row.get("question"), str):
        raise ValueError(f"{where} must be an object with question, a text, and answer")
    answer = row.get("answer")
    is_given = isinstance(answer, str | int | float) and not isinstance(answer, bool)
    if mark is not None and not (isinstance(answer, str) and mark in answer):
        raise ValueError(f"{where} has the answer {_short(answer)}, it must have {mark} in it")
    # str() would write a small or large float with an exponent.
    text = format(Decimal(repr(answer)), "f") if isinstance(answer, float) else str(answer)
    number = final_number(text) if is_given else None
    if number is None:
        raise ValueError(f"{where} has the answer {_short(answer)}, it must have a number in it")
    return NumberTask(row["question"], number)


def _short(answer: object) -> str:
    text = repr(answer)
    return text if len(text) <= 200 else f"{text[:200]}..."
