"""The commands that are found in a text of the shell are those that were put in, and those that a
real bash runs."""

import builtins
import random
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent.commands import MAX_BYTES, read_script
from tests.agent.shells import programs_started, random_text
from tests.examples import examples

Piece = tuple[str, list[str]]
"""A text, and the names of the commands in it"""

SIMPLE: list[Piece] = [
    ("aa", ["aa"]),
    ("bb -x", ["bb"]),
    ("cc 'a;b' \"c|d\" e\\;f", ["cc"]),
    ("d\\ d e", ["d d"]),
    ("\"e\"'e' --", ["ee"]),
    ("ff >f", ["ff"]),
    ("gg <g 2>&1 &>h", ["gg"]),
    ("hh $'a\\'b'", ["hh"]),
    ('ii "$x" ${x%.py} $((1 + 2))', ["ii"]),
]
AROUND: list[Piece] = [
    *(
        (text, [])
        for text in ("( {})", "{{ {}\n}}", "{{ ! ( {}\n)\n}}", "( {} &)", "( {}) >f 2>&1")
    ),
    *(
        (text, [])
        for text in ("h() {{ {}\n}}", "function g {{ {}\n}}", "x=$( {}\n)", "[[ -n $( {}\n) ]]")
    ),
    *(
        (text, ["kk"])
        for text in ("kk $( {}\n)", 'kk "x$( {}\n)y"', "kk <( {}\n)", "kk ${{x:-$( {}\n)}}")
    ),
    *((text, ["kk"]) for text in ("kk <<< $( {}\n)", "(kk <<E\n$( {}\n)\nE\n)", "kk >f$( {}\n)")),
    *(
        (text, [":"])
        for text in ("if {}\nthen :; fi", "while {}\ndo :; done", "until :; do {}\ndone")
    ),
    ("for i in 1 2; do {}\ndone", []),
    ("case x in a|b) {}\n;; *) :;; esac", [":"]),
    ("case $( {}\n) in a) kk;; esac", ["kk"]),
]
BETWEEN: list[Piece] = [
    *((text, []) for text in ("{}\n{}", "{}\n# it's\n{}", "( {}\n{})", "if {}\nthen {}\nfi")),
    *((text, []) for text in ("{{ {}\n}}; {{ {}\n}}", "( {}\n) && ( {}\n)", "( {}\n) || ( {}\n)")),
    *((text, []) for text in ("( {}\n) | ( {}\n)", "( {}\n) & ( {}\n)", "( {}\n) |& ( {}\n)")),
    ("if kk; then {}\nelse {}\nfi", ["kk"]),
]


def put(form: Piece, *pieces: Piece) -> Piece:
    names = [name for _, inner in pieces for name in inner]
    return form[0].format(*(text for text, _ in pieces)), names + form[1]


TEXTS = st.recursive(
    st.sampled_from(SIMPLE),
    lambda child: (
        st.builds(put, st.sampled_from(AROUND), child)
        | st.builds(put, st.sampled_from(BETWEEN), child, child)
    ),
    max_leaves=8,
).filter(lambda piece: piece[0].count("<<E\n") < 2)  # two that end with one word are not read


@settings(max_examples=examples(500), deadline=None)
@given(TEXTS)
def test_the_commands_found_are_those_put_in(piece: Piece) -> None:
    text, names = piece
    script = read_script(text, "/ws")
    assert script.unknown == []
    assert sorted(command.words[0].text for command in script.commands) == sorted(names)


@settings(max_examples=examples(200), deadline=None)
@given(TEXTS, st.sampled_from(["eval", "bash -c", "sh -ec", "env A=b bash -c", "xargs sh -c"]))
def test_a_text_in_a_text_is_read_as_well(piece: Piece, starter: str) -> None:
    text, names = piece
    script = read_script(f"{starter} {shlex.quote(text)}", "/ws")
    inner = [command for command in script.flattened() if not command.wraps]
    assert sorted(command.words[0].text for command in inner) == sorted(names)


@pytest.mark.parametrize("seed", range(2))
def test_bash_starts_no_program_that_was_not_found(seed: int, tmp_path: Path) -> None:
    """Random texts, most with faults: what is read for sure must be what bash does."""
    source = random.Random(seed)
    num_known = num_started = 0
    num_texts = examples(500)
    for _ in range(num_texts):
        text = random_text(source)
        script = read_script(text, "/ws")
        if script.unknown:
            continue
        num_known += 1
        started, written = programs_started(text, tmp_path)
        assert started <= {command.words[0].text for command in script.flattened()}, text
        assert written <= {access.word.text for access in script.accesses}, text
        num_started += len(started)
    assert num_known > num_texts // 25  # of 500 texts about 70
    assert num_started > num_texts // 25


@settings(max_examples=examples(120), deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="ab $(){}[]<>|&;'\"`\\\n#!=*?~-", max_size=60))
def test_any_text_is_read_or_said_to_be_unknown(text: str) -> None:
    script = read_script(text, "/ws")
    for command in script.flattened():
        assert command.words[0].text
        assert command.spellings()


@pytest.mark.parametrize(
    "text",
    [
        "(" * 20_000,
        "$(" * 20_000,
        "`" * 60_000,
        "a;" * 30_000,
        "a | " * 15_000 + "a",
        "a && " * 12_000 + "a",
        "if a; then " * 5_000,
        "echo " + "$x" * 30_000,
        "echo " + "{a,b}" * 12_000,
        '"' * 65_000,
        "<<E " * 15_000,
        "a=" + "b" * 65_000,
        "eval " * 10_000 + "a",
        "env " * 15_000 + "a",
        "\\" * 65_000,
        "x" * (MAX_BYTES + 1),
    ],
    ids=lambda text: text[:12],
)
def test_long_texts_are_read_in_bounded_time(text: str) -> None:
    start = time.process_time()
    read_script(text, "/ws")
    assert time.process_time() - start < 6


def test_a_text_that_is_too_long_or_too_deep_says_so() -> None:
    assert read_script("x" * (MAX_BYTES + 1), "/ws").unknown == [
        "the command is longer than 64 KiB"
    ]
    deep = "(" * 200 + "ls" + ")" * 200
    assert read_script(deep, "/ws").unknown == ["the command is nested too deeply"]


def test_the_missing_parser_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("tree_sitter"):
            raise ImportError(name)
        return find(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'fulmen\[agent\]'"):
        read_script("ls", "/ws")


@pytest.mark.parametrize(
    ("text", "folders"),
    [
        ("ls", {"/ws"}),
        ("cd a && ls", {"/ws/a"}),
        ("cd a && cd b && ls", {"/ws/a/b"}),
        ("cd a; ls", {"/ws", "/ws/a"}),
        ("cd a || ls", {"/ws", "/ws/a"}),
        ("cd a && x || ls", {"/ws", "/ws/a"}),
        ("(cd a); ls", {"/ws", "/ws/a"}),
        ("cd ../b && ls", {"/b"}),
        ("cd /etc && ls", {"/etc"}),
        ("cd && ls", {"~"}),
        ("echo $(cd a && x); ls", {"/ws"}),
        ("cd - && ls", None),
        ('cd "$x" && ls', None),
        ("pushd a; ls", None),
        ("for i in 1 2; do cd a; done; ls", None),
        ("f() { cd a; }; f; ls", None),
        ("trap 'cd a' DEBUG; ls", None),
        ("eval 'cd a'; ls", None),
        ("c\\d a; ls", {"/ws", "/ws/a"}),
    ],
)
def test_the_folders_that_a_command_may_run_in(text: str, folders: set[str] | None) -> None:
    last = read_script(text, "/ws").commands[-1]
    assert last.name == "ls"
    assert last.folders == folders
