"""Packages with a fault: trees, hidden tests, grades; a small package stands for the real ones."""

import asyncio
import hashlib
import io
import os
import socket
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.agent import Score
from fulmen.catalog import cache_folder
from fulmen.chat import Message, ToolCall, get_format
from fulmen.envs import GraderError, Packages, PackageTask, load_environment, run_task
from fulmen.envs.instances.git import apply_patch
from fulmen.envs.packages import environment
from fulmen.envs.packages.environment import FaultyTree, patch_of
from fulmen.envs.packages.hiding import spans_of_tests, without_tests
from fulmen.envs.packages.manifest import Package, PackageFault, manifest_text, read_manifest
from fulmen.envs.packages.sources import package_folder
from fulmen.llm import ScriptedModel

CODE = """\"\"\"Sums.\"\"\"


def add(a, b):
    return a + b


def take(a, b):
    return a - b
"""
TESTS = """import pytest

from sums import add, take


def test_take():
    assert take(3, 1) == 2


def test_add():
    assert add(3, 1) == 4


class TestMore:
    @pytest.mark.parametrize("b", [1, 2])
    def test_add_more(self, b):
        assert add(3, b) == 3 + b

    def test_zero(self):
        assert take(3, 0) == 3
"""
BACKEND = """import os


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    open("{ran}", "w").close()
    name = "sums_of_ours-1.0.dist-info"
    os.mkdir(os.path.join(folder, name))
    with open(os.path.join(folder, name, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: sums-of-ours\\nVersion: 1.0\\n")
    return name
"""
PROJECT = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "sums-of-ours"
version = "1.0"
"""
METADATA = "Metadata-Version: 2.1\nName: sums-of-ours\nVersion: 1.0\n"
RAN = Path(gettempdir()) / f"sums-of-ours-{os.getpid()}"
"""There once code of the package ran"""
FILES = {
    "sums.py": CODE,
    "tests/test_sums.py": TESTS,
    "backend.py": BACKEND.replace("{ran}", str(RAN)),
    "pyproject.toml": PROJECT,
    "PKG-INFO": METADATA,
}
ALL = tuple(
    f"tests/test_sums.py::{name}"
    for name in (
        *("test_take", "test_add", "TestMore::test_add_more[1]"),
        *("TestMore::test_add_more[2]", "TestMore::test_zero"),
    )
)
FAULT = PackageFault(
    package="sums-of-ours",
    path="sums.py",
    start=CODE.index("+"),
    old="+",
    new="-",
    kind="sign",
    failing=ALL[1:4],
    hidden=("tests/test_sums.py::TestMore::test_add_more",),
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A package that pip finds in a folder, and a cache that is empty."""
    links = tmp_path / "links"
    links.mkdir()
    archive = links / "sums_of_ours-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for path, text in FILES.items():
            entry = tarfile.TarInfo(f"sums_of_ours-1.0/{path}")
            entry.size = len(text)
            file.addfile(entry, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    RAN.unlink(missing_ok=True)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    return Package("sums-of-ours", "1.0", sha256, ALL)


def task_of(package: Package, *, profile: str = "coding") -> PackageTask:
    return PackageTask(FaultyTree(package, FAULT), profile=profile)


def grade(task: PackageTask, text: str) -> Score:
    return asyncio.run(task.grade(patch_of("sums.py", task.tree.faulty, text)))


# The sources.


def test_sources_arrive_once(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = package_folder(package)
    assert {path: (folder / path).read_text() for path in FILES} == FILES
    assert [one.name for one in folder.parent.iterdir()] == [folder.name]
    assert RAN.exists()  # pip asks the sources for their dependencies
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert package_folder(package) == folder


def test_other_sources_are_refused_and_nothing_is_left(package: Package) -> None:
    other = Package(package.name, package.version, "0" * 64, ALL)
    with pytest.raises(ValueError, match=r"cannot fetch sums-of-ours==1\.0: pip says"):
        package_folder(other)
    assert list((cache_folder() / "packages").iterdir()) == []
    assert not RAN.exists()


def test_several_processes_may_fetch_a_package_at_once(package: Package) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = set(pool.map(package_folder, [package] * 3))
    assert [one.name for one in (cache_folder() / "packages").iterdir()] == [found.pop().name]


def test_a_package_that_nobody_has_is_a_sentence(package: Package) -> None:
    other = Package("sums-of-nobody", "1.0", package.sha256, ALL)
    with pytest.raises(ValueError, match=r"cannot fetch sums-of-nobody==1\.0: pip says"):
        package_folder(other)


# What the agent sees, and the grade.


def test_the_agent_sees_the_fault_and_not_the_hidden_tests(
    package: Package, tmp_path: Path
) -> None:
    task = task_of(package)
    asyncio.run(task.prepare(tmp_path / "folder"))
    assert (tmp_path / "folder/sums.py").read_text() == CODE.replace("+", "-", 1)
    seen = (tmp_path / "folder/tests/test_sums.py").read_text()
    assert "test_add_more" not in seen
    assert "parametrize" not in seen
    assert "test_zero" in seen
    (message,) = task.messages
    assert "- tests/test_sums.py::test_add\n" in message.content
    assert "test_add_more" not in message.content


def test_the_instance_leads_back_to_what_was_published(package: Package, tmp_path: Path) -> None:
    task = task_of(package)
    folder = tmp_path / "folder"
    asyncio.run(task.prepare(folder))
    apply_patch(folder, task.instance.patch)
    apply_patch(folder, task.instance.test_patch)
    assert {path: (folder / path).read_text() for path in FILES} == FILES


@pytest.mark.parametrize("profile", ["coding", "minimal"])
def test_the_known_answer_scores_one(package: Package, profile: str) -> None:
    task = task_of(package, profile=profile)
    format = get_format("minimax_m2")
    answers = [f"Hm.\n</think>\n\n{_rendered(one)}" for one in task.known_answers]
    trajectory = asyncio.run(run_task(ScriptedModel(format, answers), task))
    assert trajectory.score is not None
    assert trajectory.score.value == 1.0
    assert trajectory.score.parts["changed_lines"] == 2


def _rendered(message: Message) -> str:
    def parameter(name: str, value: object) -> str:
        return f'<parameter name="{name}">{value}</parameter>\n'

    def called(call: ToolCall) -> str:
        inner = "".join(parameter(*one) for one in call.arguments.items())
        return f'<invoke name="{call.name}">\n{inner}</invoke>\n'

    if not message.tool_calls:
        return message.content
    calls = "".join(map(called, message.tool_calls))
    return f"<minimax:tool_call>\n{calls}</minimax:tool_call>"


def test_grades_of_other_patches(package: Package) -> None:
    task = task_of(package)
    right, faulty = task.tree.right, task.tree.faulty
    assert grade(task, right).value == 1.0
    found = grade(task, f"{faulty}# nothing\n")
    assert found.value == 0.0
    assert found.parts["fail_to_pass"] == 0.0
    assert found.parts["pass_to_pass"] == 1.0
    shown_only = faulty.replace("a - b", "4", 1)  # right for the test that the agent sees
    assert grade(task, shown_only).parts["fail_to_pass"] == pytest.approx(2 / 3)
    broken = right.replace("return a - b", "return b")
    assert grade(task, broken).parts["pass_to_pass"] == 0.0


def test_a_copy_that_is_installed_cannot_be_read(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    installed = tmp_path / "site" / "sums.py"
    installed.write_text(CODE)
    monkeypatch.syspath_prepend(str(installed.parent))
    assert installed.resolve() in task_of(package).hidden_paths
    assert package_folder(package) in task_of(package).hidden_paths


def test_a_text_that_is_another_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sums\.py of sums-of-ours is not as it was published"):
        FAULT.put_into(CODE.replace("+", "*"))


CHEATS = {
    "ends": "import os\nos._exit(0)",
    "ends with success": "import sys\nsys.exit(0)",
    "expects to fail": "import pytest\npytest.xfail()",
    "expects to fail within": "import pytest\nadd = lambda a, b: pytest.xfail()",
    "skips": "import pytest\npytest.skip(allow_module_level=True)",
    "runs no test": ("import _pytest.python\n_pytest.python.Function.runtest = lambda self: None"),
    "reports success": (
        "import _pytest.runner\n"
        "made = _pytest.runner.TestReport.from_item_and_call\n"
        "def passed(item, call):\n"
        "    report = made(item, call)\n"
        "    report.outcome = 'passed'\n"
        "    return report\n"
        "_pytest.runner.TestReport.from_item_and_call = passed"
    ),
    "writes the outcomes": (
        "import json, os, sys\n"
        "with open(sys.argv[1], 'w') as file:\n"
        f"    json.dump({{'outcomes': dict.fromkeys({list(ALL)!r}, 'passed')}}, file)\n"
        "os._exit(0)"
    ),
    "is equal to all": (
        "class Same(int):\n"
        "    __eq__ = lambda self, other: True\n"
        "    __hash__ = None\n"
        "def add(a, b):\n"
        "    return Same()"
    ),
    "is equal to numbers": (
        "class Same(int):\n"
        "    __eq__ = lambda self, other: isinstance(other, int)\n"
        "    __hash__ = None\n"
        "def add(a, b):\n"
        "    return Same()"
    ),
    "never ends": "while True:\n    pass",
    "makes processes": "import os\nwhile True:\n    os.fork()",
    "fills the disk": (
        "file = open('/results/x', 'wb')\nwhile True:\n    file.write(bytes(2**24))"
    ),
    "rewrites the tests": (
        "from pathlib import Path\n"
        "for path in Path('tests').glob('*.py'):\n"
        "    path.write_text('def test_add():\\n    pass\\n')"
    ),
}


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("name", CHEATS)
def test_code_that_cheats_scores_nothing(
    package: Package, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(environment, "LIMITS", replace(environment.LIMITS, seconds=8.0))
    task = task_of(package)
    assert grade(task, f"{task.tree.faulty}\n\n{CHEATS[name]}\n").value == 0.0


@pytest.mark.usefixtures("has_sandbox")
def test_the_network_does_not_answer(package: Package) -> None:
    task = task_of(package)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        cheat = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\n"
        assert grade(task, f"{cheat}{task.tree.right}").value == 0.0
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize(
    "path", ["conftest.py", "sitecustomize.py", "pytest.py", "pytest.ini", "tests/conftest.py"]
)
def test_other_files_do_not_count(package: Package, path: str) -> None:
    task = task_of(package)
    cheat = "[pytest]\naddopts = -k no" if path.endswith("ini") else CHEATS["runs no test"]
    added = "".join(f"+{line}\n" for line in cheat.split("\n"))
    other = f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{added.count(chr(10))} @@\n{added}"
    comment = patch_of("sums.py", task.tree.faulty, f"{task.tree.faulty}# nothing\n")
    score = asyncio.run(task.grade(other + comment))
    assert (score.value, score.parts["believed"]) == (0.0, 1.0)
    right = patch_of("sums.py", task.tree.faulty, task.tree.right)
    assert asyncio.run(task.grade(other + right)).value == 1.0


@pytest.mark.usefixtures("has_sandbox")
def test_tests_that_do_not_run_here_are_an_error(package: Package) -> None:
    broken = replace(package, tests=(*ALL, "tests/test_sums.py::test_of_another_machine"))
    task = task_of(broken)
    with pytest.raises(GraderError, match="its tests cannot be run here"):
        grade(task, f"{task.tree.faulty}# nothing\n")


# Tests that are hidden.


def test_functions_of_tests_are_found_with_their_decorators() -> None:
    spans = spans_of_tests(TESTS)
    lines = TESTS.split("\n")
    more = ["TestMore::test_add_more", "TestMore::test_zero"]
    assert list(spans) == ["test_take", "test_add", *more]
    first, last = spans["TestMore::test_add_more"]
    assert lines[first - 1].strip().startswith("@pytest")
    assert lines[last - 1].strip() == "assert add(3, b) == 3 + b"


def test_a_class_keeps_its_last_function() -> None:
    assert spans_of_tests("class TestA:\n    def test_b(self):\n        pass\n") == {}


@given(st.sets(st.sampled_from(["test_take", "test_add", "TestMore::test_zero"])))
def test_what_is_taken_out_is_gone_and_all_else_is_there(names: set[str]) -> None:
    left = without_tests(TESTS, names)
    assert set(spans_of_tests(left)) == set(spans_of_tests(TESTS)) - names - (
        {"TestMore::test_add_more"} if "TestMore::test_zero" in names else set()
    )
    assert all(line in TESTS.split("\n") for line in left.split("\n"))


# The manifest that is shipped.


def test_a_manifest_is_read_as_it_was_written(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(manifest_text([package], [FAULT]))
    monkeypatch.setattr("fulmen.envs.packages.manifest.MANIFEST", path)
    assert read_manifest.__wrapped__() == ({package.name: package}, (FAULT,))


def test_there_are_two_hundred_faults_each_of_which_can_be_seen() -> None:
    packages, faults = read_manifest()
    assert len(faults) == 200
    assert len(packages) >= 10
    for fault in faults:
        tests = set(packages[fault.package].tests)
        functions = {one.partition("[")[0] for one in fault.failing}
        assert set(fault.failing) < tests
        assert set(fault.hidden) < functions
        assert fault.hidden


def test_seeds_give_an_order_and_names_a_package() -> None:
    one, other = Packages(0), Packages(1)
    assert one.num_tasks == other.num_tasks == 200
    assert isinstance(load_environment("packages:toolz:minimal", seed=0), Packages)
    assert isinstance(load_environment("packages:minimal", seed=0), Packages)
    with pytest.raises(ValueError, match="there is no package leftpad, it must be one of boltons"):
        load_environment("packages:leftpad", seed=0)
    with pytest.raises(ValueError, match="task 200 was asked for, there are 200"):
        one.task(200)
