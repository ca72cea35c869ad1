"""Questions of a file, in JSONL like GSM8K's or in Parquet, each with the verifier that it names.

    file -> read through once, row by row: places -> task(index): one row

Only the places of the rows stay in memory, so a file may be larger than that. A Parquet file is
written anew as JSONL, beside all others' eyes, since its rows cannot be reached one by one.
"""

import json
import os
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from fulmen.agent import Answer, Trajectory
from fulmen.chat import Message
from fulmen.envs.hub import hub_file
from fulmen.envs.rows import check_verifier, read_row
from fulmen.envs.task import Task, answered
from fulmen.files import parse_json, shorten
from fulmen.sampling import SamplingParams

SPLITS: Final = ("test", "train")
"""Parts of GSM8K on the hub"""
_GSM8K: Final = "openai/gsm8k"
_MAX_BYTES: Final = 2**20
"""Longest row"""
_NUM_TOLD: Final = 5
"""Wrong rows that a sentence tells"""
_NUM_COUNTED: Final = 2**16
"""Different answers that are counted"""


class Questions:
    """Rows of a file, each with `question` and `answer`, in their order.

    A row may name its `verifier`, see `VERIFIERS`; without one the answer is a number, or a text
    that states one last: GSM8K's ends with `#### 42`.
    """

    def __init__(self, path: Path, *, verifier: str = "number", mark: str | None = None) -> None:
        """verifier  for rows that name none; or a function as `module:function`, which takes the
                  reply's text and the row, and returns a score from 0 to 1
        mark      stands in every answer, which is a text then; GSM8K's is ####

        Raises ValueError for wrong rows, with their numbers.
        """
        check_verifier(verifier)
        self._path, self._verifier, self._mark = path, verifier, mark
        self._word = "line"
        if path.suffix == ".parquet":
            self._word = "row"
            self._file = _as_jsonl(path)
        else:
            self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._places, self._numbers = array("Q"), array("Q")
        self._counts: Counter[str] = Counter()
        self._read_through()

    @property
    def num_tasks(self) -> int:
        """Number of questions in the file."""
        return len(self._places)

    @property
    def chance(self) -> float:
        """Share of the questions that one fixed answer solves, by the first 65,536 different
        ones; 0 where answers cannot be compared."""
        return max(self._counts.values(), default=0) / len(self._places)

    def task(self, index: int) -> Task:
        """Return the question of that row, counted from 0."""
        if not 0 <= index < len(self._places):
            raise ValueError(f"task {index} was asked for, {self._path} has {len(self._places)}")
        line = os.pread(self._file, _MAX_BYTES, self._places[index]).split(b"\n", 1)[0]
        return self._task(line, self._numbers[index])

    def _read_through(self) -> None:
        wrong: list[str] = []
        num_wrong = 0
        for number, (place, line) in enumerate(_lines(self._file), start=1):
            if line is not None and not line.strip():
                continue
            try:
                if line is None:
                    raise ValueError(f"{self._where(number)} has more than {_MAX_BYTES:,} bytes")
                task = self._task(line, number)
            except ValueError as error:
                num_wrong += 1
                if len(wrong) < _NUM_TOLD:
                    wrong.append(str(error).removeprefix(f"{self._path}, "))
                continue
            self._places.append(place)
            self._numbers.append(number)
            self._count(task)
        if wrong:
            more = f"; and {num_wrong - _NUM_TOLD} more" if num_wrong > _NUM_TOLD else ""
            raise ValueError(f"{self._path}, {'; '.join(wrong)}{more}")
        if not self._places:
            raise ValueError(f"{self._path} is empty, it must have a question a {self._word}")

    def _where(self, number: int) -> str:
        return f"{self._path}, {self._word} {number}"

    def _task(self, line: bytes, number: int) -> Task:
        where = self._where(number)
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8: {error}") from None
        fields = parse_json(line, where)
        if self._mark is not None:
            answer = fields.get("answer")
            if not (isinstance(answer, str) and self._mark in answer):
                found = shorten(repr(answer))
                raise ValueError(f"{where} has the answer {found}, it must have {self._mark} in it")
        return read_row(fields, where, self._verifier)

    def _count(self, task: Task) -> None:
        if (known := task.known_answers) and type(task).answer_of is not Task.answer_of:
            said = task.answer_of(_replied(task, known[-1].content))
            is_counted = said in self._counts or len(self._counts) < _NUM_COUNTED
            if said is not None and is_counted:
                self._counts[said] += 1


def gsm8k(words: str) -> Questions:
    """Return GSM8K's questions: of a local file, or of one part on the hub (test if none is
    named), which needs pyarrow."""
    if words in ("", *SPLITS):
        path = hub_file(_GSM8K, f"main/{words or SPLITS[0]}-00000-of-00001.parquet")
    else:
        path = Path(words)
        if not os.path.isfile(path):
            found = shorten(path)
            raise ValueError(f"{found} is no file, it must be one of JSON lines or of Parquet")
    return Questions(path, mark="####")


def _replied(task: Task, text: str) -> Trajectory:
    message = Message("assistant", text)
    answer = Answer(message=message, finish_reason="stop", params=SamplingParams())
    return answered(task.messages, answer)


def _lines(file: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield place and text of each line; None for one that is too long."""
    place = 0
    with os.fdopen(os.dup(file), "rb") as lines:
        lines.seek(0)
        while line := lines.readline(_MAX_BYTES):
            begin, place = place, place + len(line)
            is_long = len(line) == _MAX_BYTES and not line.endswith(b"\n")
            if is_long:
                while (rest := lines.readline(_MAX_BYTES)) and not rest.endswith(b"\n"):
                    place += len(rest)
                place += len(rest)
            yield begin, None if is_long else line


def _as_jsonl(path: Path) -> int:
    """Return an open file without a name that has the rows of a Parquet file as JSONL."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(
            f"{path} needs pyarrow, install it with: pip install 'fulmen[envs]'"
        ) from None
    with tempfile.TemporaryFile() as lines:
        try:
            with ParquetFile(path) as source:
                for batch in source.iter_batches(batch_size=256):
                    for row in _plain_rows(batch.to_pylist()):
                        lines.write(row)
        except (ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        lines.flush()
        return os.dup(lines.fileno())


def _plain_rows(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for row in rows:
        # A column that other rows fill is null here, as a field that is left out.
        fields = {key: value for key, value in row.items() if value is not None}
        yield json.dumps(fields, default=str).encode() + b"\n"
