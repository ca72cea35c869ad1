"""The environment of repairs: draws a repository, puts one fault into it, and sees that it shows.

    level 1   one file; the failing line is named
    level 2   a larger file; a failing test is all there is
    level 3   a package of two modules; the tests are one call away from the fault
    level 4   a package of three modules; the tests are one call away from the fault
    level 5   a package of six; the tests are two calls away from the fault

Each repository is run before it is given: with the right text all its tests pass, with the fault
some fail and some still pass, and no test takes for ever.
"""

import ast
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fulmen.agent import PROFILES
from fulmen.envs.repairs.faults import Fault, find_faults
from fulmen.envs.repairs.kind import Kind, Probe
from fulmen.envs.repairs.kinds import KINDS
from fulmen.envs.repairs.task import Check, Group, RepairTask
from fulmen.envs.repairs.trial import EndlessError, answers

LEVELS: Final = (1, 2, 3, 4, 5)
_ROUNDS: Final = 8
"""Times that a kind draws its probes"""
_MAX_VISIBLE_FAILING: Final = 3
_MAX_VISIBLE_PASSING: Final = 6
_MIN_HIDDEN_FAILING: Final = 2
_MAX_FAILING: Final = 0.6
"""Share of the tests that may fail: where nearly nothing works, the first one tells"""
_ERRORS: Final = ("raises ValueError", "raises IndexError")
_OWN_IMPORT: Final = re.compile(r"^from \.\w+ import .*\n+", re.M)
_RUN: Final = (
    "Run the tests with `python3 -m unittest`. They are right, and changes to them do not count. "
    "Change as little as possible."
)


@dataclass(frozen=True, slots=True)
class _Program:
    """A right program: the files of one kind, and what is known to be right about them."""

    kind: Kind
    files: Mapping[str, str]
    """Texts of its modules by their names, helpers first"""
    layers: tuple[int, ...]
    """Layers that it has"""
    checks: tuple[Check, ...]


class Repairs:
    """Repositories to repair; without a level, all levels in turn."""

    num_tasks: Final = None

    def __init__(self, seed: int, *, level: int | None = None, profile: str = "coding") -> None:
        """profile: tools that the model has, coding or minimal"""
        if level is not None and level not in LEVELS:
            raise ValueError(f"level is {level}, it must be from {LEVELS[0]} to {LEVELS[-1]}")
        if profile not in PROFILES or profile == "none":
            known = ", ".join(name for name in PROFILES if name != "none")
            raise ValueError(f"profile is {profile}, it must be one of {known}")
        self._seed = seed
        self._level = level
        self._profile = profile

    def task(self, index: int) -> RepairTask:
        """Return the repository at an index; there is no last one."""
        level = self._level or LEVELS[index % len(LEVELS)]
        draw = random.Random(f"repairs {self._seed} {level} {index}")
        while True:
            kind, other = draw.sample(KINDS, 2)
            program = _program(kind, draw, level)
            if (task := _with_fault(program, draw, level)) is None:
                continue  # no fault of it shows in the tests it has
            if level == 5:
                task = _with_bystander(task, _program(other, draw, level), draw)
            return replace(task, tools_profile=self._profile)


def _program(kind: Kind, draw: random.Random, level: int) -> _Program:
    """Return a kind with names that were drawn, laid out as a level has it."""
    called = kind.called(draw)
    layers = {1: draw.choice(((2,), (1, 2))), 3: (1, 2)}.get(level, (0, 1, 2))
    texts = {kind.modules[layer][0]: called(kind.modules[layer][1]) for layer in reversed(layers)}
    probes: dict[Probe, None] = {}
    for _ in range(_ROUNDS):
        for one in kind.probes(draw):
            if one.layer in layers:
                probe = Probe(one.layer, tuple(map(called, one.lines)), called(one.expression))
                probes[probe] = None
    right = answers(texts, list(probes))
    checks = [
        Check(probe, answer, False)
        for probe, answer in zip(probes, right, strict=True)
        if answer in _ERRORS or _is_literal(answer)
    ]
    files = {kind.name: _joined(list(texts.values()))} if level <= 2 else texts
    return _Program(kind, files, layers, tuple(checks))


def _joined(texts: Sequence[str]) -> str:
    """Return modules, helpers first, as one; its docstring is that of the last."""
    parts = [_OWN_IMPORT.sub("", text.partition("\n")[2]).strip("\n") for text in texts]
    return texts[-1].partition("\n")[0] + "\n\n\n" + "\n\n\n".join(parts) + "\n"


def _is_literal(text: str) -> bool:
    try:
        return repr(ast.literal_eval(text)) == text
    except (ValueError, SyntaxError):
        return False


def _with_fault(program: _Program, draw: random.Random, level: int) -> RepairTask | None:
    """Return a program with a fault that shows in tests; None if it has none such."""
    shown, faulty = {3: (1, 2), 4: (0, 1), 5: (0, 2)}.get(level, (None, None))
    name = program.kind.name if faulty is None else program.kind.modules[faulty][0]
    text = program.files[name]
    for fault in _mixed(find_faults(text), draw):
        if level == 1 and fault.kind == "missing":  # there is no line to name
            continue
        changed = {**program.files, name: fault.put_into(text)}
        checks = _checked(program, changed)
        visible = _visible(checks, shown, draw)
        hidden = [one for one in checks if one.is_failing and one not in visible]
        is_plain = sum(one.is_failing for one in checks) > _MAX_FAILING * len(checks)
        if visible and len(hidden) >= _MIN_HIDDEN_FAILING and not is_plain:
            return _task(program, name, fault, checks, visible, level)
    return None


def _mixed(faults: Sequence[Fault], draw: random.Random) -> list[Fault]:
    """Return faults in a random order in which no kind comes first because it has more of them."""
    counts: dict[str, int] = {}
    places = []
    for fault in draw.sample(faults, len(faults)):
        counts[fault.kind] = counts.get(fault.kind, 0) + 1
        places.append((counts[fault.kind], draw.random(), fault))
    return [fault for _, _, fault in sorted(places, key=lambda one: one[:2])]


def _checked(program: _Program, changed: Mapping[str, str]) -> list[Check]:
    """Return the checks, each with whether it fails on changed files; none if one never ends."""
    try:
        found = answers(changed, [check.probe for check in program.checks])
    except EndlessError:
        return []
    except Exception:  # it is no Python, or cannot even be loaded: too plain a fault
        return []
    pairs = zip(program.checks, found, strict=True)
    return [replace(check, is_failing=answer != check.answer) for check, answer in pairs]


def _visible(checks: Sequence[Check], layer: int | None, draw: random.Random) -> list[Check]:
    """Return some checks of a layer, failing ones and passing ones; none if either is missing."""
    of_layer = [one for one in checks if layer is None or one.probe.layer == layer]
    failing = [one for one in of_layer if one.is_failing]
    passing = [one for one in of_layer if not one.is_failing]
    if not failing or not passing:
        return []
    chosen = draw.sample(failing, min(len(failing), _MAX_VISIBLE_FAILING))
    chosen += draw.sample(passing, min(len(passing), _MAX_VISIBLE_PASSING))
    return [one for one in checks if one in chosen]


def _task(
    program: _Program,
    name: str,
    fault: Fault,
    checks: Sequence[Check],
    visible: Sequence[Check],
    level: int,
) -> RepairTask:
    kind, is_package = program.kind.name, level > 2
    files = {
        f"{kind}/{one}.py" if is_package else f"{one}.py": text
        for one, text in program.files.items()
    }
    path = f"{kind}/{name}.py" if is_package else f"{name}.py"
    right = files[path]
    files[path] = fault.put_into(right)
    test = f"tests/test_{kind}.py" if is_package else f"test_{kind}.py"
    start = f"{kind}." if is_package else ""
    modules = {start + one: text for one, text in program.files.items()}
    tests = {test: _test_file(kind, modules, visible)}
    if is_package:
        files[f"{kind}/__init__.py"] = ""
        tests["tests/__init__.py"] = ""
    where = f"the package {kind}" if is_package else f"{kind}.py"
    question = (
        f"Tests in {test} fail because of one wrong line: {path}, line {fault.line}. Repair it. "
        f"{_RUN}"
        if level == 1
        else f"Tests in {test} fail because of one fault in {where}, where every function should "
        f"do what its docstring says. Find it and repair it. {_RUN}"
    )
    return RepairTask(
        level=level,
        question=question,
        files=dict(sorted({**files, **tests}.items())),
        tests=frozenset(tests),
        solution={path: right},
        fault=fault.kind,
        groups=(Group(tuple(modules), tuple(checks)),),
    )


def _with_bystander(task: RepairTask, program: _Program, draw: random.Random) -> RepairTask:
    """Return a task with a second, right program beside the first one in its package."""
    (group,) = task.groups
    package = group.modules[0].partition(".")[0]
    modules = {f"{package}.{name}": text for name, text in program.files.items()}
    files = {f"{package}/{name}.py": text for name, text in program.files.items()}
    top = [check for check in program.checks if check.probe.layer == 0]
    visible = draw.sample(top, min(len(top), _MAX_VISIBLE_PASSING))
    test = f"tests/test_{program.kind.name}.py"
    files[test] = _test_file(program.kind.name, modules, visible)
    return replace(
        task,
        files=dict(sorted({**task.files, **files}.items())),
        tests=task.tests | {test},
        groups=(group, Group(tuple(modules), program.checks)),
    )


def _test_file(name: str, modules: Mapping[str, str], checks: Sequence[Check]) -> str:
    """Return a file of unit tests. modules: texts by the names that they are imported by"""
    homes = {one: module for module, text in modules.items() for one in _public(text)}
    used: dict[str, set[str]] = {}
    numbers: dict[str, int] = {}
    tests = []
    for check in checks:
        lines = [*check.probe.lines, check.probe.expression]
        words = [word for line in lines for word in _names(line) if word in homes]
        for word in words:
            used.setdefault(homes[word], set()).add(word)
        subject = re.sub(r"\W", "", words[-1]).lower() if words else name
        numbers[subject] = numbers.get(subject, 0) + 1
        tests.append(f"    def test_{subject}_{numbers[subject]}(self):\n{_test_body(check)}")
    imports = [f"from {home} import {', '.join(sorted(used[home]))}" for home in sorted(used)]
    head = f'"""Tests of {name}."""\n\nimport unittest\n\n' + "\n".join(imports)
    title = name.title().replace("_", "")
    body = f"class Test{title}(unittest.TestCase):\n" + "\n".join(tests)
    return f'{head}\n\n\n{body}\n\nif __name__ == "__main__":\n    unittest.main()\n'


def _test_body(check: Check) -> str:
    *before, last = [*check.probe.lines, check.probe.expression]
    lines = [*before, f"self.assertEqual({last}, {check.answer})"]
    if check.answer in _ERRORS:
        inner = [f"    {line}" for line in (*before, last)]
        lines = [f"with self.assertRaises({check.answer.removeprefix('raises ')}):", *inner]
    return "".join(f"        {line}\n" for line in lines)


def _public(text: str) -> Iterator[str]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def _names(line: str) -> list[str]:
    """Return the names that a line reads, in their order."""
    nodes = [node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Name)]
    return [node.id for node in sorted(nodes, key=lambda node: node.col_offset)]
