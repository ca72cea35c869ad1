"""Lines that are typed: kept across runs, pasted whole, bounded on disk."""

from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from fulmen.cli.lines import PromptReader, history_file, shorten_history
from tests.cli.test_flags import bounded


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def typed(*keys: str) -> list[str]:
    """Return the texts that a new reader reads from keys."""
    with bounded(), create_pipe_input() as keyboard:
        return _read(keyboard, keys)


def _read(keyboard: PipeInput, keys: tuple[str, ...]) -> list[str]:
    texts = []
    with create_app_session(input=keyboard, output=DummyOutput()):
        reader = PromptReader(["/help", "/new"])
        for text in keys:
            keyboard.send_text(text)
            texts.append(reader.read())
    return texts


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("Hello\r", "Hello"),
        ("Hello\n", "Hello"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("\x1b[200~first\nsecond\n\nlast\x1b[201~\r", "first\nsecond\n\nlast"),
        ("Zürich 😀\r", "Zürich 😀"),
        ("/he\t\r", "/help"),
        ("ab\x7fc\r", "ac"),
    ],
)
def test_a_text_is_read_as_it_is_typed(state: Path, keys: str, text: str) -> None:
    assert typed(keys) == [text]


def test_lines_are_found_again_in_the_next_run(state: Path) -> None:
    typed("first\r", "second\\\rline\r")
    assert typed("\x1b[A\r") == ["second\nline"]
    assert typed("\x12first\r\r") == ["first"]
    assert history_file().stat().st_mode & 0o077 == 0


def test_ctrl_d_ends_and_ctrl_c_drops_the_line(state: Path) -> None:
    with pytest.raises(EOFError):
        typed("\x04")
    with pytest.raises(KeyboardInterrupt):
        typed("half\x03")


def test_a_folder_that_cannot_be_written_costs_only_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert typed("Hello\r") == ["Hello"]


def test_a_history_that_grew_too_long_keeps_its_newer_half(tmp_path: Path) -> None:
    file = tmp_path / "history"
    entries = "".join(f"\n# 2026-01-01 00:00:{number:02}\n+line {number}\n" for number in range(60))
    file.write_text(entries)
    shorten_history(file, most_bytes=10_000)
    assert file.read_text() == entries
    shorten_history(file, most_bytes=1000)
    kept = file.read_text()
    assert len(kept) <= 500
    assert kept.startswith("\n")
    assert entries.endswith(kept)
    assert kept.lstrip("\n").startswith("# ")
