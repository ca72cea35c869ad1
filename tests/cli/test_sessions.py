"""Sessions as a user handles them at the command line, in one process."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fulmen.cli import app
from fulmen.sessions import SessionStore
from tests.cli.test_cli import Terminal
from tests.examples import examples
from tests.sessions.helpers import forge_chain, mutated
from tests.tiny import write_checkpoint
from tests.warm import python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")


RECORDED = Path(__file__).parent.parent / "sessions" / "data-0.1.0"


class Shell:
    """Runs commands on one store."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = folder
        self.store = SessionStore(store)

    def run(self, *arguments: str, stdin: str = "") -> str:
        """Return what a command prints on stdout; its error is raised."""
        result = CliRunner().invoke(app, [*arguments, "--store", str(self.store.root)], input=stdin)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    def chat(self, *arguments: str, name: str = "a") -> str:
        flags = ("--max-tokens", "24", "--thinking-budget", "6", "--seed", "3")
        is_new = not self.store.has(name)
        model = ("--model", str(self.folder)) if is_new else ()
        return self.run("chat", *arguments, "--session", name, *model, *flags)


@pytest.fixture
def shell(folder: Path, tmp_path: Path) -> Shell:
    return Shell(folder, tmp_path)


def test_a_conversation_goes_on_is_forked_shown_exported_and_removed(shell: Shell) -> None:
    first = shell.chat("see [/b] and [red]")
    shell.chat("and then?")
    messages = json.loads(shell.run("sessions", "export", "a"))
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"] == first.rstrip("\n")
    shell.run("sessions", "fork", "a", "b", "--turn", "1")
    listed = shell.run("sessions", "list")
    assert "see [/b] and [red]" in listed
    assert "and then?" in listed
    shown = shell.run("sessions", "show", "b")
    assert "see [/b]" in shown
    assert "and then?" not in shown
    turns = json.loads(shell.run("sessions", "export", "a", "--tokens"))
    assert len(turns[1]["answer_ids"]) == len(turns[1]["logprobs"])
    shell.run("sessions", "rm", "a")
    with pytest.raises(ValueError, match="there is no session 'a'"):
        shell.run("sessions", "show", "a")
    assert sorted(path.name for path in (shell.store.root / "sessions").iterdir()) == ["b.json"]


def test_an_answer_that_was_taken_back_is_finished_as_it_was_and_thoughts_stay_off_stdout(
    shell: Shell,
) -> None:
    whole = shell.chat("Hello")
    (turn,) = json.loads(shell.run("sessions", "export", "a", "--tokens"))
    shell.run("sessions", "rewind", "a", "--turn", "1", "--token", "4")
    assert [m["role"] for m in json.loads(shell.run("sessions", "export", "a"))] == ["user"]
    with pytest.raises(ValueError, match="was rewound into an answer, an empty message"):
        shell.chat("second")
    assert shell.chat("") == whole
    (again,) = json.loads(shell.run("sessions", "export", "a", "--tokens"))
    assert again["answer_ids"] == turn["answer_ids"]
    assert again["logprobs"] == turn["logprobs"]
    with pytest.raises(ValueError, match="the message is empty"):
        shell.chat("")
    shell.run("sessions", "rewind", "a", "--turn", "1", "--token", "4")
    shell.run("sessions", "rewind", "a", "--turn", "1")
    assert json.loads(shell.run("sessions", "export", "a", "--tokens")) == [again]


def test_undo_is_kept_and_a_system_prompt_is_not_exchanged(shell: Shell) -> None:
    shell.chat("one", "--system", "Be brief.")
    with pytest.raises(ValueError, match="started with another system prompt"):
        shell.chat("two", "--system", "Be long.")
    shell.chat("two", "--system", "Be brief.")
    assert len(shell.store.turns(shell.store.state("a"))) == 2
    shell.chat("x", name="b")
    with pytest.raises(ValueError, match="started without a system prompt"):
        shell.chat("y", "--system", "Be brief.", name="b")


def test_other_models_are_refused(shell: Shell, tmp_path: Path) -> None:
    shell.chat("one")
    other = write_checkpoint(tmp_path / "m1", "m1")
    with pytest.raises(ValueError, match="belongs to another model"):
        shell.run("chat", "two", "--session", "a", "--model", str(other))


def test_a_model_that_is_not_the_sessions_is_refused_by_name_before_it_is_fetched(
    shell: Shell,
) -> None:
    shell.store.create("a", model="minimax-m2", fingerprint="f")
    sentence = (
        "session 'a' belongs to another model, it was begun with minimax-m2; without --model it "
        "goes on with that"
    )
    for other in ("minimax-m1-80k", "MiniMaxAI/MiniMax-M1-80k", "org/model"):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            shell.run("chat", "two", "--session", "a", "--model", other)


def test_a_session_without_an_answer_says_so(shell: Shell) -> None:
    shell.store.create("begun", model="smollm2", fingerprint="f")
    assert shell.run("sessions", "show", "begun") == "begun: smollm2, no answer yet\n"
    (row,) = shell.run("sessions", "list").splitlines()[1:]
    assert row.split()[:4] == ["begun", "0", "0", "0.0"]
    assert row.rstrip().endswith("no answer yet")
    shell.chat("well?", name="other")
    rows = shell.run("sessions", "list")
    assert rows.count("no answer yet") == 1
    assert "well?" in rows


def test_a_conversation_says_that_it_begins_and_how_it_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    flags = ("--model", folder, "--session", "trip", "--store", tmp_path, "--max-tokens", "3")
    first = Terminal("chat", *flags)
    first.wait_for("new conversation 'trip'")
    first.wait_for("Ctrl-D leaves.*> ")
    first.type("Hello")
    first.wait_for("token limit.*> ")
    first.type("/exit")
    first.wait_for("fulmen chat --session trip goes on here")
    assert first.close() == 0
    again = Terminal("chat", *flags)
    shown = again.wait_for("the last answer was:")
    again.wait_for("> ")
    assert "2 messages, " in shown
    assert "new conversation" not in shown
    again.type("/exit")
    assert again.close() == 0


@pytest.mark.parametrize("command", [("rm", "a"), ("rewind", "a", "--turn", "1"), ("show", "a")])
def test_what_is_not_there_leaves_nothing_behind(shell: Shell, command: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="there is no session 'a'"):
        shell.run("sessions", *command)
    assert not (shell.store.root / "sessions").exists()


def test_bad_files_are_named_and_can_be_removed(shell: Shell) -> None:
    shell.chat("hello there")
    folder = shell.store.root / "sessions"
    (folder / "bad.json").write_text('{"format": 1')
    (folder / "linked.json").symlink_to("/etc/passwd")
    (folder / "my chat.json").write_text("[]")
    (folder / "notes\udcff.txt").write_text("\x1b[2J")
    listed = shell.run("sessions", "list")
    assert "hello there" in listed
    for name in ("bad", "linked"):
        assert f"{name} " in listed
    assert listed.count("cannot be read") == 2
    assert "my chat.json" in listed
    assert "notes\\udcff.txt" in listed
    shell.run("sessions", "fork", "a", "b")
    shell.run("sessions", "rm", "bad", "linked", "my chat", "notes\udcff.txt")
    assert sorted(shell.store.names()) == ["a", "b"]
    shell.run("sessions", "rm", "a")
    shell.run("sessions", "rm", "b")
    assert Path("/etc/passwd").exists()
    assert not list((shell.store.root / "turns").iterdir())


def test_check_says_what_is_wrong_and_repair_mends_it(shell: Shell) -> None:
    shell.chat("one")
    shell.chat("two")
    assert shell.run("sessions", "check") == ""
    (shell.store.root / "sessions" / "bad.json").write_text("{")
    last = shell.store.turns(shell.store.state("a"))[-1]
    (shell.store.root / "turns" / f"{last.hash}.json").write_text("{}")
    with pytest.raises(SystemExit, match="1"):
        shell.run("sessions", "check")
    done = shell.run("sessions", "check", "--repair")
    assert "session a was rewound to the end of turn 1" in done
    assert "bad.json moved to" in done
    assert shell.run("sessions", "check") == ""
    messages = json.loads(shell.run("sessions", "export", "a"))
    assert [message["content"] for message in messages[::2]] == ["one"]
    shell.chat("three")


@settings(max_examples=examples(25), deadline=None)
@given(data=st.data())
def test_any_turn_is_listed_shown_and_exported_or_refused(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        shutil.copytree(RECORDED, root)
        turn = SessionStore(root).state("m1").turn
        values = json.loads((root / "turns" / f"{turn}.json").read_text())
        changed = values | {"record": mutated(data, values["record"])}
        forge_chain(root, "m1", 1, json.dumps(changed).encode())
        for command in (["list"], ["show", "m1"], ["export", "m1"], ["export", "m1", "--tokens"]):
            result = CliRunner().invoke(app, ["sessions", *command, "--store", str(root)])
            assert result.exception is None or isinstance(result.exception, ValueError)
            assert command != ["list"] or "And thunder?" in result.stdout


def test_a_store_that_is_not_there_is_whole(shell: Shell) -> None:
    root = shell.store.root / "nothing"
    result = CliRunner().invoke(app, ["sessions", "check", "--store", str(root)])
    assert result.exit_code == 0
    assert not root.exists()


@pytest.mark.parametrize("command", ["list", "show", "fork", "rewind", "rm", "export", "check"])
def test_help_is_said_in_whole_phrases(command: str) -> None:
    text = CliRunner().invoke(app, ["sessions", command, "--help"]).stdout
    assert "..." not in text.replace("NAME...", "")
    assert ".py" not in text


def test_an_answer_that_cannot_be_kept_is_printed_and_said_to_be_lost(
    folder: Path, tmp_path: Path
) -> None:
    program = """
import resource, sys
from fulmen.cli.app import main
from fulmen.sessions import store
save = store.SessionStore.save
def limited(*arguments, **named):
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
    return save(*arguments, **named)
store.SessionStore.save = limited
main()
"""
    limits = ("--seed", "3", "--max-tokens", "24", "--thinking-budget", "6")
    command = ("chat", "hello", "--model", str(folder), *limits)
    kept, lost = (
        subprocess.run(
            python(*code, *command, "--session", "a", "--store", tmp_path / name),
            capture_output=True,
            text=True,
            check=False,
        )
        for name, code in (
            ("kept", ("-c", "from fulmen.cli.app import main; main()")),
            ("lost", ("-c", program)),
        )
    )
    assert kept.returncode == 0
    assert lost.returncode == 1
    assert lost.stdout == kept.stdout != ""
    (sentence,) = [line for line in lost.stderr.splitlines() if line.startswith("fulmen: ")]
    assert sentence.startswith("fulmen: the answer is printed but was not kept in session 'a': ")
    assert sentence.endswith(": file too large")
    assert str(tmp_path / "lost") in sentence
    assert "Traceback" not in lost.stderr
    store = SessionStore(tmp_path / "lost")
    assert store.turns(store.state("a")) == []
