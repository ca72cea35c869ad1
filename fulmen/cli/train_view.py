"""View of a training run on stderr: a bar with loss, speed and the time left, and its probes."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from fulmen.cli.progress import stderr
from fulmen.files import printable
from fulmen.train import ProbeResult, StepReport, Watcher

if TYPE_CHECKING:
    from fulmen.train import LMConfig

_LINE_SECONDS: Final = 10.0
"""Seconds between lines where no bar can be drawn"""
_SMOOTHING: Final = 0.1
"""Share of a new step in the speed that is shown"""


class TrainView(Watcher):
    """Watcher that draws what it is told; where stderr is no terminal, a line now and then."""

    def __init__(self, config: "LMConfig", tokens: int) -> None:
        self._total = config.num_tokens
        self._tokens = tokens
        self._speed: float | None = None
        self._said_at = -_LINE_SECONDS
        self._progress = Progress(
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            console=stderr,
            transient=True,
            disable=not stderr.is_terminal,
        )
        self._bar = self._progress.add_task("", total=self._total, completed=tokens)

    def __enter__(self) -> "TrainView":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def stepped(self, report: StepReport, config: "LMConfig") -> None:
        """Show a step."""
        speed = report.step_tokens / max(report.seconds, 1e-9)
        before = speed if self._speed is None else self._speed
        self._speed = before + _SMOOTHING * (speed - before)
        left = max(config.num_tokens - report.tokens, 0) / self._speed
        line = (
            f"step {report.step}  loss {report.loss:.4f}  norm {report.norm:.2f}  "
            f"{self._speed:,.0f} tokens/s  {shown_time(left)} left"
        )
        self._progress.update(
            self._bar, completed=report.tokens, total=config.num_tokens, description=line
        )
        now = time.monotonic()
        if self._progress.disable and now - self._said_at >= _LINE_SECONDS:
            self._said_at = now
            stderr.print(line, markup=False, soft_wrap=True)

    def probed(self, step: int, result: ProbeResult) -> None:
        """Show a probe and its samples."""
        table = Table(box=None, pad_edge=False, title=f"step {step}", title_justify="left")
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


def shown_time(seconds: float) -> str:
    """Return a time as people read it: 45 s, 12 min, 3 h 05."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02}"


def _one_line(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= 100 else f"{line[:100]}..."
