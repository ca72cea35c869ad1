"""Patterns for names: the answer of a plain definition, and no pattern that takes long."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.sandbox.globs import MAX_PATTERN, glob_matcher
from tests.bounds import num_lines
from tests.examples import examples


def as_defined(pattern: str, path: str) -> bool:
    """Match by trying everything."""
    parts = pattern.split("/") if "/" in pattern else ["**", pattern]
    return all_parts(parts, path.split("/"))


def all_parts(tests: list[str], parts: list[str]) -> bool:
    if not tests:
        return not parts
    if tests[0] == "**":
        first = 1 if len(tests) == 1 else 0
        return any(all_parts(tests[1:], parts[n:]) for n in range(first, len(parts) + 1))
    return bool(parts) and all_chars(tests[0], parts[0]) and all_parts(tests[1:], parts[1:])


def all_chars(test: str, text: str) -> bool:
    if not test:
        return not text
    if test[0] == "*":
        return any(all_chars(test[1:], text[n:]) for n in range(len(text) + 1))
    return bool(text) and test[0] in ("?", text[0]) and all_chars(test[1:], text[1:])


@given(st.text("ab*?/", min_size=1, max_size=9), st.text("ab/", min_size=1, max_size=9))
@settings(max_examples=examples(500))
def test_a_pattern_matches_what_its_definition_says(pattern: str, path: str) -> None:
    parts = pattern.split("/")
    if re.search(r"//|^/|/$", path) or any("**" in part and part != "**" for part in parts):
        return
    assert glob_matcher(pattern)(path) is as_defined(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("*.py", ["a.py", "b/c/a.py", ".py"], ["a.pyc", "py"]),
        ("./src/*.py", ["src/a.py"], ["src/b/a.py", "a.py"]),
        ("src/**/*.py", ["src/a.py", "src/b/c/a.py"], ["a.py", "src/a.pyc"]),
        ("src/**", ["src/a", "src/b/c"], ["src", "b/src/a"]),
        ("**/test/**", ["test/a", "b/test/c/a"], ["test", "b/test"]),
        ("*.{ts,tsx}", ["a.ts", "b/a.tsx"], ["a.t", "a.{ts,tsx}"]),
        ("{src,lib*}/a", ["src/a", "lib2/a"], ["a"]),
        ("[a-c]x", ["ax", "d/cx"], ["dx", "x"]),
        ("[!a-c]x", ["dx", "-x"], ["ax"]),
        ("[]x]", ["]", "x"], ["a"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("a[", ["a["], ["a"]),
        (r"\*\{a,b}", ["*{a,b}"], ["x{a,b}", "*a"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
    ],
)
def test_every_kind_of_pattern(pattern: str, matching: list[str], other: list[str]) -> None:
    matches = glob_matcher(pattern)
    assert [path for path in (*matching, *other) if matches(path)] == matching


@pytest.mark.parametrize("pattern", ["", "a" * (MAX_PATTERN + 1), "{a,b}" * 8])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        glob_matcher(pattern)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a" * 300 + "*b", "a" * 255),
        ("**/" * 300 + "b", "a/" * 2000 + "a"),
        ("**/*a*a*a*a*a*b/" * 60 + "c", "/".join(["a" * 200] * 20)),
        ("?" * 250 + "*" + "?" * 250 + "b", "a" * 255),
        ("{a,b}" * 7 + "*a" * 200 + "b", "ab" * 127),
    ],
)
def test_no_pattern_takes_long(pattern: str, path: str) -> None:
    found: list[bool] = []
    assert num_lines(lambda: found.append(glob_matcher(pattern)(path))) < 1_000_000
    assert found == [False]
