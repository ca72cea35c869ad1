"""A lead and the agents that it begins: one model, one budget, and an end for all of them.

    Team -> lead (Work with LeadHands) -> start(kind, words) -> members (Works) -> reports

A member's life is one asyncio task: it waits for a place, opens its run, works, closes it, reports.
Nothing of it is left between two tasks but its run. All of them end before the lead's turn does,
and nobody but the team has their tasks, so none survives it. What a process had under way that was
killed, the next one goes on with (`crew.py`).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, Self

from fulmen.agent.archive import Archive
from fulmen.agent.consent import Approve, Consent
from fulmen.agent.loop import Hands, Inboxes, Watcher
from fulmen.agent.permissions import Permissions
from fulmen.agent.team.budget import BudgetedModel, SharedBudget
from fulmen.agent.team.config import LEAD, USER, AgentKind, TeamConfig
from fulmen.agent.team.crew import Crew, in_thread
from fulmen.agent.team.hands import LeadHands, MemberHands
from fulmen.agent.team.members import Member, Report
from fulmen.agent.team.roles import has_post
from fulmen.agent.team.worktrees import Merge
from fulmen.agent.tools import ToolError
from fulmen.agent.trajectory import EndReason, Trajectory
from fulmen.agent.verdicts import Verdict
from fulmen.agent.work import Means, Work
from fulmen.chat import ChatModel, ToolCall
from fulmen.sampling import SamplingParams
from fulmen.sessions import Session

_MAX_FIRST_LINE: Final = 80
HandsOf = Callable[[AgentKind, Path], Sequence[Callable[[Consent], Hands]]]
"""Returns tools for a member of a kind that works in a folder"""


class TeamWatcher(Protocol):
    """Somebody who sees what the agents of a team do."""

    def began(self, name: str, trajectory: Trajectory) -> Watcher | None:
        """See that an agent begins a task, after all that its run has so far; return who sees what
        it does."""

    def ended(self, report: Report) -> None:
        """See how a task ended."""


class Team:
    """The agents that one run leads, for one event loop; use it in `async with`, or let the lead's
    `Work` open and close it."""

    def __init__(
        self,
        config: TeamConfig,
        archive: Archive,
        name: str,
        model: ChatModel,
        means: Means,
        *,
        instructions: str = "",
        open_session: Callable[[str], Session] | None = None,
        tell: Callable[[str], None] | None = None,
        watcher: TeamWatcher | None = None,
        hands_of: HandsOf | None = None,
        worktrees: Path | None = None,
    ) -> None:
        """
        name          the lead's run
        means         the lead's; members have the same, but for mode, limits and more tools
        instructions  of the folder, for the members' system prompts
        open_session  as in `Work`
        tell          is given sentences on what members do, for people
        watcher       sees what members do
        hands_of      returns more tools of a member, such as those of MCP servers, for its kind and
                      its folder; they are opened for each anew
        worktrees     folder for the workers' copies, in the user's cache if omitted
        """
        self.config = config
        self.crew = Crew(config, archive, name, instructions=instructions, worktrees=worktrees)
        self.budget = SharedBudget(config.max_tokens)
        self.model = BudgetedModel(model, self.budget, max_answer=config.max_answer)
        self.inbox = self.crew.post.new_box(LEAD, stays=True, when_ended=self.stop_all)
        self._asking = asyncio.Lock()
        self._hands_of = hands_of or (lambda kind, folder: ())
        self._approve = means.approve
        budget = means.budget
        if budget.seconds is None:
            budget = replace(budget, seconds=config.max_seconds)
        self.means = replace(
            means,
            budget=budget,
            approve=None if means.approve is None else self._asked_by(None),
            inbox=self.inbox if means.inbox is None else Inboxes((means.inbox, self.inbox)),
            more_hands=(*means.more_hands, self._hands),
        )
        self._open_session = open_session
        self._tell = tell or (lambda text: None)
        self._watcher = watcher
        self._places: dict[str, asyncio.Semaphore] = {}
        self._lead: Work | None = None
        self._is_open = False

    def lead(self, *, overwrite: bool = False) -> Work:
        """Return the lead's work, unopened; it opens and closes the team. overwrite: as in
        `Work`"""
        crew = self.crew
        self._lead = Work(
            *(crew.archive, crew.name, self.model, self.means),
            open_session=self._open_session,
            overwrite=overwrite,
        )
        return self._lead

    @property
    def trajectory(self) -> Trajectory:
        """The lead's."""
        if self._lead is not None:
            return self._lead.trajectory
        return self.crew.archive.runs.open(self.crew.name).trajectory

    @property
    def members(self) -> list[Member]:
        """All agents that were begun, the first one first."""
        return list(self.crew.members.values())

    async def __aenter__(self) -> Self:
        """Go on where the team was closed, or killed. Raises ValueError if another process has it,
        or its journal cannot be read."""
        if self._places:
            raise ValueError("this team was open already, make another one to go on")
        self._places = {one.name: asyncio.Semaphore(one.count) for one in self.config.agents}
        self.budget.num_spent = await in_thread(self.crew.open, self.trajectory)
        self._is_open = True
        for member in self.members:
            if member.in_background and member.report is None and not member.is_over:
                self._run(member)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all agents, and remove the copies they worked in."""
        try:
            await self.stop_all()
        finally:
            self._is_open = False
            tasks = [one.task for one in self.members if one.task is not None]
            for task in tasks:  # the wait for their end was broken off
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            await in_thread(self.crew.close)

    def _hands(self, consent: Consent) -> LeadHands:
        return LeadHands(self, consent)

    # ---- agents --------------------------------------------------------------------------------

    async def start(
        self,
        kind: str,
        words: str,
        *,
        files: str | None = None,
        sender: str = USER,
        params: SamplingParams | None = None,
        call: str | None = None,
        in_background: bool = False,
    ) -> Member:
        """Begin an agent and give it a task.

        files          another agent whose folder it sees, not the lead's; for those that only read
        sender         `LEAD` where the words are those of a model or quote one: the agent is told
                       that they are not the user's
        params         sampling of its answers, if not the lead's
        call           the lead's call that asks for it, see `key_of`
        in_background  its report comes to the lead as a message

        Raises ToolError, a sentence for the lead, if there can be none.
        """
        found = self.config.kinds.get(kind)
        if found is None:
            known = ", ".join((*self.config.kinds, *self.crew.members))
            raise ToolError(f"there is no agent {kind}; there are: {known}")
        seen = None
        if files is not None:
            if found.is_worker:
                raise ToolError(f"{kind} has a copy of its own, files is for agents that only read")
            seen = await in_thread(self.crew.folder_of, self.member(files))
        name = self.crew.new_name(kind)
        member = self.crew.join(name, found, await in_thread(self.crew.make, found, name, seen))
        member.params = params
        return self.give(member, words, sender=sender, call=call, in_background=in_background)

    def give(
        self,
        member: Member,
        words: str,
        *,
        sender: str = USER,
        call: str | None = None,
        in_background: bool = False,
    ) -> Member:
        """Give an agent that does not work a task, see `start`. Raises ToolError if it cannot have
        one."""
        if member.is_over:
            raise ToolError(f"{member.name} was stopped, begin another {member.kind.name}")
        if member.is_working:
            raise ToolError(f"{member.name} still works, send it a message or wait for its report")
        self.crew.task(member, words, call, sender=sender, in_background=in_background)
        self._run(member)
        self._tell(f"{member.name} begins: {_first_line(words)}")
        return member

    async def fork(self, member: Member, *, params: SamplingParams | None = None) -> Member:
        """Return another agent that knows and has all that this one does, in a folder of its own;
        what the model read is not read again. It has no task yet.

        params  its sampling, such as another seed

        Raises ToolError while it works, and for an agent without a copy of its own.
        """
        self._check_at_rest(member)
        name = self.crew.new_name(member.kind.name)
        made = await in_thread(self.crew.make_fork, member, name)
        forked = self.crew.join(name, member.kind, made)
        forked.params = params
        return forked

    def member(self, name: str) -> Member:
        """Return an agent. Raises ToolError if there is none of that name."""
        if name not in self.crew.members:
            known = ", ".join(self.crew.members) or "none was begun yet"
            raise ToolError(f"there is no agent {name}; there are: {known}")
        return self.crew.members[name]

    async def report(self, member: Member) -> Report:
        """Wait until an agent has ended its task, and return what came of it; going on with it
        first if a crash ended it."""
        if member.report is None and member.task is None:
            self._run(member)
        if member.task is not None:
            await asyncio.wait([member.task])
        assert member.report is not None
        return member.report

    async def stop(self, member: Member, by: str = "the lead", *, is_over: bool = True) -> None:
        """End what an agent does, and return once nothing of it goes on.

        is_over  it is given no task any more
        """
        if is_over:
            self.crew.over(member)
        if member.task is not None:
            member.stopping.set()
            if member.work is not None:
                member.work.interrupt(by)
            await asyncio.wait([member.task])

    async def stop_all(self) -> None:
        """End what all agents do; they can be given other tasks."""
        while working := [one for one in self.members if one.is_working]:
            await asyncio.gather(*(self.stop(one, is_over=False) for one in working))

    async def merge(self, member: Member) -> Merge:
        """Bring together what an agent and the lead changed, without changing anything. Raises
        ToolError for an agent without a copy and one that works, `Conflict` where both changed the
        same lines."""
        self._check_at_rest(member)
        return await in_thread(self.crew.merge, member)

    async def apply(self, merge: Merge) -> int:
        """Write merged changes into the lead's folder; return how many files that took. Raises
        `ChangedSince` if one was changed meanwhile."""
        return await in_thread(self.crew.apply, merge)

    def _check_at_rest(self, member: Member) -> None:
        if member.base is None:
            raise ToolError(f"{member.name} only reads, it has no copy of the folder")
        if member.is_working:
            raise ToolError(f"{member.name} still works, wait for its report")

    # ---- a member's life -----------------------------------------------------------------------

    def _run(self, member: Member) -> None:
        if not self._is_open:
            raise ToolError("the team is closed")
        member.stopping = asyncio.Event()
        member.box.open()
        member.task = asyncio.create_task(self._live(member), name=member.name)

    async def _live(self, member: Member) -> Report:
        """Work on what waits for an agent, to its end; whatever ends it is its report."""
        place = self._places[member.kind.name]
        report = Report(member.name, "", "interrupted")
        try:
            if await _unless(member.stopping, place.acquire()):
                try:
                    report = await self._worked(member)
                finally:
                    place.release()
        except Exception as error:  # the outer edge of one agent: its failure is its report
            report = Report(member.name, str(error) or type(error).__name__, "error")
        finally:
            member.work = member.task = None
            self.crew.ended(member, report)
            if self._watcher is not None:
                self._watcher.ended(report)
            how = "is done" if report.is_done else f"ended ({report.reason})"
            self._tell(f"{member.name} {how} after {report.num_steps} steps")
        return report

    async def _worked(self, member: Member) -> Report:
        await in_thread(self.crew.folder_of, member)
        work = Work(
            *(self.crew.runs, member.run, self.model, self._means_of(member)),
            open_session=self._open_session,
        )
        async with work:
            member.work = work
            if member.stopping.is_set():
                work.interrupt("the lead")
            reason, failure = await _said(work, member)
        steps, reply = work.trajectory.steps, work.trajectory.reply
        is_answer = reply is not None and not reply.tool_calls and not failure
        text = reply.content.strip() if reply is not None and is_answer else failure
        return Report(member.name, text, reason, len(steps), work.trajectory.num_new_tokens)

    def _means_of(self, member: Member) -> Means:
        run, watcher = self.crew.runs.runs.open(member.run), self._watcher
        lead, turns = self.means.permissions, member.kind.max_turns
        permissions = Permissions(
            member.kind.mode_under(lead.mode),
            lead.rules,
            workspace=Path(run.facts.seen_as),
            source=member.folder,
        )
        approve = None if self._approve is None else self._asked_by(member.name, permissions)

        hands = self._hands_of(member.kind, member.folder)

        def post(consent: Consent) -> MemberHands:
            return MemberHands(self.crew.post, member.name)

        return replace(
            self.means,
            permissions=permissions,
            budget=replace(
                self.means.budget,
                turns=None if turns is None else len(run.trajectory.steps) + turns,
                tokens=None,
            ),
            params=member.params or self.means.params,
            approve=approve,
            watcher=None if watcher is None else watcher.began(member.name, run.trajectory),
            on_output=None,
            inbox=member.box,
            more_hands=(*hands, post) if has_post(run.facts.tools) else (),
        )

    def _asked_by(self, name: str | None, permissions: Permissions | None = None) -> Approve:
        """Return what asks the person for one agent, named, one question at a time in the team;
        None: the lead."""

        async def approve(call: ToolCall, verdict: Verdict, preview: str) -> str | None:
            assert self._approve is not None
            if name is not None:
                parts = (replace(one, text=f"{name}: {one.text}") for one in verdict.parts)
                verdict = replace(verdict, parts=tuple(parts))
            async with self._asking:
                answer = await self._approve(call, verdict, preview)
            if permissions is not None:  # the answer may have made a rule
                permissions.rules = self.means.permissions.rules
            return answer

        return approve


async def _said(work: Work, member: Member) -> tuple[EndReason, str]:
    """Let an agent work on what waits for it; return how that ended, and what failed, if anything
    did."""
    for letter in list(member.box.waiting):
        if letter.id in work.trajectory.heard:  # a crash came between the two notes of it
            member.box.taken(letter.record)
    if not member.box.waiting and work.trajectory.end == "done":
        return "done", ""
    try:
        is_new_task = any(letter.is_task for letter in member.box.waiting)
        return await work.say(is_new_task=is_new_task), ""
    except Exception as error:  # the outer edge of one agent, with what its run says so far
        return "error", str(error) or type(error).__name__


async def _unless(stopped: asyncio.Event, place: Any) -> bool:
    """Return True once a place was given, False once somebody stops the wait for it."""
    waiting = asyncio.ensure_future(place)
    stop = asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait([waiting, stop], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait([waiting])
    return not waiting.cancelled()


def _first_line(words: str) -> str:
    line = words.strip().split("\n")[0]
    return line if len(line) <= _MAX_FIRST_LINE else f"{line[:_MAX_FIRST_LINE]}..."
