"""Exercises that others wrote, HumanEval and MBPP, from a file: for evaluation only.

Their tests are Python with assertions. They run in the sandbox, in another process than the
program (checks.py).
"""

import ast
import builtins
import json
import secrets
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.apart import told_apart
from fulmen.envs.code import checks
from fulmen.envs.code.block import last_program
from fulmen.envs.code.task import ALL_SECONDS, LIMITS
from fulmen.envs.task import GraderError, Task
from fulmen.files import shorten

_CPU_SECONDS: Final = 10
_ASKED: Final = (
    "Answer with one block of Python that begins with ```python and ends with ```, with the whole "
    "code in it."
)


@dataclass(frozen=True)
class Exercise(Task):
    """A function to write, with tests that somebody wrote."""

    name: str
    question: str
    before: str = field(repr=False)
    """Python that stands before the answer, such as imports and helpers"""
    solution: str = field(repr=False)
    setup: str = field(repr=False)
    """Python that stands before the tests, on their side"""
    tests: str = field(repr=False)
    names: tuple[str, ...]
    """Names that the tests take from the answer"""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question, as a user's message."""
        return (Message("user", self.question),)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """The solution of the file."""
        return (Message("assistant", f"```python\n{self.solution.rstrip()}\n```"),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if the tests pass, else 0. Parts: format (there is a program), correct.

        Raises GraderError for tests that fail before they call a program, whichever it is.
        """
        program = None if trajectory.reply is None else last_program(trajectory.reply.content)
        if program is None:
            return Score(0.0, {"format": 0.0, "correct": 0.0})
        nonce = secrets.token_hex(16)
        job = {
            "setup": self.setup,
            "names": self.names,
            "program": [self.before, program],
            "tests": self.tests,
            "seconds": _CPU_SECONDS,
            "all_seconds": ALL_SECONDS,
            "nonce": nonce,
        }
        told = await told_apart(Path(checks.__file__), job, LIMITS)
        if told is not None and told.get("nonce") == nonce and "fault" in told:
            raise GraderError(
                f"the tests of exercise {shorten(self.name)} fail before they call a program: "
                f"{shorten(told['fault'])}"
            )
        correct = float(told == {"passed": True, "nonce": nonce})
        return Score(correct, {"format": 1.0, "correct": correct})


class Exercises:
    """Lines of a JSONL file, as HumanEval or MBPP has them, in their order."""

    for_evaluation: Final = True
    """Training refuses it: it would learn the answers of an evaluation"""

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
            raise ValueError(f"{path} is empty, it must have an exercise a line")
        self._path = path

    @property
    def num_tasks(self) -> int:
        """Number of exercises in the file."""
        return len(self._tasks)

    def task(self, index: int) -> Exercise:
        """Return the exercise of that line, counted from 0."""
        if not 0 <= index < len(self._tasks):
            raise ValueError(f"task {index} was asked for, {self._path} has {len(self._tasks)}")
        return self._tasks[index]


def _read(line: str, where: str) -> Exercise:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where} must be an object, found {type(fields).__name__}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of old escapes, which are no faults
            exercise = _humaneval(fields) if "entry_point" in fields else _mbpp(fields)
            for code in (exercise.setup, exercise.tests):
                compile(code, "tests", "exec", dont_inherit=True)
        return exercise
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{where} must have the fields of HumanEval (prompt, canonical_solution, test, "
            f"entry_point) or of MBPP (text or prompt, code, test_list): {error} is missing, empty "
            "or of another type"
        ) from None
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where} has a prompt or tests that are not Python: {error}") from None


def _text(fields: Mapping[str, Any], name: str) -> str:
    if not isinstance(fields[name], str):
        raise TypeError(name)
    return str(fields[name])


def _humaneval(fields: Mapping[str, Any]) -> Exercise:
    prompt, entry = _text(fields, "prompt"), _text(fields, "entry_point")
    return Exercise(
        name=str(fields.get("task_id", entry)),
        question=f"Complete this Python function:\n\n{prompt.strip()}\n\n{_ASKED}",
        before=prompt,
        solution=prompt + _text(fields, "canonical_solution"),
        setup=prompt,
        tests=f"{_text(fields, 'test')}\n\ncheck({entry})\n",
        names=(entry,),
    )


def _mbpp(fields: Mapping[str, Any]) -> Exercise:
    words = _text(fields, "text" if "text" in fields else "prompt")
    tests, imports = fields["test_list"], fields.get("test_imports", [])
    for name, texts in (("test_list", tests), ("test_imports", imports)):
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise TypeError(name)
    if not "".join(tests).strip():  # any program would pass
        raise TypeError("test_list")
    setup = "\n".join([*imports, str(fields.get("test_setup_code", ""))])
    listed = "\n".join(tests)
    return Exercise(
        name=str(fields.get("task_id", "")),
        question=f"{words}\n\nThe code must pass these tests:\n{listed}\n\n{_ASKED}",
        before="",
        solution=_text(fields, "code"),
        setup="",
        tests=f"{setup}\n{listed}\n",
        names=tuple(_free_names(f"{setup}\n{listed}")),
    )


def _free_names(code: str) -> Iterator[str]:
    """Yield names that a code uses and does not make."""
    nodes = list(ast.walk(ast.parse(code)))
    made = set(vars(builtins))
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            made |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            made.add(node.id)
    used = [node.id for node in nodes if isinstance(node, ast.Name)]
    yield from (name for name in dict.fromkeys(used) if name not in made)
