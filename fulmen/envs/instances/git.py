"""git on trees and patches that strangers made: no settings but ours, no filters, no hooks.

Each use has a repository of its own, whose folder lies elsewhere than the files. So nothing that
stands among them, a `.git` or `.gitattributes`, makes git run or change something.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fulmen.envs.scratch import scratch_folder
from fulmen.envs.task import GraderError
from fulmen.files import shorten

_SETTINGS: Final = (
    *("-c", "core.autocrlf=false", "-c", "core.safecrlf=false", "-c", "core.fsmonitor=false"),
    *("-c", f"core.hooksPath={os.devnull}", "-c", f"core.attributesFile={os.devnull}"),
    *("-c", f"core.excludesFile={os.devnull}", "-c", "gc.auto=0", "-c", "core.quotePath=true"),
)
_ATTRIBUTES: Final = "* -text -filter -ident !eol !diff !working-tree-encoding\n"
_EXCLUDED: Final = "__pycache__/\n*.pyc\n.pytest_cache/\n.mypy_cache/\n.ruff_cache/\n.hypothesis/\n"
"""Files that programs leave behind, which no patch should have"""
_SECONDS: Final = 120.0
_WILD: Final = re.compile(r"([*?\[\]\\])")
MAX_PATCH: Final = 2**24
"""Characters of a patch"""
_TEST: Final = re.compile(
    r"(?:.*/)?(?:tests/.*|test_[^/]*\.py|[^/]*_tests?\.py|tests\.py|conftest\.py|"
    r"\.?pytest\.ini|tox\.ini)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of ours over a folder."""

    git_folder: Path
    folder: Path

    def git(self, *arguments: str, given: bytes = b"") -> bytes:
        """Return what git prints. Raises ValueError if it fails, GraderError if it cannot run."""
        program = shutil.which("git")
        if program is None:
            raise GraderError("git is needed for patches, and it is missing")
        variables = {
            **{"PATH": os.environ.get("PATH", ""), "HOME": str(self.git_folder), "LC_ALL": "C"},
            **{"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull},
            **{"GIT_TERMINAL_PROMPT": "0", "GIT_DIR": str(self.git_folder)},
            "GIT_WORK_TREE": str(self.folder),
        }
        try:
            done = subprocess.run(
                [program, *_SETTINGS, *arguments],
                cwd=self.folder,
                env=variables,
                input=given,
                capture_output=True,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise GraderError(f"git {arguments[0]} took more than {_SECONDS:g} seconds") from None
        if done.returncode:
            reason = shorten(done.stderr.decode("utf-8", "replace").strip(), 300)
            raise ValueError(f"git {arguments[0]}: {reason}")
        return done.stdout

    def over(self, folder: Path) -> "Repository":
        """Return the repository over another folder."""
        return Repository(self.git_folder, folder)


@contextmanager
def own_repository(folder: Path, *, objects: Path | None = None) -> Iterator[Repository]:
    """Make a repository over a folder, and remove it in the end.

    objects  folder of objects of another one, whose commits are known then
    """
    with scratch_folder("fulmen-git-") as scratch:
        repository = Repository(scratch / "git", folder)
        repository.git("init", "-q", "--template=")
        information = scratch / "git" / "info"
        information.mkdir(exist_ok=True)
        (information / "attributes").write_text(_ATTRIBUTES)
        (information / "exclude").write_text(_EXCLUDED)
        if objects is not None:
            (scratch / "git/objects/info").mkdir(exist_ok=True)
            (scratch / "git/objects/info/alternates").write_text(f"{objects}\n")
        yield repository


def write_tree(git_folder: Path, commit: str, folder: Path) -> None:
    """Write the files of a commit into an empty folder. Raises ValueError if it is not there."""
    with own_repository(folder, objects=git_folder / "objects") as repository:
        try:
            repository.git("read-tree", commit)
        except ValueError as error:
            raise ValueError(f"{git_folder} does not have commit {commit}: {error}") from None
        repository.git("checkout-index", "--all", "--force", "--quiet")


def make_patch(before: Path, after: Path) -> str:
    """Return what has changed from one folder to another as a patch, which may be empty.

    New files are in it if no `.gitignore` of the folder passes over them. What is not text in
    UTF-8 is written as git writes binary files. Raises ValueError for a patch that is too long.
    """
    with own_repository(before) as repository:
        repository.git("add", "--all", "--force", ".")
        tree = repository.git("write-tree").decode().strip()
        left = repository.over(after)
        left.git("add", "--all", ".")
        options = ("--cached", "--binary", "--full-index", "--no-renames", "--no-color")
        whole = ("diff", *options, "--no-ext-diff", "--no-textconv", tree)
        patch = left.git(*whole)
        if not _is_text(patch):
            names = left.git("diff", "--cached", "--name-only", "--no-renames", "-z", tree)
            with (repository.git_folder / "info/attributes").open("a") as file:
                for name in names.split(b"\0")[:-1]:
                    places = (
                        Path(os.fsdecode(os.fsencode(one) + b"/" + name)) for one in (before, after)
                    )
                    if not all(_is_text(_content(place)) for place in places):
                        file.write(f"{_quoted(name)} -diff\n")
            patch = left.git(*whole)
    if len(patch) > MAX_PATCH:
        raise ValueError(f"the patch has {len(patch):,} bytes, at most {MAX_PATCH:,} are read")
    return patch.decode()


def apply_patch(folder: Path, patch: str, *, without: tuple[str, ...] = ()) -> None:
    """Apply a patch to a folder. Raises ValueError if it does not fit.

    without  paths whose changes are passed over
    """
    excluded = ["--exclude=" + _WILD.sub(r"\\\1", path) for path in without]
    with own_repository(folder) as repository:
        given = _bytes_of(patch)
        repository.git("apply", "--whitespace=nowarn", *excluded, "-", given=given)


def changed_paths(patch: str) -> dict[str, int]:
    """Return the paths that a patch changes, with the lines it adds and deletes there. Raises
    ValueError for what is no patch."""
    with scratch_folder("fulmen-empty-") as folder, own_repository(folder) as repository:
        rows = repository.git("apply", "--numstat", "-z", "-", given=_bytes_of(patch))
    found: dict[str, int] = {}
    for row in rows.split(b"\0")[:-1]:
        added, deleted, name = row.split(b"\t", 2)
        count = sum(int(one) for one in (added, deleted) if one.isdigit())
        path = name.decode("utf-8", "surrogateescape")
        found[path] = found.get(path, 0) + count
    for path in re.findall(r"^rename from ([^\n\"]+)$", patch, re.MULTILINE):
        found.setdefault(path, 0)
    return found


def is_test(path: str) -> bool:
    """Return whether a path is that of tests, or of settings of tests."""
    return _TEST.fullmatch(path) is not None


def _bytes_of(patch: str) -> bytes:
    if len(patch) > MAX_PATCH:
        raise ValueError(f"the patch has {len(patch):,} characters, at most {MAX_PATCH:,} are read")
    text = patch.encode("utf-8", "surrogatepass")
    return text if text.endswith(b"\n") else text + b"\n"


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() and not path.is_symlink() else b""


def _quoted(name: bytes) -> str:
    """Return a path as a pattern of attributes that only it matches."""
    pattern = b"/" + re.sub(rb"([*?\[\]\\])", rb"\\\1", name)
    safe = b"/._-"
    text = "".join(
        chr(one) if (chr(one).isalnum() and one < 128) or one in safe else f"\\{one:03o}"
        for one in pattern
    )
    return f'"{text}"'
