"""Make the manifest of the environment `packages`: which packages, which of their tests, which
faults. What is done is kept, package by package, so a run that was ended goes on.

    python scripts/make_package_tasks.py [--parallel 2] [--only toolz]

For each package: its sources by pip, its tests twice (those that pass both times are its tests),
then faults in a random order, each put in and tested. One is taken if from two to half of the tests
fail, in two functions or more, of which some can be hidden; then the tests that the agent sees are
run too, and must fail and pass as they should.
"""

import asyncio
import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer
from rich.console import Console

from fulmen.envs.instances.testing import Tested, run_tests
from fulmen.envs.packages.environment import LIMITS, FaultyTree, PackageTask
from fulmen.envs.packages.hiding import spans_of_tests, without_tests
from fulmen.envs.packages.manifest import MANIFEST, Package, PackageFault, manifest_text
from fulmen.envs.packages.sources import copy_package, package_folder
from fulmen.envs.repairs.faults import Fault, find_faults
from fulmen.envs.scratch import scratch_folder
from fulmen.files import write_text

PACKAGES: Final = {
    **{"boltons": ("26.2.0", 24), "cachetools": ("8.0.2", 14), "isodate": ("0.7.2", 14)},
    **{"parse": ("1.22.4", 14), "pathspec": ("1.1.1", 14), "schema": ("0.7.8", 8)},
    **{"semver": ("3.1.2", 14), "sqlparse": ("0.6.1", 18), "tinydb": ("4.9.0", 14)},
    **{"toolz": ("1.2.0", 22), "unidiff": ("1.0.1", 3), "uritemplate": ("4.2.0", 8)},
    **{"voluptuous": ("0.16.0", 18), "webcolors": ("25.10.0", 9), "xmltodict": ("1.0.4", 6)},
}
"""Version and number of faults of each: pure Python, tests in their sources, no need of others"""
KEPT: Final = Path("runs/out/packages")
_MAX_FAILING: Final = 0.5
_MAX_SUITE_SECONDS: Final = 9.0
_MOST_OF_A_FILE: Final = 0.4
"""Share of a package's faults that one file may have, if there are others"""
_NOT_SOURCES: Final = (
    *("test", "doc", "example", "setup", "conftest", "build", "bench"),
    *(".", "_version"),
)
_SECONDS: Final = (5.0, 4.0)
"""Limit of a try: so many seconds, and so many times what the tests take without a fault"""

console = Console()


def sources_of(folder: Path) -> dict[str, str]:
    """Return the Python files of a package that faults may be put into: plain ASCII, no tests."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        parts = name.removeprefix("src/").split("/")
        text = path.read_bytes()
        is_plain = text.isascii() and b"\r" not in text and text.endswith(b"\n")
        is_source = not any(part.lower().startswith(_NOT_SOURCES) for part in parts)
        if is_plain and is_source:
            found[name] = text.decode()
    return found


def in_turn(sources: dict[str, str], draw: random.Random) -> list[tuple[str, Fault]]:
    """Return faults of all files in a random order, in which neither a kind of fault nor a file
    comes first because it has more of them."""
    counts: dict[str, int] = {}
    places = []
    found = [(path, fault) for path, text in sources.items() for fault in find_faults(text)]
    for path, fault in draw.sample(found, len(found)):
        for key in (fault.kind, path):
            counts[key] = counts.get(key, 0) + 1
        rank = max(counts[fault.kind] / 2, counts[path])
        places.append((rank, draw.random(), path, fault))
    return [(path, fault) for _, _, path, fault in sorted(places, key=lambda one: one[:2])]


def compiles(text: str) -> bool:
    """Return whether a text is Python."""
    try:
        compile(text, "text", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


class Maker:
    """Tests and faults of one package."""

    def __init__(self, name: str) -> None:
        self.version, self.wanted = PACKAGES[name]
        self.name = name
        self.limits = LIMITS
        self.draw = random.Random(f"package tasks {name} {self.version}")

    def package(self) -> Package:
        """Return the package with no tests yet: what pip downloads is what is meant."""
        with TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
            command += ["--no-binary", self.name, "-d", folder, f"{self.name}=={self.version}"]
            subprocess.run(command, check=True)
            (archive,) = Path(folder).iterdir()
            return Package(
                self.name, self.version, hashlib.sha256(archive.read_bytes()).hexdigest(), ()
            )

    async def tested(
        self,
        package: Package,
        names: Sequence[str],
        fault: PackageFault | None,
        *,
        is_whole: bool = True,
    ) -> Tested:
        """Return what comes of tests, with a fault if there is one; of the agent's tests if not
        whole."""
        nothing = PackageFault(package.name, self._any_file(package), 0, "", "", "", (), ())
        tree = FaultyTree(package, fault or nothing)
        task = PackageTask(tree)
        with scratch_folder("fulmen-make-") as scratch:
            folder = scratch / "folder"
            if is_whole:
                copy_package(package, folder)
                (folder / tree.fault.path).write_text(tree.faulty)
            else:
                tree.write(task.instance, folder)
            return await run_tests(
                folder, names, self.limits, hidden=task.hidden_paths, variables=task.variables
            )

    def _any_file(self, package: Package) -> str:
        sources = sources_of(package_folder(package))
        if not sources:
            raise SystemExit(f"{self.name}: no file of it is plain ASCII, and none of its tests")
        return next(iter(sources))

    async def make(self) -> tuple[Package, list[PackageFault]]:
        """Return the package with its tests, and its faults."""
        package = self.package()
        folder = package_folder(package)
        files = [
            path.relative_to(folder).as_posix()
            for path in sorted(folder.rglob("*.py"))
            if path.name.startswith("test") or path.stem.endswith(("_test", "_tests", "_unittest"))
        ]
        begin = time.monotonic()
        first, second = [await self.tested(package, files, None) for _ in range(2)]
        seconds = (time.monotonic() - begin) / 2
        names = tuple(
            name
            for name, outcome in first.outcomes.items()
            if outcome == second.outcomes.get(name) == "passed" and name.partition("::")[0] in files
        )
        console.print(f"{self.name}: {len(names)} tests in {seconds:.1f} s")
        if not first.is_believed or not names or seconds > _MAX_SUITE_SECONDS:
            raise SystemExit(f"{self.name}: of no use: {first.output}")
        self.limits = replace(LIMITS, seconds=_SECONDS[0] + _SECONDS[1] * seconds)
        package = Package(package.name, package.version, package.sha256, names)
        sources = sources_of(folder)
        found: list[PackageFault] = []
        tries = 0
        for path, fault in in_turn(sources, self.draw):
            if len(found) == self.wanted:
                break
            same = [one for one in found if one.path == path]
            is_full = len(sources) > 1 and len(same) >= max(3, _MOST_OF_A_FILE * self.wanted)
            near = any(abs(one.start - fault.start) < 40 for one in same)
            if is_full or near or not compiles(fault.put_into(sources[path])):
                continue
            tries += 1
            if (made := await self._made(package, path, sources[path], fault)) is not None:
                found.append(made)
                console.print(f"{self.name}: {len(found)} of {self.wanted} after {tries} tries")
        return package, found

    async def _made(
        self, package: Package, path: str, text: str, fault: Fault
    ) -> PackageFault | None:
        """Return a fault for the manifest; None if it does not show as it should."""
        old = text[fault.start : fault.stop]
        made = PackageFault(package.name, path, fault.start, old, fault.text, fault.kind, (), ())
        names = package.tests
        tested = await self.tested(package, names, made)
        if not tested.have_run(names):
            return None
        failing = [name for name in names if tested.outcomes[name] != "passed"]
        functions = list(dict.fromkeys(name.partition("[")[0] for name in failing))
        if len(functions) < 2 or len(failing) > _MAX_FAILING * len(names):
            return None
        hidden = self._hidden(package, functions)
        if not hidden:
            return None
        made = PackageFault(**{**asdict(made), "failing": tuple(failing), "hidden": tuple(hidden)})
        seen = [name for name in names if name.partition("[")[0] not in hidden]
        tested = await self.tested(package, seen, made, is_whole=False)
        as_it_should = tested.have_run(seen) and all(
            (tested.outcomes[name] == "passed") == (name not in failing) for name in seen
        )
        return made if as_it_should else None

    def _hidden(self, package: Package, functions: list[str]) -> list[str]:
        """Return the half of failing test functions that can be hidden; none if all had to be."""
        folder, possible = package_folder(package), []
        for function in functions:
            path, _, name = function.partition("::")
            if name in spans_of_tests((folder / path).read_text()):
                possible.append(function)
        most = min(len(functions) - 1, max(1, len(functions) // 2))
        hidden = sorted(self.draw.sample(possible, min(most, len(possible))))
        for path in {one.partition("::")[0] for one in hidden}:
            names = [one.partition("::")[2] for one in hidden if one.startswith(f"{path}::")]
            if not compiles(without_tests((folder / path).read_text(), names)):
                return []
        return hidden


def make_one(name: str) -> None:
    """Make the part of one package, unless it is kept."""
    place = KEPT / f"{name}.json"
    if not place.exists():
        package, faults = asyncio.run(Maker(name).make())
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, manifest_text([package], faults))


def main(
    parallel: Annotated[int, typer.Option(help="Packages at once")] = 1,
    only: Annotated[str | None, typer.Option(help="One package; writes no manifest")] = None,
) -> None:
    """Make what is missing, then write the manifest of all."""
    if only is not None:
        make_one(only)
        return
    waiting = [name for name in PACKAGES if not (KEPT / f"{name}.json").exists()]
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < parallel:
            running.append(subprocess.Popen([sys.executable, __file__, "--only", waiting.pop(0)]))
        time.sleep(0.5)
        running = [one for one in running if one.poll() is None]
    missing = [name for name in PACKAGES if not (KEPT / f"{name}.json").exists()]
    if missing:
        raise SystemExit(f"nothing was made of {', '.join(missing)}")
    packages: list[Package] = []
    faults: list[PackageFault] = []
    for name in PACKAGES:
        found = json.loads((KEPT / f"{name}.json").read_bytes())
        one = found["packages"][name]
        tests = tuple(f"{p}::{t}" for p, names in one["tests"].items() for t in names)
        packages.append(Package(name, one["version"], one["sha256"], tests))
        faults += [PackageFault(**fault) for fault in found["faults"]]
    wanted = sum(number for _, number in PACKAGES.values())
    if len(faults) != wanted:
        raise SystemExit(f"there are {len(faults)} faults, {wanted} are needed")
    write_text(MANIFEST, manifest_text(packages, faults))
    console.print(f"{len(faults)} faults of {len(packages)} packages")


if __name__ == "__main__":
    typer.run(main)
