"""fulmen mcp, asked by the official client: models, conversations and runs of this machine."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import Archive, Consent, McpHands, McpServer, Permissions, Rules, default_runs
from fulmen.chat import ToolCall
from fulmen.sessions import SessionStore, default_store
from tests.agent.working import TASK, begun, says, scripted, work_of
from tests.cli.test_agent import served_script
from tests.cli.test_cli import assert_refused, called
from tests.sandbox.helpers import skip_without_sandbox
from tests.tiny import write_checkpoint

pytest.importorskip("mcp", reason="fulmen[mcp] is not installed")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.delenv("FULMEN_API_KEY", raising=False)


def asked(use: Callable[[Any], Any], *flags: str) -> Any:
    """Ask a server that is a process: by the agent's own client, as another agent would."""
    names = ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME")
    env = {name: os.environ[name] for name in names}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = (sys.executable, "-m", "fulmen", "mcp", *flags)
    servers = {"fulmen": McpServer(name="fulmen", command=command, env=env)}
    consent = Consent(Permissions("ask", Rules.parse(["mcp__fulmen"]), workspace=Path("/")))

    async def run() -> Any:
        async with McpHands(servers, consent, folder=Path("/")) as hands:
            assert hands.notes == []
            assert hands.protocols == {"fulmen": "2026-07-28"}

            async def call(tool: str, **arguments: Any) -> str:
                result = await hands.run(0, ToolCall(f"mcp__fulmen__{tool}", arguments))
                return f"error: {result.text}" if result.is_error else result.text

            return await use(call)

    return asyncio.run(asyncio.wait_for(run(), 200))


def test_a_model_at_a_url_is_asked() -> None:
    async def use(call: Any) -> list[str]:
        first = await call("ask", prompt="Hi", system="Be kind.", max_tokens=20)
        models = json.loads(await call("list_models"))
        assert any(one["comes_with_fulmen"] for one in models["models"])
        assert models["is_asked"] == url
        wrong = [await call("ask", prompt=" "), await call("ask", prompt="x", max_tokens=0)]
        return [first, *wrong, await call("ask", prompt="x", session="s")]

    with served_script([says("m2", "Hello.")] * 3) as url:
        texts = asked(use, "--url", url)
    assert texts[0] == "Hello."
    assert texts[1].startswith("error: ")
    assert "the prompt is empty" in texts[1]
    assert "max_tokens is 0" in texts[2]
    assert "the model is at a URL" in texts[3]


def test_a_session_goes_on_and_is_read(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "m2")

    async def use(call: Any) -> str:
        for words in ("one", "two"):
            await call("ask", prompt=words, session="trip", max_tokens=4)
        listed = json.loads(await call("list_sessions"))["sessions"]
        assert [(one["name"], one["num_turns"]) for one in listed] == [("trip", 2)]
        assert listed[0]["last_question"] == "two"
        assert "no session nobody" in await call("read_session", name="nobody")
        assert "error" in await call("read_session", name="../trip")
        text: str = await call("read_session", name="trip")
        return text

    text = asked(use, "--model", str(folder))
    assert text.index("-- user\none") < text.index("-- assistant") < text.index("-- user\ntwo")
    store = SessionStore(default_store())
    assert len(store.turns(store.state("trip"))) == 2


def test_runs_are_read(tmp_path: Path) -> None:
    skip_without_sandbox()
    folder = tmp_path / "folder"
    folder.mkdir()
    archive = Archive(default_runs())
    begun(archive, folder, name="one")

    async def work() -> None:
        async with work_of(archive, "one", scripted([says("m2", "Done.")])) as one:
            await one.say(TASK)

    asyncio.run(work())

    async def use(call: Any) -> list[str]:
        (run,) = json.loads(await call("list_runs"))["runs"]
        assert (run["name"], run["task"], run["num_steps"], run["end"]) == ("one", TASK, 1, "done")
        names = ("one", "nobody", "../one")
        return [await call("read_run", name=name) for name in names]

    texts = asked(use, "--url", "http://127.0.0.1:9")
    end = "(1 steps, end: done)"
    assert texts[0] == f"== step 1\n\n-- user\n{TASK}\n\n-- assistant\nDone.\n\n{end}"
    assert "there is no run nobody" in texts[1]
    assert texts[2].startswith("error: ")


def test_options_of_a_model_on_this_machine_are_refused_with_a_url() -> None:
    run = called("mcp", "--url", "http://127.0.0.1:9", "--dtype", "float32")
    assert_refused(run, "--dtype is for a model on this machine, --url asks another")
