"""fulmen train rl: reinforcement learning from a run file, seen as it goes.

Stdout gets the folder of the trained model, or with --json a line a step. At a terminal the latest
steps stand in a live table on stderr, with a sample of what the policy says; elsewhere each step is
a line there.
"""

import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import typer
from rich.console import Group as Stack
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from fulmen.cli.help import examples
from fulmen.cli.output import harmless, print_json
from fulmen.cli.progress import stderr
from fulmen.cli.train import stopping

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.train import Gathered

RL_EXAMPLES: Final = examples("""
fulmen train rl runs/fork.toml
fulmen train rl runs/fork.toml --set trainer.num_steps=60
""")
_ROWS: Final = 12
"""Steps that the live table shows"""
_SAMPLE_CHARS: Final = 1200
_COLUMNS: Final[tuple[tuple[str, str, str], ...]] = (
    ("reward", "reward", ".3f"),
    ("length", "length_p50", ".0f"),
    ("99 %", "length_p99", ".0f"),
    ("entropy", "entropy", ".3f"),
    ("capped", "capped_share", ".2%"),
    ("max ratio", "max_ratio", ".2f"),
    ("norm", "grad_norm", ".2g"),
    ("used", "groups_used", ".0f"),
    ("alike", "groups_alike", ".0f"),
    ("dropped", "groups_dropped", ".0f"),
    ("updates", "updates", ".0f"),
)
"""Heading, name in the record, and how it is written"""


class TrainingView:
    """Watcher of a run, for people on stderr and programs on stdout."""

    def __init__(self, num_steps: int, *, has_lines: bool) -> None:
        """has_lines: a JSON line a step on stdout"""
        self._num_steps = num_steps
        self._has_lines = has_lines
        self._rows: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=_ROWS)
        self._sample = ""
        self._filled = ""
        self._said: deque[str] = deque(maxlen=3)
        self._live = Live(console=stderr, auto_refresh=False) if stderr.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def gathered(self, gathered: "Gathered", wanted: int) -> None:
        """Show how far a batch is filled: a refill is never silent."""
        self._filled = (
            f"round {gathered.num_rounds}: {len(gathered.groups)} of {wanted} groups, "
            f"{gathered.num_alike} with equal rewards, {gathered.num_dropped} dropped, "
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
        self._rows.append((step, record))
        self._sample = harmless(text)
        if self._has_lines:
            print_json({"step": step, **record})
            sys.stdout.flush()
        if self._live is None:
            numbers = ", ".join(
                f"{heading} {format(record[name], form)}"
                for heading, name, form in _COLUMNS
                if record.get(name) is not None
            )
            print(f"step {step} of {self._num_steps}: {numbers}", file=sys.stderr)
        self._draw()

    def probed(self, step: int, rates: Mapping[str, float]) -> None:
        """Show how good the policy is at what it is claimed to do."""
        shown = ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items())
        self.said(f"probe after step {step}: {shown}")

    def said(self, sentence: str) -> None:
        """Show a sentence."""
        self._said.append(sentence)
        if self._live is None:
            print(sentence, file=sys.stderr)
        self._draw()

    def _draw(self) -> None:
        if self._live is None:
            return
        table = Table(box=None, padding=(0, 1))
        table.add_column(f"step of {self._num_steps}", justify="right")
        for heading, _, _ in _COLUMNS:
            table.add_column(heading, justify="right")
        for step, record in self._rows:
            cells = [
                "" if record.get(name) is None else format(record[name], form)
                for _, name, form in _COLUMNS
            ]
            table.add_row(str(step), *cells)
        sample = self._sample[:_SAMPLE_CHARS]
        said = [escape(one) for one in (*self._said, self._filled) if one]
        self._live.update(
            Stack(table, Panel(escape(sample), title="a sample"), *said), refresh=True
        )


def rl(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Run file, TOML.")],
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Value that beats the file: optimizer.eps=1e-15."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each step as JSON.")] = False,
) -> None:
    """Train a model by reinforcement learning.

    A run whose folder has a saved state goes on from it. Ctrl-C ends it after the step under way, a
    second one at once.
    """
    from fulmen.train import (
        RLRun,
        RolloutError,
        TrainingError,
        latest_state,
        model_folder,
        open_run,
        read_run_file,
    )

    run = read_run_file(file, RLRun, assign or ())
    with TrainingView(run.trainer.num_steps, has_lines=as_json) as view:
        try:
            with open_run(run, watcher=view) as trainer, stopping() as should_stop:
                is_done = trainer.run(should_stop=should_stop)
                num_steps = trainer.num_steps
        except (RolloutError, TrainingError) as error:
            raise ValueError(str(error)) from None
    if not is_done:
        print(
            f"stopped after step {num_steps} of {run.trainer.num_steps}, the same command goes on "
            f"from {run.folder}",
            file=sys.stderr,
        )
        raise typer.Exit(130)
    state = latest_state(run.folder)
    assert state is not None  # the last step is saved
    print(model_folder(state), file=sys.stderr if as_json else sys.stdout)
