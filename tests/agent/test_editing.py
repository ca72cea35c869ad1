"""Replacements and diffs: what difflib would say, in a time that the texts do not decide."""

import difflib
import io
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent.editing import diff, replaced
from fulmen.agent.tools import ToolError
from tests.examples import examples

LINES = st.lists(st.sampled_from(["a\n", "b\n", "\n", "c\r\n", "d\x0c\n"]), max_size=12)
ENDS = st.sampled_from(["", "e", "f\n"])


def lines_of(text: str) -> list[str]:
    return list(io.StringIO(text, newline="\n"))


@given(LINES, ENDS, LINES, ENDS)
@settings(max_examples=examples(200))
def test_a_diff_is_the_one_of_difflib(
    old: list[str], old_end: str, new: list[str], new_end: str
) -> None:
    before, after = "".join(old) + old_end, "".join(new) + new_end
    expected = difflib.unified_diff(lines_of(before), lines_of(after), "a/f", "b/f")
    text = "".join(row if row.endswith("\n") else f"{row}\n" for row in expected)
    assert diff("f", before, after) == text


def applied(text: str, changes: str) -> str:
    """Apply a unified diff."""
    old, new, at = text.split("\n"), [], 0
    for row in changes.split("\n")[2:-1]:
        if row.startswith("@@"):
            first, _, count = row.split()[1].removeprefix("-").partition(",")
            begin = int(first) - (count != "0")
            new += old[at:begin]
            at = begin
        elif row[0] == "+":
            new.append(row[1:])
        else:
            assert row[1:] == old[at]
            new += [old[at]] if row[0] == " " else []
            at += 1
    return "\n".join([*new, *old[at:]])


def test_texts_that_take_difflib_long_are_compared_in_time() -> None:
    count = 4000
    repeated = [f"s{number % 60}" for number in range(count // 2)]
    before, after = (
        "\n".join(row for at, one in enumerate(repeated) for row in (one, f"{mark}{at}"))
        for mark in "uv"
    )
    began = time.process_time()
    changes = diff("f", before + "\n", after + "\n")
    assert time.process_time() - began < 3
    assert changes.endswith("...\n")


@pytest.mark.parametrize("steps", [0, 10, 100, 1000])
def test_a_comparison_that_was_cut_short_still_tells_the_change(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulmen.agent.editing._MAX_STEPS", steps)
    draw = random.Random(steps)
    before, after = (
        "".join(f"{draw.randrange(20)}\n" for _ in range(draw.randrange(50, 150))) for _ in "ab"
    )
    assert applied(before, diff("f", before, after)) == after


def said_of(text: str, old: str) -> str:
    with pytest.raises(ToolError) as error:
        replaced(text, old, "new", path="f")
    return str(error.value)


def test_the_nearest_lines_are_shown() -> None:
    text = "def one():\n    return 1\n\n\ndef two():\n    return 2\n"
    assert said_of(text, "def one():\n  return 1").endswith(
        "only spaces differ, lines 1 to 2:\ndef one():\n    return 1"
    )
    assert said_of(text, "def two(x):\n    return 2").endswith(
        "nearest, lines 5 to 6:\ndef two():\n    return 2"
    )
    assert "nothing like it is there" in said_of(text, "import os, sys, re")
    assert "which is empty" in said_of("", "x")


@pytest.mark.parametrize("kind", ["two letters", "one line", "many letters"])
def test_what_is_nearest_is_found_in_time(kind: str) -> None:
    draw = random.Random(1)

    def line() -> str:
        if kind == "two letters":
            return "".join(draw.choice("ab") for _ in range(299))
        return "".join(chr(draw.randrange(0x4E00, 0x5200)) for _ in range(299))

    lines = ["a"] * 20_000 if kind == "one line" else [line() for _ in range(2_000)]
    old = "\n".join(["a"] * 10_000 + ["b"]) if kind == "one line" else line()
    began = time.process_time()
    said_of("\n".join(lines), old)
    assert time.process_time() - began < 3


def test_a_replacement_that_makes_a_huge_text_is_refused() -> None:
    with pytest.raises(ToolError, match="would have more than"):
        replaced("a" * 10**6, "a", "b" * 10**6, path="f", all=True)
