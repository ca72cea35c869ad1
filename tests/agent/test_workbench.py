"""Tools in a sandbox, call by call: what a model is told, and what it cannot get at."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fulmen.agent import Mode, Permissions, Rules
from fulmen.agent.trajectory import Result
from fulmen.agent.workbench import Workbench
from fulmen.chat import ToolCall
from fulmen.sandbox import Sandbox
from tests.sandbox.helpers import inside

Call = Callable[..., Awaitable[Result]]


def at_work(
    folder: Path,
    use: Callable[[Call], Awaitable[Any]],
    *,
    mode: Mode = "auto",
    rules: Rules | None = None,
    **access: Any,
) -> Any:
    """Use the tools in a folder; a call is made by the tool's name and its arguments."""

    async def begin(sandbox: Sandbox) -> Any:
        permissions = Permissions(mode, rules or Rules(), workspace=folder)
        bench = Workbench(sandbox, profile="coding", permissions=permissions, folder=folder)

        async def call(name: str, **arguments: Any) -> Result:
            return await bench.run(0, ToolCall(name, arguments))

        return await use(call)

    return inside(folder, begin, **access)


# Instructions of folders below


def test_instructions_below_are_given_once_and_none_from_elsewhere(tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    for name in ("a", "a/b", "linked", "keys", "out"):
        (workspace / name).mkdir(parents=True)
        (workspace / name / "f").write_text("text\n")
    (workspace / "a/AGENTS.md").write_text("of a")
    (workspace / "a/b/AGENTS.md").write_text("of b")
    (workspace / "linked/AGENTS.md").symlink_to("../NOTES.md")
    (workspace / "NOTES.md").write_text("of notes")
    (workspace / "keys/AGENTS.md").symlink_to("../.env")
    (workspace / ".env").write_text("KEY=1")
    (workspace / "out/AGENTS.md").symlink_to("/etc/os-release")

    async def use(call: Call) -> list[str]:
        paths = ["a/b/f", "a/f", "linked/f", "keys/f", "out/f"]
        return [(await call("read", path=path)).text for path in paths]

    first, again, linked, keys, out = at_work(workspace, use, mode="plan")
    assert first.endswith("AGENTS.md)\nof b")
    assert "(Instructions for this folder, from a/AGENTS.md)\nof a\n" in first
    assert again == keys == out == "1\ttext"
    assert linked.endswith("from linked/AGENTS.md)\nof notes")


# Jobs


def test_the_end_of_a_job_is_told(tmp_path: Path) -> None:
    async def use(call: Call) -> None:
        await call("bash", command="echo hi; exit 3", background=True)
        await call("bash", command="sleep 60", background=True)
        texts = [""]
        while "exit code" not in texts[-1]:
            await asyncio.sleep(0.02)
            texts.append((await call("bash", job=1)).text)
        assert texts[-1].endswith("\n(exit code 3)")
        assert sum("hi" in text for text in texts) == 1
        assert (await call("bash", job=2)).text == "(nothing new)\n(still runs)"
        await call("bash", job=2, stop=True)
        while "stopped" not in (await call("bash", job=2)).text:
            await asyncio.sleep(0.02)
        listed = (await call("bash", job=0)).text.splitlines()
        assert listed == ["job 1: echo hi; exit 3: exit code 3", "job 2: sleep 60: it was stopped"]

    at_work(tmp_path, use)


# Plans


def test_a_plan_that_is_none_is_told_so(tmp_path: Path) -> None:
    states = (["open"], {"open": 1}, None, 1, True, "later")
    items: list[Any] = [[{"text": "x", "state": state}] for state in states]
    items += [["x"], [None], [{"state": "open"}], [{"text": ["x"], "state": "open"}]]

    async def use(call: Call) -> None:
        for one in items:
            result = await call("todo", items=one)
            assert result.is_error
            assert result.text == "an item has a text, and a state: open, doing or done", one
        done = await call("todo", items=[{"text": "x", "state": "done"}])
        assert (done.text, done.is_error) == ("noted; 0 of 1 are left", False)

    at_work(tmp_path, use)


def test_no_call_ends_the_process(tmp_path: Path) -> None:
    class Broken(Permissions):
        """Permissions that cannot make sense of a call."""

        def judge(self, *_: Any, **__: Any) -> Any:
            raise RecursionError("too deep")

    async def begin(sandbox: Sandbox) -> Result:
        permissions = Broken("auto", Rules(), workspace=tmp_path)
        bench = Workbench(sandbox, profile="coding", permissions=permissions, folder=tmp_path)
        return await bench.run(0, ToolCall("bash", {"command": "touch made"}))

    result = inside(tmp_path, begin)
    assert result.is_error
    assert result.text == "the call failed: RecursionError: too deep"
    assert not (tmp_path / "made").exists()


# What grep and glob find


def test_what_is_found_below_a_folder_is_named_from_the_workspace_on(tmp_path: Path) -> None:
    (tmp_path / "a/secret").mkdir(parents=True)
    for name in ("a/x", "a/secret/x", "y"):
        (tmp_path / name).write_text("TOP\n")

    async def use(call: Call) -> None:
        for path in ("a", "./a/", str(tmp_path / "a"), "a/../a"):
            assert (await call("grep", pattern="TOP", path=path)).text == "a/x:1:TOP"
            assert (await call("glob", pattern="*", path=path)).text == "a/x"
        assert (await call("grep", pattern="TOP", path="a/x")).text == "a/x:1:TOP"
        assert (await call("grep", pattern="TOP")).text == "y:1:TOP\na/x:1:TOP"
        for path in ("a/secret", "a/secret/x"):
            assert ":TOP" not in (await call("grep", pattern="TOP", path=path)).text

    at_work(tmp_path, use, rules=Rules.parse(deny=["read(a/secret/**)"]))


# Where the shell stands


def test_a_command_is_judged_in_the_folder_where_it_runs(tmp_path: Path) -> None:
    for name in ("secrets", "vendor", "src"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("TOP\n")

    async def use(call: Call) -> None:
        for command in ("cd secrets", "cd src; cd ../secrets", "(cd src); cd $PWD/secrets"):
            await call("bash", command=f"cd {tmp_path}; {command}")
            for reading in ("cat f", "cat ./f", "cat ../secrets/f", "cat ../src/../secrets/f"):
                assert "denies" in (await call("bash", command=reading)).text, command
            assert (await call("bash", command="cat ../src/f")).text == "TOP"
        await call("bash", command=f"cd {tmp_path}/vendor")
        assert "denies" in (await call("bash", command="echo x > f")).text
        assert "denies" in (await call("bash", command="echo x > f", background=True)).text
        # Tools that are no shell begin in the workspace.
        assert (await call("read", path="src/f")).text == "1\tTOP"

    at_work(tmp_path, use, rules=Rules.parse(deny=["read(secrets/**)", "edit(vendor/**)"]))
    assert (tmp_path / "vendor/f").read_text() == "TOP\n"


def test_a_shell_does_not_begin_where_a_program_says_it_left_it(tmp_path: Path) -> None:
    """The descriptor on which a shell tells its folder is open to all that it starts."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/f").write_text("TOP\n")
    (tmp_path / "link").symlink_to("secrets")

    async def use(call: Call) -> None:
        lie = f"printf '{tmp_path}/link\\n\\0A=1\\0' >&19; exec 19>&-"
        await call("bash", command=lie)
        said = await call("bash", command="cat f")
        assert "is gone, so nothing was run" in said.text
        assert (await call("bash", command="pwd")).text == str(tmp_path)
        await call("bash", command=lie.replace("link", "nowhere"))
        assert "is gone" in (await call("bash", command="cat f", background=True)).text

    at_work(tmp_path, use, rules=Rules.parse(deny=["read(secrets/**)"]))
