"""The manifest: which packages there are, which tests of theirs pass, and which faults to put in.

{"packages": {"toolz": {"version": "1.0.0", "sha256": "...",
                        "tests": {"tests/test_a.py": ["test_b", "TestC::test_d[1]"]}}},
 "faults": [{"package": "toolz", "path": "toolz/a.py", "start": 120, "old": "<", "new": "<=",
             "kind": "comparison", "failing": ["tests/test_a.py::test_b", ...],
             "hidden": ["tests/test_a.py::test_e", ...]}]}
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

MANIFEST: Final = Path(__file__).with_name("manifest.json")


@dataclass(frozen=True, slots=True)
class Package:
    """Version of a package, and those of its tests that pass whenever they are run."""

    name: str
    version: str
    sha256: str
    """Checksum of its sources, as the index has them"""
    tests: tuple[str, ...]
    """Names as pytest has them: tests/test_a.py::TestB::test_c[1]"""


@dataclass(frozen=True, slots=True)
class PackageFault:
    """Change of one span of a package's file."""

    package: str
    path: str
    start: int
    """Place of the change in the text, in characters"""
    old: str
    """The right text, in the place of which `new` is put"""
    new: str
    kind: str
    """Kind of change, such as comparison or missing"""
    failing: tuple[str, ...]
    """Tests that fail because of it"""
    hidden: tuple[str, ...]
    """Test functions that the agent's copy of the tests lacks: some of the failing ones"""

    def put_into(self, text: str) -> str:
        """Return the right text with the fault. Raises ValueError if it is another text."""
        stop = self.start + len(self.old)
        if text[self.start : stop] != self.old:
            raise ValueError(f"{self.path} of {self.package} is not as it was published")
        return text[: self.start] + self.new + text[stop:]


@cache
def read_manifest() -> tuple[Mapping[str, Package], tuple[PackageFault, ...]]:
    """Return the packages by name, and all faults."""
    found = json.loads(MANIFEST.read_bytes())
    packages = {
        name: Package(name, one["version"], one["sha256"], tuple(_joined(one["tests"])))
        for name, one in found["packages"].items()
    }
    faults = (
        PackageFault(**{**one, "failing": tuple(one["failing"]), "hidden": tuple(one["hidden"])})
        for one in found["faults"]
    )
    return packages, tuple(faults)


def manifest_text(packages: Iterable[Package], faults: Iterable[PackageFault]) -> str:
    """Return a manifest, as `read_manifest` reads it."""
    found = {
        "packages": {
            one.name: {
                "version": one.version,
                "sha256": one.sha256,
                "tests": _parted(one.tests),
            }
            for one in packages
        },
        "faults": [asdict(one) for one in faults],
    }
    return json.dumps(found, indent=1) + "\n"


def _parted(tests: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of tests by their files."""
    found: dict[str, list[str]] = {}
    for name in tests:
        path, _, rest = name.partition("::")
        found.setdefault(path, []).append(rest)
    return found


def _joined(tests: Mapping[str, Iterable[str]]) -> Iterable[str]:
    return (f"{path}::{name}" for path, names in tests.items() for name in names)
