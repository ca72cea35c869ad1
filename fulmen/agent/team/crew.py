"""Agents of a team as they are on disk: runs of their own, a journal, and copies of the folder.

    RUNS/LEAD/team/LEAD.worker-1/   the agent's run
    RUNS/LEAD/team/team.jsonl       tasks, messages and reports, as they come
    RUNS/LEAD/team/repository/      commits that copies began as

Whatever ended a process, the journal says which agents there are, and which tasks and messages are
still under way.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from fulmen.agent.archive import TEAM, Archive
from fulmen.agent.run import RunFacts
from fulmen.agent.team.config import LEAD, USER, AgentKind, TeamConfig
from fulmen.agent.team.mailbox import POST, Letter, Post
from fulmen.agent.team.members import Journal, Member, Report, stands
from fulmen.agent.team.roles import member_prompt
from fulmen.agent.team.worktrees import Merge, Worktrees, default_worktrees
from fulmen.agent.tools import ToolError
from fulmen.agent.trajectory import Trajectory
from fulmen.chat import Message

R = TypeVar("R")

_MAX_MEMBERS: Final = 64
"""Agents that one run may begin"""


@dataclass(frozen=True, slots=True)
class Made:
    """A run and a folder for an agent that is yet to join."""

    run: str
    folder: Path
    base: str | None = None
    """Commit that its copy of the lead's folder began as; None if it has none"""
    is_fork: bool = False


class Crew:
    """The agents that one run leads, and their messages."""

    def __init__(
        self,
        config: TeamConfig,
        archive: Archive,
        name: str,
        *,
        instructions: str = "",
        worktrees: Path | None = None,
    ) -> None:
        """
        name          the lead's run
        instructions  of the folder, for system prompts
        worktrees     folder for copies, in the user's cache if omitted
        """
        self.config = config
        self.archive = archive
        self.name = name
        self.runs = archive.team(name)
        self.members: dict[str, Member] = {}
        self.post = Post(self.note)
        self._instructions = instructions
        folder = archive.runs.root / name / TEAM
        self._journal = Journal(folder)
        self._worktrees = Worktrees(worktrees or default_worktrees(name), folder / "repository")
        self._has_worktrees = any(kind.is_worker for kind in config.agents)
        self._numbers: dict[str, int] = {}

    @property
    def facts(self) -> RunFacts:
        """The lead's run."""
        return self.archive.runs.facts(self.name)

    def note(self, record: Mapping[str, Any]) -> None:
        """Keep a record."""
        self._journal.append(record)

    def open(self, lead: Trajectory) -> int:
        """Take the agents as the journal has them; return the tokens that all have spent. Raises
        ValueError if another process has them, or the journal cannot be read.

        lead  the lead's run: agents that it knows nothing of any more, since it was taken back, are
              let go of with their messages
        """
        try:
            records = self._journal.open()
            if self._has_worktrees:
                self._worktrees.begin()
            self.members.clear()
            self._restore(records, lead)
        except BaseException:
            self._journal.close()
            raise
        spent = lead.num_new_tokens
        for member in self.members.values():
            with suppress(ValueError):  # it cannot be read, which its next task will say
                spent += self.runs.runs.open(member.run).trajectory.num_new_tokens
        return spent

    def close(self) -> None:
        """Remove the copies, of which all is in the runs, and let others have the agents."""
        try:
            if self._has_worktrees:
                self._worktrees.remove_all()
        finally:
            self._journal.close()

    # ---- agents --------------------------------------------------------------------------------

    def new_name(self, kind: str) -> str:
        """Return a name that no agent of the run ever had, one whose beginning failed too. Raises
        ToolError if there can be no more."""
        if len(self.members) >= _MAX_MEMBERS:
            raise ToolError(f"{_MAX_MEMBERS} agents were begun, which is the most that may be")
        known = self.runs.runs.names()
        while True:
            self._numbers[kind] = self._numbers.get(kind, 0) + 1
            name = f"{kind}-{self._numbers[kind]}"
            if name not in self.post.boxes and f"{self.name}.{name}" not in known:
                return name

    def make(self, kind: AgentKind, name: str, seen: Path | None) -> Made:
        """Make the run and the folder of an agent, in any thread. seen: the folder that it sees, if
        not the lead's."""
        facts, base = self.facts, None
        folder = seen or Path(facts.folder)
        if kind.is_worker:
            _, base = self._worktrees.save(self.archive.snapshots(facts))
            folder = self._worktrees.add(name, base)
        tools = kind.tools or facts.tools
        run = self.runs.begin(
            folder,
            model=facts.model,
            tools=tools,
            system=(Message("system", member_prompt(kind, tools, self._instructions)),),
            name=f"{self.name}.{name}",
            has_session=facts.session is not None,
            settings={"role": kind.role},
        )
        return Made(run.name, folder, base)

    def make_fork(self, member: Member, name: str) -> Made:
        """Make a run that has all that an agent's has, and its folder once more, in any thread."""
        run, folder = f"{self.name}.{name}", self._worktrees.root / name
        num_steps = len(self.runs.runs.open(member.run).trajectory.steps)
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.runs.fork(member.run, num_steps, folder, new=run)
        return Made(run, folder, member.base, is_fork=True)

    def join(self, name: str, kind: AgentKind, made: Made) -> Member:
        """Let an agent be one of the team."""
        record = {"type": "began", "agent": name, "kind": kind.name, **asdict(made)}
        self.note({**record, "folder": str(made.folder)})
        self.members[name] = self._member(name, kind, made)
        return self.members[name]

    def _member(self, name: str, kind: AgentKind, made: Made) -> Member:
        box = self.post.new_box(name)
        return Member(name, kind, made.run, made.folder, box, made.base, is_fork=made.is_fork)

    def by_call(self, key: str | None) -> Member | None:
        """Return the agent that a call of the lead has given a task already; None if there is
        none."""
        found = (one for one in self.members.values() if key is not None and key in one.calls)
        return next(found, None)

    def task(
        self, member: Member, words: str, call: str | None, *, sender: str, in_background: bool
    ) -> None:
        """Give an agent a task: a message that waits in its mailbox. sender: `LEAD` or `USER`"""
        letter = self.post.letter(sender, member.name, words, is_task=True)
        fields = {"agent": member.name, "call": call, "in_background": in_background}
        self.note({"type": "task", **fields, "letter": asdict(letter)})
        member.calls.append(call)
        member.in_background, member.report = in_background, None
        self.post.deliver(letter)

    def ended(self, member: Member, report: Report) -> None:
        """Note how a task ended; the report of one in the background is a message, noted with it,
        so that there is no end without its report. Messages that wait go back."""
        member.report = report
        record: dict[str, Any] = {"type": "ended", "agent": member.name, "report": asdict(report)}
        letter: Letter | None = None
        if member.in_background:
            letter = self.post.letter(member.name, LEAD, report.told, is_report=True)
            record["letter"] = asdict(letter)
        self.note(record)
        if letter is not None:
            self.post.deliver(letter)
        member.box.close()

    def over(self, member: Member) -> None:
        """Note that an agent is given no task any more."""
        if not member.is_over:
            member.is_over = True
            self.note({"type": "stopped", "agent": member.name})

    # ---- their folders -------------------------------------------------------------------------

    def folder_of(self, member: Member) -> Path:
        """Return the folder of an agent, made again as its run left it if it was removed."""
        if member.base is None or member.folder.exists():
            return member.folder
        run = self.runs.runs.open(member.run)
        last = run.trajectory.snapshot(len(run.trajectory.steps))
        if member.is_fork:
            assert last is not None, "a run begins with a snapshot"
            self.runs.files(run.facts).export(last, member.folder)
            return member.folder
        self._worktrees.add(member.name, member.base)
        if last is not None:
            self.runs.snapshots(run.facts).restore(last, expected=None, overwrite=True)
        return member.folder

    def merge(self, member: Member) -> Merge:
        """Bring together what an agent and the lead changed, without changing anything."""
        assert member.base is not None, "it has no copy"
        self.folder_of(member)
        theirs = self.runs.snapshots(self.runs.runs.facts(member.run))
        return self._worktrees.merge(member.base, self.archive.snapshots(self.facts), theirs)

    def apply(self, merge: Merge) -> int:
        """Write merged changes into the lead's folder; return how many files that took."""
        return self._worktrees.apply(merge, self.archive.snapshots(self.facts))

    # ---- the journal ---------------------------------------------------------------------------

    def _restore(self, records: Sequence[Mapping[str, Any]], lead: Trajectory) -> None:
        letters: dict[str, Letter] = {}
        for record in records:
            self.post.restore(record)
            self._restore_member(record)
            if record["type"] in ("taken", "returned"):
                letters.pop(record["message"], None)
            if record.get("letter") is not None:
                letter = Letter(**record["letter"])
                letters[letter.id] = letter
        for member in list(self.members.values()):
            if any(key is not None and not stands(lead, key) for key in member.calls):
                del self.members[member.name]
        present = {*self.members, LEAD, POST, USER}
        for letter in letters.values():
            is_heard = letter.to == LEAD and letter.id in lead.heard
            if {letter.sender, letter.to} <= present and not is_heard:
                self.post.deliver(letter)

    def _restore_member(self, record: Mapping[str, Any]) -> None:
        name = str(record.get("agent"))
        match record["type"]:
            case "began":
                kind = self.config.kinds.get(record["kind"])
                if kind is None:
                    raise ValueError(f"run {self.name} has an agent {name}, which the team lacks")
                folder, base = Path(record["folder"]), record["base"]
                made = Made(record["run"], folder, base, is_fork=record["is_fork"])
                self.members[name] = self._member(name, kind, made)
            case "task":
                member = self.members[name]
                member.calls.append(record["call"])
                member.in_background, member.report = record["in_background"], None
            case "ended":
                self.members[name].report = Report(**record["report"])
            case "stopped":
                self.members[name].is_over = True


async def in_thread(work: Callable[..., R], *arguments: Any) -> R:
    """Return what comes of work in a thread; cancelled, it still waits for the end of it, so that
    nothing goes on behind anybody's back."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
