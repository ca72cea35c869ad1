"""Tools by which a lead and its agents work together.

The lead has task, send, wait, stop and merge; its agents have send. All else that they do is done
with the tools of their own runs.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from fulmen.agent.consent import Consent
from fulmen.agent.team.config import LEAD, TeamConfig
from fulmen.agent.team.mailbox import MAX_TEXT, Post
from fulmen.agent.team.members import Member, key_of
from fulmen.agent.team.worktrees import Conflict, Merge
from fulmen.agent.tools import Arguments, ToolError, tool
from fulmen.agent.trajectory import Result
from fulmen.chat import Tool, ToolCall

if TYPE_CHECKING:
    from fulmen.agent.team.team import Team

_SEND: Final = tool(
    "send",
    "Send a message to another agent while it works; it reads it after its next call.",
    {"to": "string: lead, or an agent such as explorer-1", "text": "string"},
)
_MAX_DIFF: Final = 20_000
"""Characters of a diff that a lead reads after a merge"""


class MemberHands:
    """Tools of an agent that is led; `Hands` beside those of its workbench."""

    def __init__(self, post: Post, name: str) -> None:
        self._post = post
        self._name = name
        self._tools: tuple[Tool, ...] = (_SEND,)

    @property
    def tools(self) -> Sequence[Tool]:
        """Tools as the model is told of them."""
        return self._tools

    def is_independent(self, call: ToolCall) -> bool:
        """Return whether a call changes no files: it sends a message."""
        return call.name == _SEND.name

    async def run(self, number: int, call: ToolCall) -> Result:
        """Make a call; whatever is wrong with it is a result that says so."""
        begin = time.monotonic()
        try:
            text, is_error = await self._make(number, Arguments.of(call, self._tools)), False
        except (ToolError, OSError, ValueError) as error:
            text, is_error = str(error), True
        return Result(number, text, is_error, round(time.monotonic() - begin, 3))

    async def interrupted(self, number: int, call: ToolCall, by: str) -> Result:
        """Return the result of a call that was ended."""
        return Result(number, f"(ended by {by} before it was done)", True)

    def forget(self) -> None:
        """Take note that the model does not see earlier results any more: nothing to do."""

    async def _make(self, number: int, arguments: Arguments) -> str:
        letter = self._post.send(self._name, arguments.text("to"), arguments.text("text"))
        return f"sent to {letter.to}"


class LeadHands(MemberHands):
    """Tools of the lead; they open the team with its run, and close it."""

    def __init__(self, team: "Team", consent: Consent) -> None:
        super().__init__(team.crew.post, LEAD)
        self._team = team
        self._consent = consent
        self._tools = lead_tools(team.config)

    async def __aenter__(self) -> "LeadHands":
        await self._team.__aenter__()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._team.__aexit__(*details)

    def is_independent(self, call: ToolCall) -> bool:
        """Return whether a call may run beside others: agents change no files of the lead's."""
        return call.name in ("task", "send")

    async def _make(self, number: int, arguments: Arguments) -> str:
        match arguments.tool.name:
            case "task":
                return await self._task(number, arguments)
            case "send":
                return await super()._make(number, arguments)
            case "wait":
                return await self._wait()
            case "stop":
                member = self._team.member(arguments.text("agent"))
                await self._team.stop(member)
                return f"{member.name} is stopped"
            case "merge":
                return await self._merge(arguments)
            case name:
                raise AssertionError(name)

    async def _task(self, number: int, arguments: Arguments) -> str:
        call = ToolCall("task", dict(arguments.given))
        key = key_of(self._team.trajectory, number, call)
        in_background = arguments.flag("background")
        member = self._team.crew.by_call(key)  # it was made before a crash
        if member is None:
            member = await self._given(arguments, key, in_background=in_background)
        if in_background:
            return f"{member.name} works in the background; its report comes as a message"
        try:
            return (await self._team.report(member)).told
        except asyncio.CancelledError:
            await self._team.stop(member, is_over=False)
            raise

    async def _given(self, arguments: Arguments, key: str, *, in_background: bool) -> Member:
        team, agent, words = self._team, arguments.text("agent"), arguments.text("prompt")
        if not words.strip():
            raise ToolError("the task is empty, prompt says what to do")
        if len(words) > MAX_TEXT:
            raise ToolError(f"prompt has {len(words):,} characters, at most {MAX_TEXT:,} go")
        files = arguments.text("files") or None
        member = team.crew.members.get(agent)
        kind = agent if member is None else member.kind.name
        await self._consent_to(kind, words)
        if member is None:
            return await team.start(
                *(kind, words),
                files=files,
                sender=LEAD,
                call=key,
                in_background=in_background,
            )
        if files is not None:
            raise ToolError(f"{agent} sees the files that it began with, files is for a new agent")
        return team.give(member, words, sender=LEAD, call=key, in_background=in_background)

    async def _consent_to(self, kind: str, words: str) -> None:
        """Return unless a rule is against an agent: by itself it may do no more than the lead, and
        is asked about what it does."""
        call = ToolCall("task", {"agent": kind})

        async def preview() -> str:
            return words

        verdict = self._consent.permissions.judge(call)
        if any(part.by == "rule" for part in verdict.parts) or verdict.decision == "deny":
            await self._consent.obtain(call, preview)

    async def _wait(self) -> str:
        team = self._team
        if not team.inbox.waiting:
            if not any(one.is_working for one in team.members):
                raise ToolError("no agent works, and no message waits")
            await team.inbox.arrival()
        count = len(team.inbox.waiting)
        return f"{count} message{'s' if count > 1 else ''} came, see below"

    async def _merge(self, arguments: Arguments) -> str:
        member = self._team.member(arguments.text("agent"))
        try:
            merge = await self._team.merge(member)
        except Conflict as error:
            raise ToolError(
                f"nothing was merged: {error}; give {member.name} a task to do it otherwise, or "
                "make the change yourself"
            ) from None
        if not merge.paths:
            return f"{member.name} changed nothing that is not here already"

        async def preview() -> str:
            return merge.diff

        await self._consent.obtain_all(
            ToolCall("merge", {"agent": member.name}), _edits(merge), preview
        )
        await self._team.apply(merge)
        files = "\n".join(merge.paths)
        diff = merge.diff
        if len(diff) > _MAX_DIFF:
            diff = f"{diff[:_MAX_DIFF]}\n(the diff goes on)"
        return f"merged from {member.name}; files that changed:\n{files}\n\n{diff}"


def lead_tools(config: TeamConfig) -> tuple[Tool, ...]:
    """Return the tools of a lead, which name the agents that it may begin."""
    agents = "; ".join(
        f"{one.name} ({one.role}, {one.count} at a time)"
        + (f": {one.description.rstrip('.')}" if one.description else "")
        for one in config.agents
    )
    task = tool(
        "task",
        f"Give an agent a task and get its report. Agents: {agents}. Several tasks in one answer "
        "are done side by side. With background you go on, and the report comes as a message.",
        {
            "agent": "string: A new one by its kind, or one that has reported, such as worker-1, "
            "which goes on with what it knows",
            "prompt": "string: All that it must know; it sees nothing of this conversation",
        },
        background="boolean",
        files="string: For one that only reads: another agent whose files it sees, such as "
        "worker-1, instead of yours",
    )
    wait = tool("wait", "Wait for the next message of an agent.", {})
    stop = tool("stop", "Stop an agent for good.", {"agent": "string"})
    merge = tool(
        "merge",
        "Bring what a worker changed into your folder. If both changed the same lines, nothing "
        "happens but a result that names the files.",
        {"agent": "string"},
    )
    has_workers = any(one.is_worker for one in config.agents)
    return (task, _SEND, wait, stop, *((merge,) if has_workers else ()))


def _edits(merge: Merge) -> list[ToolCall]:
    """Return edits that do what a merge does, so that the rules for those hold."""
    arguments: dict[str, Any] = {"old": "", "new": ""}
    return [ToolCall("edit", {"path": path, **arguments}) for path in merge.paths]
