"""Issues of repositories: files without history, patches, and tests in fresh files."""

import asyncio
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import Score, Trajectory
from fulmen.chat import get_format
from fulmen.envs import (
    GraderError,
    Instances,
    InstanceTask,
    load_environment,
    predict,
    read_instances,
    read_predictions,
)
from fulmen.evaluate import self_check
from fulmen.llm import ScriptedModel

M2 = get_format("minimax_m2")
CODE = "def add(a, b):\n    return a - b\n\n\ndef take(a, b):\n    return a - b\n"
RIGHT = CODE.replace("a - b", "a + b", 1)
TEST = "from calc import take\n\n\ndef test_take():\n    assert take(3, 1) == 2\n"
HIDDEN = TEST.replace("import take", "import add, take") + (
    "\n\ndef test_add():\n    assert add(3, 1) == 4\n"
)
CHEAT = """import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    report.outcome = "passed"
"""


@dataclass(frozen=True)
class Made:
    """A file with one instance, and its repository."""

    path: Path
    repositories: Path
    fields: Mapping[str, Any]

    @property
    def environment(self) -> Instances:
        return Instances(self.path, self.repositories)

    @property
    def task(self) -> InstanceTask:
        return self.environment.task(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("instances")
    clone = folder / "repositories/acme__calc"
    (clone / "tests").mkdir(parents=True)

    def git(*arguments: str) -> str:
        settings = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        command = ["git", *settings, *arguments]
        return subprocess.run(command, cwd=clone, check=True, capture_output=True, text=True).stdout

    def difference(path: str, text: str) -> str:
        (clone / path).write_text(text)
        patch = git("diff")
        git("checkout", "-q", ".")
        return patch

    git("init", "-q")
    (clone / "calc.py").write_text(CODE)
    (clone / "tests/test_calc.py").write_text(TEST)
    git("add", "--all")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD").strip()
    patch, tests = difference("calc.py", RIGHT), difference("tests/test_calc.py", HIDDEN)
    (clone / "calc.py").write_text("the answer of a later commit")
    git("commit", "-qam", "two")
    fields = {
        "instance_id": "acme__calc-1",
        "repo": "acme/calc",
        "base_commit": commit,
        "problem_statement": "add(3, 1) is 2",
        "patch": patch,
        "test_patch": tests,
        "FAIL_TO_PASS": json.dumps(["tests/test_calc.py::test_add"]),
        "PASS_TO_PASS": ["tests/test_calc.py::test_take"],
        "version": "1.0",
    }
    path = folder / "instances.jsonl"
    path.write_text(json.dumps(fields) + "\n")
    return Made(path, folder / "repositories", fields)


def changed(made: Made, folder: Path, **texts: str) -> Path:
    """Return a folder in which an agent wrote files, by their names without .py."""
    folder.mkdir()
    asyncio.run(made.task.prepare(folder))
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.mark.usefixtures("has_sandbox")
def test_the_known_patch_scores_one_and_words_nothing(made: Made) -> None:
    assert asyncio.run(self_check(made.environment, [0], junk=["Done."])) == []


def test_the_folder_has_the_files_of_the_commit_and_no_history(made: Made, tmp_path: Path) -> None:
    folder = changed(made, tmp_path / "folder")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert names == ["calc.py", "tests", "tests/test_calc.py"]
    assert (folder / "calc.py").read_text() == CODE
    assert not any("+ b" in one.content for one in made.task.messages)


@pytest.mark.usefixtures("has_sandbox")
def test_the_tests_of_the_agent_do_not_count(made: Made, tmp_path: Path) -> None:
    folder = changed(made, tmp_path / "folder", calc=RIGHT, conftest=CHEAT)
    (folder / "tests/helpers.py").write_text("the files beside the tests belong to them")
    (folder / "tests/test_calc.py").write_text("def test_add():\n    pass\n")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --collect-only\n")
    task = made.task
    score = asyncio.run(task.score(Trajectory(), folder))
    assert score.value == 1
    assert score.parts["touches_tests"] == 1
    assert task.model_patch is not None
    assert "conftest.py" in task.model_patch
    assert "helpers.py" in task.model_patch


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(0)\n",
        f"{CODE}\nimport _pytest.runner as runner\n"
        "runner.check_interactive_exception = lambda *a: False\n"
        "old = runner.CallInfo.from_call.__func__\n"
        "runner.CallInfo.from_call = classmethod(\n"
        "    lambda cls, func, when, reraise=None: old(cls, lambda: None, when, reraise))\n",
    ],
)
def test_code_that_cheats_scores_nothing(made: Made, tmp_path: Path, code: str) -> None:
    folder = changed(made, tmp_path / "folder", calc=code)
    score = asyncio.run(made.task.score(Trajectory(), folder))
    assert score.value == 0
    assert score.parts["believed"] == 0


@pytest.mark.usefixtures("has_sandbox")
def test_a_wrong_patch_says_how_far_it_got(made: Made) -> None:
    task = made.task
    wrong = made.fields["patch"].replace("+    return a + b", "+    return a * b")
    parts = asyncio.run(task.grade(wrong)).parts
    assert (parts["fail_to_pass"], parts["pass_to_pass"], parts["applied"]) == (0, 1, 1)


@pytest.mark.parametrize(
    "patch",
    [
        "",
        "no patch",
        "diff --git a/gone.py b/gone.py\n--- a/gone.py\n+++ b/gone.py\n@@ -1 +1 @@\n-a\n+b\n",
        "--- /dev/null\n+++ b/../../evil.py\n@@ -0,0 +1 @@\n+a\n",
        "--- /dev/null\n+++ b/.git/config\n@@ -0,0 +1 @@\n+a\n",
        "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/tmp\n"
        "\\ No newline at end of file\n"
        "diff --git a/l/x b/l/x\nnew file mode 100644\n--- /dev/null\n+++ b/l/x\n"
        "@@ -0,0 +1 @@\n+a\n",
    ],
)
def test_a_patch_that_does_not_fit_scores_nothing(made: Made, patch: str) -> None:
    score = asyncio.run(made.task.grade(patch))
    assert (score.value, score.parts["applied"]) == (0, 0)


@pytest.mark.usefixtures("has_sandbox")
def test_tests_that_cannot_run_are_an_error(made: Made, tmp_path: Path) -> None:
    fields = dict(made.fields)
    fields["test_patch"] = fields["test_patch"].replace("import add", "import nowhere, add")
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps(fields))
    with pytest.raises(GraderError, match="its tests cannot be run here"):
        asyncio.run(Instances(path, made.repositories).task(0).grade(fields["patch"]))
    fields["FAIL_TO_PASS"] = ["test_add (tests.Calc)"]
    path.write_text(json.dumps(fields))
    with pytest.raises(GraderError, match="is no name of pytest's"):
        asyncio.run(Instances(path, made.repositories).task(0).grade(fields["patch"]))


@pytest.mark.usefixtures("has_sandbox")
def test_a_patch_without_a_name_that_the_tests_import_is_wrong_and_no_error(
    made: Made, tmp_path: Path
) -> None:
    tests = made.fields["test_patch"].replace("import add", "import double, add")
    extended = made.fields["patch"].replace("@@ -1,5 +1,5 @@", "@@ -1,5 +1,6 @@")
    known = extended.replace("+    return a + b\n", "+    return a + b\n+double = add\n")
    path = tmp_path / "new.jsonl"
    path.write_text(json.dumps({**made.fields, "patch": known, "test_patch": tests}))
    task = Instances(path, made.repositories).task(0)
    assert asyncio.run(task.grade(known)).value == 1
    score = asyncio.run(task.grade(made.fields["patch"]))
    assert (score.value, score.parts["applied"], score.parts["believed"]) == (0, 1, 0)


@pytest.mark.usefixtures("has_sandbox")
def test_an_instance_may_have_no_patch_of_tests_and_no_broken_one(
    made: Made, tmp_path: Path
) -> None:
    fields = {**made.fields, "FAIL_TO_PASS": ["tests/test_calc.py::test_take"], "PASS_TO_PASS": []}
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps({**fields, "test_patch": ""}))
    right = made.fields["patch"]
    assert asyncio.run(Instances(path, made.repositories).task(0).grade(right)).value == 1
    path.write_text(json.dumps({**fields, "test_patch": "no patch"}))
    with pytest.raises(GraderError, match="acme__calc-1: test_patch: git apply"):
        asyncio.run(Instances(path, made.repositories).task(0).grade(right))


def test_a_repository_that_is_too_large_is_an_error(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulmen.envs.left._MAX_COPIED_BYTES", 8)
    folder = changed(made, tmp_path / "folder", calc=RIGHT)
    with pytest.raises(GraderError, match="acme__calc-1: the repository has too many files"):
        asyncio.run(made.task.score(Trajectory(), folder))


@pytest.mark.usefixtures("has_sandbox")
def test_predictions_are_written_line_by_line_and_gone_on_with(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "out" / "predictions.jsonl"
    path.parent.mkdir()
    other = {"instance_id": "x-1", "model_name_or_path": "m", "model_patch": ""}
    path.write_text(json.dumps(other) + "\n" + '{"instance_id": "acme__ca')
    command = "sed -i '0,/a - b/s//a + b/' calc.py; mkdir __pycache__; echo 1 > __pycache__/a.pyc"
    script = [
        '</think>\n\n<minimax:tool_call>\n<invoke name="bash">\n<parameter name="command">'
        f"{command}</parameter>\n</invoke>\n</minimax:tool_call>",
        "</think>\n\nDone.",
    ]
    model = ScriptedModel(M2, script)
    assert asyncio.run(predict(model, made.environment, path, name="tiny")) == 1
    found = read_predictions(path)
    assert list(found) == ["x-1", "acme__calc-1"]
    assert found["acme__calc-1"].model_name_or_path == "tiny"
    assert "+    return a + b" in found["acme__calc-1"].model_patch
    assert "pyc" not in found["acme__calc-1"].model_patch
    assert asyncio.run(predict(model, made.environment, path, name="tiny")) == 0
    assert asyncio.run(made.task.grade(found["acme__calc-1"].model_patch)).value == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"patch": None}, "line 1 must have patch, a text"),
        ({"instance_id": "../x"}, "line 1 has the instance_id ../x"),
        ({"repo": "calc"}, "line 1 has the repo calc"),
        ({"base_commit": "HEAD"}, "line 1 has the base_commit HEAD"),
        ({"FAIL_TO_PASS": "[]"}, "line 1 has no test in FAIL_TO_PASS"),
        ({"PASS_TO_PASS": "a"}, "line 1: PASS_TO_PASS must be a list of names"),
    ],
)
def test_a_bad_line_is_one_sentence(
    made: Made, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({**made.fields, **change}))
    with pytest.raises(ValueError, match=sentence):
        read_instances(path)


def test_instances_need_their_repository(made: Made, tmp_path: Path) -> None:
    name = f"instances:{made.path}:{made.repositories}"
    assert load_environment(name, seed=0).num_tasks == 1
    with pytest.raises(ValueError, match="it must be instances:FILE:REPOSITORIES"):
        load_environment("instances:file", seed=0)
    path = tmp_path / "twice.jsonl"
    path.write_text(f"{json.dumps(made.fields)}\n" * 2)
    with pytest.raises(ValueError, match="has the instance acme__calc-1 twice"):
        read_instances(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="has no repository for acme__calc-1: a clone acme__calc"):
        asyncio.run(Instances(made.path, tmp_path).task(0).prepare(tmp_path / "folder"))
    (tmp_path / "acme__calc-1").mkdir()
    (tmp_path / "acme__calc-1/calc.py").write_text("a tree")
    asyncio.run(Instances(made.path, tmp_path).task(0).prepare(tmp_path / "folder"))
    assert (tmp_path / "folder/calc.py").read_text() == "a tree"
    path.write_text(json.dumps({**made.fields, "base_commit": "0" * 40}))
    with pytest.raises(ValueError, match="does not have commit 0000"):
        asyncio.run(Instances(path, made.repositories).task(0).prepare(tmp_path / "other"))


def test_no_score_without_a_folder(made: Made) -> None:
    assert asyncio.run(made.task.score(Trajectory())) == Score(0.0, {"applied": 0.0})


@pytest.mark.usefixtures("has_sandbox")
def test_a_test_that_fails_with_the_known_patch_too_is_an_error(made: Made, tmp_path: Path) -> None:
    tests = made.fields["test_patch"].replace("== 4", "== 5")
    path = tmp_path / "new.jsonl"
    path.write_text(json.dumps({**made.fields, "test_patch": tests}))
    task = Instances(path, made.repositories).task(0)
    with pytest.raises(GraderError, match="test_add fails here with the known patch too"):
        asyncio.run(task.grade(made.fields["patch"].replace("a + b", "b + a")))
