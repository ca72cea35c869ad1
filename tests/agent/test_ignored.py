"""Ignore files: the answers are git's."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent.ignored import (
    MAX_RULES,
    MAX_RULES_BYTES,
    Rules,
    first_rules,
    repository_above,
    user_excludes,
)
from tests.examples import examples

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git gives the answers")

PIECES = ["a", "b", "ab", ".c", "*", "**", "***", "?", "/", "**/", "/**", "!", " ", "\\ ", "#"]
PIECES += ["[ab]", "[!a]", "[^b]", "[a-c]", "[]a]", "[[:alpha:]]", "[[:x:]]", "[", "]", "-", "\\"]
PIECES += ["\\*", "[a\\]]", "[*-z]", "é", "\r", "[+--]"]
NAMES = [
    "a",
    "b",
    "ab",
    "abc",
    ".c",
    "a.c",
    "*",
    "a b",
    "b ",
    "cab",
    "A",
    "[",
    "é",
    "-",
    "\\",
    "#a",
]
LINES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join)


def ignored_by(rules: Rules, path: str) -> bool:
    """Return whether a file is ignored, or a folder above it."""
    parts = path.split("/")
    return any(
        rules.ignores("/".join(parts[:length]), is_folder=length < len(parts))
        for length in range(1, len(parts) + 1)
    )


@needs_git
@settings(max_examples=examples(200), deadline=None)
@given(
    lines=st.lists(LINES, min_size=1, max_size=5), paths=st.sets(PATHS, min_size=20, max_size=40)
)
def test_git_ignores_the_same(
    lines: list[str], paths: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "ignored"
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1"}
    environment["GIT_CONFIG_GLOBAL"] = os.devnull
    if not folder.exists():
        subprocess.run(["git", "init", "-q", folder], env=environment, check=True)
    text = "\n".join(lines).encode()
    (folder / ".gitignore").write_bytes(text)
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "-z", "--stdin"],
        cwd=folder,
        env=environment,
        input="\0".join(paths).encode() + b"\0",
        capture_output=True,
    )
    assert done.returncode in (0, 1), done.stderr
    theirs = set(done.stdout.decode().split("\0")) - {""}
    rules = Rules().below("", text)
    assert {path for path in paths if ignored_by(rules, path)} == theirs


def test_a_file_below_beats_one_above() -> None:
    above = Rules().below("", b"*.log\n/top\n")
    below = above.below("src/", b"!keep.log\n/top2\n")
    assert above.ignores("src/keep.log", is_folder=False)
    assert not below.ignores("src/keep.log", is_folder=False)
    assert below.ignores("src/x.log", is_folder=False)
    assert below.ignores("src/top2", is_folder=True)
    assert not below.ignores("src/d/top2", is_folder=True)
    assert above.key != below.key


@pytest.mark.parametrize(
    "line",
    [
        b"a*" * 100 + b"b",
        b"**/" * 300 + b"b",
        b"*a/" * 100 + b"**/b",
        b"/**/a*?*?*?*?*?*?*?*b",
        b"[a-z]*" * 100 + b"[!a]",
    ],
)
def test_a_hostile_pattern_takes_no_time(line: bytes) -> None:
    start = time.process_time()
    rules = Rules().below("", line)
    for path in ("a" * 255, "/".join(["a" * 100] * 20), "/".join("a" * 100)):
        assert not rules.ignores(path, is_folder=False)
    assert time.process_time() - start < 2


def test_patterns_are_bounded_in_number() -> None:
    rules = Rules().below("", b"\n".join(b"a%d" % number for number in range(MAX_RULES + 1)))
    assert rules.ignores(f"a{MAX_RULES - 1}", is_folder=False)
    assert not rules.ignores(f"a{MAX_RULES}", is_folder=False)
    assert not rules.below("d/", b"x").ignores("d/x", is_folder=False)


@pytest.mark.parametrize("text", [b"", b"gitdir: ", b"gitdir: \0", b"gitdir: /none", b"\xff" * 9])
def test_a_strange_pointer_to_a_repository_excludes_nothing(text: bytes, tmp_path: Path) -> None:
    (tmp_path / ".git").write_bytes(text)
    assert user_excludes(tmp_path) == b""


@pytest.mark.parametrize(
    "line", [b" " * 30_000 + b"x" + b" " * 30_000, b"\\ " * 30_000, b"\\" * 60_000]
)
def test_spaces_at_the_end_of_a_line_take_no_time(line: bytes) -> None:
    assert len(line) <= MAX_RULES_BYTES
    began = time.process_time()
    Rules().below("", line)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("line", "name"),
    [(b"a  ", "a"), (b"a\\ ", "a "), (b"a\\  ", "a "), (b"a\\\\ ", "a\\"), (b" a", " a")],
)
def test_a_space_at_the_end_counts_behind_a_backslash_only(line: bytes, name: str) -> None:
    assert Rules().below("", line).ignores(name, is_folder=False)


@needs_git
@settings(max_examples=examples(60), deadline=None)
@given(
    above=st.lists(st.lists(LINES, max_size=3), min_size=3, max_size=3),
    paths=st.sets(PATHS, min_size=10, max_size=20),
)
def test_patterns_of_the_folders_above_are_gits(
    above: list[list[str]], paths: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    top = tmp_path_factory.getbasetemp() / "above"
    folder = top / "a/ab"
    if not folder.exists():
        folder.mkdir(parents=True)
        subprocess.run(["git", "init", "-q", top], check=True)
    for place, lines in zip((top, top / "a", folder), above, strict=True):
        (place / ".gitignore").write_bytes("\n".join(lines).encode())

    def ignored(at: Path, names: set[str]) -> set[str]:
        asked = subprocess.run(
            ["git", "-C", at, "check-ignore", "--no-index", "--stdin", "-z"],
            input="\0".join(names).encode(),
            capture_output=True,
            check=False,
        )
        return {name for name in asked.stdout.decode().split("\0") if name}

    is_own = not ignored(top, {"a", "a/ab"})
    assert repository_above(folder) == (top if is_own else None)
    if is_own:
        rules = first_rules(folder).below("", (folder / ".gitignore").read_bytes())
        assert {path for path in paths if ignored_by(rules, path)} == ignored(folder, paths)


def test_a_repository_begins_at_the_nearest_git_of_the_same_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repo/packages/a"
    folder.mkdir(parents=True)
    around = repository_above(folder)  # where the tests' folders lie
    assert around is None or tmp_path.is_relative_to(around)
    (tmp_path / "repo/.git").mkdir()
    (tmp_path / ".git").mkdir()
    assert repository_above(folder) == tmp_path / "repo"
    assert repository_above(tmp_path / "repo") is None  # it begins here
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert repository_above(folder) is None
    (tmp_path / "repo/.gitignore").write_text("*\n")  # as dotfiles in a home have it
    assert repository_above(folder) is None
