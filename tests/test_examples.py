"""Examples run, with a model that says a script."""

import asyncio
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from fulmen.agent import Consent, McpHands, McpServer, Permissions, Rules
from fulmen.chat import Message, ToolCall
from fulmen.checkpoints import load_model, save_model
from fulmen.llm import LLM
from fulmen.models import new_model
from fulmen.train import fork_config, latest_state
from tests.agent.working import bash, says, scripted
from tests.sandbox.helpers import skip_without_sandbox
from tests.tiny import write_checkpoint

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_an_agent_in_ten_lines_works_and_can_be_taken_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without_sandbox()
    folder = tmp_path / "folder"
    folder.mkdir()
    model = scripted([bash("m2", "echo hi > a"), says("m2", "It is there.")])
    work = runpy.run_path(str(EXAMPLES / "agent.py"))["work"]
    archive = asyncio.run(work(model, folder, "Write a file.", tools="coding"))
    printed = capsys.readouterr().out
    assert "it ended: done\nIt is there.\n" in printed
    assert "+hi" in printed
    (name,) = archive.runs.names()
    archive.rewind(name, 0)
    assert not list(folder.iterdir())


def test_mini_m2_repairs_the_broken_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without_sandbox()
    shutil.copytree(EXAMPLES / "broken", tmp_path / "broken")
    main = runpy.run_path(str(EXAMPLES / "agent.py"))["main"]
    asyncio.run(main(str(tmp_path / "broken"), "Make the failing test pass."))
    assert "+    return price * count\n" in capsys.readouterr().out


def test_mini_m1_answers_in_the_conversation_of_the_example() -> None:
    talk = runpy.run_path(str(EXAMPLES / "chat.py"))["talk"]
    messages = talk(LLM.load("mini-m1"), ["What is 4711 + 1293?", "Sort 43, 7, 11, 74, 40."])
    said = [one.content for one in messages if isinstance(one, Message)]
    assert said == ["6004", "7, 11, 40, 43, 74"]


def test_reinforcement_learning_in_ten_lines_makes_its_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(new_model(fork_config(), seed=0), tmp_path / "model")  # it knows nothing yet
    train = runpy.run_path(str(EXAMPLES / "rl.py"))["train"]
    train(tmp_path / "run", 1, tmp_path / "model")
    train(tmp_path / "run", 2, tmp_path / "model")
    assert capsys.readouterr().out.count("reward 0.") == 2
    assert latest_state(tmp_path / "run") is not None


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_says_how_it_is_called(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit, match=f"python examples/{path.name}"):
        runpy.run_path(str(path), run_name="__main__")


def test_a_warm_start_in_ten_lines_ends_with_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "tiny", "m1")
    talk = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    (tmp_path / "talk.jsonl").write_text(f"{json.dumps({'messages': talk})}\n" * 9)
    train = runpy.run_path(str(EXAMPLES / "sft.py"))["train"]
    found = train(str(checkpoint), tmp_path / "talk.jsonl", tmp_path / "out", tokens=40)
    assert load_model(found).config.vocab_size == load_model(checkpoint).config.vocab_size


def test_notes_in_ten_lines_are_searched_by_an_agent(tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="fulmen[mcp] is not installed")
    (tmp_path / "a.md").write_text("The door is green.\nThe wall is not.\n")
    command = (sys.executable, str(EXAMPLES / "mcp_server.py"), str(tmp_path))
    servers = {"notes": McpServer(name="notes", command=command)}

    async def work() -> str:
        permissions = Permissions("ask", Rules.parse(["mcp__notes"]), workspace=tmp_path)
        async with McpHands(servers, Consent(permissions), folder=tmp_path) as hands:
            return (await hands.run(0, ToolCall("mcp__notes__search", {"word": "DOOR"}))).text

    assert asyncio.run(work()) == "a.md: The door is green."
