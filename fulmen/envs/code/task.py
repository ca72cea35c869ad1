"""A task of code: its program is run on inputs in a sandbox, and its outputs are compared here.

    reply -> last_program -> runner.py in a sandbox, with the inputs -> outputs -> right or wrong

The right outputs never enter the sandbox, so a program can pass only by outputs that are right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.envs.apart import told_apart
from fulmen.envs.code import runner
from fulmen.envs.code.block import last_program
from fulmen.envs.task import Task
from fulmen.sandbox import Limits

CPU_SECONDS: Final = 2
"""Longest time of the processor that one test may take"""
ALL_SECONDS: Final = 30.0
"""Longest time by the clock that all tests of a task may take"""
LIMITS: Final = Limits(
    seconds=60.0,
    memory_bytes=2**29,
    num_processes=16,
    file_bytes=2**24,
    output_bytes=2**22,
    total_output_bytes=2**24,
)


@dataclass(frozen=True, slots=True)
class Test:
    """An input and the right output."""

    given: str | list[Any]
    """Text for stdin, or arguments"""
    right: str
    """Text that is to be printed, or the value as `spelled` writes it"""


@dataclass(frozen=True)
class CodeTask(Task):
    """A program to write, as a question."""

    family: str
    level: int
    question: str
    function: str | None
    """Name of the function to write; None for a program that reads stdin"""
    program: str = field(repr=False)
    """A right program"""
    visible: tuple[Test, ...]
    """Tests that the question shows"""
    hidden: tuple[Test, ...] = field(repr=False)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question, as a user's message."""
        return (Message("user", self.question),)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """The right program, in its block."""
        return (Message("assistant", f"```python\n{self.program}```"),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if all tests pass, else 0. Parts: format (there is a program), correct, passed
        (share of the tests), visible (share of those that the question shows)."""
        program = None if trajectory.reply is None else last_program(trajectory.reply.content)
        if program is None:
            return Score(0.0, {"format": 0.0, "correct": 0.0, "passed": 0.0, "visible": 0.0})
        tests = (*self.visible, *self.hidden)
        found = await _outputs(program, self.function, [test.given for test in tests])
        passes = [self._is_right(*pair) for pair in zip(found, tests, strict=True)]
        visible = passes[: len(self.visible)]
        correct = float(all(passes))
        parts = {
            "format": 1.0,
            "correct": correct,
            "passed": sum(passes) / len(passes),
            "visible": sum(visible) / len(visible),
        }
        return Score(correct, parts)

    def _is_right(self, output: str | None, test: Test) -> bool:
        if output is None:
            return False
        if self.function is not None:
            return output == test.right
        return _lines(output) == _lines(test.right)


def _lines(text: str) -> list[str]:
    """Return lines without white space at their ends, and without empty ones at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


async def _outputs(
    program: str, function: str | None, inputs: Sequence[str | list[Any]]
) -> list[str | None]:
    """Return what a program gives for each input; None where it gives nothing."""
    job = {
        "program": program,
        "function": function,
        "inputs": list(inputs),
        "seconds": CPU_SECONDS,
        "all_seconds": ALL_SECONDS,
    }
    told = await told_apart(Path(runner.__file__), job, LIMITS)
    found = None if told is None else told.get("outputs")
    if not isinstance(found, list) or len(found) != len(inputs):
        return [None] * len(inputs)
    return [one if isinstance(one, str) else None for one in found]
