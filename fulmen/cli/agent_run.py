"""One run of an agent on the command line: begun or gone on with, asked for, interrupted, told.

    Wanted (flags) -> Run -> model -> Work -> say(words) -> exit code

Without a terminal nobody can be asked: what asks is refused, and the exit code says so. Ctrl-C ends
what is under way and keeps what there is; a second one leaves at once, and loses no step either.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from fulmen.agent import (
    Archive,
    ChangedSince,
    Means,
    Run,
    Setup,
    Work,
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
from fulmen.cli.agent_view import EXIT_CODES, View, show_diff
from fulmen.cli.agent_wanted import Wanted, budget_of
from fulmen.cli.lines import LineReader
from fulmen.cli.progress import stderr
from fulmen.llm import LLM, LocalModel, RemoteModel
from fulmen.sampling import SamplingParams
from fulmen.sandbox import Access, SandboxError, check_access
from fulmen.sessions import Session

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


def begin(archive: Archive, wanted: Wanted, side: Side, setup: Setup, settings: Any) -> Run:
    """Make the run that flags ask for."""
    place = Path(os.path.realpath(wanted.folder))
    is_read_only = (wanted.mode or setup.config.mode) == "plan"
    if place.is_dir():  # before all of it is saved; what is none is told of there
        check_access(Access(folder=place, is_read_only=is_read_only))
    tools = wanted.tools or setup.config.tools or side.own_tools or "coding"
    text = system_prompt(tools, setup.text)
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
    ) -> None:
        """
        is_new     the run is forgotten in the end if nothing was said in it
        overwrite  as in `Work`
        declined   settings that somebody did not approve just now, see `read_setup`
        """
        self.view = view
        self.name = run.name
        self._archive, self._side, self._wanted = archive, side, wanted
        self._asks = asks
        self._is_new = is_new
        self._overwrite = overwrite
        self._declined = set() if declined is None else declined
        self._interrupts = Interrupts()
        self._model: ChatModel | None = None
        self._work: Work | None = None
        self._task: asyncio.Task[Any] | None = None
        """The work under way"""
        self._end: Callable[[], None] | None = None
        """Tells how the work ended, once that is all"""
        self._asker = Asker(view, self._interrupts, asks=asks)
        self._runner = asyncio.Runner()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Take the run, and make model and sandbox ready."""
        with self._runner, self._interrupts.installed():
            self._interrupts.loop = self._runner.get_loop()
            try:
                self._runner.run(self._open())
                yield
            finally:
                self._interrupts.is_closing = True
                try:
                    self._runner.run(self._close())
                finally:
                    self._tell_end()
                self._forget_if_empty()

    def _tell_end(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end()

    async def _open(self) -> None:
        if self._model is None:
            self._model = self._side.open()
        run = self._archive.runs.open(self.name)
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
        config, llm = setup.config, self._side.llm
        limits: dict[str, Any] = {**config.limits, **wanted.limits}
        if llm is None and "thinking_tokens" not in wanted.limits:
            limits.pop("thinking_tokens", None)  # a server has no such limit
        context = limits.get("context")
        if context is None and llm is not None:
            context = llm.engine.max_model_len
        has_network = config.has_network if wanted.has_network is None else wanted.has_network
        means = Means(
            permissions=permissions,
            budget=budget_of(limits),
            params=self._side.params(wanted.sampling),
            context=context,
            has_network=bool(has_network),
            writable=wanted.writable,
            environment=config.environment,
            approve=self._asker,
            watcher=self.view,
            on_output=self.view.output,
        )
        self._work = await self._opened_work(means)
        work = self._work
        fields = {
            "run": self.name,
            "folder": facts.folder,
            "model": facts.model,
            "tools": facts.tools,
            "mode": permissions.mode,
        }
        self.view.begin(fields, work.trajectory)
        for note in work.notes:
            self.view.note(note)

    async def _opened_work(self, means: Means) -> Work:
        """Open the work on the run; where a person's files would be overwritten, ask first."""
        assert self._model is not None
        overwrite = self._overwrite
        while True:
            work = Work(
                self._archive,
                self.name,
                self._model,
                means,
                open_session=self._open_session,
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
        trajectory = self._archive.runs.open(self.name).trajectory
        if self._is_new and not trajectory.steps and not trajectory.said:
            self._archive.remove(self.name, prunes=False)

    def _open_session(self, name: str) -> Session:
        assert self._side.llm is not None
        assert self._archive.sessions is not None
        loop, model = self._runner.get_loop(), self._model

        def between(work: Callable[[], R], /) -> R:
            assert isinstance(model, LocalModel)
            call = asyncio.run_coroutine_threadsafe(model.call(work), loop)
            result: R = call.result()
            return result

        return Session(
            self._side.llm,
            self._archive.sessions,
            name,
            model=self._side.name,
            keep_thoughts=True,
            between=between,
        )

    def say(self, words: str | None) -> int:
        """Let the agent work on words, or go on; return the exit code for how that ended. It is
        told to the view when all is closed."""
        work = self._work
        assert work is not None
        self._end = self._ending(work, "error")
        refused_before = self._asker.num_refused
        with self._interrupts.interrupting(work):
            try:
                reason: str = self._runner.run(self._said(work, words))
            except KeyboardInterrupt:
                self._end = self._ending(work, "interrupted")
                if self._task is not None:  # it would go on while all is closed
                    self._task.cancel()
                    self._runner.run(_ended(self._task))
                raise
            except ModelError:  # the view has its note
                reason = "error"
            except SandboxError as error:
                self.view.note(str(error))
                reason = "sandbox"
        num_refused = self._asker.num_refused - refused_before
        code = EXIT_CODES[reason]
        if reason == "done" and num_refused:
            code = EXIT_CODES["refused"]
        if self._interrupts.exit_code is not None:
            code = self._interrupts.exit_code
        self._end = self._ending(work, reason, code, num_refused)
        return code

    def _ending(
        self, work: Work, reason: str, code: int | None = None, num_refused: int = 0
    ) -> Callable[[], None]:
        code = self._interrupts.exit_code or EXIT_CODES[reason] if code is None else code
        return lambda: self.view.end(reason, code, work.trajectory, num_refused)

    async def _said(self, work: Work, words: str | None) -> str:
        self._task = asyncio.current_task()
        try:
            return await work.say(words)
        finally:
            self._interrupts.ended()

    def converse(self, words: str | None, reader: LineReader) -> int:
        """Let the agent work on words, if there are any, then ask for the next ones, until the
        person leaves; return the exit code of the last work."""
        code = 0
        while True:
            try:
                if words is not None and words.startswith("//"):
                    words = words.removeprefix("/")
                if words is not None:
                    code = self.say(words or None)
                    self._tell_end()
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
            if self._interrupts.exit_code is not None:
                break
        trajectory = self._archive.runs.open(self.name).trajectory
        if trajectory.steps or trajectory.said:
            told = f"fulmen agent --resume {self.name} goes on here"
            stderr.print(told, style="dim", markup=False)
        return code

    def _next_words(self, reader: LineReader) -> str | None:
        """Read the next words: empty to go on where the run was ended, None for a command, which
        is run, and for nothing. Raises EOFError where the person leaves."""
        work = self._work
        assert work is not None
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
            case "/diff":
                total = len(work.trajectory.steps)
                text = self._archive.diff(self.name, _step(rest or "0"), total)
                show_diff(text or "nothing changed")
            case "/rewind":
                self._rewind(_step(rest))
            case _:
                raise ValueError(f"{name} is no command, /help lists them")
        return None

    def _begin_anew(self) -> None:
        """Put another sandbox in the place of one that failed."""
        self._runner.run(self._close(with_model=False))
        self._runner.run(self._open())
        self.view.note("the sandbox was begun anew: say what to do")

    def _rewind(self, num_steps: int) -> None:
        """Go back to a step; the sandbox is begun anew, so that nothing in it holds files."""
        self._runner.run(self._close(with_model=False))
        try:
            rewind_asking(self._archive, self.name, num_steps, asks=self._asks)
        finally:
            self._runner.run(self._open())


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


def _step(text: str) -> int:
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
