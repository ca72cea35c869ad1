"""Folders for the tests of snapshots: what is in one, changes of any kind, and what git says."""

import os
import random
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import Snapshots

needs_git = pytest.mark.skipif(
    os.name != "posix" or shutil.which("git") is None, reason="snapshots need POSIX and git"
)
State = dict[str, tuple[object, ...]]

NAMES = [
    "a",
    "b",
    "B",
    "src",
    "é",
    "line\nbreak",
    'quo"te',
    "\udcff\udc80",
    ".x",
    "-n",
    "a b",
    "w" * 200,
]
CONTENTS = [b"", b"one\n", b"one\ntwo\n", b"\0binary\xff", b"no end", b"crlf\r\n", b"x" * 70_000]
MODES = [0o644, 0o755, 0o600, 0o444, 0o666]


def state_of(folder: Path) -> State:
    """Return all that a snapshot must hold, read by other means than those of the package."""
    found: State = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".git"]
        for name in [*folders, *files]:
            if name == ".git":
                continue
            path = os.path.join(place, name)
            status = os.lstat(path)
            key = os.path.relpath(path, folder)
            if stat.S_ISLNK(status.st_mode):
                found[key] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[key] = ("folder", status.st_mode & 0o777)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    found[key] = ("file", status.st_mode & 0o777, file.read())
    return found


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Changes:
    """Random changes of a folder, as tools, shells and people make them."""

    def __init__(self, folder: Path, choice: random.Random) -> None:
        self.folder = folder
        self.random = choice

    def _folders(self) -> list[Path]:
        found = [self.folder]
        for place, names, _ in os.walk(self.folder):
            names[:] = [name for name in names if name != ".git"]
            real = [name for name in names if not os.path.islink(os.path.join(place, name))]
            found += [Path(place, name) for name in real]
        return found

    def _new(self) -> Path:
        """Return a path in a folder that is there; something may be at it."""
        return self.random.choice(self._folders()) / self.random.choice(NAMES)

    def _any(self) -> Path | None:
        paths = [
            Path(place, name)
            for place, folders, files in os.walk(self.folder)
            if ".git" not in Path(place).parts
            for name in [*folders, *files]
            if name != ".git"
        ]
        return self.random.choice(sorted(paths)) if paths else None

    def write(self) -> None:
        path = self._new()
        remove(path)
        path.write_bytes(self.random.choice(CONTENTS) + self.random.randbytes(3))

    def edit(self) -> None:
        path = self._any()
        if path is not None and path.is_file() and not path.is_symlink():
            path.chmod(0o644)
            with path.open("r+b") as file:
                file.write(self.random.randbytes(2))

    def delete(self) -> None:
        path = self._any()
        if path is not None:
            remove(path)

    def rename(self) -> None:
        path, to = self._any(), self._new()
        if path is not None and not to.is_relative_to(path) and not path.is_relative_to(to):
            remove(to)
            path.rename(to)

    def chmod(self) -> None:
        path = self._any()
        if path is not None and not path.is_symlink():
            mode = self.random.choice(MODES)
            path.chmod(mode | 0o700 if path.is_dir() else mode)

    def link(self) -> None:
        path = self._new()
        remove(path)
        path.symlink_to(self.random.choice(["a", "/etc", "../..", "nowhere\n", "src/b"]))

    def empty_folder(self) -> None:
        path = self._new()
        if len(path.relative_to(self.folder).parts) < 5:
            remove(path)
            path.mkdir()

    def repository(self) -> None:
        """Make a folder look like a repository of its own."""
        place = self.random.choice(self._folders()[1:] or [self.folder])
        (place / ".git").mkdir(exist_ok=True)
        (place / ".git" / "config").write_bytes(b"[core]\n")

    def any(self) -> None:
        kinds = [self.write, self.write, self.edit, self.edit, self.delete, self.rename]
        kinds += [self.chmod, self.link, self.empty_folder]
        self.random.choice(kinds)()


def git(folder: Path, *words: str, **more: Any) -> bytes:
    """Run git as a user without configuration does."""
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    command = ["git", *identity, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, **more)
    assert done.returncode == 0, done.stderr
    return bytes(done.stdout)


def check_sound(snapshots: Snapshots) -> None:
    """Let git examine all objects of the repository."""
    repository = snapshots._repository.path
    words = ["--git-dir", str(repository), "-c", "fsck.badFilemode=ignore", "fsck", "--strict"]
    assert git(repository, *words, "--full", "--no-dangling") == b""


def reasons(skipped: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return dict(skipped)
