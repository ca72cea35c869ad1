"""fulmen agent --acp, driven by the protocol's own library as an editor would."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import Archive, default_runs
from tests.agent.test_mcp import NEW
from tests.agent.working import bash, by_place, m2_calls, says
from tests.cli.test_agent import _own_folders, folder, repair, served_script
from tests.cli.test_cli import assert_refused, called

acp = pytest.importorskip("acp", reason="fulmen[acp] is not installed")


__all__ = ["_own_folders", "folder"]


class Editor:
    """An editor that gives one answer to all questions, and notes what it sees."""

    def __init__(self, answer: str = "once") -> None:
        self.answer = answer
        self.asked: list[Any] = []
        self.options: list[list[str]] = []
        self.updates: list[tuple[str, Any]] = []
        self.seen = asyncio.Event()

    async def request_permission(
        self, session_id: str, tool_call: Any, options: list[Any], **_: Any
    ) -> Any:
        self.asked.append(tool_call)
        self.options.append([one.name for one in options])
        if self.answer not in [one.option_id for one in options]:
            outcome: Any = acp.schema.DeniedOutcome(outcome="cancelled")
        else:
            outcome = acp.schema.AllowedOutcome(outcome="selected", option_id=self.answer)
        return acp.RequestPermissionResponse(outcome=outcome)

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        self.updates.append((session_id, update))
        self.seen.set()

    def on_connect(self, conn: Any) -> None:
        pass

    def text(self, kind: str, session_id: str) -> str:
        """Return all pieces of one kind that a session sent, joined."""
        pieces = [one for name, one in self.updates if name == session_id]
        return "".join(one.content.text for one in pieces if one.session_update == kind)

    def calls(self, session_id: str) -> list[tuple[str, str]]:
        """Return what became of a session's calls: name and state, as they came."""
        return [
            (one.tool_call_id, str(one.status))
            for name, one in self.updates
            if name == session_id and one.session_update.startswith("tool_call")
        ]


@contextlib.asynccontextmanager
async def opened(editor: Editor, url: str, *flags: str) -> AsyncIterator[Any]:
    """Start an agent; give the editor's connection to it."""
    command = (sys.executable, "-m", "fulmen", "agent", "--acp", "--url", url, *flags)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    async with acp.spawn_agent_process(
        editor, *command, env=env, cwd="/", use_unstable_protocol=True
    ) as (agent, process):
        answer = await agent.initialize(protocol_version=acp.PROTOCOL_VERSION)
        assert answer.agent_capabilities.load_session
        yield agent
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 20) == 0


def run(work: Callable[[], Any]) -> Any:
    """Run asynchronous work to its end."""
    return asyncio.run(asyncio.wait_for(work(), 120))


def said(text: str) -> list[Any]:
    """Return a prompt."""
    return [acp.helpers.text_block(text)]


def test_a_session_is_begun_asked_about_listed_forked_closed_and_resumed(folder: Path) -> None:
    script = [*repair("m2"), says("m2", "More."), says("m2", "Other.")]

    async def work() -> None:
        editor = Editor()
        with served_script([by_place(script)] * 20) as url:
            async with opened(editor, url) as agent:
                name = (await agent.new_session(cwd=str(folder), mcp_servers=[])).session_id
                answer = await agent.prompt(session_id=name, prompt=said("Repair it."))
                assert answer.stop_reason == "end_turn"
                assert "return a + b" in (folder / "add.py").read_text()
                assert [one.title for one in editor.asked] == [
                    "bash python3 -B test_add.py",
                    "edit add.py",
                    "bash python3 -B test_add.py && echo well",
                ]
                assert editor.asked[1].content[1].old_text == "a - b"
                assert editor.asked[1].content[1].path == str(folder / "add.py")
                assert editor.options[1] == ["Allow", "Always edit(./add.py)", "Refuse"]
                assert editor.text("agent_message_chunk", name) == "The sign was wrong."
                assert editor.calls(name)[:3] == [
                    ("1.0", "pending"),
                    ("1.0", "in_progress"),
                    ("1.0", "failed"),
                ]
                assert editor.calls(name)[-1] == ("4.0", "completed")

                fork = await agent.fork_session(session_id=name, cwd=str(folder), mcp_servers=[])
                place = Path(fork.field_meta["fulmen"]["cwd"])
                assert place != folder
                assert "return a + b" in (place / "add.py").read_text()
                for session, words in ((name, "More."), (fork.session_id, "More.")):
                    await agent.prompt(session_id=session, prompt=said("and now?"))
                    assert editor.text("agent_message_chunk", session).endswith(words)

                listed = (await agent.list_sessions()).sessions
                assert [one.session_id for one in listed] == [fork.session_id, name]
                assert [one.title for one in listed] == ["Repair it."] * 2
                only = (await agent.list_sessions(cwd=str(folder))).sessions
                assert [one.session_id for one in only] == [name]

                await agent.close_session(session_id=name)
                with pytest.raises(acp.RequestError, match="is not open"):
                    await agent.prompt(session_id=name, prompt=said("x"))
                await agent.resume_session(session_id=name, cwd=str(folder), mcp_servers=[])
                await agent.prompt(session_id=name, prompt=said("once more"))
                assert editor.text("agent_message_chunk", name).endswith("Other.")

    run(work)
    archive = Archive(default_runs())
    assert [len(archive.runs.open(name).trajectory.steps) for name in archive.runs.names()] == [
        7,
        6,
    ]


def test_a_session_is_loaded_with_all_that_happened(folder: Path) -> None:
    script = [m2_calls(("write", {"path": "x", "content": "1"})), says("m2", "Done.")]

    async def work() -> None:
        with served_script([by_place(script)] * 9) as url:
            first = Editor("always")
            async with opened(first, url) as agent:
                name = (await agent.new_session(cwd=str(folder), mcp_servers=[])).session_id
                await agent.prompt(session_id=name, prompt=said("Write it."))
            second = Editor()
            async with opened(second, url) as agent:
                await agent.load_session(cwd=str(folder), session_id=name, mcp_servers=[])
                assert second.text("user_message_chunk", name) == "Write it."
                assert second.text("agent_thought_chunk", name).startswith("Hm.")
                assert second.text("agent_message_chunk", name) == "Done."
                assert second.calls(name) == [("1.0", "pending"), ("1.0", "completed")]
                assert first.calls(name)[::2] == second.calls(name)

    run(work)
    assert "edit(./x)" in called("agent", "rules", "--folder", folder).stdout


def test_a_session_is_begun_with_one_process_and_used_by_the_next(folder: Path) -> None:
    """`acpx sessions new` does so. One that is never used goes after a week."""
    log = default_runs() / "{}" / "log.jsonl"
    names: list[str] = []

    async def work() -> None:
        with served_script([by_place([says("m2", "Here.")])] * 9) as url:
            for _ in range(2):
                async with opened(Editor(), url) as agent:
                    begun = await agent.new_session(cwd=str(folder), mcp_servers=[])
                    assert (await agent.list_sessions()).sessions == []
                    names.append(begun.session_id)
            editor = Editor()
            async with opened(editor, url) as agent:
                used = names[0]
                await agent.load_session(cwd=str(folder), session_id=used, mcp_servers=[])
                await agent.prompt(session_id=used, prompt=said("Where?"))
                assert editor.text("agent_message_chunk", used) == "Here."
                for name in names:
                    week_ago = time.time() - 8 * 86400
                    os.utime(str(log).format(name), (week_ago, week_ago))
                names.append((await agent.new_session(cwd=str(folder))).session_id)
                assert set(Archive(default_runs()).runs.names()) == {used, names[-1]}

    run(work)


def test_what_is_refused_and_what_is_cancelled(folder: Path) -> None:
    script = [bash("m2", "touch refused"), bash("m2", "touch b; sleep 60"), says("m2", "Done.")]

    async def work() -> None:
        editor = Editor("no")
        with served_script([by_place(script)] * 9) as url:
            async with opened(editor, url) as agent:
                name = (await agent.new_session(cwd=str(folder), mcp_servers=[])).session_id
                answer = await agent.prompt(session_id=name, prompt=said("go"))
                assert answer.stop_reason == "end_turn"
                assert [one for one in editor.calls(name) if one[1] == "failed"] == [
                    ("1.0", "failed"),
                    ("2.0", "failed"),
                ]
                assert not (folder / "refused").exists()

                auto = await agent.new_session(cwd=str(folder), mcp_servers=[])
                await agent.set_session_mode(session_id=auto.session_id, mode_id="auto")
                task = asyncio.create_task(
                    agent.prompt(session_id=auto.session_id, prompt=said("go"))
                )
                while ("2.0", "in_progress") not in editor.calls(auto.session_id):
                    await asyncio.sleep(0.05)
                with pytest.raises(acp.RequestError, match="at work already"):
                    await agent.prompt(session_id=auto.session_id, prompt=said("more"))
                with pytest.raises(acp.RequestError, match="between answers"):
                    await agent.set_session_mode(session_id=auto.session_id, mode_id="plan")
                await agent.cancel(session_id=auto.session_id)
                assert (await task).stop_reason == "cancelled"
                assert (folder / "refused").exists()

    run(work)


def test_what_cannot_be_is_an_error_of_the_protocol(folder: Path) -> None:
    async def work() -> None:
        editor = Editor()
        with served_script([says("m2", "A.")] * 3) as url:
            async with opened(editor, url, "--mode", "plan") as agent:
                for wrong in ("relative", str(folder / "none")):
                    with pytest.raises(acp.RequestError):
                        await agent.new_session(cwd=wrong, mcp_servers=[])
                made = await agent.new_session(cwd=str(folder), mcp_servers=[])
                assert made.modes.current_mode_id == "plan"
                with pytest.raises(acp.RequestError, match="is no mode"):
                    await agent.set_session_mode(session_id=made.session_id, mode_id="yolo")
                with pytest.raises(acp.RequestError, match="the prompt is empty"):
                    await agent.prompt(session_id=made.session_id, prompt=said(" "))
                image = acp.helpers.image_block("AAAA", "image/png")
                with pytest.raises(acp.RequestError, match="has image in it"):
                    await agent.prompt(session_id=made.session_id, prompt=[image])
                with pytest.raises(acp.RequestError, match="no run nobody"):
                    await agent.resume_session(session_id="nobody", cwd="/", mcp_servers=[])
                with pytest.raises(acp.RequestError, match="cursor"):
                    await agent.list_sessions(cursor="x")

    run(work)
    assert (
        len(Archive(default_runs()).runs.names()) == 1
    )  # of what could not be begun nothing is left


def test_an_editor_gives_servers_and_folders_give_commands(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="fulmen[mcp] is not installed")
    commands = tmp_path / "config/fulmen/agent/commands"
    commands.mkdir(parents=True)
    (commands / "sum.md").write_text("---\ndescription: Add.\n---\nAdd $1.")
    script = [m2_calls(("mcp__My-Sums__add", {"a": 20, "b": 22})), says("m2", "Done.")]
    server = acp.schema.McpServerStdio(name="My Sums", command=NEW[0], args=list(NEW[1:]), env=[])

    async def work() -> None:
        editor = Editor()
        with served_script([by_place(script)] * 3) as url:
            async with opened(editor, url) as agent:
                made = await agent.new_session(cwd=str(folder), mcp_servers=[server])
                await agent.prompt(session_id=made.session_id, prompt=said("/sum 20"))
                (asked,) = editor.asked
                assert asked.title == "mcp__My-Sums__add"
                told = [one for _, one in editor.updates if hasattr(one, "available_commands")]
                assert [one.name for one in told[0].available_commands] == ["sum"]
                assert any(
                    one.session_update == "tool_call_update" and "42" in str(one.content)
                    for _, one in editor.updates
                )

    run(work)
    archive = Archive(default_runs())
    trajectory = archive.runs.open(archive.runs.names()[0]).trajectory
    assert trajectory.steps[0].said[0].content == "Add 20."


def test_flags_that_say_what_to_do_are_refused(folder: Path) -> None:
    for name, flags in (
        ("TASK", ["task"]),
        ("--json", ["--json"]),
        ("--continue", ["--continue"]),
        ("--folder", ["--folder", str(folder)]),
    ):
        told = f"{name} is given with --acp, where the editor says what to do"
        assert_refused(called("agent", "--acp", *flags), told)


def test_a_fork_that_cannot_be_opened_leaves_no_run_and_several_at_once_are_several(
    folder: Path,
) -> None:
    none = acp.schema.SseMcpServer(name="x", url="https://a/b", headers=[], type="sse")

    async def work() -> None:
        with served_script([by_place([says("m2", "A.")])] * 9) as url:
            async with opened(Editor(), url) as agent:
                name = (await agent.new_session(cwd=str(folder), mcp_servers=[])).session_id
                await agent.prompt(session_id=name, prompt=said("x"))
                with pytest.raises(acp.RequestError, match="known are http and stdio"):
                    await agent.fork_session(session_id=name, cwd=str(folder), mcp_servers=[none])
                assert Archive(default_runs()).runs.names() == [name]
                forks = [
                    agent.fork_session(session_id=name, cwd=str(folder), mcp_servers=[])
                    for _ in range(3)
                ]
                found = {one.session_id for one in await asyncio.gather(*forks)}
                assert len(found) == 3

    run(work)


def test_a_session_whose_settings_break_goes_on_once_they_are_mended(
    folder: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "config/fulmen/agent/agent.toml"
    settings.parent.mkdir(parents=True)

    async def work() -> None:
        with served_script([by_place([says("m2", "A.")])] * 9) as url:
            async with opened(Editor(), url) as agent:
                name = (await agent.new_session(cwd=str(folder), mcp_servers=[])).session_id
                settings.write_text("mode = 7\n")
                with pytest.raises(acp.RequestError, match="mode is 7"):
                    await agent.set_session_mode(session_id=name, mode_id="plan")
                settings.unlink()
                await agent.resume_session(session_id=name, cwd=str(folder), mcp_servers=[])
                answer = await agent.prompt(session_id=name, prompt=said("x"))
                assert answer.stop_reason == "end_turn"

    run(work)
