"""View of a run of reinforcement learning on stderr: its latest steps, a sample, and what happens.

At a terminal the steps stand in a live table with a sample of what the policy says; elsewhere each
step is a line. How far a round of answers is, is seen while it is drawn.
"""

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Self

from rich.console import Group as Stack
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from fulmen.cli.output import harmless, print_json
from fulmen.cli.progress import stderr
from fulmen.cli.train_view import shown_time
from fulmen.train import Gathered, RLWatcher

_ROWS: Final = 12
"""Steps that the live table shows"""
_SAMPLE_CHARS: Final = 1200
_DRAW_SECONDS: Final = 0.25
"""Seconds between changes of the live table while answers are drawn"""
_LINE_SECONDS: Final = 10.0
"""Seconds between lines about them where there is no table"""
_SMOOTHING: Final = 0.2
"""Share of a new step in the time that the rest is expected to take"""
_COLUMNS: Final[tuple[tuple[str, str, str], ...]] = (
    ("reward", "reward", ".3f"),
    ("length", "length_p50", ".0f"),
    ("99 %", "length_p99", ".0f"),
    ("entropy", "entropy", ".3f"),
    ("capped", "capped_share", ".2%"),
    ("max ratio", "max_ratio", ".2f"),
    ("agree", "mismatch/correlation", ".4f"),
    ("norm", "grad_norm", ".2g"),
    ("used", "groups_used", ".0f"),
    ("idle", "groups_idle", ".0f"),
    ("dropped", "groups_dropped", ".0f"),
    ("updates", "updates", ".0f"),
)
"""Heading, name in the record, and how it is written"""


class TrainingView(RLWatcher):
    """Watcher of a run, for people on stderr and programs on stdout."""

    def __init__(
        self,
        num_steps: int,
        *,
        has_lines: bool,
        max_seconds: float | None = None,
        later_seconds: float = 0.0,
    ) -> None:
        """num_steps, max_seconds  ends of the run, whichever comes first
        has_lines      a JSON line a step on stdout
        later_seconds  time of what comes after the run, which is in the time left
        """
        self._num_steps = num_steps
        self._max_seconds = max_seconds
        self._later_seconds = later_seconds
        self._has_lines = has_lines
        self._rows: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=_ROWS)
        self._sample = ""
        self._filled = ""
        self._drawn = ""
        self._shown_at = time.monotonic()
        self._stepped_at = time.monotonic()
        self._step_seconds: float | None = None
        self._left = ""
        self._live = Live(console=stderr, auto_refresh=False) if stderr.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def drawing(self, ended: int, total: int, tokens_per_second: float) -> None:
        """Show how far a round of answers is."""
        now = time.monotonic()
        if now - self._shown_at < (_LINE_SECONDS if self._live is None else _DRAW_SECONDS):
            return
        self._shown_at = now
        self._drawn = f"{ended} of {total} answers have ended, {tokens_per_second:,.0f} tokens/s"
        if self._live is None:
            print(self._drawn, file=sys.stderr)
        self._draw()

    def gathered(self, gathered: Gathered, wanted: int) -> None:
        """Show how far a batch is filled: a refill is never silent."""
        self._drawn = ""
        self._filled = (
            f"round {gathered.num_rounds}: {len(gathered.groups)} of {wanted} groups, "
            f"{gathered.num_idle} without an advantage, {gathered.num_dropped} dropped, "
            f"{gathered.failures.total()} rollouts failed"
        )
        if gathered.failures:
            kinds = ", ".join(f"{count} {kind}" for kind, count in gathered.failures.items())
            self._filled += f" ({kinds})"
        self._draw()
        if self._live is None and (gathered.num_rounds > 1 or gathered.failures):
            print(self._filled, file=sys.stderr)

    def stepped(self, step: int, record: Mapping[str, Any], text: str) -> None:
        """Show a step."""
        now = time.monotonic()
        seconds, self._stepped_at = now - self._stepped_at, now
        before = seconds if self._step_seconds is None else self._step_seconds
        self._step_seconds = before + _SMOOTHING * (seconds - before)
        left = (self._num_steps - step) * self._step_seconds
        if self._max_seconds is not None:
            left = min(left, max(self._max_seconds - record["seconds"]["so_far"], 0.0))
        self._left = f"{shown_time(left + self._later_seconds)} left"
        self._rows.append((step, record))
        self._sample = harmless(text) or self._sample
        if self._has_lines:
            print_json({"step": step, **record})
            sys.stdout.flush()
        if self._live is None:
            numbers = ", ".join(
                f"{heading} {cell}" for heading, cell in _cells(record).items() if cell
            )
            line = f"step {step} of {self._num_steps}: {numbers}, {self._left}"
            print(line, file=sys.stderr)
        self._draw()

    def probed(self, step: int, rates: Mapping[str, float]) -> None:
        """Show how good the policy is at what it is claimed to do."""
        self._drawn = ""
        if self._step_seconds is None:
            self._stepped_at = time.monotonic()  # the first step begins here
        shown = ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items())
        self.said(f"probe after step {step}: {shown}")

    def said(self, sentence: str) -> None:
        """Show a sentence, above the table."""
        stderr.print(sentence, markup=False, soft_wrap=True)

    def _draw(self) -> None:
        if self._live is None:
            return
        table = Table(box=None, padding=(0, 1))
        table.add_column(f"step of {self._num_steps}", justify="right")
        for heading, _, _ in _COLUMNS:
            table.add_column(heading, justify="right")
        for step, record in self._rows:
            table.add_row(str(step), *_cells(record).values())
        sample = self._sample[:_SAMPLE_CHARS]
        said = [escape(one) for one in (self._left, self._filled, self._drawn) if one]
        self._live.update(
            Stack(table, Panel(escape(sample), title="a sample"), *said), refresh=True
        )


def _cells(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a step's numbers as they are written, by heading; empty where there is none."""
    found = {}
    for heading, name, form in _COLUMNS:
        value: Any = record
        for part in name.split("/"):
            value = None if value is None else value.get(part)
        found[heading] = "" if value is None else format(value, form)
    return found
