"""Calls of the workbench: what the model reads, and what somebody who is asked is shown."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import Mode, Permissions, Result, Rules, Snapshot, Verdict, Workbench
from fulmen.chat import ToolCall
from fulmen.sandbox import Access, Sandbox
from tests.sandbox.helpers import skip_without_sandbox


@pytest.fixture(autouse=True, scope="module")
def _sandbox() -> None:
    skip_without_sandbox()


def made(
    folder: Path,
    work: Callable[[Workbench], Awaitable[Any]],
    *,
    profile: str = "coding",
    mode: Mode = "auto",
    **fields: Any,
) -> Any:
    """Return what comes of work with a workbench in a folder."""

    async def go() -> Any:
        async with Sandbox(Access(folder=folder)) as sandbox:
            permissions = Permissions(mode, Rules(), workspace=folder)
            bench = Workbench(
                sandbox, profile=profile, permissions=permissions, folder=folder, **fields
            )
            return await work(bench)

    return asyncio.run(asyncio.wait_for(go(), 30))


def call(name: str, **arguments: Any) -> ToolCall:
    """Return a call."""
    return ToolCall(name, arguments)


def texts(folder: Path, *calls: ToolCall, **fields: Any) -> list[str]:
    """Return the texts of results of calls, one after the other."""

    async def work(bench: Workbench) -> list[str]:
        return [(await bench.run(0, one)).text for one in calls]

    found: list[str] = made(folder, work, **fields)
    return found


def test_instructions_of_a_folder_come_with_the_first_change_there_and_again_once_forgotten(
    folder: Path,
) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "AGENTS.md").write_text(f"Rules of {name}.\n")
    (folder / "a/x").write_text("one\n")

    async def work(bench: Workbench) -> list[bool]:
        edit = call("edit", path="a/x", old="one", new="two")
        found = [await bench.run(0, edit)]
        found.append(await bench.run(0, call("read", path="a/x")))
        found.append(await bench.run(0, call("write", path="b/new", content="x")))
        bench.forget()
        found.append(await bench.run(0, call("read", path="a/x")))
        return ["Rules of" in one.text for one in found]

    assert made(folder, work) == [True, False, True, True]


def test_the_minimal_tools_are_told_only_of_what_they_have(folder: Path) -> None:
    (folder / "long").write_text("line\n" * 2500)
    (folder / "twice").write_text("x\nx\n")
    found = texts(
        folder,
        call("read", path="long"),
        call("edit", path="twice", old="x", new="y"),
        call("edit", path="twice", old="", new="y"),
        call("edit", path="sub/new", old="", new="made\n"),
        call("edit", path="absent", old="x", new="y"),
        profile="minimal",
    )
    assert "500 more lines; run sed -n '2001,$p' to see them" in found[0]
    assert found[1].endswith("give more text around it")
    assert found[2] == "old is empty; twice is there already, read it"
    assert found[3] == "sub/new is changed"
    assert (folder / "sub/new").read_text() == "made\n"
    assert "absent" in found[4]
    assert not (folder / "absent").exists()
    for word in ("offset", "all is", "or all", "write"):
        assert not any(word in one for one in found)
    coding = texts(
        folder,
        call("read", path="long"),
        call("edit", path="twice", old="x", new="y"),
        call("edit", path="new2", old="", new="y"),
    )
    assert "go on with offset 2001" in coding[0]
    assert coding[1].endswith("give more text around it, or all")
    assert not (folder / "new2").exists()


class Full:
    """Snapshots of a folder that cannot be saved."""

    def take(self, label: str) -> Snapshot:
        """Fail."""
        raise ValueError("there are too many files")


def test_a_snapshot_that_fails_loses_no_result(folder: Path) -> None:
    async def work(bench: Workbench) -> Result:
        return await bench.run(0, call("bash", command="echo done > a; echo well"))

    result = made(folder, work, snapshots=Full())
    assert (result.text, result.is_error, result.snapshot) == ("well", False, None)
    assert result.details["not_saved"] == ["there are too many files"]
    assert (folder / "a").read_text() == "done\n"


def test_output_of_a_command_that_was_ended_is_told_once(folder: Path) -> None:
    async def work(bench: Workbench) -> list[str]:
        heard = asyncio.Event()
        bench._on_output = lambda _: heard.set()
        first = call("bash", command="echo begun; sleep 20")
        task = asyncio.create_task(bench.run(0, first))
        await heard.wait()
        task.cancel()
        await asyncio.wait([task])
        results = [await bench.interrupted(0, first, "the time limit")]
        results.append(await bench.interrupted(1, call("write", path="a", content="")))
        return [one.text for one in results]

    assert made(folder, work) == [
        "begun\n\n(ended by the time limit before it was done)",
        "(ended by the user before it was done)",
    ]


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (call("bash", command="touch 1\ntouch 2"), "touch 1\ntouch 2"),
        (
            call("edit", path="x", old="two", new="2"),
            "--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n",
        ),
        (call("write", path="new", content="a\n"), "--- a/new\n+++ b/new\n@@ -0,0 +1 @@\n+a\n"),
        (call("edit", path="x", old="absent", new="2"), ""),
        (call("edit", path="missing", old="absent", new="2"), ""),
    ],
)
def test_who_is_asked_sees_the_command_or_the_change_and_nothing_is_done(
    folder: Path, one: ToolCall, expected: str
) -> None:
    (folder / "x").write_text("one\ntwo\nthree\n")
    seen: list[str] = []

    async def refuse(made: ToolCall, verdict: Verdict, preview: str) -> str | None:
        assert made == one
        seen.append(preview)
        return "no"

    assert texts(folder, one, mode="ask", approve=refuse) == ["no"]
    assert seen == [expected]
    assert sorted(path.name for path in folder.iterdir()) == ["x"]
    assert (folder / "x").read_text() == "one\ntwo\nthree\n"


def test_a_change_too_large_to_compare_is_shown_whole(folder: Path) -> None:
    content = "".join(f"line {number}\n" for number in range(15_000))
    seen: list[str] = []

    async def allow(made: ToolCall, verdict: Verdict, preview: str) -> str | None:
        seen.append(preview)
        return None

    write = call("write", path="new", content=content)
    texts(folder, write, mode="ask", approve=allow)
    assert (folder / "new").read_text() == content
    assert all(f"+line {number}\n" in seen[0] for number in (0, 7_777, 14_999))


def test_what_may_use_the_network_is_asked_about(folder: Path) -> None:
    found = texts(folder, call("bash", command="python3 -c 1"), has_network=True)
    assert "it may use the network" in found[0]
    assert texts(folder, call("bash", command="python3 -c 1")) == ["(no output)"]
