"""Repairs: a small repository with one fault, played in a folder and graded in a fresh one.

    seed, level, index -> kind, names, fault, tests (writing.py) -> RepairTask
    folder as the agent left it -> its sources alone -> fresh folder, sandbox -> answers to probes

The hidden tests are probes whose right answers never enter the sandbox, so neither edits of the
tests nor code that meddles with them can pass.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message, ToolCall
from fulmen.envs.apart import told_apart
from fulmen.envs.left import left_file
from fulmen.envs.repairs import outcomes
from fulmen.envs.repairs.kind import Probe
from fulmen.envs.task import Task
from fulmen.sandbox import Limits

_LIMITS: Final = Limits(
    seconds=20.0, memory_bytes=2**29, num_processes=16, file_bytes=2**24, output_bytes=2**22
)
_MAX_ENTRIES: Final = 2000
_MAX_FILES: Final = 100
_MAX_DEPTH: Final = 4


@dataclass(frozen=True, slots=True)
class Check:
    """A probe and the right answer to it."""

    probe: Probe
    answer: str
    is_failing: bool
    """True if the fault makes the answer another one"""


@dataclass(frozen=True, slots=True)
class Group:
    """Checks of modules that share their names."""

    modules: tuple[str, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class RepairTask(Task):
    """A repository whose tests fail because of one fault."""

    level: int
    question: str
    files: Mapping[str, str] = field(repr=False)
    """Texts by path, with the fault"""
    tests: frozenset[str]
    """Paths of the tests, which must not be changed"""
    solution: Mapping[str, str] = field(repr=False)
    """The right text of the one file that has the fault"""
    fault: str
    """Kind of fault, such as comparison or missing"""
    groups: tuple[Group, ...] = field(repr=False)
    tools_profile: str = "coding"

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question, as a user's message."""
        return (Message("user", self.question),)

    @property
    def key(self) -> str:
        """The question and the repository."""
        files = (f"{path}\n{self.files[path]}" for path in sorted(self.files))
        return "\n".join([self.question, *files])

    @property
    def profile(self) -> str:
        """Name of the tools that the model has."""
        return self.tools_profile

    @property
    def variables(self) -> Mapping[str, str]:
        """Variables of the commands that the model runs: Python keeps nothing that it compiled,
        since it would not see a change within a second to a text that is as long."""
        return {"PYTHONDONTWRITEBYTECODE": "1"}

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """Read the file with the fault, put it right, say so."""
        ((path, right),) = self.solution.items()
        old, new = shortest_edit(self.files[path], right)
        edit = ToolCall("edit", {"path": path, "old": old, "new": new})
        return (
            Message("assistant", "", tool_calls=(ToolCall("read", {"path": path}),)),
            Message("assistant", "", tool_calls=(edit,)),
            Message("assistant", f"I put {path} right."),
        )

    async def prepare(self, folder: Path) -> None:
        """Write the repository."""
        _write(folder, {path: text.encode() for path, text in self.files.items()})

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if all answers to the probes are right, else 0.

        Parts: tests, fail_to_pass and pass_to_pass (shares of the probes that failed or passed
        before and are right now), untouched_tests, changed_lines (in the sources).
        """
        if folder is None:
            return Score(0.0, {"tests": 0.0})
        found = dict(_read_folder(folder))
        sources = {path: content for path, content in found.items() if self._is_source(path)}
        checks = [check for group in self.groups for check in group.checks]
        answers = await self._answers(sources)
        is_right = [answer == one.answer for answer, one in zip(answers, checks, strict=True)]
        value = float(all(is_right))
        failed = [right for right, one in zip(is_right, checks, strict=True) if one.is_failing]
        passed = [right for right, one in zip(is_right, checks, strict=True) if not one.is_failing]
        untouched = all(found.get(path) == self.files[path].encode() for path in self.tests)
        parts = {
            "tests": value,
            "fail_to_pass": sum(failed) / len(failed),
            "pass_to_pass": sum(passed) / len(passed) if passed else 1.0,
            "untouched_tests": float(untouched),
            "changed_lines": float(self._num_changed(sources)),
        }
        return Score(value, parts)

    def _is_source(self, path: str) -> bool:
        """Return whether a file is code that the tests are about: not a test, not a setting."""
        packages = {module.partition(".")[0] for group in self.groups for module in group.modules}
        first, *rest = path.split("/")
        if path in self.tests or not path.endswith(".py"):
            return False
        return first in packages if rest else not first.startswith(("test", "conftest"))

    async def _answers(self, sources: Mapping[str, bytes]) -> list[str]:
        """Return what sources answer to the probes; empty texts where they answer nothing."""
        asked = [
            {
                "modules": group.modules,
                "probes": [[one.probe.lines, one.probe.expression] for one in group.checks],
            }
            for group in self.groups
        ]
        numbers = [len(group.checks) for group in self.groups]
        files = {f"solution/{path}": content for path, content in sources.items()}
        told = await told_apart(Path(outcomes.__file__), {"groups": asked}, _LIMITS, files=files)
        found = None if told is None else told.get("answers")
        return [text for group in _texts(found, numbers) for text in group]

    def _num_changed(self, sources: Mapping[str, bytes]) -> int:
        """Return the number of lines deleted and added, as git counts them."""
        before = {path: text for path, text in self.files.items() if self._is_source(path)}
        after = {path: content.decode("utf-8", "replace") for path, content in sources.items()}
        count = 0
        for path in {**before, **after}:
            old, new = before.get(path, ""), after.get(path, "")
            if old != new:
                matcher = difflib.SequenceMatcher(None, old.split("\n"), new.split("\n"), False)
                for kind, i, j, k, m in matcher.get_opcodes():
                    count += 0 if kind == "equal" else j - i + m - k
        return count


def shortest_edit(before: str, after: str) -> tuple[str, str]:
    """Return the fewest whole lines that stand once in a text, and what takes their place."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    least = min(len(old), len(new))
    start = next((i for i in range(least) if old[i] != new[i]), least)
    end = next((i for i in range(least - start) if old[-1 - i] != new[-1 - i]), least - start)
    while True:
        lines = "".join(old[start : len(old) - end])
        if lines and before.count(lines) == 1:
            return lines, "".join(new[start : len(new) - end])
        start, end = max(start - 1, 0), max(end - 1, 0)


def _texts(found: object, numbers: list[int]) -> Iterator[list[str]]:
    """Yield so many texts for each group, whatever was found."""
    groups = found if isinstance(found, list) else []
    for place, number in enumerate(numbers):
        group = groups[place] if place < len(groups) else None
        if isinstance(group, list) and len(group) == number:
            yield [one if isinstance(one, str) else "" for one in group]
        else:
            yield [""] * number


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the Python files below a folder, which a stranger may have made:
    no link is followed, and there is an end to everything."""
    waiting, num_left, num_files = [""], _MAX_ENTRIES, 0
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as found:
                entries = sorted(islice(found, num_left), key=lambda entry: entry.name)
        except OSError:  # a folder that is closed to us holds no source
            continue
        num_left -= len(entries)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name.isidentifier() and prefix.count("/") < _MAX_DEPTH:
                    waiting.append(f"{prefix}{entry.name}/")
            elif entry.name[:-3].isidentifier() and entry.name.endswith(".py"):
                content = left_file(Path(entry))
                num_files += 1
                if content is not None and num_files <= _MAX_FILES:
                    yield f"{prefix}{entry.name}", content
