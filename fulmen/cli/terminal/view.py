"""The work on a run, as a person sees it come: thoughts, answers, calls and output.

Blocks that are finished go to the scrollback; `live` is what still grows.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from fulmen.agent import Trajectory, Verdict
from fulmen.chat import ContentDelta, Event, ThinkingDelta, ToolCall, ToolCallDelta, ToolCallStart
from fulmen.cli.agent_view import TerminalView
from fulmen.cli.markdown import render
from fulmen.cli.output import harmless
from fulmen.cli.terminal.growing import Growing, GrowingLines, GrowingMarkdown
from fulmen.cli.terminal.screen import Screen
from fulmen.files import printable

_THOUGHT: Final = Style(dim=True, italic=True)
_DIM: Final = Style(dim=True)
_MAX_TAIL: Final = 4_000
"""Characters of a command's output that are kept to be drawn"""
_MAX_TAIL_LINES: Final = 6
_MAX_SAID_LINES: Final = 12
_SHORTEST_PAUSE: Final = 0.08
"""Seconds between two drawings, at least"""
_PAUSE: Final = 5
"""Seconds to wait for each second that the last drawing took"""


class ScreenView(TerminalView):
    """A view that grows below the scrollback."""

    _mark = "● "

    def __init__(self, screen: Screen, *, show_thinking: bool, plain: bool) -> None:
        super().__init__(
            is_answer_last=False,
            show_thinking=show_thinking,
            plain=plain,
            console=screen.console,
        )
        self.activity = ""
        """Words for what is done just now"""
        self.since = 0.0
        """Time at which the work began, of a clock that never goes back"""
        self.trajectory: Trajectory | None = None
        self.is_diff_known = False
        """True if the diff of the call that runs was seen before it was allowed"""
        self.live: list[list[Segment]] = []
        """Lines that still grow"""
        self._screen = screen
        self._name = ""
        self._growing: Growing | None = None
        self._is_thought = False
        self._tail: deque[str] = deque()
        self._num_tail = 0
        self._written = 0
        """Characters of the call that is being written"""
        self._calling = ""
        self._next_drawing = 0.0

    @property
    def shows_thinking(self) -> bool:
        """True if thoughts are shown."""
        return self._show_thinking

    @shows_thinking.setter
    def shows_thinking(self, shows: bool) -> None:
        self._show_thinking = shows

    def begin(self, fields: Mapping[str, Any], trajectory: Trajectory) -> None:
        """Show which run it is, once, and how it stands."""
        self.trajectory = trajectory
        if trajectory.steps:
            self._calls = trajectory.steps[-1].answer.message.tool_calls
        if self._name != fields["run"]:
            self._name = fields["run"]
            super().begin(fields, trajectory)

    def said(self, text: str) -> None:
        """Show words of the person, as they were sent."""
        lines = harmless(text).split("\n")
        left = len(lines) - _MAX_SAID_LINES
        shown = lines[:_MAX_SAID_LINES] if left > 1 else lines
        shown = [line if len(line) <= 2000 else f"{line[:2000]}..." for line in shown]
        self._console.print()
        for place, line in enumerate(shown):
            self._line(f"{'> ' if place == 0 else '  '}{line}", "bold cyan")
        if left > 1:
            self._line(f"  ... {left:,} more lines", "dim")

    def lines(self, rows: Sequence[str]) -> None:
        """Show lines that are not the agent's."""
        for row in rows:
            self._line(row, None)

    def note_dim(self, text: str) -> None:
        """Show a sentence that few want to read."""
        self._line(text, "dim")

    def command_result(self, text: str) -> None:
        """Show what a command of the person's came to."""
        self._settle()
        self._show_lines(text, "dim")

    def recall(self, trajectory: Trajectory) -> None:
        """Show what was said and answered last."""
        if not trajectory.steps:
            return
        said = [one for step in trajectory.steps[-1:] for one in step.said]
        if said:
            self.said(said[-1].content)
        reply = trajectory.reply
        if reply is not None and reply.content.strip():
            self._begin(is_thought=False)
            assert self._growing is not None
            self._growing.write(reply.content.strip("\n"))
            self._settle()

    # ---- what comes ------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """Take a piece of an answer."""
        match event:
            case ThinkingDelta(text):
                self.activity = "thinking"
                if self._show_thinking:
                    self._grow(text, is_thought=True)
            case ContentDelta(text):
                if (self._growing is not None and not self._is_thought) or text.strip():
                    self.activity = "answering"
                    self._grow(text, is_thought=False)
            case ToolCallStart(_, _, name):
                self._written, self._calling = 0, printable(name)[:40]
                self.activity = f"writing a call of {self._calling}"
            case ToolCallDelta(_, arguments):
                self._written += len(arguments)
                told = f", {self._written:,} characters" if self._written > 1000 else ""
                self.activity = f"writing a call of {self._calling}{told}"

    def calling(self, call: ToolCall) -> None:
        """Show a call that begins."""
        self._settle()
        self.is_diff_known = False
        self._console.print()
        super().calling(call)
        self.activity = f"running {printable(call.name)[:40]}"

    def output(self, text: str) -> None:
        """Take what a command prints: its end is drawn while it runs."""
        text = text[-_MAX_TAIL:]
        self._tail.append(text)
        self._num_tail += len(text)
        while self._num_tail - len(self._tail[0]) >= _MAX_TAIL:
            self._num_tail -= len(self._tail.popleft())

    def record(self, record: Mapping[str, Any]) -> None:
        """Show a record."""
        if record["type"] in ("answer", "result"):
            self.activity = "waiting for the model"
        if record["type"] == "result" and self.is_diff_known and record["details"].get("diff"):
            self.is_diff_known = False
            record = {**record, "details": {**record["details"], "diff": ""}}
        super().record(record)

    def refuse(self, call: ToolCall, verdict: Verdict) -> None:
        """Show why."""
        self.note(f"refused: {verdict.reason}")

    def _grow(self, text: str, *, is_thought: bool) -> None:
        if self._growing is None or self._is_thought != is_thought:
            self._settle()
            self._begin(is_thought=is_thought)
        assert self._growing is not None
        self._growing.write(text)

    def _begin(self, *, is_thought: bool) -> None:
        self._is_thought = is_thought
        self._growing = GrowingLines() if is_thought or self._plain else GrowingMarkdown()

    def _settle(self) -> None:
        """Print all that grew."""
        growing, self._growing = self._growing, None
        if growing is not None:
            for block, is_begin in growing.close():
                self._print_block(block, is_begin)
        self._tail.clear()
        self._num_tail = 0
        self.live = []

    def _print_block(self, block: str, is_begin: bool) -> None:
        lines = self._rendered(block, self._screen.console)
        if not lines:
            return
        if is_begin:
            lines.insert(0, [])
        self._console.print(_Lines(lines), end="")

    def _rendered(self, block: str, console: Console) -> list[list[Segment]]:
        if self._is_thought or self._plain:
            style = _THOUGHT if self._is_thought else Style.null()
            options = console.options.update(height=None)
            return console.render_lines(Text(block, style), options, pad=False)
        return render(block, console)

    # ---- what is drawn ---------------------------------------------------------------------------

    def refresh(self, most: int) -> bool:
        """Print what was finished, and draw what grows: its last lines, at most so many. Return
        False where it is too early to draw again."""
        begin = time.monotonic()
        if begin < self._next_drawing:
            return False
        console = self._screen.console
        if self._growing is not None:
            for block, is_begin in self._growing.take():
                self._print_block(block, is_begin)
            rest, is_begin = self._growing.rest
            lines = self._rendered(rest, console) if rest.strip() else []
            if lines and is_begin:
                lines.insert(0, [])
            self.live = lines[-most:]
        elif self._tail:
            self.live = self._tail_lines(console.width)[-most:]
        else:
            self.live = []
        took = time.monotonic() - begin
        self._next_drawing = begin + max(_SHORTEST_PAUSE, _PAUSE * took)
        return True

    def _tail_lines(self, width: int) -> list[list[Segment]]:
        text = harmless("".join(self._tail)).expandtabs(4).rstrip("\n")
        lines = text.split("\n")[-_MAX_TAIL_LINES:]
        return [[Segment(f"    {line[: max(width - 6, 1)]}", _DIM)] for line in lines]


class _Lines:
    """Lines that were rendered."""

    def __init__(self, lines: list[list[Segment]]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Any, options: Any) -> Any:
        for line in self._lines:
            yield from line
            yield Segment.line()
