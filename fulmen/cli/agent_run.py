"""One run of an agent on the command line: begun or gone on with, asked for, interrupted, told.

    Wanted (flags) -> Run -> model -> Work -> say(words) -> exit code

Without a terminal nobody can be asked: what asks is refused, and the exit code says so. Ctrl-C ends
what is under way and keeps what there is; a second one leaves at once, and loses no step either.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fulmen.agent import (
    Archive,
    ChangedSince,
    Folders,
    Inbox,
    Means,
    Mode,
    Notes,
    Run,
    Setup,
    Team,
    TeamWatcher,
    Work,
    lead_words,
    run_settings,
    system_prompt,
)
from fulmen.catalog import find_card
from fulmen.chat import ChatModel, Message, ModelError
from fulmen.cli.agent_asking import (
    SAVING,
    Asker,
    Interrupts,
    check_overwriting,
    read_setup,
    rewind_asking,
    told_if_slow,
)
from fulmen.cli.agent_means import means_of, session_opener
from fulmen.cli.agent_view import EXIT_CODES, View, show_diff
from fulmen.cli.agent_wanted import Wanted
from fulmen.cli.lines import LineReader
from fulmen.cli.output import harmless
from fulmen.cli.progress import stderr
from fulmen.llm import LLM, LocalModel, RemoteModel
from fulmen.sampling import SamplingParams
from fulmen.sandbox import Access, SandboxError, check_access
from fulmen.sessions import Session

if TYPE_CHECKING:
    from fulmen.cli.watching import Feed, PageAsker

R = TypeVar("R")

_ALWAYS_SENT: Final = frozenset({"max_tokens", "tool_choice"})
"""Sampling fields that an agent itself sets, sent to a server whatever flags were given"""


@dataclass(frozen=True, slots=True)
class Side:
    """The model's side of a run: a model on this machine, or one at a URL."""

    name: str
    llm: LLM | None = None
    remote: RemoteModel | None = None

    def open(self) -> ChatModel:
        """Return the model; in the event loop that it is used in."""
        if self.llm is not None:
            return LocalModel(self.llm)
        assert self.remote is not None
        return self.remote

    @property
    def own_tools(self) -> str | None:
        """Tool profile that the model's card names, if it has a card that names one."""
        name = self.name if self.remote is None else self.remote.name
        card = None if name is None else find_card(name)
        return None if card is None else card.agent_profile

    def params(self, given: Mapping[str, Any]) -> SamplingParams:
        """Return how answers are sampled; given are the fields whose flags were given."""
        if self.llm is not None:
            return replace(self.llm.defaults, **given)
        assert self.remote is not None
        self.remote.sends = frozenset(given) | _ALWAYS_SENT
        return SamplingParams(**given)


def tools_of(wanted: Wanted, side: Side, setup: Setup) -> str:
    """Return the profile of tools that a new run has."""
    return wanted.tools or setup.config.tools or side.own_tools or "coding"


def begin(archive: Archive, wanted: Wanted, side: Side, setup: Setup, settings: Any) -> Run:
    """Make the run that flags ask for."""
    place = Path(os.path.realpath(wanted.folder))
    is_read_only = (wanted.mode or setup.config.mode) == "plan"
    if place.is_dir():  # before all of it is saved; what is none is told of there
        check_access(Access(folder=place, is_read_only=is_read_only))
    tools = tools_of(wanted, side, setup)
    notes = Notes(archive.runs.root, setup.workspace).words if setup.config.has_notes else ""
    words = [setup.text, notes, "" if wanted.team is None else lead_words(wanted.team)]
    text = system_prompt(tools, "\n\n".join(one for one in words if one))
    return archive.begin(
        wanted.folder,
        model=side.name,
        tools=tools,
        system=(Message("system", text),) if text else (),
        has_session=side.llm is not None,
        settings=run_settings(**settings),
    )


class Talk:
    """A person, or a script, and the work on one run."""

    def __init__(
        self,
        archive: Archive,
        run: Run,
        side: Side,
        wanted: Wanted,
        view: View,
        *,
        asks: bool,
        is_new: bool,
        overwrite: bool = False,
        declined: set[bytes] | None = None,
        asker: Asker | None = None,
        inbox: Inbox | None = None,
        team_watcher: TeamWatcher | None = None,
        feed: "Feed | None" = None,
    ) -> None:
        """
        is_new     the run is forgotten in the end if nothing was said in it
        overwrite  as in `Work`
        declined   settings that somebody did not approve just now, see `read_setup`
        asker      asks about calls; on stderr, a line at a time, if omitted
        team_watcher  sees what the agents of a team do
        inbox      has words that a person sends while the agent works
        feed       tells those who watch on a page, and has their answers
        """
        self.view: View = view
        self.name = run.name
        self.archive = archive
        self.interrupts = Interrupts()
        self.means: Means | None = None
        """Everything that the open run is gone on with"""
        self._side, self._wanted = side, wanted
        self._asks = asks
        self._is_new = is_new
        self._overwrite = overwrite
        self._declined = set() if declined is None else declined
        self._model: ChatModel | None = None
        self._work: Work | None = None
        self._task: asyncio.Task[Any] | None = None
        """The work under way"""
        self._end: Callable[[], None] | None = None
        """Tells how the work ended, once that is all"""
        own = asker or Asker(view, self.interrupts, asks=asks)
        self._asker: Asker | PageAsker = own
        self._inbox = inbox
        self._team_watcher = team_watcher
        if feed is not None:
            from fulmen.cli import watching

            self.view = watching.Both((view, watching.FeedView(feed)))
            self._asker = watching.PageAsker(own, feed, view)
            self._team_watcher = watching.FeedTeam(feed, team_watcher)
        self._runner = asyncio.Runner()
        self.folders = Folders()
        """Commands that words may stand for, once the run is opened"""

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Take the run, and make model and sandbox ready."""
        with self._runner, self.interrupts.installed():
            self.interrupts.loop = self._runner.get_loop()
            try:
                self._runner.run(self._open())
                yield
            finally:
                self.interrupts.is_closing = True
                try:
                    self._runner.run(self._close())
                finally:
                    self.tell_end()
                self._forget_if_empty()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run what is asynchronous, in the loop that the work on the run is done in."""
        return self._runner.run(work)

    @property
    def work(self) -> Work:
        """The work on the run. Raises ValueError where it could not be opened again."""
        if self._work is None:
            raise ValueError(f"run {self.name} is not open")
        return self._work

    def tell_end(self) -> None:
        """Tell the view how the last work ended, unless that is done."""
        end, self._end = self._end, None
        if end is not None:
            end()

    async def _open(self) -> None:
        if self._model is None:
            self._model = self._side.open()
        run = self.archive.runs.open(self.name)
        facts, wanted = run.facts, self._wanted
        seen_as = Path(facts.seen_as)
        setup = read_setup(
            Path(facts.folder),
            seen_as=seen_as,
            asks=self._asks,
            view=self.view,
            declined=self._declined,
        )
        permissions = setup.permissions(seen_as=seen_as, mode=wanted.mode, rules=wanted.rules)
        self._asker.remember = permissions.remember
        self.folders = setup.folders
        self.means = means = means_of(
            setup,
            wanted,
            self._side,
            permissions,
            approve=self._asker,
            watcher=self.view,
            on_output=self.view.output,
            runs=self.archive.runs.root,
        )
        self.means = means = replace(means, inbox=self._inbox)
        team = None
        if wanted.team is not None:
            team = Team(
                *(wanted.team, self.archive, self.name, self._model, means),
                instructions=setup.text,
                open_session=self._session_opener(),
                tell=self.view.note,
                watcher=self._team_watcher,
                hands_of=lambda kind, place: setup.more_hands(
                    folder=place, only_reads=not kind.is_worker
                ),
            )
        self._work = await self._opened_work(means, team)
        work = self._work
        fields: dict[str, Any] = {
            "run": self.name,
            "folder": facts.folder,
            "model": facts.model,
            "tools": facts.tools,
            "mode": permissions.mode,
        }
        most = means.budget.tokens if wanted.team is None else wanted.team.max_tokens
        if most is not None:
            fields["max_tokens"] = most
        self.view.begin(fields, work.trajectory)
        for note in work.notes:
            self.view.note(note)

    def _session_opener(self) -> Callable[[str], Session]:
        assert self._model is not None
        loop = self._runner.get_loop()
        return session_opener(self._side, self.archive, self._model, loop)

    async def _opened_work(self, means: Means, team: Team | None) -> Work:
        """Open the work on the run, or that of a team's lead; where a person's files would be
        overwritten, ask first."""
        assert self._model is not None
        open_session, overwrite = self._session_opener(), self._overwrite
        while True:
            if team is not None:
                work = team.lead(overwrite=overwrite)
            else:
                work = Work(
                    self.archive,
                    self.name,
                    self._model,
                    means,
                    open_session=open_session,
                    overwrite=overwrite,
                )
            try:
                with told_if_slow(self.view, SAVING):
                    return await work.__aenter__()
            except ChangedSince as error:
                check_overwriting(error, asks=self._asks)
                overwrite = True

    async def _close(self, *, with_model: bool = True) -> None:
        work, self._work = self._work, None
        if work is not None:
            num_notes = len(work.notes)
            await work.__aexit__()
            for note in work.notes[num_notes:]:
                self.view.note(note)
        if with_model and self._model is not None:
            await self._model.close()  # type: ignore[attr-defined]

    def _forget_if_empty(self) -> None:
        trajectory = self.archive.runs.open(self.name).trajectory
        if self._is_new and not trajectory.steps and not trajectory.said:
            self.archive.remove(self.name, prunes=False)

    def say(self, words: str | None) -> int:
        """Let the agent work on words, or go on; return the exit code for how that ended. It is
        told to the view when all is closed."""
        with self.interrupts.interrupting(self.work):
            try:
                return self._runner.run(self.answer(words))
            except KeyboardInterrupt:
                self._end = self._ending(self.work, "interrupted")
                if self._task is not None:  # it would go on while all is closed
                    self._task.cancel()
                    self._runner.run(_ended(self._task))
                raise

    async def answer(self, words: str | None) -> int:
        """Let the agent work on words, or go on; return the exit code, see `tell_end`."""
        work = self.work
        self._task = asyncio.current_task()
        self._end = self._ending(work, "error")
        refused_before = self._asker.num_refused
        try:
            reason: str = await work.say(words)
        except ModelError:  # the view has its note
            reason = "error"
        except SandboxError as error:
            self.view.note(str(error))
            reason = "sandbox"
        finally:
            self.interrupts.ended()
        num_refused = self._asker.num_refused - refused_before
        code = EXIT_CODES[reason]
        if reason == "done" and num_refused:
            code = EXIT_CODES["refused"]
        if self.interrupts.exit_code is not None:
            code = self.interrupts.exit_code
        self._end = self._ending(work, reason, code, num_refused)
        return code

    def _ending(
        self, work: Work, reason: str, code: int | None = None, num_refused: int = 0
    ) -> Callable[[], None]:
        code = self.interrupts.exit_code or EXIT_CODES[reason] if code is None else code
        return lambda: self.view.end(reason, code, work.trajectory, num_refused)

    def converse(self, words: str | None, reader: LineReader) -> int:
        """Let the agent work on words, if there are any, then ask for the next ones, until the
        person leaves; return the exit code of the last work."""
        code = 0
        while True:
            try:
                if words is not None and words.startswith("//"):
                    words = words.removeprefix("/")
                elif words is not None:
                    words = self.folders.expanded(words)
                if words is not None:
                    code = self.say(words or None)
                    self.tell_end()
                    if code == EXIT_CODES["sandbox"]:
                        self._begin_anew()
                words = self._next_words(reader)
            except ValueError as error:
                self._end = None
                self.view.note(str(error))
                words = None
                if self._work is None:  # the run could not be opened again
                    code = EXIT_CODES["error"]
                    break
            except (EOFError, KeyboardInterrupt):
                if self._work is None:
                    raise
                stderr.print()
                break
            if self.interrupts.exit_code is not None:
                break
        self.tell_how_to_go_on()
        return code

    def _next_words(self, reader: LineReader) -> str | None:
        """Read the next words: empty to go on where the run was ended, None for a command, which
        is run, and for nothing. Raises EOFError where the person leaves."""
        work = self.work
        trajectory = work.trajectory
        can_go_on = trajectory.end != "done" and bool(trajectory.steps or trajectory.said)
        if can_go_on:
            stderr.print("an empty line goes on where it stands", style="dim", markup=False)
        text = reader.read().strip()
        name, _, rest = text.partition(" ")
        if not name.startswith("/") or name.startswith("//"):
            return text if text or can_go_on else None
        match name:
            case "/exit" | "/quit":
                raise EOFError
            case "/help":
                stderr.print(HELP, markup=False, soft_wrap=True)
                for one in self.folders.commands:
                    told = harmless(f"/{one.name} {one.hint}".ljust(15) + f" {one.description}")
                    stderr.print(told, markup=False, soft_wrap=True)
            case "/diff":
                total = len(work.trajectory.steps)
                text = self.archive.diff(self.name, read_step(rest or "0"), total)
                show_diff(text or "nothing changed")
            case "/rewind":
                self._rewind(read_step(rest))
            case _:
                if self.folders.expanded(text) != text:
                    return text
                raise ValueError(f"{name} is no command, /help lists them")
        return None

    def tell_how_to_go_on(self) -> None:
        """Tell the command that goes on with the run, if anything was said in it."""
        trajectory = self.archive.runs.open(self.name).trajectory
        if trajectory.steps or trajectory.said:
            told = f"fulmen agent --resume {self.name} goes on here"
            stderr.print(told, style="dim", markup=False)

    def _begin_anew(self) -> None:
        """Put another sandbox in the place of one that failed."""
        self._runner.run(self.open_again())
        self.view.note("the sandbox was begun anew: say what to do")

    def _rewind(self, num_steps: int) -> None:
        """Go back to a step."""
        self._runner.run(self.open_again(lambda: self.take_back(num_steps)))

    def take_back(self, num_steps: int) -> None:
        """Take the run, which is closed, back to a step."""
        rewind_asking(self.archive, self.name, num_steps, asks=self._asks)

    async def open_again(self, change: Callable[[], None] | None = None) -> None:
        """Close the run, let something change it, and open it with another sandbox, so that
        nothing in it holds files."""
        await self._close(with_model=False)
        try:
            if change is not None:
                change()
        finally:
            await self._open()

    async def switch(self, name: str) -> None:
        """Go on with another run of the same model; with this one where that cannot be opened."""
        before = self.name
        await self._close(with_model=False)
        self.name = name
        try:
            await self._open()
        except BaseException:
            self.name = before
            await self._open()
            raise
        self.name = before
        self._forget_if_empty()
        self.name, self._is_new = name, False

    async def change_mode(self, mode: Mode) -> None:
        """Let another mode hold from now on; a sandbox that may not be written to, or may be again,
        is another one."""
        self._wanted = replace(self._wanted, mode=mode)
        assert self.means is not None
        is_same_sandbox = (mode == "plan") == (self.means.permissions.mode == "plan")
        self.means.permissions.mode = mode
        if not is_same_sandbox:
            await self.open_again()


HELP: Final = """\
/diff [STEP]    show what changed since a step, 0 if omitted
/rewind STEP    go back to the end of a step: files, conversation and the model's states
/help           list the commands
/exit           leave; so does Ctrl-D
Ctrl-C ends what is under way and keeps what there is, an empty line then goes on with it; a second
Ctrl-C leaves."""


async def _ended(task: asyncio.Task[Any]) -> None:
    """Wait until a task that was cancelled has ended, however."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


def read_step(text: str) -> int:
    """Return the number of a step. Raises ValueError for what is none."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f"{text[:40]!r} is no number of a step")
    return int(text)


def last_run(archive: Archive, folder: Path) -> str:
    """Return the run in a folder that was used last. Raises ValueError if there is none."""
    place = os.path.realpath(folder)
    for name in archive.runs.names():
        try:
            if archive.runs.facts(name).folder == place:
                return name
        except ValueError:
            continue  # it cannot be read, `fulmen agent list` says why
    raise ValueError(f"there is no run in {folder} yet, begin one with fulmen agent TASK")
