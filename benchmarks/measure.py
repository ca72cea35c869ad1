"""Tools of every benchmark script: revisions, a wide table, a JSON line, a step of an engine.

Absolute times mean little on a machine that does other things, so a benchmark measures its limits
(`fulmen.bench`) and its competitors in the same run, in alternating rounds, and compares medians.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import typer
from rich.console import Console
from rich.table import Table

from fulmen.bench import device_name
from fulmen.engine import Engine, RequestFailed, TokenOutput

console = Console(stderr=True)
ROOT = Path(__file__).resolve().parent.parent

TABLE_WIDTH = 128


def commit() -> str:
    """Return the commit of this checkout, with a plus sign if files differ from it."""
    revision = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{revision}+" if changed else revision


def step(engine: Engine) -> list[TokenOutput]:
    """Run one step and return its tokens; raise the error of a request that failed."""
    outputs = []
    for output in engine.step():
        if isinstance(output, RequestFailed):
            raise output.error
        outputs.append(output)
    return outputs


def print_json(benchmark: str, values: dict[str, object]) -> None:
    """Print one line: the commit, the device, and the values measured."""
    head = {"benchmark": benchmark, "commit": commit(), "device": device_name()}
    print(json.dumps({**head, "torch": torch.__version__, **values}))


def run(main: Callable[..., None]) -> None:
    """Run a script's command; a mistake of the user is one sentence, not a traceback."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except ValueError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def print_wide(table: Table) -> None:
    """A table on stderr in full width: in a log, rich would squeeze it into 80 columns."""
    wide = Console(stderr=True)
    wide.width = max(wide.width, TABLE_WIDTH)
    wide.print(table)


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with the package as it was at a revision, importable; gone afterwards."""
    with TemporaryDirectory(prefix="fulmen-base-") as temporary:
        tree = Path(temporary) / "tree"
        _git("worktree", "add", "--detach", str(tree), revision)
        try:
            yield _importable(tree, Path(temporary) / "site")
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _importable(tree: Path, site: Path) -> Path:
    """The tree itself where it is plain Python; one with compiled kernels is built first."""
    if not (tree / "CMakeLists.txt").exists():
        return tree
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    built = subprocess.run([*pip, "--target", str(site), str(tree)], stdout=sys.stderr)
    if built.returncode:
        raise ValueError("the base revision cannot be built, see pip's words above")
    return site


def python_command(script: Path, package: Path | None = None) -> list[str]:
    """The command that runs a script, against the package in a folder if one is given.

    The folder must win over an editable install, whose finder stands before the usual one.
    """
    if package is None:
        return [sys.executable, str(script)]
    start = (
        "import runpy, sys; from importlib.machinery import PathFinder; "
        f"sys.meta_path.insert(0, PathFinder); sys.path[:0] = [{str(package)!r}, "
        f"{str(script.parent)!r}]; sys.argv[0] = {str(script)!r}; "
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    return [sys.executable, "-c", start]


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"git {' '.join(arguments)} failed: {result.stderr.strip()}")
    return result.stdout.strip()
