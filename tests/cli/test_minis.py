"""Models that come with the package, on the command line: listed, checked, talked to, at work."""

import json
from pathlib import Path

import pytest

from fulmen.agent import Archive, default_runs
from fulmen.catalog import cards as catalog
from fulmen.catalog import get_card, greeting_of
from tests.cli.test_agent import typed
from tests.cli.test_cli import called
from tests.sandbox.helpers import skip_without_sandbox
from tests.tiny import write_checkpoint


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose minis are smaller than small."""
    for name in ("DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    for kind in ("m1", "m2"):
        folder = tmp_path / f"package/minis/mini-{kind}"
        write_checkpoint(folder, kind, max_position_embeddings=16384)
    monkeypatch.setattr(catalog, "PACKAGE", tmp_path / "package")
    return tmp_path / "package"


def test_they_are_shown_as_here_and_their_folder_is_printed_and_checked(package: Path) -> None:
    lines = called("models", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["mini-m1", "mini-m2"]
    assert all(("comes with Fulmen" in line) == ("mini-" in line[:5]) for line in lines)
    first = json.loads(called("models", "list", "--json").stdout)[0]
    assert (first["folder"], first["hub"], first["paper"]) == ("minis/mini-m1", None, None)
    assert first["context"] == 16384
    assert called("models", "pull", "mini-m2").stdout == f"{package / 'minis/mini-m2'}\n"
    assert called("models", "check", "mini-m2").returncode == 0
    shown = json.loads(called("models", "show", "mini-m1", "--json").stdout)
    assert "16,384" in shown["text"]["limits"]
    assert "record" not in shown
    planned = called("plan", "mini-m1", "--ram", "8GiB")
    assert planned.returncode == 0
    assert "mini-m1 fits in 8GiB" in " ".join(planned.stdout.split())
    served = called("plan", "mini-m2", "--gpus", "8xH800")
    assert served.returncode == 0, served.stderr


def test_a_conversation_begins_with_what_the_model_is_and_goes_on_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    greeting = greeting_of(get_card("mini-m1"))
    flags = ("--model", "mini-m1", "--max-tokens", "2", "--session", "s")
    _, out, error = typed("Hello\n", "chat", *flags, monkeypatch=monkeypatch)
    assert greeting in error
    assert greeting not in out
    _, _, again = typed("/exit\n", "chat", *flags, monkeypatch=monkeypatch)
    assert greeting not in again
    once = called("chat", "Hello", *flags[:4])
    assert once.returncode == 0, once.stderr
    assert greeting not in once.stderr


def test_a_question_is_answered_without_a_name_and_without_a_network() -> None:
    run = called("chat", "Hello", "--max-tokens", "2")
    assert run.returncode == 0, run.stderr
    assert "mini-m1, a context of 16,384 tokens" in run.stderr


@pytest.mark.parametrize(
    ("flags", "model", "tools"),
    [
        ((), "mini-m2", "minimal"),
        (("--tools", "coding"), "mini-m2", "coding"),
        (("--model", "mini-m1"), "mini-m1", "coding"),
    ],
)
def test_an_agent_has_the_tools_that_the_card_names_unless_it_is_told_others(
    flags: tuple[str, ...], model: str, tools: str, tmp_path: Path
) -> None:
    skip_without_sandbox()
    work = tmp_path / "work"
    work.mkdir()
    limits = ("--max-tokens", "3", "--folder", work)
    called("agent", "-p", "Do it.", *flags, *limits)
    runs = Archive(default_runs()).runs
    facts = runs.facts(runs.names()[0])
    assert (facts.model, facts.tools) == (model, tools)
