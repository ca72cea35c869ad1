"""What every benchmark needs beside its question: the machine and its limits, medians, a JSON line.

Absolute times mean little on a machine that does other things, so a benchmark measures its limits
and its competitors in the same run, in alternating rounds, and compares medians.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

console = Console(stderr=True)
ROOT = Path(__file__).resolve().parent.parent

READ_BYTES = 2**30
"""More than any cache holds."""
MATMUL_SIZES = (1024, 2048, 4096)
TABLE_WIDTH = 128


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The median and both ends of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine could do while the benchmark ran."""

    read_gb_per_s: dict[int, float]
    """By number of threads."""
    matmul_tflops: dict[str, float]
    """By dtype, with all threads: torch's best, not the processor's peak."""


def measure_limits(num_threads: int, dtypes: Sequence[torch.dtype]) -> Limits:
    """Memory read with one and with all threads, and torch's best matmul of each dtype."""
    buffer = torch.ones(READ_BYTES, dtype=torch.uint8)
    read = {}
    for threads in sorted({1, num_threads}):
        torch.set_num_threads(threads)
        read[threads] = READ_BYTES / best_seconds(lambda: read_once(buffer), 5) / 1e9
    torch.set_num_threads(num_threads)
    matmul = {str(dtype).removeprefix("torch."): matmul_flops(dtype) / 1e12 for dtype in dtypes}
    return Limits(read, matmul)


def read_once(buffer: Tensor) -> None:
    """Reads every byte. The one place to change when there is a faster way to read: of torch's
    reductions the integer sum comes closest to the memory's rate."""
    buffer.view(torch.int64).sum()


def matmul_flops(dtype: torch.dtype) -> float:
    """FLOP/s of the best square product of torch."""
    rates = []
    for size in MATMUL_SIZES:
        a, b = torch.randn(2, size, size).to(dtype)
        rates.append(2 * size**3 / best_seconds(lambda a=a, b=b: a @ b, 3))  # type: ignore[misc]
    return max(rates)


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    """The shortest of several calls, after one that does not count."""
    call()
    return min(seconds_of(call) for _ in range(repeats))


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def device_name() -> str:
    """The processor's model, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "unknown"


def commit() -> str:
    """The commit of this checkout, with a plus sign if files differ from it."""
    revision = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{revision}+" if changed else revision


def print_json(benchmark: str, values: dict[str, object]) -> None:
    """One line on stdout: the commit, the device, and what was measured."""
    head = {"benchmark": benchmark, "commit": commit(), "device": device_name()}
    print(json.dumps({**head, "torch": torch.__version__, **values}))


def run(main: Callable[..., None]) -> None:
    """Runs a script's command; a mistake of the user is one sentence, not a traceback."""
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
    subprocess.run([*pip, "--target", str(site), str(tree)], check=True, stdout=sys.stderr)
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
