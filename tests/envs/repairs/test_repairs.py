"""Repairs: tests fail before and pass after, in this process, as a user runs them, and graded."""

import ast
import asyncio
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fulmen.agent import Score, Trajectory
from fulmen.envs import RepairTask, load_environment
from fulmen.envs.repairs import LEVELS, Repairs
from fulmen.envs.repairs import task as task_file
from fulmen.envs.repairs.faults import find_faults
from fulmen.envs.repairs.kinds import KINDS
from fulmen.envs.repairs.trial import EndlessError, answers
from fulmen.evaluate import self_check
from fulmen.sandbox import Limits

Change = Callable[[Path, RepairTask], None]


def modules_of(task: RepairTask, group: int, files: dict[str, str]) -> dict[str, str]:
    """Return the texts of a group's modules by their last name."""
    names = task.groups[group].modules
    return {name.rpartition(".")[2]: files[name.replace(".", "/") + ".py"] for name in names}


@pytest.mark.parametrize("level", LEVELS)
def test_with_the_right_text_all_probes_pass_and_with_the_fault_those_that_say_so(
    level: int,
) -> None:
    environment = Repairs(3, level=level)
    for index in range(6):
        task = environment.task(index)
        (path, right), *others = task.solution.items()
        assert not others
        assert task.files[path] != right
        for number, group in enumerate(task.groups):
            probes = [check.probe for check in group.checks]
            known = [check.answer for check in group.checks]
            solved = {**task.files, **task.solution}
            assert answers(modules_of(task, number, solved), probes) == known
            found = answers(modules_of(task, number, dict(task.files)), probes)
            differs = [one != other for one, other in zip(found, known, strict=True)]
            assert differs == [check.is_failing for check in group.checks]
            assert any(differs) is (number == 0)
            assert not all(differs)


@pytest.mark.parametrize("level", LEVELS)
def test_levels_are_what_they_say(level: int) -> None:
    for index in range(6):
        task = load_environment(f"repairs:{level}", seed=8).task(index)
        assert isinstance(task, RepairTask)
        (path,) = task.solution
        sources = [name for name in task.files if name not in task.tests and task.files[name]]
        assert len(sources) == {1: 1, 2: 1, 3: 2, 4: 3, 5: 6}[level]
        assert set(task.tests) < set(task.files)
        texts = [task.files[name] for name in task.tests]
        imported = {module for text in texts for module in re.findall(r"^from (\S+) ", text, re.M)}
        if level == 1:
            found = re.search(rf"{path}, line (\d+)\.", task.question)
            assert found is not None
            line = int(found[1]) - 1
            before, after = (text.split("\n") for text in (task.files[path], task.solution[path]))
            assert [
                i for i, (one, two) in enumerate(zip(before, after, strict=True)) if one != two
            ] == [line]
        elif level > 2:
            # The module with the fault is called through one other, or two.
            assert path.removesuffix(".py").replace("/", ".") not in imported
            assert path not in task.question
            far = {3: 1, 4: 1, 5: 2}[level]
            assert _distance(task, imported, path) == far


def _distance(task: RepairTask, imported: set[str], path: str) -> int:
    """Return through how many imports a file is reached from modules that tests import."""
    found, count = {name.replace(".", "/") + ".py" for name in imported}, 0
    while path not in found:
        count += 1
        folder = path.rpartition("/")[0]
        found = {
            f"{folder}/{name}.py"
            for one in found
            for name in re.findall(r"^from \.(\w+) ", task.files[one], re.M)
        }
        assert found
    return count


def test_a_seed_and_an_index_give_the_same_task_and_others_give_others() -> None:
    first, same, other = Repairs(1), Repairs(1), Repairs(2)
    tasks = [first.task(index) for index in range(40)]
    assert tasks[7:12] == [same.task(index) for index in range(7, 12)]
    assert [task.level for task in tasks[:6]] == [1, 2, 3, 4, 5, 1]
    texts = {str(task.files) for task in tasks} | {str(other.task(i).files) for i in range(10)}
    assert len(texts) == 50
    assert len({task.fault for task in tasks}) >= 5
    assert len({task.groups[0].modules[-1] for task in tasks}) >= 15


def test_names_that_words_get_are_no_others() -> None:
    for kind in KINDS:
        texts = [text for _, text in kind.modules]
        known = {
            name
            for text in texts
            for node in ast.walk(ast.parse(text))
            for name in (getattr(node, one, "") for one in ("id", "attr", "name", "arg"))
        }
        others = [word for some in kind.words.values() for word in some]
        assert set(kind.words) <= known | {
            arg for text in texts for arg in re.findall(r"\w+", text)
        }
        assert len(set(others)) == len(others)
        assert not set(others) & known, kind.name
        assert all(ast.parse(text) and text.isascii() for text in texts)


def test_a_program_that_never_ends_is_found_out() -> None:
    from fulmen.envs.repairs.kind import probe

    for text in (
        "def f():\n    a = 3\n    while True:\n        a = a * a\n",
        "def f():\n    a = 'ab'\n    while a:\n        a += a\n",
        "def f():\n    return 'ab' * 10**9\n",
        "def f():\n    while True:\n        pass\n",
        "def f():\n    a = [1]\n    for _ in a:\n        a.append(1)\n",
    ):
        with pytest.raises(EndlessError):
            answers({"m": text}, [probe(0, "f()")])
    assert answers({"m": "def f():\n    return f()\n"}, [probe(0, "f()")]) == [
        "raises RecursionError"
    ]


@pytest.mark.parametrize("level", LEVELS)
def test_the_tests_fail_and_then_pass_as_a_user_runs_them(level: int, tmp_path: Path) -> None:
    task = Repairs(5, level=level).task(0)
    asyncio.run(task.prepare(tmp_path))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py")) == sorted(
        task.files
    )

    def run_tests() -> str:
        command = [sys.executable, "-B", "-m", "unittest"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False
        ).stderr

    before = run_tests()
    assert "FAILED (" in before
    assert "ImportError" not in before
    for path, text in task.solution.items():
        (tmp_path / path).write_text(text)
    assert run_tests().endswith("OK\n")


def graded(task: RepairTask, folder: Path, change: Change) -> Score:
    """Return the score of a folder that was changed."""
    folder.mkdir()
    asyncio.run(task.prepare(folder))
    change(folder, task)
    return asyncio.run(asyncio.wait_for(task.score(Trajectory(), folder), 60))


def solve(folder: Path, task: RepairTask) -> None:
    """Write the right text."""
    for path, text in task.solution.items():
        (folder / path).write_text(text)


def do_nothing(folder: Path, task: RepairTask) -> None:
    """Leave all as it is."""


def delete_tests(folder: Path, task: RepairTask) -> None:
    """Delete the tests."""
    for path in task.tests:
        (folder / path).unlink()


def add_at_the_end(text: str) -> Change:
    """Return a change that adds lines to the file with the fault."""

    def change(folder: Path, task: RepairTask) -> None:
        (path,) = task.solution
        with (folder / path).open("a") as file:
            file.write(text)

    return change


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("level", LEVELS)
def test_the_right_text_scores_one_and_nothing_zero(level: int, tmp_path: Path) -> None:
    task = Repairs(11, level=level).task(level)
    score = graded(task, tmp_path / "solved", solve)
    assert score.value == 1
    assert score.parts["untouched_tests"] == score.parts["fail_to_pass"] == 1
    assert 1 <= score.parts["changed_lines"] <= 4
    for number, change in enumerate((do_nothing, delete_tests)):
        score = graded(task, tmp_path / str(number), change)
        assert (score.value, score.parts["fail_to_pass"]) == (0, 0)
        assert score.parts["pass_to_pass"] == 1
        assert score.parts["untouched_tests"] == (change is do_nothing)
    assert asyncio.run(task.score(Trajectory())).value == 0


@pytest.mark.slow
@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("profile", ["coding", "minimal"])
def test_many_tasks_are_as_they_should_be_in_the_sandbox(profile: str) -> None:
    environment = Repairs(4, profile=profile)
    # By the clock: sandboxes that end, and whatever else runs, take from the time of the making.
    assert asyncio.run(self_check(environment, range(50), making_seconds=0.5)) == []


@pytest.mark.usefixtures("has_sandbox")
def test_what_is_graded_answers_as_it_does_in_this_process(tmp_path: Path) -> None:
    for level in (2, 5):
        task = Repairs(21, level=level).task(0)
        found = [
            text
            for number, group in enumerate(task.groups)
            for text in answers(
                modules_of(task, number, dict(task.files)), [one.probe for one in group.checks]
            )
        ]
        sources = {path: text.encode() for path, text in task.files.items()}
        assert asyncio.run(task._answers(sources)) == found


@pytest.mark.usefixtures("has_sandbox")
def test_random_edits_score_nothing(tmp_path: Path) -> None:
    draw = random.Random(0)
    values = []
    for index in range(5):
        task = Repairs(31).task(index)
        (path,) = task.solution
        fault = draw.choice(find_faults(task.files[path]))

        def change(folder: Path, task: RepairTask, fault=fault, path=path) -> None:  # type: ignore[no-untyped-def]
            (folder / path).write_text(fault.put_into(task.files[path]))

        values.append(graded(task, tmp_path / str(index), change).value)
    assert sum(values) == 0


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize(
    "text",
    [
        "import os\nos._exit(0)\n",
        "import sys\nsys.exit(0)\n",
        "import builtins\nbuiltins.repr = lambda value: '1'\n",
        "import json\njson.dump = lambda value, file: file.write('{\"answers\": [[1]]}')\n",
        "import time\ntime.sleep(1000)\n",
        "class Same:\n    __eq__ = lambda self, other: True\n    __repr__ = lambda self: '1'\n",
        "raise ValueError\n",
        "syntax error\n",
        "import os\nos.remove('answers.json')\nos.mkfifo('answers.json')\nos._exit(0)\n",
        "print('x' * 10**8)\n",
    ],
)
def test_code_that_meddles_with_its_grading_scores_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_file, "_LIMITS", Limits(seconds=2.0, memory_bytes=2**28))
    task = Repairs(41, level=1).task(0)
    assert graded(task, tmp_path / "a", add_at_the_end(text)).value == 0


@pytest.mark.usefixtures("has_sandbox")
def test_other_files_and_links_count_for_nothing(tmp_path: Path) -> None:
    task = Repairs(51, level=3).task(0)
    (path,) = task.solution

    def change(folder: Path, task: RepairTask) -> None:
        solve(folder, task)
        for name in (
            "conftest.py",
            "sitecustomize.py",
            "test_more.py",
            "setup.cfg",
            "not a name.py",
        ):
            (folder / name).write_text("raise SystemExit(1)\n")
        (folder / "loop").symlink_to(folder, target_is_directory=True)
        (folder / "secret.py").symlink_to("/etc/passwd")
        for path in task.tests:
            (folder / path).write_text("")

    score = graded(task, tmp_path / "a", change)
    assert (score.value, score.parts["untouched_tests"]) == (1, 0)

    def link(folder: Path, task: RepairTask) -> None:
        outside = tmp_path / "outside.py"
        outside.write_text(task.solution[path])
        (folder / path).unlink()
        (folder / path).symlink_to(outside)

    assert graded(task, tmp_path / "b", link).value == 0


@pytest.mark.usefixtures("has_sandbox")
def test_code_that_makes_deep_folders_when_it_is_graded_is_graded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Repairs(41, level=1).task(0)

    def change(folder: Path, task: RepairTask) -> None:
        solve(folder, task)
        path = folder / next(iter(task.solution))
        deep = "import os\nfor _ in range(1500):\n    os.mkdir('a')\n    os.chdir('a')\n"
        path.write_text(path.read_text() + deep)

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    assert graded(task, tmp_path / "a", change).parts["untouched_tests"] == 1
    assert list((tmp_path / "scratch").iterdir()) == []
