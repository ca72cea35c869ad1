"""fulmen agent with what its settings bring from outside: servers, hooks, commands, skills."""

import json
from pathlib import Path

import pytest

from fulmen.chat import ChatRequest, Tool, read_messages
from tests.agent.test_mcp import NEW, is_alive, old
from tests.agent.working import bash, by_place, m2_calls, says
from tests.cli.test_agent import (
    _own_folders,
    agent,
    folder,
    lines,
    results_of,
    run_name,
    served_script,
)
from tests.cli.test_cli import called

__all__ = ["_own_folders", "folder"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "config/fulmen/agent"
    home.mkdir(parents=True)
    return home


def test_a_server_of_the_settings_is_called_and_gone_in_the_end(
    home: Path, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mcp", reason="fulmen[mcp] is not installed")
    noted = tmp_path / "pids"
    (home / "agent.toml").write_text(
        f"[mcp.new]\ncommand = {json.dumps(NEW)}\n"
        f"[mcp.old]\ncommand = {json.dumps(old('leaves', str(noted)))}\n"
        "[mcp.none]\ncommand = '/no/such/program'\n"
        '[rules]\nallow = ["mcp__new", "mcp__old__say"]\n'
    )
    calls = (("mcp__new__add", {"a": 20, "b": 22}), ("mcp__old__say", {"a": 1}))
    script = [m2_calls(*calls, ("mcp__old__end", {})), says("m2", "Done.")]
    with served_script([by_place(script)] * 9) as url:
        first = agent(folder, url, "-p", "Go.", "--json")
        assert first.returncode == 3, first.stderr  # what asks is refused: nobody can be asked
        second = agent(folder, url, "-p", "Go.", "--json", "--mode", "auto", "--allow", "mcp__old")
        assert second.returncode == 0, second.stderr
    texts = results_of(first)
    assert texts[0] == "42"
    assert texts[1] == '{"a": "1"}'
    assert "mcp__old__end: no rule allows it, and it leaves the sandbox" in texts[2]
    assert results_of(second)[2] == "the server old ended before it answered"
    notes = [one["text"] for one in lines(first) if one["type"] == "note"]
    assert any(note.startswith("the server none cannot be started") for note in notes)
    assert not any(is_alive(int(pid)) for pid in noted.read_text().split())


def test_hooks_commands_and_skills_of_the_settings(home: Path, folder: Path) -> None:
    (home / "agent.toml").write_text(
        '[[hooks]]\nevent = "before_end"\ncommand = "test -e made || { echo make it; exit 2; }"\n'
    )
    for name, text in (
        ("commands/fix.md", "---\ndescription: Fix.\n---\nFix $1."),
        ("skills/care/SKILL.md", "---\ndescription: Take care.\n---\nLook twice."),
    ):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text(text)
    script = [m2_calls(("skill", {"name": "care"})), says("m2", "A."), bash("m2", "touch made")]
    with served_script([by_place([*script, says("m2", "B.")])] * 9) as url:
        run = agent(folder, url, "-p", "/fix it", "--json", "--mode", "auto")
    assert run.returncode == 0, run.stderr
    said = [one["text"] for one in lines(run) if one["type"] == "user"]
    assert said[0] == "Fix it."
    assert said[1].endswith("make it")
    assert results_of(run)[0].endswith("Look twice.")
    assert lines(run)[-1]["answer"] == "B."
    assert run_name() == lines(run)[0]["run"]


def test_servers_and_hooks_of_a_workspace_are_nothing_before_they_are_approved(
    folder: Path, tmp_path: Path
) -> None:
    (folder / ".fulmen").mkdir()
    (folder / ".fulmen/agent.toml").write_text(
        f"[mcp.evil]\ncommand = ['touch', '{tmp_path}/evil']\n"
        "[[hooks]]\nevent = 'before_tool'\ncommand = 'touch evil'\n"
    )
    script = [bash("m2", "ls"), says("m2", "Done.")]
    with served_script([by_place(script)] * 9) as url:
        run = agent(folder, url, "-p", "Go.", "--json", "--mode", "auto")
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "evil").exists()
    assert not (folder / "evil").exists()
    notes = [one["text"] for one in lines(run) if one["type"] == "note"]
    assert any("is not approved" in note for note in notes)


def test_sub_agents_of_folders_are_given_tasks_and_stay_those_of_the_run(
    home: Path, folder: Path
) -> None:
    (folder / ".claude/agents").mkdir(parents=True)
    reader = folder / ".claude/agents/code-reader.md"
    reader.write_text("---\ndescription: Reads code.\ntools: Read, Grep\n---\nName the line.")
    (home / "agents").mkdir()
    (home / "agents/user.md").write_text("A name that nobody can have.")
    asked: list[ChatRequest] = []

    def line(request: ChatRequest) -> str:
        asked.append(request)
        messages = read_messages(request.messages)
        number = sum(one.role == "assistant" for one in messages)
        if "Name the line." in messages[0].content:
            return [m2_calls(("write", {"path": "x", "content": "x"})), says("m2", "Line 2.")][
                number
            ]
        task = m2_calls(("task", {"agent": "code_reader", "prompt": "where?"}))
        return [task, says("m2", "In line 2."), task, says("m2", "Still.")][number]

    with served_script([line] * 20) as url:
        first = agent(folder, url, "-p", "Look.", "--json", "--mode", "auto")
        assert first.returncode == 0, first.stderr
        reader.unlink()
        again = called("agent", "resume", run_name(), "-p", "Again.", "--json", "--url", url)
        assert again.returncode == 0, again.stderr
    assert results_of(first)[0].startswith("Line 2.")
    assert results_of(again)[0].startswith("Line 2.")
    assert not (folder / "x").exists()  # it only reads
    notes = [one["text"] for one in lines(first) if one["type"] == "note"]
    assert "the sub-agent user is left out: this name cannot be had" in notes
    leads = [one for one in asked if "Name the line." not in read_messages(one.messages)[0].content]
    (tool,) = set(map(task_tool, leads))
    assert "code_reader (explorer, 4 at a time): Reads code" in tool


def task_tool(request: ChatRequest) -> str:
    """Return the description of the tool `task`."""
    (found,) = [one for one in request.tools if isinstance(one, Tool) and one.name == "task"]
    return found.description
