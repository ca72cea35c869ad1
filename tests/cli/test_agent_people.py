"""fulmen agent beside a person: what is shown, asked, remembered, taken back and exported."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from fulmen.agent import Answer, Archive, default_runs, read_trajectories
from fulmen.agent.compaction import REQUEST
from fulmen.agent.trajectory import answer_record, said_record
from fulmen.chat import ChatRequest, Message, ToolCall, read_messages
from fulmen.sampling import SamplingParams
from tests.agent.working import bash, m2_calls, says
from tests.cli.test_agent import _own_folders, agent, folder, run_name, served_script, typed
from tests.cli.test_cli import assert_refused, called

__all__ = ["_own_folders", "folder"]


def test_a_person_sees_all_of_what_they_consent_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "".join(f"line {number}\n" for number in range(80))
    command = "\n".join(f"touch f{number}" for number in range(40))
    script = [
        m2_calls(("write", {"path": "new", "content": content})),
        bash("m2", command),
        m2_calls(("edit", {"path": "add.py", "old": "a - b", "new": "a + b"})),
        says("m2", "Done."),
    ]
    with served_script(script) as url:
        code, _, error = typed(
            "s\ny\ns\nn\ny\n",
            *("agent", "-p", "Do it.", "--folder", folder, "--url", url),
            monkeypatch=monkeypatch,
        )
    assert code == 0
    assert (folder / "new").read_text() == content
    assert (folder / "add.py").read_text().endswith("a + b\n")
    first, second, third = error.index("? write"), error.index("? bash"), error.index("? edit")
    assert "+line 0\n" in error[:first]
    assert "+line 79" not in error[:first]
    assert "[s]how all of it" in error[first:]
    assert "+line 79" in error[first:second]
    assert "touch f39" not in error[:second]
    assert "touch f39" in error[second:third]
    assert "+    return a + b" in error[second:third]
    assert "[s]how" not in error[third:]


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("echo one; sleep 0.1; echo two; exit 3", "    one\n    two\n    (exit code 3)\n"),
        ("printf one", "    one\n"),
        ("true", "    (no output)\n"),
        ("seq 1 30000", "    30000\n"),
    ],
)
def test_output_is_shown_once_as_it_comes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, shown: str
) -> None:
    with served_script([bash("m2", command), says("m2", "Done.")]) as url:
        arguments = ("agent", "-p", "Do it.", "--mode", "auto", "--folder", folder, "--url", url)
        code, _, error = typed("", *arguments, monkeypatch=monkeypatch)
    assert code == 0
    assert shown in error
    lines = error.splitlines()
    for line in ("    one", "    two", "    1", "    30000"):
        assert lines.count(line) <= 1
    assert len(lines) < 6000


def test_settings_that_were_declined_are_not_asked_about_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".fulmen").mkdir()
    (folder / ".fulmen/agent.toml").write_text('mode = "auto"\n')
    script = [says("m2", "First."), says("m2", "Second.")]
    with served_script(script) as url:
        code, out, error = typed(
            "n\n/rewind 0\nAgain.\n/exit\n",
            *("agent", "Do it.", "--folder", folder, "--url", url),
            monkeypatch=monkeypatch,
        )
    assert code == 0, error
    assert "Second." in out
    assert error.count("holds settings for an agent") == 1
    with served_script([says("m2", "Done.")]) as url:
        run = agent(folder, url, "-p", "Do it.")
    assert run.stderr.count("is not approved") == 1


def kill_sandbox() -> None:
    """Kill what this process started as sandboxes."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            if name == "bwrap" and int(rest.split()[1]) == os.getpid():
                os.kill(int(path.parent.name), signal.SIGKILL)


def test_a_sandbox_that_fails_is_begun_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(request: ChatRequest) -> str:
        if len(read_messages(request.messages)) == 2:
            kill_sandbox()
        return bash("m2", "echo first >> log")

    def last(request: ChatRequest) -> str:
        return says("m2", "It goes on.")

    with served_script([line, last]) as url:
        code, out, error = typed(
            "What now?\n/exit\n",
            *("agent", "Do it.", "--mode", "auto", "--folder", folder, "--url", url),
            monkeypatch=monkeypatch,
        )
    assert "the sandbox was begun anew" in error
    assert "It goes on." in out
    assert code == 0


def test_after_a_crash_files_of_a_person_are_asked_about(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(default_runs())
    with served_script([says("m2", "Done.")] * 3) as url:
        settings = {"url": url, "mode": "auto"}
        run = archive.begin(
            folder, model=url, tools="coding", system=(), name="one", settings=settings
        )
        call = ToolCall("bash", {"command": "cat add.py"})
        message = Message("assistant", "", tool_calls=(call,))
        with run:
            run.append(said_record([Message("user", "Do it.")]))
            answer = Answer(message=message, finish_reason="stop", params=SamplingParams())
            run.append(answer_record(answer))
        os.utime(run.path / "lock", (time.time() - 99, time.time() - 99))
        (folder / "add.py").write_text("a day of work")
        refused = called("agent", "resume", "one", "-p")
        assert_refused(refused, "changed since the last snapshot, so nothing was restored: add.py")
        assert "--force" in refused.stderr
        code, _, error = typed("n\n", "agent", "resume", "one", "-p", monkeypatch=monkeypatch)
        assert code == 1
        assert "nothing was changed" in error
        assert (folder / "add.py").read_text() == "a day of work"
        done = called("agent", "resume", "one", "-p", "--force")
    assert done.returncode == 0, done.stderr
    assert (folder / "add.py").read_text() != "a day of work"
    out = folder.with_name("out")
    assert called("agent", "export", "one", "--files", out, "--saved", "1").returncode == 0
    assert (out / "add.py").read_text() == "a day of work"


def test_remembered_rules_and_approvals_are_listed_and_taken_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert called("agent", "rules").stdout == ""
    (folder / ".fulmen").mkdir()
    (folder / ".fulmen/agent.toml").write_text('mode = "ask"\ntools = "coding"\n')
    with served_script([bash("m2", "npm run t -x"), says("m2", "Done.")]) as url:
        arguments = ("agent", "-p", "Do it.", "--folder", folder, "--url", url)
        assert typed("y\na\n", *arguments, monkeypatch=monkeypatch)[0] == 0
    file = folder / ".fulmen/agent.toml"
    listed = f"{folder}\n    bash(npm run t *)\n{file} is approved as it was\n"
    assert called("agent", "rules").stdout == listed
    assert json.loads(called("agent", "rules", "--json").stdout) == {
        "rules": [{"folder": str(folder), "allow": ["bash(npm run t *)"]}],
        "approved": [{"file": str(file), "contents": 1}],
    }
    at = ("--folder", folder)
    refused = called("agent", "rules", "--forget", "bash(rm *)", *at)
    assert_refused(refused, "the rule bash(rm *) is not remembered")
    assert called("agent", "rules", "--forget", "bash(npm run t *)", *at).returncode == 0
    assert called("agent", "rules", "--revoke", *at).returncode == 0
    assert called("agent", "rules").stdout == ""
    assert_refused(called("agent", "rules", "--revoke", *at), "are not approved")
    with served_script([bash("m2", "npm run t -x"), says("m2", "Done.")]) as url:
        assert agent(folder, url, "-p", "Do it.").returncode == 3


def test_a_run_is_exported_and_read_back(folder: Path, tmp_path: Path) -> None:
    script = [bash("m2", "echo '<b>' > a", "cat a"), says("m2", "Done.")]
    with served_script(script) as url:
        assert agent(folder, url, "-p", "Do it.", "--mode", "auto").returncode == 0
    name = run_name()
    file = tmp_path / "run.jsonl"
    file.write_text(called("agent", "export", name).stdout * 2)
    (first, second) = read_trajectories(file)
    assert first == second == Archive(default_runs()).runs.open(name).trajectory
    document = json.loads(called("agent", "export", name, "--format", "atif").stdout)
    assert document["schema_version"] == "ATIF-v1.8"
    assert document["session_id"] == name
    assert len(document["agent"]["tool_definitions"]) == 7
    page = called("agent", "export", name, "--format", "html").stdout
    assert page.startswith("<!doctype html>")
    assert "&lt;b&gt;" in page
    for flags, sentence in [
        (("--format", "html", "--files", "x"), "--format is given with --files"),
        (("--tokenizer", "x"), "--tokenizer is given, it needs --format html"),
    ]:
        assert_refused(called("agent", "export", name, *flags), sentence)


def test_a_summary_is_shown_edited_and_undone(folder: Path) -> None:
    asked: list[list[Message]] = []

    def line(request: ChatRequest) -> str:
        messages = read_messages(request.messages)
        if messages[-1].content == REQUEST:
            return says("m2", "Nine files were read.")
        asked.append(messages)
        count = len(asked)
        return says("m2", "Done.") if count > 6 else bash("m2", f"seq {count} 1500")

    with served_script([line] * 30) as url:
        flags = ("--mode", "auto", "--context", "6000")
        run = agent(folder, url, "-p", "Do it.", *flags)
        assert run.returncode == 0, run.stderr
        name = run_name()
        shown = called("agent", "summary", name)
        assert shown.stdout == "Nine files were read.\n"
        text = folder.with_name("summary.txt")
        text.write_text("Eight were.\n")
        edited = called("agent", "summary", name, "--edit", text)
        assert edited.returncode == 0, edited.stderr
        assert called("agent", "summary", name).stdout == "Eight were.\n"
        more = ("-p", "--resume", name, "--context", "100000")
        assert called("agent", *more, "And?").returncode == 0
        assert [one.content.splitlines()[-1] for one in asked[-1][2:3]] == ["Eight were."]
        assert called("agent", "rewind", name, "--step", str(len(asked) - 1)).returncode == 0
        assert called("agent", "summary", name).stdout == "Eight were.\n"
        assert called("agent", "summary", name, "--expand").returncode == 0
        assert called("agent", "summary", name).stdout == "Nine files were read.\n"
        while called("agent", "summary", name, "--expand").returncode == 0:
            pass
        assert_refused(called("agent", "summary", name), "has no summary, all of its steps stand")
        assert called("agent", *more, "And?").returncode == 0
        assert not any("files were read" in one.content for one in asked[-1])
        assert len(asked[-1]) == 2 + 2 * 6 + 1 + 1
    wrong = called("agent", "summary", name, "--expand", "--edit", "-")
    assert_refused(wrong, "--edit is given with --expand")
