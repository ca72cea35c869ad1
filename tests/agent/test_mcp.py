"""Tools of MCP servers of both eras, good ones and bad ones, and what is left of them."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import (
    Approvals,
    Archive,
    Consent,
    Permissions,
    Result,
    Rules,
    Setup,
    parse_config,
)
from fulmen.agent.mcp import McpHands, McpServer, connection, parse_servers, servers_table, stdio
from fulmen.agent.mcp import hands as hands_module
from fulmen.chat import ToolCall
from tests.agent.working import begun, m2_calls, says, scripted, work_of
from tests.sandbox.helpers import skip_without_sandbox

pytest.importorskip("mcp", reason="fulmen[mcp] is not installed")
HERE = Path(__file__).parent
NEW = (sys.executable, str(HERE / "mcp_new.py"))
ALL = Rules.parse(["mcp__s"])


def old(kind: str, *more: str) -> tuple[str, ...]:
    """Return the command of a server of the old era."""
    return (sys.executable, str(HERE / "mcp_old.py"), kind, *more)


def server(*command: str, **fields: Any) -> dict[str, McpServer]:
    """Return one server, by its name."""
    return {"s": McpServer(name="s", command=command, **fields)}


async def called(hands: McpHands, tool: str, /, **arguments: Any) -> Result:
    """Return the result of a call."""
    return await hands.run(0, ToolCall(f"mcp__s__{tool}", arguments))


def hands_of(servers: Mapping[str, McpServer], folder: Path, rules: Rules = ALL) -> McpHands:
    """Return the tools of servers, unopened."""
    consent = Consent(Permissions("ask", rules, workspace=folder))
    return McpHands(servers, consent, folder=folder)


def run(work: Any, seconds: float = 60) -> Any:
    """Run asynchronous work to its end."""
    return asyncio.run(asyncio.wait_for(work, seconds))


@pytest.fixture
def url() -> Iterator[str]:
    """A server over HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*NEW, str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


# ---- good ones ---------------------------------------------------------------------------------


def test_a_server_of_the_newest_era_on_stdio_and_over_http(tmp_path: Path, url: str) -> None:
    async def use(servers: dict[str, McpServer]) -> list[Any]:
        async with hands_of(servers, tmp_path) as hands:
            assert hands.notes == []
            assert hands.protocols == {"s": "2026-07-28"}
            names = [tool.name for tool in hands.tools]
            assert names == [f"mcp__s__{name}" for name in ("add", "touch", "fail", "picture")]
            assert hands.tools[0].description == "Add two numbers."
            assert set(hands.tools[0].parameters["properties"]) == {"a", "b"}
            results = [await called(hands, "add", a=20, b=22), await called(hands, "picture")]
            results += [await called(hands, "fail"), await called(hands, "add", a="x")]
            return [(one.text, one.is_error) for one in results]

    first = run(use(server(*NEW)))
    assert first[0] == ("42", False)
    assert first[1] == (
        "here it is\n(image of 40 bytes, image/png: it cannot be shown here)",
        False,
    )
    assert first[2][1]
    assert "it cannot be done" in first[2][0]
    assert first[3][1]
    assert run(use({"s": McpServer(name="s", url=url)})) == first


def test_a_server_of_the_old_era(tmp_path: Path) -> None:
    async def use(**fields: Any) -> list[str]:
        async with hands_of(server(*old("good"), **fields), tmp_path) as hands:
            assert hands.notes == []
            assert hands.protocols == {"s": "2025-03-26"}
            assert (await called(hands, "say", a=[1, "é"])).text == '{"a": [1, "\\u00e9"]}'
            return [tool.name for tool in hands.tools]

    assert run(use()) == [f"mcp__s__{name}" for name in ("say", "end", "wait", "variables")]
    assert run(use(tools=("say",))) == ["mcp__s__say"]


def test_secrets_are_given_by_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "hidden")
    monkeypatch.setenv("OTHER_SECRET", "hidden")

    async def use() -> str:
        one = server(*old("good"), env={"TOKEN": "Bearer ${MY_SECRET}"})
        assert "hidden" not in repr(one)
        assert one["s"].expanded(one["s"].env, os.environ) == {"TOKEN": "Bearer hidden"}
        async with hands_of(one, tmp_path) as hands:
            return (await called(hands, "variables")).text

    names = run(use()).split()
    assert "TOKEN" in names
    assert "PATH" in names
    assert not {"MY_SECRET", "OTHER_SECRET", "PYTHONPATH"} & set(names)

    async def without() -> list[str]:
        async with hands_of(server(*old("good"), env={"A": "${NOT_SET}"}), tmp_path) as hands:
            return hands.notes

    (note,) = run(without())
    assert note.endswith("the MCP server s needs NOT_SET, which is not set")


# ---- consent -----------------------------------------------------------------------------------


def test_no_call_is_made_without_consent(tmp_path: Path) -> None:
    asked: list[str] = []

    async def refuse(call: ToolCall, verdict: Any, preview: str) -> str:
        asked.append(preview)
        return "not today"

    async def use() -> list[str]:
        permissions = Permissions("auto", Rules(), workspace=tmp_path)
        hands = McpHands(server(*NEW), Consent(permissions, refuse), folder=tmp_path)
        async with hands:
            results = [await called(hands, "touch", name="a")]
            permissions.mode = "plan"
            results.append(await called(hands, "touch", name="a"))
            return [one.text for one in results]

    texts = run(use())
    assert texts[0] == "not today"
    assert texts[1] == "not allowed: mcp__s__touch: only what reads runs in plan mode"
    assert asked == ['{\n "name": "a"\n}']
    assert not (tmp_path / "a").exists()


# ---- bad ones ----------------------------------------------------------------------------------


def test_a_server_that_dies_is_a_result_and_begins_anew_once(tmp_path: Path) -> None:
    async def use() -> list[str]:
        async with hands_of(server(*old("good")), tmp_path) as hands:
            names = ("end", "say", "end", "say", "say")
            return [(await called(hands, name, a=1)).text for name in names]

    assert run(use()) == [
        "the server s ended before it answered",
        '{"a": 1}',
        "the server s ended before it answered",
        "the server s is not running any more",
        "the server s is not running any more",
    ]


def test_a_server_that_says_nothing_takes_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_OPEN_SECONDS", 1.0)

    async def silent() -> list[str]:
        async with hands_of(server(*old("silent")), tmp_path) as hands:
            assert not hands.tools
            return hands.notes

    assert run(silent(), 20) == ["the server s did not answer for 1 s"]
    monkeypatch.setattr(connection, "_OPEN_SECONDS", 30.0)

    async def waits() -> list[str]:
        async with hands_of(server(*old("good"), timeout=0.5), tmp_path) as hands:
            return [(await called(hands, "wait")).text]

    assert run(waits(), 20) == ["the server s did not answer for 0.5 s"]


def test_an_interrupt_ends_a_call(tmp_path: Path) -> None:
    async def use() -> Result:
        async with hands_of(server(*old("good")), tmp_path) as hands:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(called(hands, "wait"), 0.5)
            return await hands.interrupted(2, ToolCall("mcp__s__wait", {}), "the user")

    result = run(use(), 20)
    assert result == Result(2, "(ended by the user before the server answered)", True)


def test_what_a_server_writes_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "MAX_LINE_BYTES", 1 << 20)

    async def endless() -> list[str]:
        async with hands_of(server(*old("endless")), tmp_path) as hands:
            return hands.notes

    (note,) = run(endless(), 40)
    assert note.startswith("the server s ")

    async def hostile() -> tuple[str, str]:
        async with hands_of(server(*old("hostile")), tmp_path) as hands:
            return hands.tools[0].description, (await called(hands, "say")).text

    about, text = run(hostile())
    assert about == "\\x1b[31mred\\x07"
    assert text.startswith("\\x1b]0;title\\x07xxx")
    assert len(text) < 41_000
    assert "characters left out" in text


def test_a_broken_server_is_a_note_and_the_others_work(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def use() -> tuple[list[str], list[str]]:
        servers = {
            "broken": McpServer(name="broken", command=old("dies")),
            "absent": McpServer(name="absent", command=("/no/such/program",)),
            "refused": McpServer(name="refused", url="http://127.0.0.1:9/mcp"),
            "s": server(*old("good"))["s"],
        }
        async with hands_of(servers, tmp_path) as hands:
            assert (await called(hands, "say", a=1)).text == '{"a": 1}'
            return hands.notes, [tool.name for tool in hands.tools]

    notes, tools = run(use())
    assert len(tools) == 4
    assert [note.split()[2] for note in notes] == ["broken", "absent", "refused"]
    assert notes[0].endswith("it said: it broke")
    assert "No such file" in notes[1]
    assert capfd.readouterr() == ("", "")


def is_alive(pid: int) -> bool:
    """Return whether a process is there and has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_no_process_of_a_server_is_left(tmp_path: Path) -> None:
    noted = tmp_path / "pids"

    async def use() -> list[int]:
        async with hands_of(server(*old("leaves", str(noted))), tmp_path) as hands:
            assert (await called(hands, "say", a=1)).text == '{"a": 1}'
            pids = [int(line) for line in noted.read_text().split()]
            assert all(map(is_alive, pids))
            # Its end is seen although those that it left hold its pipes.
            assert (await called(hands, "end")).text == "the server s ended before it answered"
            return pids

    assert [pid for pid in run(use()) if is_alive(pid)] == []


def test_a_task_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    noted = tmp_path / "pids"

    async def use() -> None:
        async with hands_of(server(*old("leaves", str(noted))), tmp_path):
            await asyncio.sleep(600)

    async def cancelled() -> None:
        task = asyncio.create_task(use())
        while not noted.exists() or len(noted.read_text().split()) < 2:
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])

    run(cancelled())
    assert not any(is_alive(int(line)) for line in noted.read_text().split())


def test_an_answer_over_http_is_bounded(tmp_path: Path) -> None:
    import httpx2

    from fulmen.agent.bounded_http import BoundedTransport

    def answered(request: httpx2.Request) -> httpx2.Response:
        assert request.headers["accept-encoding"] == "identity"
        headers = {"content-encoding": "gzip"} if request.url.path == "/gzip" else {}
        return httpx2.Response(200, headers=headers, stream=httpx2.ByteStream(b"x" * 100))

    async def use(limit: int, path: str) -> bytes:
        transport = BoundedTransport(httpx2.MockTransport(answered), limit=limit, has_streams=True)
        async with httpx2.AsyncClient(transport=transport) as client:
            return (await client.get(f"http://a{path}")).content

    assert run(use(100, "/")) == b"x" * 100
    with pytest.raises(httpx2.ReadError, match="more than 99 bytes"):
        run(use(99, "/"))
    with pytest.raises(httpx2.RemoteProtocolError, match="unasked"):
        run(use(100, "/gzip"))


# ---- in a run ----------------------------------------------------------------------------------


def test_a_run_has_the_tools_and_a_snapshot_of_what_they_did(tmp_path: Path) -> None:
    skip_without_sandbox()
    folder = tmp_path / "folder"
    folder.mkdir()
    archive = Archive(tmp_path / "runs")
    begun(archive, folder, name="one")
    script = [m2_calls(("mcp__s__touch", {"name": "made"})), says("m2", "Done.")]

    async def work() -> None:
        more = (lambda consent: McpHands(server(*NEW), consent, folder=folder),)
        async with work_of(archive, "one", scripted(script), rules=ALL, more_hands=more) as one:
            assert await one.say("go") == "done"
            (result,) = one.trajectory.steps[0].results
            assert result.text == "done"

    run(work())
    assert (folder / "made").exists()
    archive.rewind("one", 0)
    assert not (folder / "made").exists()


# ---- settings ----------------------------------------------------------------------------------


def test_servers_of_settings_are_read_and_written(tmp_path: Path) -> None:
    text = b"""
[mcp.files]
command = "npx -y 'a b' ."
env = { LOG = "off" }
[mcp.web-1]
url = "https://example.com/mcp"
headers = { Authorization = "Bearer ${T}" }
tools = ["a"]
timeout = 30
"""
    servers = parse_config(text, "here").mcp
    assert servers["files"].command == ("npx", "-y", "a b", ".")
    assert servers["web-1"].tools == ("a",)
    assert parse_servers(servers_table(servers), "there") == servers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[mcp.a]", "needs a command or a url"),
        ("[mcp.a]\ncommand = 'x'\nurl = 'https://a'", "one of them"),
        ("[mcp.a__b]\ncommand = 'x'", "needs a name of up to 32 letters"),
        ("[mcp.a]\ncommand = 'x'\nenvironment = {}", "has 'environment'"),
        ("[mcp.a]\nurl = 'file:///x'", "is no URL that begins with https"),
        ("[mcp.a]\ncommand = 'x'\ntimeout = 0", "timeout is 0"),
        ("[mcp.a]\ncommand = 1", "command must be a list of texts"),
        ("[mcp]\na = 1", "mcp.a must be a table"),
        ("[mcp.a]\nurl = 'https://a'\nheaders = { A = \"x\\ny\" }", "holds a control character"),
        ('[mcp.a]\ncommand = "\'"', "No closing quotation"),
    ],
)
def test_a_server_that_is_none_is_named(text: str, found: str) -> None:
    with pytest.raises(ValueError, match=found) as error:
        parse_config(text.encode(), "here")
    assert str(error.value).startswith("here")


def test_a_servers_of_a_workspace_count_once_approved_and_hide_none_of_the_users(
    tmp_path: Path,
) -> None:
    home, workspace = tmp_path / "home", tmp_path / "w"
    (workspace / ".fulmen").mkdir(parents=True)
    home.mkdir()
    (home / "agent.toml").write_text("[mcp.files]\ncommand = 'mine'\n")
    theirs = "[mcp.files]\ncommand = 'theirs'\n[mcp.more]\ncommand = 'theirs'\n"
    (workspace / ".fulmen/agent.toml").write_text(theirs)
    setup = Setup.read(workspace, home)
    assert list(setup.config.mcp) == ["files"]
    assert setup.waiting is not None
    setup = setup.approve()
    assert setup.config.mcp["files"].command == ("mine",)
    assert setup.config.mcp["more"].command == ("theirs",)
    (workspace / ".fulmen/agent.toml").write_text(theirs + "env = { A = 'b' }\n")
    assert list(Setup.read(workspace, home).config.mcp) == ["files"]
    assert Approvals(home).paths()


def test_half_a_surrogate_pair_reaches_a_server_as_a_sign_for_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with hands_of(server(*old("good")), tmp_path) as hands:
            said = await called(hands, "say", text="a\ud800b", more=["\udc00"])
            assert said.text == '{"text": "a\\ufffdb", "more": ["\\ufffd"]}'
            assert (await called(hands, "say", text="c")).text == '{"text": "c"}'

    run(work())


def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    servers = {
        "quick": McpServer(name="quick", command=old("leaves", str(noted))),
        "silent": McpServer(name="silent", command=old("silent")),
    }

    async def work() -> None:
        opening = asyncio.ensure_future(hands_of(servers, tmp_path).__aenter__())
        for _ in range(500):
            if noted.exists() and len(noted.read_text().split()) == 2:
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        opening.cancel()
        await asyncio.wait([opening])
        assert not any(is_alive(int(pid)) for pid in noted.read_text().split())

    run(work())


def test_a_server_has_a_bounded_time_for_its_list_of_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hands_module, "_MAX_BEGIN_SECONDS", 1.0)

    async def work() -> None:
        async with hands_of(server(*old("silent")), tmp_path) as hands:
            assert hands.tools == ()
            assert "did not tell its tools in 1 s" in hands.notes[0]

    run(work())
