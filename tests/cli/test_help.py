"""Help is whole, in panels, in words of the command line, and answers what a newcomer asks."""

import re
from typing import Any

import pytest
from typer.testing import CliRunner

from fulmen.cli import app
from tests.cli.test_flags import commands

CALLED_BY_GROUP = (("agent", "run"), ("eval", "run"))
"""Commands that are called by the name of their group alone"""
PATHS = [path for path, _ in commands() if path not in CALLED_BY_GROUP]
GROUPS: list[tuple[str, ...]] = [(), ("models",), ("sessions",), ("eval",)]


def help_of(*path: str, columns: int = 80) -> str:
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0
    return result.stdout


def in_a_line(text: str) -> str:
    return " ".join(text.split())


def section(text: str, title: str) -> str:
    """Return the lines below a title, up to the next one."""
    found = re.search(rf"^ *{re.escape(title)}:\n(.*?)(?:\n *\n|\Z)", text, re.M | re.S)
    assert found, f"{title} is not in {text}"
    return found[1]


@pytest.mark.parametrize("path", GROUPS, ids=" ".join)
@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_each_summary_is_whole_and_short(path: tuple[str, ...], columns: int) -> None:
    text = in_a_line(section(help_of(*path, columns=columns), "Commands"))
    assert "..." not in text
    for name, command in commands():
        if name[:-1] == path:
            summary = command.get_short_help_str(10_000)
            assert len(summary) <= 60
            assert f"{name[-1]} {summary}" in text


@pytest.mark.parametrize("path", [*GROUPS, *PATHS], ids=" ".join)
def test_each_help_has_examples_and_fits_in_80_columns(path: tuple[str, ...]) -> None:
    text = help_of(*path)
    assert "fulmen " + " ".join(path) in section(text, "Examples")
    assert max(map(len, text.splitlines())) <= 80
    # Nothing of Python's, of typer's or of our source.
    for word in ("None", "[default", "<", "{NAME", ".py", "list[", "none none"):
        assert word not in re.sub(r"\{.*?\}|'\{.*", "", text), word
    assert not re.search(r"\b[a-z]+_[a-z_]+\b", text.partition("JSON")[0]), text


@pytest.mark.parametrize("path", [path for path in PATHS if path[-1] != "figure1"], ids=" ".join)
def test_examples_name_commands_and_options_that_exist(path: tuple[str, ...]) -> None:
    known: dict[str, Any] = {" ".join(name): command for name, command in commands()}
    for line in section(help_of(*path), "Examples").splitlines():
        words = line.split("  ")[2].split() if line.startswith("    ") else line.split()
        words = words[words.index("fulmen") + 1 :]
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        options = {flag for parameter in known[name].params for flag in parameter.opts}
        for word in words:
            assert not word.startswith("--") or word in options, line


@pytest.mark.parametrize(
    ("question", "command", "answer"),
    [
        ("limit thinking", ("chat",), "--thinking-budget 2000"),
        ("limit thinking", (), "--thinking-budget 2000"),
        ("get JSON", ("chat",), "--json-schema"),
        ("get JSON", (), "--json-schema"),
        ("go on with yesterday's conversation", (), "fulmen chat --session trip"),
        ("go on with yesterday's conversation", ("chat",), "fulmen sessions list"),
        ("go on with yesterday's conversation", ("sessions",), "fulmen chat --session trip"),
        ("does M2 run on 128 GB", (), "fulmen plan minimax-m2 --ram 128GiB"),
        ("does M2 run on 128 GB", ("plan",), "fulmen plan minimax-m2 --ram 128GiB"),
    ],
)
def test_a_newcomers_question_is_answered(
    question: str, command: tuple[str, ...], answer: str
) -> None:
    assert answer in section(help_of(*command), "Examples"), question


def test_options_are_in_panels_and_the_usual_ones_come_first() -> None:
    text = help_of("chat")
    titles = re.findall(r"^([A-Z][A-Za-z ]+):$", text, re.M)
    assert titles == [
        "Arguments",
        "Options",
        "Thinking",
        "Structured output",
        "Sampling",
        "Session",
        "Model at a URL",
        "Engine",
        "Other options",
    ]
    for title, flags in (
        ("Options", ("--model", "--session", "--system", "--plain")),
        ("Thinking", ("--thinking-budget", "--hide-thinking", "--keep-thoughts")),
        ("Structured output", ("--json-schema", "--regex", "--choice")),
        ("Sampling", ("--temperature", "--top-p", "--max-tokens", "--seed", "--stop")),
        ("Session", ("--store", "--session-bytes")),
        ("Engine", ("--max-model-len", "--kv-cache", "--dtype", "--device")),
    ):
        shown = section(text, title)
        assert [flag for flag in flags if flag not in shown] == []


def test_help_names_other_fields_as_flags() -> None:
    text = in_a_line(help_of("chat"))
    assert "above which --repetition-window counts" in text
    assert "none draws from all" in text
