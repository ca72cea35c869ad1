"""The environment of packages: each task is an instance made from the manifest, graded as one.

fault of the manifest + sources -> Instance (patch, hidden tests) -> InstanceTask
"""

import difflib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fulmen.chat import Message, ToolCall
from fulmen.envs.instances import Instance, InstanceTask
from fulmen.envs.packages.hiding import without_tests
from fulmen.envs.packages.manifest import Package, PackageFault, read_manifest
from fulmen.envs.packages.sources import copy_package, package_folder
from fulmen.envs.repairs.task import shortest_edit
from fulmen.envs.task import FOLDER
from fulmen.files import shorten
from fulmen.sandbox import Limits

LIMITS: Final = Limits(
    seconds=60.0, memory_bytes=2**31, num_processes=64, file_bytes=2**28, output_bytes=2**22
)
_NUM_NAMED: Final = 3
"""Failing tests that the task names"""
_CONTEXT: Final = 20
"""Lines before the change that the known answer reads"""


class Packages:
    """Faults of real packages, in an order that the seed gives; of one package or of all."""

    def __init__(self, seed: int, *, package: str | None = None, profile: str = "coding") -> None:
        """profile: tools that the model has, coding or minimal"""
        if profile not in ("coding", "minimal"):
            raise ValueError(f"profile is {profile}, it must be coding or minimal")
        packages, faults = read_manifest()
        if package is not None and package not in packages:
            raise ValueError(
                f"there is no package {shorten(package)}, it must be one of {', '.join(packages)}"
            )
        _check_python()
        chosen = [one for one in faults if package in (None, one.package)]
        self._faults = random.Random(f"packages {seed}").sample(chosen, len(chosen))
        self._packages = packages
        self._profile = profile
        self._sound: set[str] = set()

    @property
    def num_tasks(self) -> int:
        """Number of faults."""
        return len(self._faults)

    def task(self, index: int) -> "PackageTask":
        """Return the task at an index. The sources of its package are downloaded if they are not
        there; raises ValueError if they cannot be."""
        if not 0 <= index < len(self._faults):
            raise ValueError(f"task {index} was asked for, there are {len(self._faults)}")
        fault = self._faults[index]
        tree = FaultyTree(self._packages[fault.package], fault)
        return PackageTask(tree, profile=self._profile, sound=self._sound)


@dataclass(frozen=True)
class FaultyTree:
    """The files of a package with a fault, and without the hidden tests."""

    package: Package
    fault: PackageFault

    @cached_property
    def right(self) -> str:
        """The right text of the file that has the fault."""
        return _read(package_folder(self.package) / self.fault.path)

    @cached_property
    def faulty(self) -> str:
        """Text of that file with the fault."""
        return self.fault.put_into(self.right)

    @cached_property
    def tests(self) -> Mapping[str, tuple[str, str]]:
        """The files from which tests are taken, by path: what the agent sees, and the whole."""
        hidden: dict[str, list[str]] = {}
        for one in self.fault.hidden:
            path, _, name = one.partition("::")
            hidden.setdefault(path, []).append(name)
        folder = package_folder(self.package)
        whole = {path: _read(folder / path) for path in hidden}
        return {path: (without_tests(whole[path], hidden[path]), whole[path]) for path in hidden}

    @property
    def module(self) -> str:
        """Path of the top module that has the fault, without .py."""
        before = "src/" if self.fault.path.startswith("src/") else ""
        first = self.fault.path.removeprefix(before).partition("/")[0]
        return before + first.removesuffix(".py")

    @property
    def line(self) -> int:
        """Line of the fault, from 1."""
        return self.right.count("\n", 0, self.fault.start) + 1

    def write(self, instance: Instance, place: Path) -> None:
        """Write the files into an empty folder. Raises ValueError if the package is not there."""
        copy_package(self.package, place)
        _write(place / self.fault.path, self.faulty)
        for path, (visible, _) in self.tests.items():
            _write(place / path, visible)

    def instance(self) -> Instance:
        """Return the fault as an instance, whose patch repairs it."""
        fault, package = self.fault, self.package
        failing = frozenset(fault.failing)
        parts = (patch_of(path, *texts) for path, texts in self.tests.items())
        return Instance(
            instance_id=f"{package.name}-{package.version}-{Path(fault.path).stem}-{fault.start}",
            repo=f"{package.name}/{package.name}",
            base_commit="0" * 40,
            problem_statement=self._question(),
            patch=patch_of(fault.path, self.faulty, self.right),
            test_patch="".join(parts),
            fail_to_pass=fault.failing,
            pass_to_pass=tuple(one for one in package.tests if one not in failing),
        )

    def _question(self) -> str:
        visible = [one for one in self.fault.failing if _function(one) not in self.fault.hidden]
        named = "\n".join(f"- {one}" for one in visible[:_NUM_NAMED])
        return (
            f"The Python package {self.package.name} {self.package.version} lies in your folder. "
            f"One fault was put into its code, and tests fail because of it, such as\n\n{named}\n\n"
            "Find the fault and repair it. Run the tests with `python3 -m pytest`. They are right, "
            "and changes to them do not count; more of them will be run than you can see. Change "
            "as little as possible."
        )


class PackageTask(InstanceTask):
    """A package with a fault."""

    def __init__(
        self, tree: FaultyTree, *, profile: str = "coding", sound: set[str] | None = None
    ) -> None:
        super().__init__(tree.instance(), tree, profile=profile, limits=LIMITS, sound=sound)
        self.tree = tree

    @property
    def messages(self) -> tuple[Message, ...]:
        """The task, as a user's message."""
        return (Message("user", self.instance.problem_statement),)

    @property
    def variables(self) -> Mapping[str, str]:
        """Settings of pytest: its own plugins alone, no options of the package's. Python keeps
        nothing that it compiled, as in repairs."""
        return {
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "-o addopts=",
            "PYTHONPATH": f"{FOLDER}:{FOLDER / 'src'}",
        }

    def may_change(self, path: str) -> bool:
        """Return whether a change of this path counts: that of a Python file of the module that has
        the fault."""
        top = self.tree.module
        return path == f"{top}.py" or (path.startswith(f"{top}/") and path.endswith(".py"))

    @property
    def hidden_paths(self) -> tuple[Path, ...]:
        """The package as it was published, and as it may be installed."""
        name = self.tree.module.rpartition("/")[2]
        return (package_folder(self.tree.package), *_installed(name))

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """Read the lines around the fault, put it right, say so."""
        path, line = self.tree.fault.path, self.tree.line
        read = {"path": path}
        if self.profile == "coding":
            offset = max(line - _CONTEXT, 1)
            read |= {"offset": offset, "limit": 2 * _CONTEXT}  # type: ignore[dict-item]
        old, new = shortest_edit(self.tree.faulty, self.tree.right)
        edit = ToolCall("edit", {"path": path, "old": old, "new": new})
        return (
            Message("assistant", "", tool_calls=(ToolCall("read", read),)),
            Message("assistant", "", tool_calls=(edit,)),
            Message("assistant", f"I put {path} right."),
        )


def _installed(module: str) -> Iterator[Path]:
    """Yield the places of a module where Pythons of this machine have what is installed."""
    for folder in _site_folders():
        found = (folder / module, folder / f"{module}.py", *folder.glob(f"__pycache__/{module}.*"))
        yield from (place for place in found if place.exists())


def _site_folders() -> tuple[Path, ...]:
    """Return the folders of installed modules that the sandbox shows."""
    bases = {Path(one) for one in (sys.prefix, sys.base_prefix, "/usr", "/usr/local")}
    for name in os.get_exec_path():  # what belongs to a folder of commands is in the sandbox too
        bases |= {Path(name).parent, Path(os.path.realpath(name)).parent}
        bases |= set(Path(name).parent.glob("versions/*"))  # as pyenv has them
    found = {Path(one).resolve() for one in sys.path if one}
    for base in bases:
        for pattern in ("lib*/python3*/site-packages", "lib*/python3*/dist-packages"):
            found |= {one.resolve() for one in base.glob(pattern)}
    return tuple(sorted(one for one in found if one.is_dir()))


@cache
def _check_python() -> None:
    """Raise ValueError if pytest is not there, for us or for the `python3` that the agent has."""
    if find_spec("pytest") is None:
        raise ValueError("pytest is missing, packages are tested with it: pip install pytest")
    python = shutil.which("python3") or "python3"
    try:
        done = subprocess.run([python, "-c", "import pytest"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is None or done.returncode:
        raise ValueError(
            f"{python}, which an agent would test with, has no pytest: activate the environment of "
            f"{sys.executable}, or install pytest there"
        )


def patch_of(path: str, before: str, after: str) -> str:
    """Return a patch of one file, both texts of which end a line."""
    old, new = (text.removesuffix("\n").split("\n") for text in (before, after))
    found = difflib.unified_diff(old, new, f"a/{path}", f"b/{path}", lineterm="")
    return "".join(f"{line}\n" for line in found)


def _function(test: str) -> str:
    """Return a test's name without its parameters."""
    return test.partition("[")[0]


def _read(path: Path) -> str:
    return path.read_bytes().decode()


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())
