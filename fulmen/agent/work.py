"""A run that is gone on with: records, files, states, sandbox and model put together.

    Archive -> Run -> settled (folder and session follow the log) -> Sandbox -> Agent
    say(words) -> answers, calls, results ... -> EndReason

Nobody else may have the run meanwhile. Whatever ends the process, the log says how far it came, and
the next one goes on from there.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from fulmen.agent.archive import BEAT_SECONDS, Archive, Kept
from fulmen.agent.compaction import Compactor
from fulmen.agent.consent import Approve, Consent
from fulmen.agent.hooks import Hook, HookedHands
from fulmen.agent.joined import JoinedHands
from fulmen.agent.loop import Agent, Budget, Hands, Inbox, Watcher
from fulmen.agent.memory import Memory, PlainMemory, SessionMemory
from fulmen.agent.permissions import Permissions
from fulmen.agent.tools import tools_record
from fulmen.agent.trajectory import EndReason, Trajectory
from fulmen.agent.workbench import Workbench, told_outcome
from fulmen.chat import ChatModel, Message, Transcript, sampled_ids
from fulmen.files import shorten
from fulmen.sampling import SamplingParams
from fulmen.sandbox import PROTECTED, Access, Sandbox, SandboxError
from fulmen.sessions import Session

_SANDBOXES: Final = ".sandboxes"
"""Folder beside the runs, of what was there before a sandbox that is open"""
_NEW_SHELL: Final = (
    "(The shell was begun anew since the last command: its folder, variables and background jobs, "
    "and all files in /tmp, are those of a new one.)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Everything that a run is gone on with, but for the model."""

    permissions: Permissions
    budget: Budget = field(default_factory=Budget)
    params: SamplingParams | None = None
    """Sampling of all answers; None: as the model recommends"""
    context: int | None = None
    """Tokens that the model holds: near them a summary takes the place of the earlier steps"""
    has_network: bool = False
    writable: Sequence[str] = ()
    """Names of `PROTECTED` that may be changed all the same"""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of every command"""
    readable: Sequence[Path] = ()
    """More folders of this machine that can be read, such as those of skills"""
    approve: Approve | None = None
    """Asks a person about a call; without it, what asks is refused"""
    watcher: Watcher | None = None
    on_output: Callable[[str], None] | None = None
    """Sees what a command prints, as it comes"""
    more_hands: Sequence[Callable[[Consent], Hands]] = ()
    """Each makes tools beside those of the workbench, which ask by the same consent. Hands that are
    asynchronous context managers are entered before a run and left after it, and what they have
    to say to a person in their `notes` is told"""
    inbox: Inbox | None = None
    """Messages of other agents"""
    hooks: Sequence[Hook] = ()
    """Commands of the user's around calls and before the end"""

    def __post_init__(self) -> None:
        check_protected(self.writable)


def check_protected(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is not protected in a workspace."""
    for name in names:
        if name not in PROTECTED:
            known = ", ".join(PROTECTED)
            raise ValueError(f"{shorten(name, 60)} is not protected, these names are: {known}")


class Work:
    """One run that is gone on with, for one event loop; use it in `async with`."""

    def __init__(
        self,
        archive: Archive,
        name: str,
        model: ChatModel,
        means: Means,
        *,
        open_session: Callable[[str], Session] | None = None,
        overwrite: bool = False,
    ) -> None:
        """
        open_session  opens or begins the session of a model that is here, with all thoughts kept,
                      in a thread; needed for a run that has one
        overwrite     calls that were under way at a crash are made again also where that overwrites
                      what somebody changed since
        """
        self.archive = archive
        self.run = archive.runs.open(name)
        self.notes: list[str] = []
        """Sentences on what is not as one would expect"""
        self._model = model
        self._means = means
        self._open_session = open_session
        self._overwrite = overwrite
        self._agent: Agent | None = None
        self._sandbox: Sandbox | None = None
        self._stack = AsyncExitStack()
        self._sessions = ExitStack()
        """Sessions that nobody else may have meanwhile"""

    @property
    def trajectory(self) -> Trajectory:
        """Everything that has happened."""
        return self.run.trajectory

    async def __aenter__(self) -> Self:
        """Take the run and make it ready. Raises ValueError if another process has it, ChangedSince
        as `Archive.settle` does, and SandboxError where there can be no sandbox."""
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _open(self) -> None:
        run, means, facts = self.run, self._means, self.run.facts
        self._check_apart(Path(facts.folder))
        self._stack.enter_context(run)
        self._stack.enter_context(self._sessions)
        note = await asyncio.to_thread(self.archive.settle, run, overwrite=self._overwrite)
        beating = asyncio.create_task(self._beat())
        self._stack.push_async_callback(self._end_beating, beating)
        self.notes += [note] if note else []
        memory = await self._memory()
        place = Path(facts.folder)
        access = Access(
            folder=place,
            seen_as=None if facts.seen_as == facts.folder else Path(facts.seen_as),
            is_read_only=means.permissions.mode == "plan",
            has_network=means.has_network,
            protected=tuple(name for name in PROTECTED if name not in means.writable),
            environment=means.environment,
            readable=tuple(means.readable),
            records=Path(os.path.realpath(self.archive.runs.root)) / _SANDBOXES,
        )
        sandbox = Sandbox(access)
        self._stack.callback(self._tell_end, sandbox)
        self._sandbox = await self._stack.enter_async_context(sandbox)
        self.notes += sandbox.notes
        used_shell = any(
            call.name in ("bash", "run")
            for step in run.trajectory.steps
            for call in step.answer.message.tool_calls
        )
        workbench = Workbench(
            sandbox,
            profile=facts.tools,
            permissions=means.permissions,
            folder=Path(facts.seen_as),
            approve=means.approve,
            snapshots=Kept(self.archive.snapshots(facts), run),
            on_output=means.on_output,
            shell_note=_NEW_SHELL if used_shell else "",
            has_network=means.has_network,
        )
        hands, before_end = await self._hands(workbench), None
        if means.hooks:
            hands = hooked = HookedHands(
                *(hands, means.hooks, sandbox),
                folder=facts.seen_as,
                saved=workbench.saved,
                tell=self._note,
            )
            before_end = hooked.before_end
        self._agent = Agent(
            self._model,
            hands,
            memory,
            run,
            params=means.params,
            budget=means.budget,
            compactor=None if means.context is None else Compactor(max_tokens=means.context),
            watcher=means.watcher,
            inbox=means.inbox,
            before_end=before_end,
        )

    async def _hands(self, workbench: Workbench) -> Hands:
        """Return the workbench with all other tools of the run: those that it began with."""
        known = self.trajectory.tools
        if not self._means.more_hands and known is None:
            return workbench
        hands: list[Hands] = [workbench]
        for make in self._means.more_hands:
            one = make(workbench.consent)
            if isinstance(one, AbstractAsyncContextManager):
                await self._stack.enter_async_context(one)
            self.notes += getattr(one, "notes", ())
            hands.append(one)
        if known is None and self.trajectory.steps:
            known = tuple(workbench.tools)
        joined = JoinedHands(hands, known=known, saved=workbench.saved)
        if joined.missing:
            self.notes.append(f"these tools of the run are not here: {', '.join(joined.missing)}")
        if known is None:
            self.run.append(tools_record(joined.tools))
        return joined

    async def _beat(self) -> None:
        while True:
            self.run.beat()
            await asyncio.sleep(BEAT_SECONDS / 4)

    async def _end_beating(self, beating: asyncio.Task[None]) -> None:
        """Note the end, when nothing of the sandbox is left."""
        beating.cancel()
        await asyncio.wait([beating])
        self.run.beat()

    def _tell_end(self, sandbox: Sandbox) -> None:
        """Note what was found when the sandbox was closed."""
        new = [note for note in sandbox.notes if note not in self.notes]
        self.notes += new
        for note in new:
            self.run.append({"type": "note", "text": note})

    def _check_apart(self, folder: Path) -> None:
        """Raise ValueError if the agent could change what is kept of it."""
        sessions = self.archive.sessions
        for kept in (self.archive.runs.root, *(() if sessions is None else (sessions.root,))):
            if Path(os.path.realpath(kept)).is_relative_to(folder):
                raise ValueError(f"{kept} lies in {folder}, where the agent could change it")

    async def say(self, words: str | None = None, *, is_new_task: bool = False) -> EndReason:
        """Let the agent work until it is done or something ends it, and return what.

        words        of the user; None to go on where the run was ended, or with messages that wait
        is_new_task  a message that waits is a task of its own: calls that were left of the last one
                     are not made

        Raises ModelError and SandboxError if those fail, and ValueError where nothing is left to
        do; what there is stays.
        """
        agent = self._agent
        assert agent is not None, "it is not open"
        if is_new_task:
            agent.drop_calls("another task was given")
        try:
            return await self._say(agent, words)
        finally:
            if self._means.inbox is not None:
                await self._means.inbox.ended()
            agent.forget_interrupt()

    async def _say(self, agent: Agent, words: str | None) -> EndReason:
        inbox = self._means.inbox
        has_words = words is not None or (inbox is not None and bool(inbox.take()))
        if not has_words and self._is_answered():
            self.run.append({"type": "ended", "reason": "done"})
            return "done"
        if not has_words:
            self._take_back_what_was_cut()
        elif self.trajectory.steps:
            await asyncio.to_thread(self.archive.found, self.run)
        try:
            return await agent.run([] if words is None else [Message("user", words)])
        except SandboxError as error:
            self.run.append({"type": "note", "text": f"the sandbox failed: {error}"})
            self.run.append({"type": "ended", "reason": "error"})
            raise
        finally:
            await self._settle_repositories()

    async def _settle_repositories(self) -> None:
        """Hide repositories that could start programs from git, and tell: the person who has the
        answer may go there now."""
        assert self._sandbox is not None, "it is not open"
        with suppress(SandboxError):  # it is closed, and did so itself
            for note in await self._sandbox.settle_repositories():
                self.notes.append(note)
                self._note(note)

    def _note(self, text: str) -> None:
        """Keep a sentence for people, and tell it."""
        record = {"type": "note", "text": text}
        self.run.append(record)
        if self._means.watcher is not None:
            self._means.watcher.record(record)

    async def run_command(
        self, command: str, *, seconds: float, on_output: Callable[[str], None] | None = None
    ) -> str:
        """Run a command of a person's in the sandbox, between two answers; return what it came to,
        as the model would read it. Cancelling kills it. Raises SandboxError and ValueError."""
        assert self._sandbox is not None, "it is not open"
        outcome = await self._sandbox.run(command, seconds=seconds, on_output=on_output)
        return told_outcome(outcome)

    async def read_file(self, path: str, *, max_bytes: int) -> bytes:
        """Return the beginning of a file as the sandbox shows it. Raises OSError, and ValueError
        for what is no file."""
        assert self._sandbox is not None, "it is not open"
        return (await self._sandbox.read_file(path, max_bytes=max_bytes)).content

    def interrupt(self, by: str = "the user") -> None:
        """End what is under way and keep what there is of it; `say` then returns. by: whoever does
        so, as the model is told"""
        if self._agent is not None:
            self._agent.interrupt(by)

    def _is_answered(self) -> bool:
        """Return whether only the word that it is done was lost. Raises ValueError if that is not
        lost either, and nobody said anything since."""
        steps, said = self.trajectory.steps, self.trajectory.said
        if not steps and not said:
            raise ValueError(f"run {self.run.name} has no task yet, say what to do")
        if said or steps[-1].answer.message.tool_calls:
            return False
        if self.trajectory.end == "done":
            raise ValueError(f"run {self.run.name} is done, say what to do next")
        return steps[-1].answer.finish_reason == "stop"

    def _take_back_what_was_cut(self) -> None:
        """Take back an answer that was cut off, so that it is asked for again."""
        steps = self.trajectory.steps
        if steps and not self.trajectory.said and not steps[-1].answer.message.tool_calls:
            self.run.append({"type": "rewound", "num_steps": len(steps) - 1})

    # ---- the model's side ----------------------------------------------------------------------

    async def _memory(self) -> Memory:
        run = self.run
        if run.facts.session is None:
            return PlainMemory()
        if self._open_session is None:
            raise ValueError(f"run {run.name} needs {run.facts.model}, the model it was begun with")
        session = await asyncio.to_thread(self._session)
        if len(session.transcript.turns) < len(run.trajectory.steps):
            run.trajectory = with_ids(run.trajectory, session.transcript)
        return SessionMemory(session, self._next_session)

    def _session(self) -> Session:
        """Open the session that the run goes on in."""
        name = self.archive.session_name(self.run)
        assert name is not None
        assert self._open_session is not None
        assert self.archive.sessions is not None, "a run with a session needs their store"
        self._sessions.close()
        self._sessions.enter_context(self.archive.sessions.used_by_one(name))
        return self._open_session(name)

    def _next_session(self) -> Session:
        """Begin the session after a summary; one of that name is left of what was taken back."""
        self._sessions.close()
        self.archive.settle_session(self.run)
        return self._session()


def with_ids(trajectory: Trajectory, transcript: Transcript) -> Trajectory:
    """Return a trajectory that was read from a log with the ids of its answers on their messages,
    as they had them when they were sampled. Those of a transcript's turns have them from there;
    this is for answers that stand before its first turn, or were lost."""
    changed = trajectory.copy()
    for place, step in enumerate(trajectory.steps):
        sampled, message = step.answer.sampled, step.answer.message
        if sampled is None or message.sampled is not None:
            continue
        ids = sampled_ids(
            transcript.format,
            transcript.tokenizer,
            sampled.answer_ids,
            step.answer.params,
            has_end=step.answer.finish_reason == "stop",
        )
        answer = replace(step.answer, message=replace(message, sampled=ids))
        changed.steps[place] = replace(step, answer=answer)
    return changed


def run_settings(**settings: Any) -> dict[str, Any]:
    """Return settings that are kept with a run, without those that say nothing."""
    return {name: value for name, value in settings.items() if value not in (None, (), [], {})}
