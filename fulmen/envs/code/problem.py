"""A problem, and the steps that go before and after it: what tasks are put together from."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any


@dataclass(frozen=True, slots=True)
class Input:
    """Something that a program takes."""

    name: str
    form: str
    words: str = ""
    """More about it, such as a bound"""


@dataclass(frozen=True, slots=True)
class Problem:
    """The heart of a task."""

    name: str
    """Name of the function"""
    inputs: tuple[Input, ...]
    words: str
    """Sentences on what to do"""
    body: str
    """Python lines that leave it in `result`; the inputs have their names"""
    gives: str
    """Form of the result"""
    draw: Callable[[Random, int], tuple[Any, ...]]
    """Arguments of a size from 0 on"""
    is_free: bool = False
    """True if steps may change the first input before, since any value of its form will do"""
    before: str = ""
    """Python lines before the function, such as imports"""


@dataclass(frozen=True, slots=True)
class Step:
    """A change of one value."""

    takes: str
    gives: str
    words: str
    expression: str
    """In Python, of `x`"""


@dataclass(frozen=True, slots=True)
class Family:
    """Problems of one name."""

    name: str
    make: Callable[[Random, int], Problem]
    """The problem of a draw and a level"""


@dataclass(frozen=True, slots=True)
class Chain:
    """A problem with steps around it."""

    problem: Problem
    before: tuple[Step, ...] = field(default=())
    after: tuple[Step, ...] = field(default=())

    @property
    def gives(self) -> str:
        """Form of the result."""
        return self.after[-1].gives if self.after else self.problem.gives

    @property
    def source(self) -> str:
        """The reference, a function."""
        problem = self.problem
        names = ", ".join(one.name for one in problem.inputs)
        first = problem.inputs[0].name
        lines = [f"{first} = {_of(step, first)}" for step in self.before]
        lines += problem.body.strip("\n").split("\n")
        lines += [f"result = {_of(step, 'result')}" for step in self.after]
        head = f"{problem.before.strip()}\n\n\n" if problem.before else ""
        body = "\n".join(f"    {line}".rstrip() for line in [*lines, "return result"])
        return f"{head}def {problem.name}({names}):\n{body}\n"

    @property
    def shorter(self) -> tuple["Chain", ...]:
        """Chains that leave out one step each, or the problem itself, where the forms allow it."""
        found = []
        first = self.problem.inputs[0]
        if first.form == self.problem.gives and (self.before or self.after):
            nothing = replace(self.problem, body=f"result = {first.name}")
            found.append(Chain(nothing, self.before, self.after))
        for place in range(len(self.before)):
            rest = self.before[:place] + self.before[place + 1 :]
            found.append(Chain(self.problem, rest, self.after))
        for place, step in enumerate(self.after):
            if step.takes == step.gives:
                rest = self.after[:place] + self.after[place + 1 :]
                found.append(Chain(self.problem, self.before, rest))
        return tuple(found)


def _of(step: Step, name: str) -> str:
    return step.expression.replace("{x}", name)
