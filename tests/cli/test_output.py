"""Output reaches every stream: nothing lost, nothing stopped, JSON stays JSON."""

import io
import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.cli.app import dispatch
from fulmen.cli.output import harmless, readable_argument
from fulmen.files import printable
from tests.tiny import write_checkpoint
from tests.warm import python

TEXT = "Zürich → 東京 😀"
ENCODINGS = ("ascii", "cp1252", "utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")


def run(*arguments: str | Path, encoding: str, stdin: str = "") -> tuple[int, bytes, bytes]:
    """Run the command on streams of an encoding that raise for what they lack, as Python's do."""
    out = io.TextIOWrapper(io.BytesIO(), encoding, "strict", write_through=True)
    error = io.TextIOWrapper(io.BytesIO(), encoding, "strict", write_through=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fulmen", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", error)
        try:
            dispatch()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.buffer.getvalue(), error.buffer.getvalue()


def written(text: str, encoding: str) -> bytes:
    """Return what a stream writes for a text: escapes for what its encoding lacks."""
    return text.encode(encoding, "backslashreplace")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_answer_is_printed_whole_on_any_stream(folder: Path, encoding: str) -> None:
    flags = ("--thinking-budget", "0", "--max-tokens", "200", "--choice", TEXT)
    code, out, _ = run("chat", "?", "--model", folder, *flags, encoding=encoding)
    assert (code, out) == (0, written(TEXT, encoding) + b"\n")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_card_is_printed_whole_on_any_stream(encoding: str) -> None:
    code, out, error = run("models", "show", "minimax-m1-80k", "--lang", "de", encoding=encoding)
    assert (code, error) == (0, b"")
    assert written("für", encoding) in out


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_json_on_any_stream(folder: Path, tmp_path: Path, encoding: str) -> None:
    store = ("--store", tmp_path)
    flags = ("--model", folder, "--session", "a", *store, "--max-tokens", "4")
    assert run("chat", *flags, encoding=encoding, stdin=TEXT)[0] == 0
    code, out, _ = run("sessions", "show", "a", *store, "--json", encoding=encoding)
    (turn,) = json.loads(out.decode(encoding))["turns"]
    assert (code, turn["messages"][0]["content"]) == (0, TEXT)
    for command in (("sessions", "show", "a"), ("sessions", "list")):
        assert run(*command, *store, encoding=encoding)[0] == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_sentence_about_a_mistake_is_printed_on_any_stream(encoding: str) -> None:
    code, _, error = run("models", "check", "nirgends-für-→", encoding=encoding)
    assert code == 1
    assert error.startswith(written("fulmen: nirgends-für-→", encoding))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("plain", "plain"),
        (TEXT, TEXT),
        (TEXT.encode().decode("ascii", "surrogateescape"), TEXT),
        ("half \ud83d", None),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), None),
    ],
)
def test_an_argument_is_read_as_utf_8_whatever_the_locale(text: str, read: str | None) -> None:
    if read is None:
        with pytest.raises(ValueError, match="is not UTF-8 text"):
            readable_argument(text)
    else:
        assert readable_argument(text) == read


def test_a_locale_without_utf_8_takes_a_question_and_prints_the_answer(folder: Path) -> None:
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flags = ["--model", str(folder), "--choice", TEXT, "--thinking-budget", "0"]
    answered = subprocess.run(
        [sys.executable, "-m", "fulmen.cli", "chat", TEXT, *flags, "--max-tokens", "200"],
        env=os.environ | variables,
        capture_output=True,
        timeout=120,
    )
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout == written(TEXT, "ascii") + b"\n"


@pytest.mark.parametrize("command", ["--help", "models list"])
def test_a_reader_that_leaves_ends_a_command_quietly(command: str) -> None:
    shell = f"{sys.executable} -m fulmen.cli {command} | true"
    ended = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=120)
    assert ended.stderr == b""


def test_an_answer_whose_reader_leaves_is_kept_as_far_as_it_came(
    folder: Path, tmp_path: Path
) -> None:
    chat = shlex.join(
        python("-m", "fulmen.cli", "chat", "Hello", "--model", folder, "--session", "a")
    )
    flags = f"--store {tmp_path} --thinking-budget 0 --max-tokens 200 --ignore-eos --seed 1"
    ended = subprocess.run(
        ["bash", "-c", f"{chat} {flags} | head -c 1"], capture_output=True, timeout=120
    )
    assert len(ended.stdout) == 1
    assert b"Traceback" not in ended.stderr
    _, out, _ = run("sessions", "export", "a", "--store", tmp_path, encoding="utf-8")
    question, answer = json.loads(out)
    assert question["content"] == "Hello"
    assert answer["content"]


def test_an_answer_that_cannot_be_kept_is_printed_and_the_sentence_says_so(
    folder: Path, tmp_path: Path
) -> None:
    flags = ("--thinking-budget", "0", "--max-tokens", "9", "--seed", "1", "--model", folder)
    store = ("--session", "a", "--store", tmp_path)
    _, expected, _ = run("chat", "Hello", *flags, encoding="utf-8")
    assert expected.strip()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the session's own file and for none of what an answer leaves.
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        code, out, error = run("chat", "Hello", *flags, *store, encoding="utf-8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (1, expected)
    sentence = error.decode().splitlines()[-1]
    assert sentence.startswith("fulmen: the answer is printed but was not kept in session 'a': ")


@given(st.text())
def test_text_for_a_terminal_moves_no_cursor_and_loses_nothing(text: str) -> None:
    shown = harmless(text)
    assert all(char.isprintable() or char in "\n\t" for char in shown)
    if text.isprintable():
        assert shown == text
    assert printable(text).isprintable()
