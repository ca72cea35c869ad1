"""fulmen agent --team: a lead and its agents, on one server, as scripts and people see them."""

from pathlib import Path

from fulmen.agent import Archive, default_runs
from fulmen.chat import ChatRequest, read_messages
from tests.agent.working import m2_calls, says
from tests.cli.test_agent import (  # noqa: F401
    _own_folders,
    agent,
    folder,
    lines,
    run_name,
    served_script,
)

TEAM = """
[lead]
prompt = "Lead well."
[[agents]]
name = "explorer"
role = "explorer"
[[agents]]
name = "worker"
role = "worker"
"""
LEAD = [
    m2_calls(
        ("task", {"agent": "explorer", "prompt": "look"}),
        ("task", {"agent": "worker", "prompt": "mend", "background": True}),
    ),
    m2_calls(("wait", {})),
    m2_calls(("merge", {"agent": "worker-1"})),
    says("m2", "It is merged."),
]
EDIT = m2_calls(("edit", {"path": "add.py", "old": "a - b", "new": "a + b"}))


def line(request: ChatRequest) -> str:
    messages = read_messages(request.messages)
    first = next(one.content for one in messages if one.role == "user")
    script = {"look": [says("m2", "The sign is wrong.")], "mend": [EDIT, says("m2", "Mended.")]}
    chosen = next((found for key, found in script.items() if first.endswith(key)), LEAD)
    return chosen[sum(one.role == "assistant" for one in messages)]


def test_a_team_works_on_a_task_and_goes_on_later(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "team.toml"
    file.write_text(TEAM)
    with served_script([line] * 20) as url:
        run = agent(folder, url, "--json", "--mode", "auto", "--team", str(file), "Repair it.")
    assert run.returncode == 0, run.stderr
    assert "a + b" in (folder / "add.py").read_text()
    told = lines(run)
    (message,) = [one for one in told if one["type"] == "message"]
    assert message["agent"] == "worker-1"
    assert "Mended." in message["text"]
    assert [one["text"] for one in told if one["type"] == "user"] == ["Repair it."]
    assert any(one.get("text") == "worker-1 is done after 2 steps" for one in told)
    archive = Archive(default_runs())
    facts = archive.runs.facts(run_name())
    assert "Lead well." in facts.system[0].content
    with served_script([says("m2", "All is well.")]) as url:
        run = agent(folder, url, "-p", "--continue", "And?")
    assert (run.returncode, run.stdout) == (0, "All is well.\n"), run.stderr
    with served_script([]) as url:
        file.write_text(TEAM.replace("well", "badly"))
        run = agent(folder, url, "-p", "--continue", "--team", str(file), "And?")
    assert run.returncode == 2
    assert "--team is given, but run" in run.stderr


def test_a_mistake_in_a_team_is_one_sentence(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "team.toml"
    file.write_text("[[agents]]\nname = 3\n")
    run = agent(folder, "http://127.0.0.1:9", "-p", "--team", str(file), "Repair it.")
    assert run.returncode in (1, 2)
    assert f"{file}: agents 1: name is 3, it must be a text" in run.stderr
    assert "Traceback" not in run.stderr
