"""Tests of a repository, run in a sandbox with pytest, and how far what they tell can be believed.

    tree, names of tests -> their files, tests of ours among them -> inside.py -> outcomes

The code under test shares a process with pytest and could make it tell anything. So tests that
nobody knows stand in one of the files, one that passes and some that fail (decoys.py). A run counts
if they do; one that ended too early, or in which everything passes, does not.
"""

import secrets
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from fulmen.envs.instances import inside
from fulmen.envs.instances.decoys import Decoys, with_decoys
from fulmen.envs.scratch import scratch_folder
from fulmen.envs.task import FOLDER
from fulmen.files import parse_json, shorten
from fulmen.sandbox import Access, Limits, Sandbox

_PACKAGE: Final = Path(__file__).resolve().parents[2]
_PROGRAM: Final = Path("/grade")
_RESULTS: Final = Path("/results")
_LIMITS: Final = Limits(seconds=600.0, memory_bytes=2**32, num_processes=128, file_bytes=2**28)
_MAX_RESULT: Final = 2**24
_MAX_FILES: Final = 2000


@dataclass(frozen=True, slots=True)
class Tested:
    """Outcomes of tests."""

    outcomes: Mapping[str, str]
    """passed, failed or skipped by pytest's name of the test"""
    is_believed: bool
    """True if the tests of ours did as they should"""
    output: str

    def have_run(self, names: Sequence[str]) -> bool:
        """Return whether there is an outcome of each of these, to be believed: a file that cannot
        be imported has none."""
        return self.is_believed and all(name in self.outcomes for name in names)

    def have_passed(self, names: Sequence[str]) -> bool:
        """Return whether all of these have passed, to be believed."""
        return self.have_run(names) and all(self.outcomes[one] == "passed" for one in names)


async def run_tests(
    folder: Path,
    names: Sequence[str],
    limits: Limits | None = None,
    *,
    suspects: Sequence[str] = (),
    hidden: tuple[Path, ...] = (),
    variables: Mapping[str, str] | None = None,
) -> Tested:
    """Run the files of some tests in a folder, which they may change.

    suspects   those of the tests that code without a repair would forge
    hidden     files and folders that the code cannot see
    variables  variables of its environment
    """
    files = dict.fromkeys(name.partition("::")[0] for name in names)
    there = [path for path in files if _is_file(folder, path)][:_MAX_FILES] or ["test_all.py"]
    first, ours = _decoyed(folder, there, suspects)
    (folder / first).write_text(ours.text, "utf-8", "surrogateescape", "")
    beside = first
    if ours.beside is not None:
        beside = str(PurePosixPath(first).with_name(f"{ours.passing}.py"))
        (folder / beside).write_text(ours.beside)
        there.append(beside)
    with scratch_folder("fulmen-tests-") as scratch:
        program, results = scratch / "program", scratch / "results"
        program.mkdir()
        results.mkdir()
        (program / "inside.py").write_bytes(Path(inside.__file__).read_bytes())
        access = Access(
            folder=folder,
            seen_as=FOLDER,
            protected=(),
            hidden=(_PACKAGE, *hidden),
            readable=(program,),
            writable=(results,),
            seen_at={program: _PROGRAM, results: _RESULTS},
            environment=variables or {},
        )
        words = (sys.executable, "-B", _PROGRAM / "inside.py", _RESULTS / "outcomes.json")
        command = " ".join(shlex.quote(str(word)) for word in (*words, *there))
        async with Sandbox(access, limits or _LIMITS) as sandbox:
            outcome = await sandbox.run(f"exec {command}")
        found = _outcomes(results / "outcomes.json")
    failing = {f"{first}::{name}": set[str]() for name in ours.failing}
    for name, value in found.items():
        failing.get(name.partition("[")[0], set()).add(value)
    is_believed = found.get(f"{beside}::{ours.passing}") == "passed" and all(
        values == {"failed"} for values in failing.values()
    )
    return Tested(found, is_believed, shorten(outcome.output, 500))


def _decoyed(folder: Path, files: Sequence[str], suspects: Sequence[str]) -> tuple[str, Decoys]:
    """Return one of the files, and its text with tests of ours: one that has a suspect which can be
    copied, if there is such a file."""
    by_file: dict[str, list[str]] = {}
    for name in suspects:
        path, _, rest = name.partition("::")
        by_file.setdefault(path, []).append(rest)
    for path in sorted(by_file.keys() & set(files), key=lambda _: secrets.randbits(32)):
        ours = with_decoys(_text(folder / path), by_file[path])
        if ours.are_copies:
            return path, ours
    return files[0], with_decoys(_text(folder / files[0]))


def _text(path: Path) -> str:
    """Return the text of a file of tests, empty if there is none; what is no UTF-8 stays."""
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else ""


def _is_file(folder: Path, path: str) -> bool:
    """Return whether a path is a file of the folder itself, no link on the way."""
    place = folder / path
    return place.is_file() and place.resolve() == folder.resolve() / path


def _outcomes(path: Path) -> dict[str, str]:
    """Return what the program inside has told, empty if that is nothing."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_RESULT:
            return {}
        found = parse_json(path.read_bytes(), "the outcomes").get("outcomes")
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(name): value for name, value in found.items() if isinstance(value, str)}
