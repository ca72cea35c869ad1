"""Tools of every benchmark script: the setup it ran on, revisions, a wide table, a JSON line.

Absolute times mean little on a machine that does other things, so a benchmark measures its limits
(`fulmen.bench`) and its competitors in the same run, in alternating rounds, and compares medians.
A number without its processor and settings means nothing, so both are printed before the first,
and a competitor that cannot start ends the script before anything is measured.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from fulmen.bench import device_name, measure_read_rates
from fulmen.engine import Engine, RequestFailed, TokenOutput
from fulmen.kernels import native
from fulmen.models import Config, PackedConfig
from fulmen.quantize import parse_packed

console = Console(stderr=True)
ROOT = Path(__file__).resolve().parent.parent

TABLE_WIDTH = 180
START_SECONDS = 120.0
"""Longest time in which a tool may tell its version, and a Python import an engine."""


def commit() -> str:
    """Return the commit of this checkout, with a plus sign if files differ from it."""
    revision = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{revision}+" if changed else revision


def why_not_started(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = START_SECONDS,
) -> str | None:
    """Return why a command such as `TOOL --version` cannot start; None if it can.

    A tool that knows no such flag and prints its usage has started too.
    """
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=timeout_seconds,
        )
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except subprocess.TimeoutExpired:
        return f"it was not done within {timeout_seconds:g} s"
    said = result.stderr.strip() or result.stdout.strip()
    if result.returncode == 0 or (result.returncode > 0 and "usage" in said.lower()):
        return None
    if result.returncode < 0:
        return f"it was ended by {signal.Signals(-result.returncode).name}"
    return said.splitlines()[-1] if said else f"its exit status is {result.returncode}"


def is_default(config: Config) -> bool:
    """Return whether a checkpoint has the format that `fulmen quantize --bits N` writes unless
    told otherwise."""
    rounded = config.quantization_config
    return isinstance(rounded, PackedConfig) and rounded == parse_packed(bits=str(rounded.bits))


def label(name: str, config: Config) -> str:
    """Return the name of a checkpoint's row in a table, which says so if its format is default."""
    return f"{name}, default" if is_default(config) else name


def settings_of(config: Config) -> dict[str, object]:
    """Return a checkpoint's dtype and its quantisation's fields, as its config.json has them."""
    settings: dict[str, object] = {"dtype": str(config.torch_dtype).removeprefix("torch.")}
    rounded = config.quantization_config
    if isinstance(rounded, PackedConfig):
        return settings | asdict(rounded) | {"is_default": is_default(config)}
    return settings if rounded is None else settings | rounded.to_dict()


def settings_text(config: Config) -> str:
    """Write a checkpoint's settings as a line that a reader can compare."""
    settings = settings_of(config)
    dtype = settings.pop("dtype")
    default = settings.pop("is_default", False)
    fields = [
        f"{name} {'as stored' if value is None else value}" for name, value in settings.items()
    ]
    if isinstance(config.quantization_config, PackedConfig):
        bits = f"fulmen quantize --bits {settings['bits']}"
        fields.append(f"the default of {bits}" if default else f"not the default of {bits}")
    return ", ".join([*fields, f"the rest in {dtype}"] if fields else [f"all in {dtype}"])


def print_setup(
    threads: int,
    checkpoints: Mapping[str, Config],
    *,
    read_gb_per_s: Mapping[int, float] | None = None,
) -> dict[str, Any]:
    """Print the processor, the kernels' instruction set and the settings of each checkpoint; return
    them for the JSON line.

    read_gb_per_s  rates of reading memory by threads; measured now unless given
    """
    rates = measure_read_rates(threads) if read_gb_per_s is None else read_gb_per_s
    extension = native()
    isa = None if extension is None else extension.isa()
    measured = " and ".join(f"{rate:.1f} GB/s with {count}" for count, rate in rates.items())
    console.print(
        f"{device_name()}, {'plain torch' if isa is None else f'kernels for {isa}'}, threads: "
        f"{threads}, memory read at {measured}",
        highlight=False,
        soft_wrap=True,
    )
    for name, config in checkpoints.items():
        console.print(f"{name}: {settings_text(config)}", highlight=False, soft_wrap=True)
    return {
        "isa": isa,
        "threads": threads,
        "read_gb_per_s": dict(rates),
        "settings": {name: settings_of(config) for name, config in checkpoints.items()},
    }


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
