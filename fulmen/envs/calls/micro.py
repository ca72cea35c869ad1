"""repair: a micro-repository of one module and its tests, in which one line is wrong.

    forms -> functions -> right text, of the part -> a wrong line -> tests, probes -> RepairTask

It is graded like all repairs: by probes whose right answers never enter the sandbox.
"""

import re
from ast import literal_eval
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final
from unittest import TestCase

from fulmen.chat import Message, ToolCall
from fulmen.envs.calls.case import said
from fulmen.envs.calls.folder import shown_file
from fulmen.envs.calls.functions import FORMS, Function, make_function
from fulmen.envs.calls.names import Names
from fulmen.envs.repairs import Check, Group, RepairTask
from fulmen.envs.repairs.kind import Probe
from fulmen.envs.repairs.trial import EndlessError, answers

RUN_TESTS: Final = 'python3 -B -m unittest 2>&1 | grep -E "FAIL|Error|OK"'
"""Command that runs the tests and tells those that fail, in few words. Without -B Python would
not see a line that is changed within a second to one as long"""
_TOLD: Final = re.compile("FAIL|Error|OK")
_MOST_LINES: Final = 14
_FEWEST_LINES: Final = 6
_MIN_FAILING: Final = 2
"""Probes that fail besides the one that is a test"""
_ASKED: Final = (
    *("make the failing test pass", "Make the failing test pass.", "Fix the failing test."),
    *("A test fails. Repair the module.", "Make the tests pass.", "make all tests pass"),
    *("One test fails. Find the wrong line and put it right.", "Please repair this program."),
    *("The tests do not pass. Fix the code.", "fix the bug", "Repair the failing test."),
    *("Bring den Test zum Laufen.", "Ein Test schlägt fehl. Repariere das Programm."),
    *("Repariere den Fehler.", "Mach, dass alle Tests laufen."),
)
"""Phrases, of no part: what is repaired differs, not what is asked"""


@dataclass(frozen=True)
class MicroRepair(RepairTask):
    """A module with one wrong line, that line and the right one."""

    function: str = ""
    """Name of the function with the wrong line"""
    says: str = ""
    """Its docstring"""
    old: str = ""
    new: str = ""
    failure: str = ""
    """Words of the tests at first"""

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """Run the tests, read the module, change the line, run the tests, say so."""
        ((path, _),) = self.solution.items()
        old, new = self.old.strip(), self.new.strip()
        edit = ToolCall("edit", {"path": path, "old": self.old, "new": self.new})
        number = self.solution[path].split("\n").index(self.new) + 1
        run = ToolCall("run", {"command": RUN_TESTS})
        wrong = f"def {self.function} has to: {self.says} Line {number} is {old}, right is {new}."
        return (
            _does("I run the tests.", run),
            _does(f"test_{self.function} fails. I read {path}.", ToolCall("read", {"path": path})),
            _does(wrong, edit),
            _does("I run the tests again.", run),
            said("All tests pass.", f"The test passes now. I changed line {number} of {path}."),
        )

    @property
    def known_results(self) -> tuple[str, ...]:
        """Results of the calls of the known answers."""
        ((path, _),) = self.solution.items()
        return (self.failure, shown_file(self.files[path]), f"{path} is changed", "OK")


def make_repair(draw: Random, names: Names) -> MicroRepair:
    """Return a micro-repository whose right text is of the part of the names."""
    while True:
        module = names.word()
        functions = _functions(draw, names)
        right = _text(functions)
        if not (_FEWEST_LINES <= right.count("\n") <= _MOST_LINES and names.takes(right)):
            continue
        place = draw.randrange(len(functions))
        wrong = draw.choice(functions[place].wrong)
        if (task := _with_fault(draw, module, functions, place, wrong)) is not None:
            return task


def _functions(draw: Random, names: Names) -> list[Function]:
    count = draw.choice((2, 2, 3))
    forms = draw.sample(FORMS, count)
    return [make_function(draw, form, names.word(1, 2)) for form in forms]


def _text(functions: Sequence[Function], place: int | None = None, wrong: str = "") -> str:
    """Return the module; the function at the place, if any, has the wrong expression."""
    texts = [
        "\n".join(one.lines(wrong if at == place else None)) for at, one in enumerate(functions)
    ]
    return "\n\n\n".join(texts) + "\n"


def _with_fault(
    draw: Random, module: str, functions: Sequence[Function], place: int, wrong: str
) -> MicroRepair | None:
    """Return the repository with a wrong expression; None if that shows too little."""
    right, faulty = _text(functions), _text(functions, place, wrong)
    function = functions[place]
    old, new = function.body(wrong), function.body(function.right)
    asked = [Probe(0, (), call) for one in functions for call in one.calls]
    try:
        known, found = answers({module: right}, asked), answers({module: faulty}, asked)
    except EndlessError:
        return None
    checks = [
        Check(one, answer, answer != other)
        for one, answer, other in zip(asked, known, found, strict=True)
    ]
    tests = [_test_of(draw, one, checks) for one in functions]
    failing = [one for one in checks if one.is_failing]
    is_clear = faulty.count(old) == 1 and new not in faulty
    has_errors = any(one.startswith("raises ") for one in (*known, *found))
    if len(failing) <= _MIN_FAILING or has_errors or not is_clear:
        return None
    answer = found[asked.index(tests[place].probe)]
    path, test = f"{module}.py", f"test_{module}.py"
    return MicroRepair(
        level=1,
        question=draw.choice(_ASKED),
        files={path: faulty, test: _test_file(module, functions, tests)},
        tests=frozenset((test,)),
        solution={path: right},
        fault="expression",
        groups=(Group((module,), tuple(checks)),),
        tools_profile="minimal",
        function=function.name,
        says=function.says,
        old=old,
        new=new,
        failure=_failure(f"test_{function.name}", test[:-3], answer, tests[place].answer),
    )


def _test_of(draw: Random, function: Function, checks: Sequence[Check]) -> Check:
    """Return the check that is the function's test: one that fails if there is any."""
    own = [one for one in checks if one.probe.expression in function.calls]
    failing = [one for one in own if one.is_failing]
    return draw.choice(failing or own)


def _test_file(module: str, functions: Sequence[Function], tests: Sequence[Check]) -> str:
    head = f"import unittest\n\nfrom {module} import {', '.join(one.name for one in functions)}\n"
    bodies = [
        f"    def test_{one.name}(self):\n"
        f"        self.assertEqual({test.probe.expression}, {test.answer})\n"
        for one, test in zip(functions, tests, strict=True)
    ]
    return f"{head}\n\nclass Test(unittest.TestCase):\n" + "\n".join(bodies)


def _failure(name: str, module: str, answer: str, right: str) -> str:
    """Return what `RUN_TESTS` tells of one failing test, as Python has it from 3.11 on.

    answer, right  texts of the values that are compared
    """
    try:
        TestCase().assertEqual(literal_eval(answer), literal_eval(right))  # noqa: PT009
    except AssertionError as error:
        lines = [
            f"FAIL: {name} ({module}.Test.{name})",
            *f"AssertionError: {error}".split("\n"),
            "FAILED (failures=1)",
        ]
        return "\n".join(line for line in lines if _TOLD.search(line))
    raise AssertionError(f"{answer} is right")


def _does(thought: str, call: ToolCall) -> Message:
    return Message("assistant", "", thinking=thought, tool_calls=(call,))
