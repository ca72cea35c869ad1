"""Lives of agents under random schedules: tasks, messages, stops, refusals, failures, the end."""

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fulmen.agent import Archive, Team, parse_team
from fulmen.agent.tools import ToolError
from fulmen.chat import ChatRequest, ModelError, read_messages
from tests.agent.team.test_mailbox import check_journal
from tests.agent.working import begun, m2_calls, means, says, scripted
from tests.examples import examples
from tests.sandbox.helpers import skip_without_sandbox

TEAM = """
[[agents]]
name = "explorer"
role = "explorer"
count = 2
tools = "minimal"

[budget]
max-tokens = 1_000_000
"""


@pytest.fixture(autouse=True, scope="module")
def _sandbox() -> None:
    skip_without_sandbox()


DEEDS = ("give", "send", "stop", "interrupt", "wait")
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.booleans()),
        st.tuples(
            st.sampled_from(["give", "send", "stop", "interrupt", "wait"]), st.integers(0, 9)
        ),
    ),
    max_size=10,
)


@given(ACTIONS, st.integers(0, 2**32), st.booleans())
@settings(max_examples=examples(15), deadline=None, phases=[Phase.generate])
def test_no_agent_outlives_its_lead_and_each_task_is_reported_once(
    actions: Any, seed: int, is_cut_off: bool
) -> None:
    choice = random.Random(seed)

    def line(request: ChatRequest) -> str:
        num_answers = sum(one.role == "assistant" for one in read_messages(request.messages))
        match choice.randrange(1, 5):
            case 1:
                return m2_calls(("run", {"command": "touch made"}))  # refused: it only reads
            case 2:
                return m2_calls(("send", {"to": "lead", "text": f"news {num_answers}"}))
            case 3:
                return m2_calls(("run", {"command": "sleep 0.2"}), ("read", {"path": "a"}))
        return says("m2", "Done.")

    async def work(root: Path) -> None:
        before = asyncio.all_tasks()
        archive, folder = Archive(root / "runs"), root / "folder"
        folder.mkdir()
        (folder / "a").write_text("a\n")
        begun(archive, folder, name="run")
        config = parse_team(TEAM, "team")
        team = Team(
            *(config, archive, "run", Failing(line, choice), means(folder)),
            worktrees=root / "worktrees",
        )
        notes: list[Mapping[str, Any]] = []
        keep = team.crew._journal.append

        def noted(record: Mapping[str, Any]) -> None:
            notes.append(record)
            keep(record)

        team.crew._journal.append = noted  # type: ignore[method-assign]
        async with team:
            lead = asyncio.ensure_future(led(team, actions, choice))
            if is_cut_off:
                await asyncio.sleep(choice.random())
                lead.cancel()
                await asyncio.wait([lead])
            else:
                await lead
        assert asyncio.all_tasks() == before
        assert not any(one.is_working or one.work for one in team.members)
        assert team.budget.num_reserved == 0
        assert not (folder / "made").exists()
        boxes = team.crew.post.boxes.values()
        check_journal(notes, {one.id for box in boxes for one in box.waiting})
        given_to = [one["agent"] for one in notes if one["type"] == "task"]
        assert sorted(given_to) == sorted(one["agent"] for one in notes if one["type"] == "ended")
        for name in archive.team("run").runs.names():
            with archive.team("run").runs.open(name) as run:  # nobody holds it
                assert all(step.is_whole for step in run.trajectory.steps[:-1])

    with TemporaryDirectory() as name:
        asyncio.run(asyncio.wait_for(work(Path(name)), 60))


class Failing:
    """A model that says what a function says, or fails."""

    def __init__(self, line: Any, choice: random.Random) -> None:
        self.model, self.choice = scripted([line] * 1000), choice

    def stream(self, request: ChatRequest) -> Any:
        return Failed() if self.choice.random() < 0.2 else self.model.stream(request)


class Failed:
    """An answer that never comes."""

    async def __aenter__(self) -> Any:
        raise ModelError("the model failed")

    async def close(self) -> None:
        """Close nothing."""


async def led(team: Team, actions: Any, choice: random.Random) -> None:
    """Do what a lead does, whatever it is told about that."""
    for action, more in actions:
        try:
            if action == "start":
                await team.start("explorer", "Look.", in_background=more)
            elif team.members:
                member = team.members[more % len(team.members)]
                match action:
                    case "give":
                        team.give(member, "Look again.", in_background=choice.random() < 0.5)
                    case "send":
                        team.crew.post.send("lead", member.name, "psst")
                    case "stop":
                        await team.stop(member)
                    case "interrupt":
                        await team.stop(member, is_over=False)
                    case "wait":
                        await team.report(member)
        except ToolError:
            continue
        for record in team.inbox.take():
            team.inbox.taken(record)
