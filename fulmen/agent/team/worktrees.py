"""Copies of the lead's folder that workers change, and what they changed brought back.

    lead's folder -> commit -> a git worktree for each worker -> commit -> merged -> lead's folder

The repository is the team's own, so the user's is neither read nor written, and a folder without
one will do. git never runs in a folder that an agent may change: files go through snapshots, which
no link leads out of, into folders that nobody else has. Worktrees last as long as the team is open.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

from fulmen.agent.workspace import Snapshots
from fulmen.files import explain, shorten, user_folder

_SECONDS: Final = 300.0
_SETTINGS: Final = (
    *("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.autocrlf=false"),
    *("submodule.recurse=false", "gc.auto=0", "advice.detachedHead=false", "core.quotePath=false"),
)
_ATTRIBUTES: Final = "* -text -ident -filter !working-tree-encoding\n"
"""Files are taken and written byte for byte, whatever a .gitattributes says"""
_IDENTITY: Final = {"NAME": "fulmen", "EMAIL": "fulmen@localhost", "DATE": "2000-01-01T00:00:00Z"}
_MAX_NAMED: Final = 20
_STAGE: Final = "stage-"


class Conflict(ValueError):
    """Changes that cannot be brought together by themselves."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        more = f" and {len(paths) - _MAX_NAMED} more" if len(paths) > _MAX_NAMED else ""
        named = ", ".join(paths[:_MAX_NAMED]) + more
        super().__init__(f"both sides changed the same lines of {named}")


@dataclass(frozen=True, slots=True)
class Merge:
    """Changes of a worker that fit the lead's folder, yet to be written there."""

    ours: str
    """Snapshot of the lead's folder"""
    theirs: str
    """Snapshot of the worker's"""
    commit: str
    merged: str
    paths: tuple[str, ...]
    """Files of the lead's folder that it changes"""
    diff: str


class Worktrees:
    """Copies of one folder, in a repository of their own. Any thread may use it."""

    def __init__(self, root: Path, repository: Path) -> None:
        """
        root        folder of the copies; it is made for them and removed with them
        repository  the repository's folder, made if it is missing
        """
        self.root = Path(os.path.realpath(root))
        self.repository = Path(os.path.realpath(repository))
        self._alone = Lock()
        """Held while worktrees come and go: one that is half made is not taken for gone"""

    def begin(self) -> None:
        """Make the repository if there is none. Raises ValueError where git is missing or old."""
        if not (self.repository / "HEAD").exists():
            self.repository.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._git("init", "--quiet", "--bare", ".", cwd=self.repository)
        (self.repository / "info").mkdir(exist_ok=True)
        (self.repository / "info" / "attributes").write_text(_ATTRIBUTES)
        for left in self.repository.glob(f"{_STAGE}*"):  # by a crash
            _remove(left)
        with self._alone:
            self._prune()

    def add(self, name: str, commit: str) -> Path:
        """Make a worktree with the files of a commit."""
        place = self.root / name
        with self._alone:
            if place.exists():  # a crash left it
                _remove(place)
                self._prune()
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._git("worktree", "add", "--quiet", "--detach", str(place), commit)
        return place

    def remove_all(self) -> None:
        """Remove all copies; the repository stays."""
        with self._alone:
            if self.root.exists():
                _remove(self.root)
            if (self.repository / "HEAD").exists():
                self._prune()

    def _prune(self) -> None:
        """Forget worktrees that are gone."""
        self._git("worktree", "prune", "--expire=now")

    def save(self, snapshots: Snapshots, *, parent: str | None = None) -> tuple[str, str]:
        """Save a folder as it stands; return the snapshot, and the commit of its files that git
        does not ignore. parent: the commit that it came from"""
        taken = snapshots.take("team").id
        with self._stage() as stage:
            snapshots.export(taken, stage.files)
            return taken, stage.commit(parent)

    def merge(self, base: str, ours: Snapshots, theirs: Snapshots) -> Merge:
        """Bring changes since a commit together, without changing anything. Raises Conflict where
        that needs somebody's judgement."""
        our_snapshot, our_commit = self.save(ours, parent=base)
        their_snapshot, their_commit = self.save(theirs, parent=base)
        words = ("merge-tree", "--write-tree", "-z", "--name-only", "--no-messages")
        done = self._run(*words, our_commit, their_commit)
        tree, *conflicts = done.stdout.decode("utf-8", "replace").rstrip("\0").split("\0")
        if done.returncode == 1:
            raise Conflict([path for path in conflicts if path])
        if done.returncode != 0:
            raise ValueError(f"git could not merge: {_sentence(done.stderr)}")
        changed = self._git(
            "diff-tree", "-r", "-z", "--name-only", "--no-renames", our_commit, tree
        )
        paths = tuple(os.fsdecode(path) for path in changed.split(b"\0") if path)
        diff = self._git("diff-tree", "-p", "--no-renames", "--no-ext-diff", our_commit, tree)
        text = diff.decode("utf-8", "replace")
        return Merge(our_snapshot, their_snapshot, our_commit, tree, paths, text)

    def apply(self, merge: Merge, ours: Snapshots) -> int:
        """Write merged changes into the lead's folder; return how many files that took. Raises
        ChangedSince if one of them was changed meanwhile."""
        with self._stage() as stage:
            ours.export(merge.ours, stage.files)
            stage.index(merge.commit)
            self._git("read-tree", "-m", "-u", merge.commit, merge.merged, more=stage.environment)
            wanted = ours.elsewhere(stage.files).take("merged").id
            restored = ours.restore(wanted, expected=merge.ours)
        if restored.left:
            path, reason = restored.left[0]
            raise ValueError(f"{path} could not be written: {reason}")
        return restored.num_written + restored.num_deleted

    @contextmanager
    def _stage(self) -> Iterator["_Stage"]:
        """Make a folder for files that no agent has meanwhile."""
        place = Path(tempfile.mkdtemp(prefix=_STAGE, dir=self.repository))
        try:
            yield _Stage(self, place)
        finally:
            _remove(place)

    def _git(
        self, *words: str, cwd: Path | None = None, more: Mapping[str, str] | None = None
    ) -> bytes:
        done = self._run(*words, cwd=cwd, more=more)
        if done.returncode != 0:
            raise ValueError(f"git {words[0]} failed: {_sentence(done.stderr)}")
        return done.stdout

    def _run(
        self, *words: str, cwd: Path | None = None, more: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        settings = [word for one in _SETTINGS for word in ("-c", one)]
        place = [] if cwd is not None else ["--git-dir", str(self.repository)]
        try:
            return subprocess.run(
                ["git", *settings, *place, *words],
                cwd=cwd or self.repository,
                env={**_environment(), **(more or {})},
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_SECONDS,
            )
        except FileNotFoundError:
            raise ValueError("workers need git, which is not here") from None
        except subprocess.TimeoutExpired:
            raise ValueError(f"git {words[0]} took more than {_SECONDS:.0f} s") from None


class _Stage:
    """A folder of files, and an index of them."""

    def __init__(self, worktrees: Worktrees, place: Path) -> None:
        self.files = place / "files"
        self.environment = {
            "GIT_WORK_TREE": str(self.files),
            "GIT_INDEX_FILE": str(place / "index"),
        }
        self._git = worktrees._git
        self.files.mkdir()

    def index(self, commit: str) -> None:
        """Know the files as those of a commit."""
        self._git("read-tree", commit, more=self.environment)
        self._git("update-index", "-q", "--refresh", more=self.environment)

    def commit(self, parent: str | None) -> str:
        """Make a commit of the files."""
        if parent is not None:  # what it has is not ignored, whatever a .gitignore says by now
            self._git("read-tree", parent, more=self.environment)
        self._git("add", "--all", ".", more=self.environment, cwd=None)
        tree = self._git("write-tree", more=self.environment).decode().strip()
        parents = [] if parent is None else ["-p", parent]
        return self._git("commit-tree", "-m", "team", *parents, tree).decode().strip()


def default_worktrees(name: str) -> Path:
    """Return where the copies of a run's team are: beside what may be lost at any time, for all of
    it is in snapshots too."""
    return user_folder("XDG_CACHE_HOME", ".cache") / "fulmen" / "teams" / name


def _environment() -> dict[str, str]:
    """Return variables for git: none of the user's settings, none that lead it elsewhere."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    found |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C"}
    found |= {"GIT_ATTR_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    for who in ("AUTHOR", "COMMITTER"):
        found |= {f"GIT_{who}_{name}": value for name, value in _IDENTITY.items()}
    return found


def _sentence(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return shorten(lines[-1].removeprefix("fatal: ") if lines else "it does not say why")


def _remove(place: Path) -> None:
    """Remove a folder, also where its owner closed folders in it."""
    for folder, names, _ in os.walk(place, onerror=None):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    try:
        shutil.rmtree(place)
    except OSError as error:
        raise ValueError(f"{place} could not be removed: {explain(error)}") from None
