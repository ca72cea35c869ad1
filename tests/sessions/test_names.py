"""Names of sessions: any script's words, one name however it was typed, and nothing else."""

import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fulmen.cli import app
from fulmen.sessions import SessionStore, check, repair
from fulmen.sessions.names import is_name, name_like, read_name
from tests.tiny import write_checkpoint

WORDS = [
    "trip",
    "a.b-c_d",
    "Übung-2",
    "поездка",
    "旅行",
    "여행",
    "رحلة",
    "मुंबई",
    "การเดินทาง",
    "ταξίδι",
    "٣",
    "می\u200cخواهم",  # noqa: RUF001
    "क्\u200dष",
    "ශ්\u200dරී",
    "x" * 250,
    "会" * 83,
]
NO_NAMES = [
    "",
    ".",
    "..",
    ".hidden",
    "-x",
    "_x",
    "a/b",
    "../a",
    "a\\b",
    "a b",
    "a\nb",
    "a\0",
    "a\x1b[31m",
    "a\u202eb",
    "\u200cab",
    "a-\u200db",
    "a\u200db",
    "a\u200d",
    "می\u200c",
    "می\u200c\u200cخ",
    "می\u200ca",
    "あ\u200cい",
    "a\ud800",
    "a\u2028b",
    "\u0301a",
    "a:b",
    "a*",
    "x" * 251,
    "会" * 84,
    "x" * 10**6,
    "e\u0301" * 10**6,
]


@pytest.mark.parametrize("name", WORDS)
def test_a_word_of_any_script_is_a_name(name: str) -> None:
    assert is_name(read_name(name))
    assert read_name(unicodedata.normalize("NFD", name)) == read_name(name)


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_is_one_short_sentence(name: str, tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    for use in (read_name, store.has, store.state, store.state_path, store.lock_path):
        with pytest.raises(ValueError, match="cannot name a session") as error:
            use(name)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 300
    assert not is_name(name)
    assert list(tmp_path.iterdir()) == []


@given(text=st.text(max_size=80))
def test_a_name_is_one_file_in_its_folder(text: str) -> None:
    assert is_name(name_like(text))
    try:
        name = read_name(text)
    except ValueError:
        return
    assert read_name(name) == name
    assert name == unicodedata.normalize("NFC", text)
    path = SessionStore(Path("/store")).state_path(text)
    assert path.parent == Path("/store/sessions")
    assert (path.stem, path.suffix) == (name, ".json")
    assert len(path.name.encode()) <= 255
    assert not path.name.startswith(".")


@pytest.mark.parametrize("name", WORDS)
def test_a_name_serves_in_every_command(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m2", "m2")
    typed = unicodedata.normalize("NFD", name)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--store", str(tmp_path / "store")])
        if result.exception is not None:
            raise result.exception
        return result.stdout

    flags = ("--max-tokens", "4", "--thinking-budget", "2", "--seed", "3")
    run("chat", "hello", "--session", typed, "--model", str(folder), *flags)
    run("chat", "again", "--session", name, *flags)
    store = SessionStore(tmp_path / "store")
    assert store.names() == [read_name(name)]
    with pytest.raises(ValueError, match=f"there is a session '{re.escape(store.names()[0])}' al"):
        run("sessions", "fork", name, typed)
    run("sessions", "fork", typed, "other")
    run("sessions", "rewind", typed, "--turn", "1")
    assert len(json.loads(run("sessions", "export", typed))) == 2
    assert "hello" in run("sessions", "show", name)
    listed = run("sessions", "list").splitlines()
    assert any(line.startswith(f"{read_name(name)} ") and "hello" in line for line in listed)
    assert run("sessions", "check") == ""
    assert store.strays() == []
    run("sessions", "rm", typed)
    assert store.names() == ["other"]
    assert not list((tmp_path / "store/sessions").glob(f"{read_name(name)}*"))


def test_a_file_with_a_name_that_is_not_composed_is_mended(tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    store.create("caf\u00e9", model="m", fingerprint="f" * 64)
    (tmp_path / "sessions/caf\u00e9.json").rename(tmp_path / "sessions/cafe\u0301.json")
    assert store.names() == []
    assert store.strays() == ["cafe\u0301.json"]
    assert len(check(store)) == 1
    repair(store)
    assert store.names() == ["caf\u00e9"]
    assert check(store) == []
