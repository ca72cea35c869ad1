"""A conversation at a terminal: what is sent is done, one thing after the other, and shown.

    Front.next -> words for the agent | a command in the sandbox | a command to the terminal

The agent, the keys and the drawing share one event loop. What takes a run back or opens another one
waits for the work, and asks its questions line by line, with the region away.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from prompt_toolkit.input import Input
from rich.segment import Segment

from fulmen.agent import MODES, Mode, Trajectory
from fulmen.cli.agent_run import Talk, read_step
from fulmen.cli.agent_view import EXIT_CODES, show_diff
from fulmen.cli.lines import open_history
from fulmen.cli.terminal.asking import ScreenAsker
from fulmen.cli.terminal.branches import branches_of, family, steps_of
from fulmen.cli.terminal.completing import FileNames, TypedCompleter
from fulmen.cli.terminal.given import kept_commands, mentioned, read_mentioned, told_command
from fulmen.cli.terminal.numbers import of_limit, short_count, usage_rows
from fulmen.cli.terminal.region import Region
from fulmen.cli.terminal.screen import Screen, WholeOutput, open_input
from fulmen.cli.terminal.state import Entry, Front, Option, Said, Shell, Slash
from fulmen.cli.terminal.team import TeamSeen
from fulmen.cli.terminal.view import ScreenView
from fulmen.cli.terminal.waiting import WaitingWords
from fulmen.files import explain, printable

COMMANDS: Final[Mapping[str, str]] = {
    "branches": "list the runs that come from one beginning, and go to one",
    "clear": "clear the screen; the run stays as it is",
    "diff": "show what changed since a step, 0 if omitted",
    "exit": "leave; so does Ctrl-D",
    "fork": "go another way from a step, in a new folder",
    "help": "list commands and keys",
    "mode": "let a mode hold: plan, ask, accept-edits or auto",
    "rewind": "go back to a step: files, conversation, the model's states",
    "team": "list the agents of the team, and what each does",
    "thinking": "show thoughts, or hide them",
    "usage": "show the tokens of the run and of its last answer",
}
_AT_ONCE: Final = ("diff", "exit", "help", "mode", "team", "thinking", "usage")
"""Commands that need not wait for the work"""
_KEYS: Final = """\
Enter           send; while it works, it is read behind the call under way
Alt-Enter       a new line; so do Ctrl-J, and a backslash before Enter
Esc             interrupt; what waits is sent then. Twice at rest: go back
Shift-Tab       the next mode: ask, accept-edits, auto, plan
Tab             complete a command or, behind an @, a file that is given along
Up              take back what waits, to change it; else what was sent before
Ctrl-R          search in what was sent before
!COMMAND        run a command in the sandbox; your next words give it along
Ctrl-C          interrupt, or clear the line; a second one leaves"""
_NEXT_MODE: Final[Mapping[str, Mode]] = {
    "ask": "accept-edits",
    "accept-edits": "auto",
    "auto": "plan",
    "plan": "ask",
}
_TICK_SECONDS: Final = 0.1
_SETTLED_SECONDS: Final = 1.0
"""Time after which a mode holds that was come to while the agent works: one may only pass by"""
_SHELL_SECONDS: Final = 600.0


class Conversation:
    """One person at one terminal."""

    def __init__(
        self,
        *,
        show_thinking: bool = True,
        plain: bool = False,
        keys: Input | None = None,
        output: WholeOutput | None = None,
    ) -> None:
        """keys, output: the terminal if omitted"""
        self.front = Front(tuple(COMMANDS))
        self.screen = Screen(output)
        self.view = ScreenView(self.screen, show_thinking=show_thinking, plain=plain)
        self.asker = ScreenAsker(self.view, self.screen, self.front)
        self.waiting = WaitingWords(self.front, brings=self._brings_more, delivered=self.view.said)
        self.team = TeamSeen()
        self._keys = keys
        self._talk: Talk | None = None
        self._region: Region | None = None
        self._mode: Mode = "ask"
        self._mode_timer: asyncio.TimerHandle | None = None
        self._given: list[str] = []
        """Commands that a person ran, and what they came to, for the model"""
        self._shell: asyncio.Task[str] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._code = 0

    @property
    def talk(self) -> Talk:
        """The work on the run."""
        assert self._talk is not None, "it has not begun"
        return self._talk

    @property
    def region(self) -> Region:
        """All that is drawn below the scrollback."""
        assert self._region is not None, "it has not begun"
        return self._region

    def converse(self, talk: Talk, words: str | None) -> int:
        """Let the agent work on words, if there are any, then on those that are sent, until the
        person leaves; return the exit code of the last work."""
        self._talk = talk
        assert talk.means is not None
        self._mode = talk.means.permissions.mode
        try:
            talk.run(self._converse(words))
        except (KeyboardInterrupt, SystemExit):
            if self._task is not None:
                self._task.cancel()
                with suppress(asyncio.CancelledError):
                    talk.run(_done(self._task))
            raise
        talk.tell_how_to_go_on()
        return talk.interrupts.exit_code or self._code

    async def _converse(self, words: str | None) -> None:
        self._task = asyncio.current_task()
        self._open_region()
        app = self.region.app
        drawing = asyncio.create_task(
            app.run_async(handle_sigint=False, set_exception_handler=False)
        )
        ticking = asyncio.create_task(self._tick())
        working = asyncio.create_task(self._work_on_all(words))
        try:
            await asyncio.wait([drawing, working], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():  # no key can come any more
                self.interrupt()
                self.front.leave()
            await working
        finally:
            ticking.cancel()
            working.cancel()
            if not drawing.done() and app.is_running:
                app.exit()
            await asyncio.wait([drawing, ticking, working])
            if not drawing.cancelled():
                drawing.exception()
            self.screen.app = None
            self.screen.print_now()

    def _commands(self) -> dict[str, str]:
        """Return the names of all commands, and what each does; those of folders come last, and
        hide none of ours."""
        found = dict(COMMANDS)
        for one in self.talk.folders.commands:
            found.setdefault(one.name, printable(one.description or f"{one.name} {one.hint}"))
        return found

    def _open_region(self) -> None:
        self.front.commands = tuple(self._commands())
        folder = Path(self.talk.work.run.facts.folder)
        self._region = self.asker.region = Region(
            self.front,
            self,
            keys=self._keys or open_input(),
            output=self.screen.output,
            completer=TypedCompleter(self._commands(), FileNames(folder)),
            history=open_history(),
            has_colors=self.screen.console.color_system is not None,
        )
        self.screen.app = self.region.app
        self._stand()
        if self.talk.work.trajectory.steps:
            self.view.recall(self.talk.work.trajectory)

    async def _tick(self) -> None:
        """Draw what grows, and the time that passes."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            is_drawn_anew = self.front.is_working and self.front.choice is None
            if is_drawn_anew and self.view.refresh(
                max(self.region.most_live - self.team.num_rows, 1)
            ):
                self.region.app.invalidate()

    async def _work_on_all(self, words: str | None) -> None:
        if words:
            self.front.queue.append(Said(words.removeprefix("/") if words[:2] == "//" else words))
        interrupts = self.talk.interrupts
        while interrupts.exit_code is None:
            with interrupts.interrupting(self):
                entry = await self.front.next()
            if entry is None:
                return
            try:
                await self._do(entry)
            except ValueError as error:
                self.view.note(str(error))
                _ = self.talk.work  # raises where the run could not be opened again
            except OSError as error:
                self.view.note(explain(error))
            self._stand()

    def _stand(self) -> None:
        """Take note of how the run stands."""
        trajectory = self.talk.work.trajectory
        is_begun = bool(trajectory.steps or trajectory.said)
        self.front.can_go_on = trajectory.end != "done" and is_begun
        self.region.app.invalidate()

    async def _do(self, entry: Entry) -> None:
        match entry:
            case Said(text):
                await self._say(text)
            case Shell(command):
                await self._run_command(command)
            case Slash(name, rest):
                await self._obey(name, rest)

    # ---- the agent works -------------------------------------------------------------------------

    async def _say(self, text: str) -> None:
        """Let the agent work on words, or go on if there are none."""
        await self._settle_mode()
        if text:
            self.view.said(text)
        words = await self._with_given(text) if text else None
        talk, front, view = self.talk, self.front, self.view
        view.since, view.activity = time.monotonic(), "waiting for the model"
        front.is_working = True
        try:
            with talk.interrupts.interrupting(self):
                self._code = await talk.answer(words)
        finally:
            front.is_working = False
            talk.tell_end()
        if self._code == EXIT_CODES["sandbox"]:
            async with self.screen.suspended():
                await talk.open_again()
            view.note("the sandbox was begun anew: say what to do")

    def _brings_more(self, text: str) -> bool:
        """Tell whether words bring files or commands along, which are read at rest."""
        return bool(self._given) or bool(mentioned(text))

    async def _with_given(self, text: str) -> str:
        """Return words with the files that they name, and the commands that were run before."""
        names, files = await read_mentioned(self.talk.work, text)
        for name in names:
            self.view.note_dim(f"  {printable(name)} is given to the model")
        parts = [*self._given, text, *files]
        self._given.clear()
        return "\n\n".join(parts)

    async def _run_command(self, command: str) -> None:
        """Run a command of the person's, and keep for the model what it came to."""
        await self._settle_mode()
        view, front = self.view, self.front
        view.said(f"!{command}")
        view.since, view.activity = time.monotonic(), "running your command"
        running = self.talk.work.run_command(command, seconds=_SHELL_SECONDS, on_output=view.output)
        self._shell = asyncio.ensure_future(running)
        front.is_working = True
        try:
            with self.talk.interrupts.interrupting(self):
                text = await self._shell
        except asyncio.CancelledError:
            if not self._shell.cancelled():
                raise
            text = "(ended by the user before it was done)"
        finally:
            front.is_working, self._shell = False, None
        view.command_result(text)
        self._given = kept_commands([*self._given, told_command(command, text)])

    # ---- what keys ask for -----------------------------------------------------------------------

    def interrupt(self) -> None:
        """End what is under way; after a signal, or at rest, leave."""
        if self._shell is not None:
            self._shell.cancel()  # the agent rests, and its next work is not meant
        elif self.front.is_working:
            with suppress(ValueError):
                self.talk.work.interrupt()
        if not self.front.is_working or self.talk.interrupts.exit_code is not None:
            self.front.leave()

    def sent(self) -> None:
        """Do at once what need not wait for the work."""
        if not self.front.is_working:
            return
        command = self.front.at_once(_AT_ONCE)
        if command is not None and command.name == "exit":
            self.interrupt()
            self.front.leave()
        elif command is not None:
            try:
                self._tell(command.name, command.rest)
            except (ValueError, OSError) as error:
                self.view.note(str(error))

    def next_mode(self) -> None:
        """Let the next mode hold."""
        self._choose_mode(_NEXT_MODE[self._mode])

    def _choose_mode(self, mode: Mode) -> None:
        self._mode = mode
        if self._mode_timer is not None:
            self._mode_timer.cancel()
            self._mode_timer = None
        means = self.talk.means
        assert means is not None
        if self.front.is_working and "plan" in (mode, means.permissions.mode):
            self.front.notice = "holds from your next message on"
        elif self.front.is_working:
            loop = asyncio.get_running_loop()
            self._mode_timer = loop.call_later(_SETTLED_SECONDS, self._set_mode, mode)
        self.region.app.invalidate()

    def _set_mode(self, mode: Mode) -> None:
        assert self.talk.means is not None
        self.talk.means.permissions.mode = mode

    async def _settle_mode(self) -> None:
        """Let the mode hold that was chosen; a sandbox may have to be begun anew for it."""
        if self._mode_timer is not None:
            self._mode_timer.cancel()
            self._mode_timer = None
        assert self.talk.means is not None
        if self.talk.means.permissions.mode != self._mode:
            async with self.screen.suspended():
                await self.talk.change_mode(self._mode)

    # ---- what is seen ----------------------------------------------------------------------------

    def live(self) -> Sequence[Sequence[Segment]]:
        """Return the lines that still grow, and what the agents of a team do."""
        if not self.front.is_working or not self.team.num_rows:
            return self.view.live
        return [*self.view.live, *self.team.rows(self.screen.console.width)]

    def doing(self) -> tuple[str, float]:
        """Return what is done, and for how many seconds."""
        return self.view.activity, time.monotonic() - self.view.since

    def bar(self) -> Sequence[str]:
        """Return the parts of the bottom line."""
        try:
            work = self.talk.work
        except ValueError:
            return [self._mode]
        trajectory, means = work.trajectory, self.talk.means
        assert means is not None
        parts = [self._mode, of_limit("step", len(trajectory.steps), means.budget.turns)]
        new = trajectory.num_new_tokens
        limit = "" if means.budget.tokens is None else f" of {short_count(means.budget.tokens)}"
        parts.append(f"{short_count(new)}{limit} tokens")
        if trajectory.steps:
            last = trajectory.steps[-1].answer
            taken = last.num_prompt_tokens + last.num_new_tokens
            if means.context:
                parts.append(f"context {min(100 * taken // means.context, 100)}%")
            if last.num_prompt_tokens:
                parts.append(f"cache {100 * last.num_cached_tokens // last.num_prompt_tokens}%")
        if means.budget.seconds is not None:
            parts.append(f"at most {means.budget.seconds:,.0f} s")
        model = printable(work.run.facts.model)
        return [*parts, model if len(model) <= 40 else f"...{model[-37:]}", "/help"]

    # ---- commands --------------------------------------------------------------------------------

    async def _obey(self, name: str, rest: str) -> None:
        match name:
            case "exit":
                self.front.leave()
            case "clear":
                self.screen.clear()
            case "rewind":
                await self._rewind(rest)
            case "fork":
                await self._fork(rest)
            case "branches":
                await self._choose_branch()
            case _ if name in COMMANDS:
                self._tell(name, rest)
            case _:  # one of a folder
                await self._say(self.talk.folders.expanded(f"/{name} {rest}".rstrip()))

    def _tell(self, name: str, rest: str) -> None:
        """Run a command that changes nothing of the run."""
        view = self.view
        if name != "mode":
            view.said(f"/{name} {rest}".rstrip())
        match name:
            case "help":
                rows = [f"/{one:<14} {what}" for one, what in self._commands().items()]
                view.lines([*rows, "", *_KEYS.split("\n")])
            case "diff":
                first = read_step(rest or "0")
                total = len(self.talk.work.trajectory.steps)
                text = self.talk.archive.diff(self.talk.name, first, total)
                show_diff(text or "nothing changed", self.screen.console)
            case "mode":
                if rest and rest not in MODES:
                    raise ValueError(f"{rest[:40]!r} is no mode, they are {', '.join(MODES)}")
                self._choose_mode(rest) if rest else self.next_mode()  # type: ignore[arg-type]
            case "team":
                view.lines(self.team.told(self.screen.console.width))
            case "thinking":
                view.shows_thinking = not view.shows_thinking
                view.lines([f"thoughts are {'shown' if view.shows_thinking else 'hidden'}"])
            case "usage":
                view.lines(usage_rows(self.talk.work.trajectory))

    async def _rewind(self, rest: str) -> None:
        trajectory = self.talk.work.trajectory
        if rest:
            await self._take_back(read_step(rest))
            return
        key, step = await self._choose_step(trajectory, "go back to", {"f": "forks from there"})
        if key == "enter":
            await self._take_back(step)
        elif key == "f":
            await self._fork(str(step))

    async def _choose_step(
        self, trajectory: Trajectory, title: str, actions: Mapping[str, str]
    ) -> tuple[str, int]:
        steps = steps_of(trajectory)
        if len(steps) < 2:
            raise ValueError("there is no step yet")
        last = len(steps) - 1
        return await self.front.choose(title, list(map(Option, steps)), index=last, actions=actions)

    async def _take_back(self, step: int) -> None:
        """Go back to a step, and put the words that were said next into the line."""
        async with self.screen.suspended():
            await self.talk.open_again(lambda: self.talk.take_back(step))
        said = self.talk.work.trajectory.said
        if said:
            self.region.put(said[-1].content)

    async def _fork(self, rest: str) -> None:
        """Go another way from a step: in a new folder, with another run."""
        talk = self.talk
        total = len(talk.work.trajectory.steps)
        step = read_step(rest) if rest else total
        name = talk.archive.free_name(talk.name)
        folder = Path(f"{talk.work.run.facts.folder}-{name}")
        forked = await asyncio.to_thread(talk.archive.fork, talk.name, step, folder, new=name)
        self.view.note(f"forked after step {step}; its files are in {printable(str(folder))}")
        await self._switch(forked.name)
        said = talk.work.trajectory.said
        if said:
            self.region.put(said[-1].content)

    async def _choose_branch(self) -> None:
        talk = self.talk
        found = await asyncio.to_thread(family, talk.archive, talk.name)
        names = [one.facts.name for one in found]
        rows = [Option(row) for row in branches_of(found, talk.name)]
        key, place = await self.front.choose("go to", rows, index=names.index(talk.name))
        if key == "enter" and names[place] != talk.name:
            await self._switch(names[place])
            self.view.recall(talk.work.trajectory)

    async def _switch(self, name: str) -> None:
        async with self.screen.suspended():
            self.team.clear()
            await self.talk.switch(name)
        facts = self.talk.work.run.facts
        self.region.complete_files(FileNames(Path(facts.folder)))


async def _done(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])
