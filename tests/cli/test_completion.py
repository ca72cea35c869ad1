"""A shell completes commands, options and names, at once and without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fulmen.catalog import list_cards
from fulmen.cli import app, completion
from fulmen.sessions import SessionStore, default_store

# Ends as typer's protocol ends, and tells whether torch was loaded on the way.
PROGRAM = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules, file=sys.stderr))
from fulmen.cli import main
sys.argv = ["fulmen"]
main()
"""


def complete(line: str, **variables: str) -> list[str]:
    """Return what bash is told for a line, whose last word is not finished."""
    words = line.split(" ")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ
        | {
            "_FULMEN_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stderr == "False\n"
    return run.stdout.split()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    sessions = SessionStore(tmp_path / "fulmen/sessions")
    for name in ("trip", "trip.2", "work"):
        sessions.create(name, model="smollm2", fingerprint="f")
    return tmp_path


def test_bash_completes_commands_options_and_names(store: Path) -> None:
    assert complete("fulmen mod") == ["models"]
    assert complete("fulmen chat --thinking-b") == ["--thinking-budget"]
    assert complete("fulmen chat --model minimax-m1-") == ["minimax-m1-40k", "minimax-m1-80k"]
    assert complete("fulmen chat --dtype bf") == ["bfloat16"]
    found = complete("fulmen chat --session tr", XDG_DATA_HOME=str(store))
    assert sorted(found) == ["trip", "trip.2"]
    root = store / "fulmen/sessions"
    assert complete(f"fulmen sessions show --store {root} w") == ["work"]


def test_names_are_those_of_the_catalog_and_of_the_default_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert completion.models("") == [card.name for card in list_cards()]
    for folder in (None, str(tmp_path)):
        if folder is None:
            monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_DATA_HOME", folder)
        assert completion.default_store() == default_store()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_a_shell_is_printed(shell: str) -> None:
    result = CliRunner().invoke(app, ["--show-completion", shell])
    assert result.exit_code == 0
    assert "_FULMEN_COMPLETE" in result.stdout
    assert f"complete_{shell}" in result.stdout


def test_the_script_of_bash_is_installed_and_is_bash(tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path)}
    command = [sys.executable, "-m", "fulmen.cli", "--install-completion", "bash"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    (script,) = [path for path in tmp_path.rglob("*") if path.name in ("fulmen.sh", "fulmen")]
    assert str(script) in run.stderr
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_a_shell_that_nobody_knows_is_one_sentence() -> None:
    result = CliRunner().invoke(app, ["--show-completion", "tcsh"])
    assert result.exit_code == 2
    assert "Error: --show-completion is 'tcsh', no shell to complete in, known" in result.output
