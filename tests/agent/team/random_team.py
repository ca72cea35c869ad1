"""A team whose agents say what a seed says, in a process that is killed where it is told.

    python -m tests.agent.team.random_team ROOT TOKENIZER SEED KILLED_AT

KILLED_AT is the number of the record at which the process is killed, before or after that is on
disk; 0 for none. ROOT/order has all records in their order, those of the team and of all runs.
"""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fulmen.agent import Archive, Run, Team, parse_team
from fulmen.agent.team.members import Journal
from fulmen.agent.verdicts import Verdict
from fulmen.chat import ChatRequest, ModelError, Tokenizer, ToolCall, get_format, read_messages
from fulmen.llm import ScriptedModel
from tests.agent.working import begun, m2_calls, means, says

TASK = "LEAD"
MAX_TOKENS = 4000
TEAM = f"""
[[agents]]
name = "explorer"
role = "explorer"
count = 2
max-turns = 5

[[agents]]
name = "worker"
role = "worker"
max-turns = 5

[budget]
max-tokens = {MAX_TOKENS}
answer = 400
"""
_NUM_TURNS = 7
"""Answers of the lead; its last one is that it is done"""
_OTHERS = ("explorer-1", "explorer-2", "worker-1", "lead")


class Chance:
    """Choices that are the same wherever a process begins: they follow from what was asked."""

    def __init__(self, *parts: object) -> None:
        self._state = hashlib.sha256(repr(parts).encode()).digest()

    def below(self, number: int) -> int:
        """Return a number from 0 on."""
        self._state = hashlib.sha256(self._state).digest()
        return int.from_bytes(self._state[:4]) % number

    def one_of(self, *things: Any) -> Any:
        """Return one of several things."""
        return things[self.below(len(things))]


def line(seed: int, request: ChatRequest) -> str:
    """Return the answer of an agent. Raises ModelError for one that fails."""
    messages = read_messages(request.messages)
    first = next(one.content for one in messages if one.role == "user")
    num_answers = sum(one.role == "assistant" for one in messages)
    chance = Chance(seed, first, num_answers)
    if first == TASK:
        return _lead_says(chance, num_answers)
    match chance.below(8):
        case 0:
            return m2_calls(("send", {"to": "lead", "text": f"news of {first[-8:]}"}))
        case 1:
            return m2_calls(("send", {"to": chance.one_of(*_OTHERS), "text": f"{num_answers}"}))
        case 2:
            return m2_calls(("write", {"path": "made", "content": "x"}), ("read", {"path": "a"}))
        case 3:
            return m2_calls(("bash", {"command": "sleep 0.05; touch asked"}))
        case 4:
            return m2_calls(("read", {"path": "a"}), ("send", {"to": "lead", "text": "seen"}))
        case 5 if chance.below(2):
            raise ModelError("the model failed")
    return says("m2", "Done.")


def _lead_says(chance: Chance, num_answers: int) -> str:
    if num_answers >= _NUM_TURNS:
        return says("m2", "All is done.")
    calls: list[tuple[str, dict[str, Any]]] = []
    for number in range(1 + chance.below(2)):
        prompt = f"job {num_answers}.{number}"
        to = chance.one_of(*_OTHERS[:3])
        match chance.below(8):
            case 0 | 1 | 2:
                agent, background = chance.one_of("explorer", "worker"), bool(chance.below(3))
                given = {"agent": agent, "prompt": prompt, "background": background}
                calls.append(("task", given))
            case 3:
                given = {"agent": to, "prompt": prompt, "background": bool(chance.below(2))}
                calls.append(("task", given))
            case 4 | 5:
                calls.append(("send", {"to": to, "text": f"hurry {num_answers}"}))
            case 6:
                calls.append(("wait", {}))
            case 7:
                calls.append(
                    ("stop", {"agent": to}) if chance.below(2) else ("read", {"path": "a"})
                )
    return m2_calls(*calls)


class Killing:
    """Sees each record of the team and of its runs; ends the process at one of them."""

    def __init__(self, order: Path, killed_at: int) -> None:
        self._order = order.open("a")
        self._killed_at = killed_at
        self._count = 0

    def watch(self, kind: Any, name: Any) -> None:
        """See the records that journals of a kind keep; name: returns that of a journal."""
        append = kind.append

        def watched(journal: Any, record: Mapping[str, Any]) -> None:
            self._count += 1
            if self._count == self._killed_at and self._count % 2:
                self._end()
            append(journal, record)
            self._order.write(json.dumps([name(journal), record]) + "\n")
            self._order.flush()
            if self._count == self._killed_at:
                self._end()

        kind.append = watched

    def _end(self) -> None:
        os.kill(os.getpid(), 9)


async def main(root: Path, tokenizer: Path, seed: int) -> None:
    """Let the lead work to its end, from its beginning or from where it was killed."""
    archive, folder = Archive(root / "runs"), root / "folder"
    model = ScriptedModel(
        get_format("minimax_m2"),
        [lambda request: line(seed, request)] * 1000,
        tokenizer=Tokenizer.from_folder(tokenizer),
    )

    async def approve(call: ToolCall, verdict: Verdict, preview: str) -> str | None:
        return "no, not that" if Chance(seed, verdict.reason).below(2) else None

    if "run" not in archive.runs.names():
        begun(archive, folder, name="run")
    given = means(folder, "ask", approve=approve)
    team = Team(
        *(parse_team(TEAM, "team"), archive, "run", model, given), worktrees=root / "worktrees"
    )
    before = asyncio.all_tasks()
    async with team.lead() as lead:
        is_new = not lead.trajectory.steps and not lead.trajectory.said
        await lead.say(TASK if is_new else None)
        assert team.budget.num_reserved == 0
        assert not any(one.is_working for one in team.members)
    assert asyncio.all_tasks() == before


if __name__ == "__main__":
    place = Path(sys.argv[1])
    killing = Killing(place / "order", int(sys.argv[4]))
    killing.watch(Journal, lambda journal: "team")
    killing.watch(Run, lambda run: run.name)
    asyncio.run(main(place, Path(sys.argv[2]), int(sys.argv[3])))
