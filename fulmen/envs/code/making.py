"""Making of tasks: a problem with steps around it, in words, with tests that tell it from others.

    draw -> Family.make + steps -> Chain -> tests, if they suffice -> question and reference

Tests suffice if no constant and no repetition of the input passes them, and if a program that
leaves out a step fails two of them. What does not suffice is drawn again.
"""

import re
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any, Final

from fulmen.envs.code.forms import FORMS
from fulmen.envs.code.problem import Chain, Family, Problem, Step
from fulmen.envs.code.runner import spelled
from fulmen.envs.code.steps import step_after, step_before
from fulmen.envs.code.task import CodeTask, Test

_SHOWN: Final = (4, 5)
_HIDDEN: Final = (0, 0, 1, 2, 2, 3, 4, 5, 6, 8, 9, 10, 12, 14)
_LEAST_HIDDEN: Final = 9
_TRIES: Final = 20
_LONGEST: Final = 300
"""Longest output, in characters"""
_LARGE: Final = re.compile(r"[0-9]{16}")
_STEPS: Final = {
    1: ((0, 0),),
    2: ((0, 1),),
    3: ((1, 0), (0, 1)),
    4: ((1, 1), (0, 1)),
    5: ((1, 1), (1, 2)),
}
"""Numbers of steps before and after the heart, by level"""
_ASKED: Final = (
    "Answer with one block of Python that begins with ```python and ends with ```. It is tried on "
    "other inputs too. Only Python's own library is there."
)

Function = Callable[..., Any]


def make_task(draw: Random, family: Family, level: int, *, is_function: bool) -> CodeTask:
    """Return the task of a draw."""
    for _ in range(1000):
        chain = _chain(draw, family, level)
        tests = _tests(draw, chain, is_function)
        if tests is not None:
            shown, hidden = tests[: len(_SHOWN)], tests[len(_SHOWN) :]
            question = _question(chain, shown, is_function)
            name = chain.problem.name if is_function else None
            program = chain.source if is_function else _whole(chain)
            return CodeTask(family.name, level, question, name, program, shown, hidden)
    raise AssertionError(f"{family.name} has no task of level {level} that its tests can tell")


def _chain(draw: Random, family: Family, level: int) -> Chain:
    problem = family.make(draw, level)
    num_before, num_after = draw.choice(_STEPS[level])
    before: list[Step] = []
    for _ in range(num_before):
        step = step_before(problem.inputs[0].form, draw) if problem.is_free else None
        if step is None:
            num_after += 1
        else:
            before.append(step)
    after: list[Step] = []
    gives = problem.gives
    for _ in range(num_after):
        if (step := step_after(gives, draw)) is not None:
            after.append(step)
            gives = step.gives
    return Chain(problem, tuple(before), tuple(after))


def _function(chain: Chain) -> Function:
    """Return the reference as a function: a text that this package wrote, so it may run here."""
    space: dict[str, Any] = {}
    exec(chain.source, space)
    function = space[chain.problem.name]
    return lambda arguments: function(*deepcopy(arguments))


def _tests(draw: Random, chain: Chain, is_function: bool) -> tuple[Test, ...] | None:
    """Return the tests, those that are shown first; None if they do not suffice."""
    problem, function = chain.problem, _function(chain)
    drawn: dict[str, tuple[Any, ...]] = {}
    values: dict[str, Any] = {}
    for place, size in enumerate((*_SHOWN, *_HIDDEN)):
        for _ in range(_TRIES):
            arguments = problem.draw(draw, size)
            key, value = spelled(arguments), function(arguments)
            text = FORMS[chain.gives].written(value)
            if key not in drawn and len(text) <= _LONGEST and not _LARGE.search(text):
                drawn[key], values[key] = arguments, value
                break
        else:
            if place < len(_SHOWN):
                return None
    shown, hidden = list(drawn)[: len(_SHOWN)], list(drawn)[len(_SHOWN) :]
    if len(hidden) < _LEAST_HIDDEN or not _suffice(chain, drawn, values, hidden):
        return None
    if len({spelled(values[key]) for key in shown}) < len(shown):
        return None
    form = FORMS[chain.gives]
    if is_function:
        return tuple(Test(list(drawn[key]), spelled(values[key])) for key in drawn)
    return tuple(Test(_stdin(problem, drawn[key]), form.written(values[key])) for key in drawn)


def _suffice(
    chain: Chain, drawn: dict[str, tuple[Any, ...]], values: dict[str, Any], hidden: list[str]
) -> bool:
    """Return whether tests tell a chain from constants, from its input and from shorter chains."""
    right = {key: spelled(values[key]) for key in hidden}
    counts = Counter(right.values())
    if len(counts) < 4 or max(counts.values()) > len(hidden) // 2:
        return False
    if all(right[key] in [spelled(one) for one in drawn[key]] for key in hidden):
        return False
    for other in chain.shorter:
        function = _function(other)
        if sum(spelled(function(drawn[key])) != right[key] for key in hidden) < 2:
            return False
    return True


def _stdin(problem: Problem, arguments: tuple[Any, ...]) -> str:
    pairs = zip(problem.inputs, arguments, strict=True)
    return "".join(f"{FORMS[one.form].written(value)}\n" for one, value in pairs)


def _whole(chain: Chain) -> str:
    """Return the reference as a program that reads stdin."""
    problem = chain.problem
    reads = [f"{one.name} = {FORMS[one.form].read}" for one in problem.inputs]
    names = ", ".join(one.name for one in problem.inputs)
    shows = FORMS[chain.gives].show.format("result")
    return f"{chain.source}\n\n" + "\n".join(
        [*reads, f"result = {problem.name}({names})", shows, ""]
    )


def _question(chain: Chain, shown: tuple[Test, ...], is_function: bool) -> str:
    problem = chain.problem
    names = ", ".join(one.name for one in problem.inputs)
    result = FORMS[chain.gives]
    given, examples = [], []
    for one in problem.inputs:
        form = FORMS[one.form]
        words = f"{form.words}; {one.words}" if one.words else form.words
        given.append(f"- `{one.name}`: {words}" + ("" if is_function else f". It is {form.stdin}"))
    if is_function:
        head = f"Write a Python function `{problem.name}({names})`. It is given:"
        foot = f"What the task asks for is returned, as {result.words}."
        for test in shown:
            arguments = ", ".join(map(repr, test.given))
            examples.append(f"{problem.name}({arguments}) returns {test.right}")
        title = "Examples:"
    else:
        head = "Write a Python program that reads from standard input:"
        foot = f"Print to standard output {result.stdout}."
        for number, test in enumerate(shown, start=1):
            examples.append(f"Input {number}:\n{test.given}Output {number}:\n{test.right}")
        title = "Examples:"
    steps = [f"In `{problem.inputs[0].name}`: {step.words}" for step in chain.before]
    steps += [problem.words, *(step.words for step in chain.after)]
    if len(steps) > 1:
        listed = "\n".join(f"{number}. {words}" for number, words in enumerate(steps, start=1))
        task = f"Do these steps in turn, each with what the one before has left:\n{listed}"
    else:
        task = steps[0]
    return "\n\n".join(
        ["\n".join([head, *given]), task, foot, "\n".join([title, *examples]), _ASKED]
    )
