"""Every flag of every command with every absurd value: one sentence, at once, and no traceback."""

import contextlib
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from fulmen.bench import machine
from fulmen.cli import app
from tests.cli.test_cli import called
from tests.examples import examples
from tests.tiny import write_checkpoint

ABSURD = (
    *("0", "-1", str(10**30), "9" * 5000, "1.5", "1e400", "nan", "-inf", "", " ", "x", "\u0664k"),
    *("none", "0GiB", "999999999TiB", "1000000TiB", "1e999GiB", "999999999999M"),
)
BOUND_SECONDS = 20
"""Longest time of a command, on a machine that others use too"""


class Late(BaseException):
    """Raised in a command that takes too long; no handler of ours takes it for a user's mistake."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """End a command after BOUND_SECONDS."""

    def stop(*_: object) -> None:
        raise Late

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, BOUND_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command, with the words that call it."""
    group: Any = get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from (((name, inner), found) for inner, found in command.commands.items())
        else:
            yield (name,), command


FLAGS = [
    (*path, option.opts[0])
    for path, command in commands()
    for option in command.params
    if option.param_type_name == "option" and not option.is_flag
]
# Values of these are paths and words, and none is absurd before it is used.
WORDS = {
    *("--model", "--system", "--session", "--store", "--device", "--stop", "--choice", "--regex"),
    *("--json-schema", "--out", "--plot", "--closing", "--report", "--calibrate", "--only"),
    *("--task", "--ignore-config-field", "--host", "--api-key", "--api-key-file", "--alias"),
    *("--model-name", "--allowed-origin", "--volatile-line", "--transcripts"),
    *("--url", "--url-key", "--url-dialect", "--baseline"),
    *("--config", "--trace-endpoint", "--sessions"),
}
# `fulmen agent` has the flags of `fulmen agent resume`, and would begin to work.
NUMBERS = [path for path in FLAGS if path[-1] not in WORDS and path[:2] != ("agent", "run")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")


@pytest.fixture(autouse=True)
def _quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the machine as roughly as can be: a benchmark that a value allows takes no time."""
    monkeypatch.setattr(machine, "READ_BYTES", 2**20)
    monkeypatch.setattr(machine, "MATMUL_SIZES", (64,))
    monkeypatch.setattr(machine, "PROBE_SECONDS", 0.001)


def arguments(path: list[str], folder: Path, tmp_path: Path) -> list[str | Path]:
    """Return arguments with which a command does little, so that a value that is right ends too."""
    tokens: list[str | Path] = ["--max-tokens", "2", "--model", folder]
    scale: list[str | Path] = [
        "--tasks",
        "1",
        "--budgets",
        "0,2",
        "--thoughts",
        "1",
        "--answer-tokens",
        "2",
    ]
    request = {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "hi"}}
    (tmp_path / "in.jsonl").write_text(json.dumps(request))
    some: dict[str, list[str | Path]] = {
        "chat": ["hi", *tokens, "--thinking-budget", "1", "--store", tmp_path],
        "generate": ["hi", *tokens],
        "bench": ["--model", folder, "--prompt", "4", "--tokens", "2", "--rounds", "1"],
        "plan": ["minimax-m2"],
        "serve": [tmp_path / "missing", "--port", "0", "--no-transcripts", "--no-sessions"],
        "quantize": [folder, tmp_path / "out", "--report-tokens", "0"],
        "scale": [*scale, "--votes", "0", "--model", folder, "--max-model-len", "512"],
        "batch": [tmp_path / "in.jsonl", tmp_path / "out.jsonl", *tokens],
        "models": ["smollm2"],
        "sessions": ["a"],
        "agent": ["a"],
        "mcp": [],
        "train": [tmp_path / "missing"],
        "eval run": [
            folder,
            "arithmetic",
            "--tasks",
            "1",
            "--max-tokens",
            "2",
            "--out",
            tmp_path / "evals",
        ],
        "eval check": ["arithmetic"],
    }
    return some.get(" ".join(path)) or some[path[0]]


@pytest.mark.parametrize("path", NUMBERS, ids=" ".join)
def test_an_absurd_value_of_a_flag_is_one_sentence(
    path: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    *command, flag = path
    number = examples(len(ABSURD))  # other ones for each flag
    for value in random.Random(" ".join(path)).sample(ABSURD, number):
        with bounded():
            run = called(*command, *arguments(command, folder, tmp_path), flag, value)
        assert "Traceback" not in run.stderr
        if run.returncode == 1:
            assert len(run.stderr.splitlines()) == 1, (value, run.stderr)
            assert run.stderr.startswith("fulmen: "), (value, run.stderr)
        elif run.returncode == 2:
            sentences = [line for line in run.stderr.splitlines() if line.startswith("Error: ")]
            assert len(sentences) == 1, (value, run.stderr)
        else:
            assert run.returncode == 0, (value, run.stderr)
