"""Checks which files a source archive and wheels hold.

    compare_wheels.py TRACKED ARCHIVE WHEEL...

TRACKED lists the files of the tree, one a line. The archive must hold all of them and nothing else
but its metadata; each wheel the package without its C++ source, and the extension if its name says
that it belongs to one platform.
"""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

SOURCE = "fulmen/kernels/cpu/csrc/"
EXTENSION = re.compile(r"fulmen/kernels/cpu/_native\.[\w.-]+")
METADATA = re.compile(r"fulmen-[\w.]+\.dist-info/.*")


def archive_files(path: Path) -> set[str]:
    """Return the files and links of a source archive, without its folder and its metadata."""
    with tarfile.open(path) as archive:
        names = [member.name for member in archive if member.isfile() or member.issym()]
    return {name.partition("/")[2] for name in names} - {"PKG-INFO"}


def wheel_files(path: Path) -> set[str]:
    """Return the files of a wheel, without its metadata."""
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    licences = {name.rpartition("/")[2] for name in names if METADATA.fullmatch(name)}
    missing = {"LICENSE", "NOTICE", "METADATA", "RECORD"} - licences
    if missing:
        sys.exit(f"{path.name} lacks {', '.join(sorted(missing))}")
    return {name for name in names if not METADATA.fullmatch(name)}


def demand_equal(name: str, found: set[str], wanted: set[str]) -> None:
    """Exit with the differences if two sets of files differ."""
    lines = [f"  lacks {file}" for file in sorted(wanted - found)]
    lines += [f"  has {file} besides" for file in sorted(found - wanted)]
    if lines:
        sys.exit("\n".join([f"{name} differs from the tree:", *lines]))
    print(f"{name}: {len(found)} files, all as in the tree")


def main() -> None:
    """Compare the files named on the command line."""
    tracked = set(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    archive, *wheels = map(Path, sys.argv[2:])
    package = {x for x in tracked if x.startswith("fulmen/") and not x.startswith(SOURCE)}
    if not package or not wheels:
        sys.exit("nothing to compare, the tree's files and a wheel are needed")
    demand_equal(archive.name, archive_files(archive), tracked)
    for wheel in wheels:
        found = wheel_files(wheel)
        extensions = {name for name in found if EXTENSION.fullmatch(name)} - package
        wanted = 0 if wheel.stem.endswith("-none-any") else 1
        if len(extensions) != wanted:
            sys.exit(f"{wheel.name} holds {len(extensions)} extensions, needed is {wanted}")
        demand_equal(wheel.name, found - extensions, package)


if __name__ == "__main__":
    main()
