"""View of a training run on stderr: how far it is, the time left, losses and loads, and its probes.

Each run has a bar of its own, a branch below its trunk. The time left is what the run took so far,
token for token: so branches, probes and states are in it.
"""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fulmen.cli.progress import stderr
from fulmen.files import printable
from fulmen.train import ProbeResult, StepReport, Watcher

if TYPE_CHECKING:
    from fulmen.train import LMConfig

_LINE_SECONDS: Final = 10.0
"""Seconds between lines where no bar can be drawn"""
_SMOOTHING: Final = 0.1
"""Share of a new step in the speed that is shown"""
_BAR_WIDTH: Final = 20


class TrainView(Watcher):
    """Watcher that draws what it is told; where stderr is no terminal, a line now and then."""

    def __init__(self, config: "LMConfig", tokens: int, *, later_seconds: float = 0.0) -> None:
        """tokens         those that the run has read before
        later_seconds  time of what comes after the run, which is in the time left
        """
        self._config = config
        self._tokens = tokens
        self._later_seconds = later_seconds
        self._branch: tuple[LMConfig, int] | None = None
        """Branch that runs now, and its tokens"""
        self._read = 0
        """Tokens read since the view began, by branches too"""
        self._speed: float | None = None
        self._numbers: tuple[str, ...] = ()
        self._work: str | None = None
        self._work_began = self._began = time.monotonic()
        self._said_at = -_LINE_SECONDS
        self._live = Live(
            console=stderr, transient=True, get_renderable=self.drawn, refresh_per_second=4
        )

    def __enter__(self) -> "TrainView":
        if stderr.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def stepped(self, report: StepReport, config: "LMConfig") -> None:
        """Show a step."""
        self._read += report.step_tokens
        speed = report.step_tokens / max(report.seconds, 1e-9)
        before = speed if self._speed is None else self._speed
        self._speed = before + _SMOOTHING * (speed - before)
        if config.out == self._config.out:
            self._tokens, self._branch = report.tokens, None
        else:
            self._branch = (config, report.tokens)
        self._numbers = _numbers(report, config, self._speed)
        now = time.monotonic()
        if not self._live.is_started and now - self._said_at >= _LINE_SECONDS:
            self._said_at = now
            bars = [f"{name} {share:.0%}".strip() for name, share in self._shares()]
            line = "  ".join([*self._numbers, *bars, self._left()])
            stderr.print(line, markup=False, soft_wrap=True)

    def probed(self, step: int, result: ProbeResult) -> None:
        """Show a probe and its samples."""
        title = f"step {step}"
        if self._branch is not None:
            title = f"{_name_of(self._branch[0])}, {title}"
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        table.add_column("task")
        for name in ("right", "loss", "documents"):
            table.add_column(name, justify="right")
        for task, scores in result.tasks.items():
            right = f"{scores['right']:.0%}" if "right" in scores else ""
            loss = f"{scores['loss']:.4f}" if "loss" in scores else ""
            table.add_row(escape(task), right, loss, f"{scores.get('documents', 0):.0f}")
        stderr.print(table)
        for sample in result.samples:
            mark = "right" if sample.is_right else f"wrong, it is {_one_line(sample.answer)}"
            said = f"  {_one_line(sample.prompt)} -> {_one_line(sample.said)}  ({mark})"
            stderr.print(said, markup=False, soft_wrap=True)

    def said(self, sentence: str) -> None:
        """Show a sentence."""
        stderr.print(sentence, markup=False, soft_wrap=True)

    def began(self, work: str | None) -> None:
        """Show what takes time besides steps."""
        self._work, self._work_began = work, time.monotonic()

    def drawn(self) -> RenderableType:
        """Return what stands at the bottom of a terminal."""
        lines: list[RenderableType] = []
        for name, share in self._shares():
            row = Table.grid(padding=(0, 1))
            row.add_column(width=_BAR_WIDTH)
            row.add_column()
            text = name or (self._left() if self._read else "")
            row.add_row(ProgressBar(1.0, share), Text(f"{text}  {share:.0%}".strip()))
            lines.append(row)
        lines += map(Text, self._numbers)
        if self._work is not None:
            lines.append(Text(f"{self._work}, {shown_time(time.monotonic() - self._work_began)}"))
        return Group(*lines)

    def _shares(self) -> list[tuple[str, float]]:
        """Return the name and the share that is done of the run, which has none, and its branch."""
        found = [("", min(self._tokens / self._config.num_tokens, 1.0))]
        if self._branch is not None:
            config, tokens = self._branch
            found.append((_name_of(config), min(tokens / config.num_tokens, 1.0)))
        return found

    def _left(self) -> str:
        seconds = (time.monotonic() - self._began) / max(self._read, 1)
        done = None if self._branch is None else self._branch[1]
        left = tokens_left(self._config, self._tokens, done) * seconds + self._later_seconds
        return f"{shown_time(left)} left"


def tokens_left(config: "LMConfig", tokens: int, branch_tokens: int | None) -> int:
    """Return how many tokens a run has still to read, its branches among them.

    tokens         read by the run itself
    branch_tokens  read by the branch that runs now; None for no branch
    """
    left = max(config.num_tokens - tokens, 0)
    if config.branches.every is not None:
        ends = (tokens, max(config.num_tokens, tokens))
        begun, all_of_them = (end // config.branches.every for end in ends)
        left += (all_of_them - begun) * config.branches.length
    if branch_tokens is not None:
        left += max(config.branches.length - branch_tokens, 0)
    return left


def shown_time(seconds: float) -> str:
    """Return a time as people read it: 45 s, 12 min, 3 h 05."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02}"


def _numbers(report: StepReport, config: "LMConfig", speed: float) -> tuple[str, ...]:
    """Return the numbers of a step in lines, the most wanted ones first."""
    lines = [
        f"step {report.step}  loss {report.loss:.4f}  {speed:,.0f} tokens/s",
        f"norm {report.norm:.2f}  rate {report.factor:.2f}  load {report.max_load:.2f}",
    ]
    if len(config.stages) > 1:
        lines[1] += f"  stage {report.stage + 1} of {len(config.stages)}"
    if len(report.task_losses) > 1:
        known = [name for name in config.tasks if name in report.task_losses]
        lines.append(
            "  ".join(f"{printable(name)} {report.task_losses[name]:.4f}" for name in known)
        )
    left_out = [
        f"{count:,} {why}"
        for count, why in (
            (report.num_too_long, "too long"),
            (report.num_contaminated, "in evaluation sets"),
        )
        if count
    ]
    if left_out:
        lines.append(f"documents left out: {', '.join(left_out)}")
    return tuple(lines)


def _name_of(branch: "LMConfig") -> str:
    return f"decay from step {int(branch.out.name.rpartition('-')[2])}"


def _one_line(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= 100 else f"{line[:100]}..."
