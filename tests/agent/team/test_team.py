"""Teams at work in sandboxes, with a model that says a script: reports, copies, merges, ends."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import (
    AgentKind,
    Archive,
    McpHands,
    McpServer,
    Report,
    Rules,
    Team,
    best_of_n,
    fan_out,
    map_reduce,
    parse_team,
    review_loop,
)
from fulmen.agent.team.hands import MemberHands
from fulmen.agent.team.mailbox import Post
from fulmen.agent.tools import ToolError, tool
from fulmen.chat import ChatRequest, read_messages
from fulmen.llm import ScriptedModel
from tests.agent.working import begun, m2_calls, means, says, scripted
from tests.sandbox.helpers import skip_without_sandbox

TEAM = """
[[agents]]
name = "explorer"
role = "explorer"
count = 2

[[agents]]
name = "worker"
role = "worker"
count = 3

[[agents]]
name = "reviewer"
role = "reviewer"
"""


@pytest.fixture(autouse=True, scope="module")
def _sandbox() -> None:
    skip_without_sandbox()


Line = str | Callable[[ChatRequest], Any]


def by_task(**lines: Sequence[Any]) -> ScriptedModel:
    """Return a model that says, to each agent, the lines of the word that its first message has;
    the last one of several. The n-th line is its n-th answer."""

    def line(request: ChatRequest) -> Any:
        messages = read_messages(request.messages)
        first = next(one.content for one in messages if one.role == "user")
        key = [key for key in lines if key in first][-1]
        chosen = lines[key][sum(one.role == "assistant" for one in messages)]
        return chosen(request) if callable(chosen) else chosen

    return scripted([line] * 200)


def team_of(archive: Archive, folder: Path, model: Any, **more: Any) -> Team:
    """Return a team over a run, which is begun if there is none."""
    if "run" not in archive.runs.names():
        begun(archive, folder, name="run")
    config = replace(parse_team(TEAM, "team.toml"), **more.pop("config", {}))
    worktrees = archive.runs.root.parent / "worktrees"
    return Team(config, archive, "run", model, means(folder, **more), worktrees=worktrees)


def work(coroutine: Any, seconds: float = 90) -> Any:
    """Run a coroutine; see that it leaves no process, task, copy and lock."""

    async def watched() -> Any:
        result = await asyncio.wait_for(coroutine, seconds)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, others
        return result

    result = asyncio.run(watched())
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    states = [Path(f"/proc/{one}/comm").read_text() for one in children if alive(one)]
    assert "bwrap\n" not in states
    return result


def alive(process: str) -> bool:
    return os.path.exists(f"/proc/{process}/comm")


def check_clean(archive: Archive) -> None:
    """Check that nothing of a team is left but its runs."""
    assert not (archive.runs.root.parent / "worktrees").exists()
    crew = archive.runs.root / "run" / "team"
    assert not list((crew / "repository").glob("worktrees/*"))
    assert not list((crew / "repository").glob("stage-*"))
    for name in archive.team("run").runs.names():
        with archive.team("run").runs.open(name):  # nobody holds it
            pass


def results(trajectory: Any) -> list[str]:
    return [one.text for step in trajectory.steps for one in step.results]


WORK = {
    "look": [m2_calls(("read", {"path": "a"})), says("m2", "a has 3 lines.")],
    "write b": [m2_calls(("write", {"path": "b", "content": "b\n"})), says("m2", "b is there.")],
    "write c": [
        m2_calls(("bash", {"command": "echo c > c; git status --short"})),
        says("m2", "c."),
    ],
}


def test_workers_in_worktrees_are_merged_and_tested_by_the_lead(
    archive: Archive, folder: Path
) -> None:
    tasks = [("task", {"agent": "explorer", "prompt": "look at a"})]
    tasks += [("task", {"agent": "worker", "prompt": f"write {one}"}) for one in "bc"]
    model = by_task(
        LEAD=[
            m2_calls(*tasks),
            m2_calls(("merge", {"agent": "worker-1"}), ("merge", {"agent": "worker-2"})),
            m2_calls(("bash", {"command": "cat b c"})),
            says("m2", "Finished."),
        ],
        **WORK,
    )

    async def run() -> None:
        team = team_of(archive, folder, model)
        async with team.lead() as lead:
            assert await lead.say("LEAD") == "done"
            texts = results(lead.trajectory)
        assert any("a has 3 lines." in one for one in texts)
        assert texts[-1] == "b\nc"

    work(run())
    assert {one.name for one in folder.iterdir()} == {"a", "b", "c"}
    check_clean(archive)
    crew = archive.team("run").runs
    assert sorted(crew.names()) == ["run.explorer-1", "run.worker-1", "run.worker-2"]
    assert "?? c" in results(crew.open("run.worker-2").trajectory)[0]  # git works in a worktree
    archive.rewind("run", 1)
    assert {one.name for one in folder.iterdir()} == {"a"}
    archive.remove("run")
    assert not crew.names()


def test_changes_of_the_same_lines_are_a_result_and_change_nothing(
    archive: Archive, folder: Path
) -> None:
    edit = {"path": "a", "old": "2", "new": "two"}
    model = by_task(
        LEAD=[
            m2_calls(("task", {"agent": "worker", "prompt": "edit"})),
            m2_calls(("edit", {**edit, "new": "zwei"})),
            m2_calls(("merge", {"agent": "worker-1"})),
            says("m2", "Hm."),
        ],
        edit=[m2_calls(("edit", edit)), says("m2", "Done.")],
    )

    async def run() -> None:
        async with team_of(archive, folder, model).lead() as lead:
            await lead.say("LEAD")
            result = lead.trajectory.steps[2].results[0]
            assert result.is_error
            assert "nothing was merged: both sides changed the same lines of a" in result.text

    work(run())
    assert (folder / "a").read_text() == "1\nzwei\n3\n"


def test_rules_for_edits_hold_for_merges(archive: Archive, folder: Path) -> None:
    model = by_task(
        LEAD=[
            m2_calls(("task", {"agent": "worker", "prompt": "write b"})),
            m2_calls(("merge", {"agent": "worker-1"})),
            says("m2", "Hm."),
        ],
        **{
            "write b": [
                m2_calls(
                    ("bash", {"command": "python3 -c 'open(chr(98), chr(119)).write(chr(10))'"})
                ),
                says("m2", "Done."),
            ]
        },
    )

    async def run() -> None:
        rules = Rules.parse(deny=["edit(b)"])
        async with team_of(archive, folder, model, rules=rules).lead() as lead:
            await lead.say("LEAD")
            assert results(lead.trajectory)[-1] == "not allowed: edit b: the rule edit(b) denies it"

    work(run())
    assert not (folder / "b").exists()


def test_a_question_of_an_agent_names_it_and_a_refusal_is_an_error(
    archive: Archive, folder: Path
) -> None:
    asked: list[str] = []

    async def approve(call: Any, verdict: Any, preview: str) -> str | None:
        asked.append(verdict.reason)
        return "not this" if "touch no" in preview else None

    model = by_task(
        LEAD=[m2_calls(("task", {"agent": "worker", "prompt": "touch"})), says("m2", "Hm.")],
        touch=[
            m2_calls(("bash", {"command": "touch no"})),
            m2_calls(("bash", {"command": "touch yes"})),
            says("m2", "Done."),
        ],
    )

    async def run() -> None:
        team = team_of(archive, folder, model, mode="ask", approve=approve)
        async with team.lead() as lead:
            assert await lead.say("LEAD") == "done"

    work(run())
    steps = archive.team("run").runs.open("run.worker-1").trajectory.steps
    assert [(one.results[0].is_error, one.results[0].text) for one in steps[:2]] == [
        (True, "not this"),
        (False, "(no output)"),
    ]
    assert len(asked) == 2
    assert all(one.startswith("worker-1: touch") for one in asked)


def test_the_end_of_the_lead_is_the_end_of_all(archive: Archive, folder: Path) -> None:
    slow = m2_calls(("bash", {"command": "sleep 60"}))
    told = {"background": True}
    model = by_task(
        LEAD=[
            m2_calls(("task", {"agent": "worker", "prompt": "slow", **told})),
            says("m2", "That is enough."),
        ],
        slow=[slow],
    )

    async def run() -> None:
        team = team_of(archive, folder, model)
        async with team.lead() as lead:
            assert await lead.say("LEAD") == "done"
            assert not any(one.is_working for one in team.members)
            (letter,) = team.inbox.waiting
            assert letter.sender == "worker-1"
            assert "it was stopped" in letter.text

    work(run(), 30)
    check_clean(archive)
    trajectory = archive.team("run").runs.open("run.worker-1").trajectory
    assert trajectory.end == "interrupted"


def test_a_lead_that_is_interrupted_ends_the_agent_it_waits_for(
    archive: Archive, folder: Path
) -> None:
    model = by_task(
        LEAD=[
            m2_calls(("task", {"agent": "worker", "prompt": "slow"})),
            m2_calls(("task", {"agent": "worker-1", "prompt": "slow, go on"})),
            says("m2", "Done."),
        ],
        slow=[m2_calls(("bash", {"command": "echo up; sleep 60"})), says("m2", "It went on.")],
    )

    async def run() -> None:
        team = team_of(archive, folder, model)
        async with team.lead() as lead:
            saying = asyncio.ensure_future(lead.say("LEAD"))
            while not (team.members and team.members[0].work):
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
            lead.interrupt()
            assert await saying == "interrupted"
            assert not any(one.is_working for one in team.members)
            assert await lead.say() == "done"
            assert "It went on." in results(lead.trajectory)[-1]

    work(run(), 60)
    check_clean(archive)


def test_another_task_makes_no_call_that_was_left_of_the_last_one(
    archive: Archive, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teams: list[Team] = []

    def first(request: ChatRequest) -> str:
        member = teams[0].members[0].work
        assert member is not None
        assert member._agent is not None

        async def keep(*_: Any) -> None:  # between the answer and its call
            member.interrupt("the lead")

        monkeypatch.setattr(member._agent.memory, "keep", keep)
        return m2_calls(("bash", {"command": "touch left"}))

    async def run() -> None:
        async with team_of(archive, folder, by_task(do=[first, says("m2", "Done.")])) as team:
            teams.append(team)
            member = await team.start("worker", "do this")
            assert (await team.report(member)).reason == "interrupted"
            team.give(member, "do that")
            assert (await team.report(member)).text == "Done."
            assert not (member.folder / "left").exists()
            found = results(archive.team("run").runs.open(member.run).trajectory)
            assert found == ["(this call was not made: another task was given)"]

    work(run())


def test_a_team_that_was_killed_goes_on_where_it_was(archive: Archive, folder: Path) -> None:
    background = {"background": True}
    lines: dict[str, Sequence[Line]] = {
        "LEAD": [
            m2_calls(("task", {"agent": "worker", "prompt": "write b", **background})),
            m2_calls(("task", {"agent": "worker", "prompt": "write c"})),
            m2_calls(("wait", {})),
            m2_calls(("merge", {"agent": "worker-1"}), ("merge", {"agent": "worker-2"})),
            says("m2", "Finished."),
        ],
        **WORK,
    }
    program = f"""
import asyncio, os, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from pathlib import Path
from fulmen.agent import Archive
from tests.agent.team.test_team import by_task, team_of
lines = {lines!r}
count = 0
def killing(request, text):
    global count
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
    return text
model = by_task(**{{
    key: [lambda request, text=text: killing(request, text) for text in texts]
    for key, texts in lines.items()
}})
async def main():
    archive, folder = Archive(Path({str(archive.runs.root)!r})), Path({str(folder)!r})
    team = team_of(archive, folder, model)
    async with team.lead() as lead:
        new = not lead.trajectory.steps and not lead.trajectory.said
        await lead.say("LEAD" if new else None)
asyncio.run(main())
"""
    import subprocess
    import sys

    begun(archive, folder, name="run")
    for at in (2, 2, 3):  # killed at an answer, and again, and again
        done = subprocess.run(
            [sys.executable, "-c", program, str(at)], capture_output=True, timeout=100
        )
        assert done.returncode == -9, done.stderr
    done = subprocess.run([sys.executable, "-c", program, "0"], capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    assert (folder / "b").read_text() == "b\n"
    assert (folder / "c").read_text() == "c\n"
    trajectory = archive.runs.open("run").trajectory
    assert trajectory.end == "done"
    assert len(trajectory.steps) == 5
    assert sorted(archive.team("run").runs.names()) == ["run.worker-1", "run.worker-2"]
    said = [one.content for step in trajectory.steps for one in step.said]
    assert sum("b is there." in one for one in said) == 1
    check_clean(archive)


# ---- patterns ----------------------------------------------------------------------------------


def test_fan_out_ends_with_the_first_reports_that_are_enough(
    archive: Archive, folder: Path
) -> None:
    model = by_task(quick=[says("m2", "It is in a.")], slow=[m2_calls(("wait", {}))] * 50)
    model.delay_seconds = 0.02

    async def is_enough(found: Sequence[Report]) -> bool:
        return found[-1].agent == "explorer-2"

    async def run() -> None:
        async with team_of(archive, folder, model) as team:
            reports = await fan_out(
                team, ["slow one", "quick one"], agent="explorer", is_enough=is_enough
            )
            assert [one.text for one in reports] == ["It is in a."]
            assert not any(one.is_working for one in team.members)

    work(run(), 30)
    check_clean(archive)


def test_a_review_loop_ends_when_the_reviewer_approves(archive: Archive, folder: Path) -> None:
    def judged(request: ChatRequest) -> str:
        seen = [one.content for one in read_messages(request.messages) if one.role == "tool"]
        return says("m2", "APPROVED" if "good" in seen[-1] else "CHANGES NEEDED\nIt is bad.")

    lines: dict[str, list[Any]] = {
        "make": [
            m2_calls(("write", {"path": "b", "content": "bad"})),
            says("m2", "Made."),
            m2_calls(("write", {"path": "b", "content": "good"})),
            says("m2", "Better."),
        ],
        "another agent": [m2_calls(("read", {"path": "b"})), judged],
    }
    model = by_task(**lines)

    async def run() -> None:
        async with team_of(archive, folder, model) as team:
            review = await review_loop(team, "make it", worker="worker", reviewer="reviewer")
            assert review.is_approved
            assert review.num_rounds == 2
            assert review.work.text == "Better."
            assert await team.apply(await team.merge(review.worker)) == 1

    work(run())
    assert (folder / "b").read_text() == "good"


def test_the_best_of_forks_is_kept_and_all_know_what_was_explored(
    archive: Archive, folder: Path
) -> None:
    seen: list[int] = []

    def tried(request: ChatRequest) -> str:
        assert request.params is not None
        seed = request.params.seed
        assert any("1\t1" in one.content for one in read_messages(request.messages))
        seen.append(seed or 0)
        return m2_calls(("write", {"path": "n", "content": str(seed)}))

    model = by_task(
        explore=[
            m2_calls(("read", {"path": "a"})),
            says("m2", "Seen."),
            tried,
            says("m2", "Tried."),
        ]
    )

    async def run() -> None:
        async with team_of(archive, folder, model) as team:

            async def score(member: Any, report: Any) -> float:
                return float((member.folder / "n").read_text())

            tries = await best_of_n(team, "explore", "try it", agent="worker", count=3, score=score)
            assert [one.score for one in tries] == [2.0, 1.0, 0.0]
            assert sorted(seen) == [0, 1, 2]
            await team.apply(await team.merge(tries[0].member))

    work(run())
    assert (folder / "n").read_text() == "2"
    check_clean(archive)


def test_parts_are_reduced_in_their_order(archive: Archive, folder: Path) -> None:
    model = by_task(
        **{
            "part": [lambda request: says("m2", read_messages(request.messages)[1].content[-1])],
            "sum": [lambda request: says("m2", read_messages(request.messages)[1].content[-5:])],
        }
    )

    async def run() -> None:
        async with team_of(archive, folder, model) as team:
            last, reports = await map_reduce(
                team,
                ["part 1", "part 2", "part 3"],
                agent="explorer",
                reduce=lambda found: "sum " + "+".join(one.text for one in found),
            )
            assert [one.text for one in reports] == ["1", "2", "3"]
            assert last.text == "1+2+3"

    work(run())


def test_one_is_told_what_cannot_be(archive: Archive, folder: Path) -> None:
    model = by_task(look=[says("m2", "Seen.")])

    async def run() -> None:
        async with team_of(archive, folder, model) as team:
            with pytest.raises(ToolError, match="there is no agent painter; there are: explorer"):
                await team.start("painter", "paint")
            member = await team.start("explorer", "look")
            with pytest.raises(ToolError, match="explorer-1 still works"):
                team.give(member, "look")
            await team.report(member)
            with pytest.raises(ToolError, match="explorer-1 only reads, it has no copy"):
                await team.merge(member)
            await team.stop(member)
            with pytest.raises(ToolError, match="explorer-1 was stopped, begin another explorer"):
                team.give(member, "look")
            other = await team.start("explorer", "look")
            assert other.name == "explorer-2"  # a name is never used twice
        with pytest.raises(ValueError, match="this team was open already"):
            await team.__aenter__()

    work(run())
    check_clean(archive)


def test_workers_have_the_tools_of_the_lead_and_others_those_that_read(
    archive: Archive, folder: Path
) -> None:
    class Named(MemberHands):
        def __init__(self, name: str) -> None:
            super().__init__(Post(), name)
            self._tools = (tool(name, "", {}),)

        async def _make(self, number: int, arguments: Any) -> str:
            return f"made by {self._name}"

    model = by_task(
        work=[m2_calls(("outside", {})), says("m2", "Done.")],
        read=[m2_calls(("outside", {})), m2_calls(("page", {})), says("m2", "Done.")],
    )

    async def run() -> None:
        works = (lambda _: Named("outside"), lambda _: Named("page"))
        begun(archive, folder, name="run")
        config = parse_team(TEAM, "team.toml")
        trees = archive.runs.root.parent / "worktrees"
        reads = (lambda _: Named("page"),)

        def hands_of(kind: AgentKind, place: Path) -> Any:
            assert place.name == ("worker-1" if kind.is_worker else folder.name)
            return works if kind.is_worker else reads

        async with Team(
            *(config, archive, "run", model, means(folder)),
            worktrees=trees,
            hands_of=hands_of,
        ) as team:
            found = {}
            for kind, words in (("worker", "work"), ("explorer", "read")):
                member = await team.start(kind, words)
                report = await team.report(member)
                assert report.is_done, report
                found[kind] = results(team.crew.runs.runs.open(member.run).trajectory)
            assert found["worker"] == ["made by outside"]
            assert found["explorer"][0].startswith("there is no tool outside")
            assert found["explorer"][1] == "made by page"

    work(run())


def test_a_server_of_a_worker_begins_in_its_copy(archive: Archive, folder: Path) -> None:
    pytest.importorskip("mcp", reason="fulmen[mcp] is not installed")
    command = (sys.executable, str(Path(__file__).parents[1] / "mcp_new.py"))
    servers = {"new": McpServer(name="new", command=command)}
    model = by_task(work=[m2_calls(("mcp__new__touch", {"name": "made"})), says("m2", "Done.")])

    def hands_of(kind: AgentKind, place: Path) -> Any:
        return (lambda consent: McpHands(servers, consent, folder=place),)

    async def run() -> None:
        begun(archive, folder, name="run")
        team = Team(
            *(parse_team(TEAM, "team.toml"), archive, "run", model),
            means(folder, rules=Rules.parse(["mcp__new"])),
            worktrees=archive.runs.root.parent / "worktrees",
            hands_of=hands_of,
        )
        async with team:
            member = await team.start("worker", "work")
            report = await team.report(member)
            assert report.is_done, report
            assert (member.folder / "made").exists()
            assert not (folder / "made").exists()
            assert (await team.merge(member)).paths == ("made",)

    work(run())
