"""View of a speedrun on stderr: each part as it begins, within it the view of its own command; and
its tables on stdout."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Final

from rich.table import Table

from fulmen.cli.progress import count_progress, stderr
from fulmen.cli.train_rl_view import TrainingView
from fulmen.cli.train_view import TrainView, shown_time
from fulmen.train import SpeedrunWatcher

if TYPE_CHECKING:
    from fulmen.catalog import Record
    from fulmen.train import LMConfig, Recipe, RLRun, SpeedrunPlan

_LINE_SECONDS: Final = 10.0
"""Seconds between lines about scores where no bar can be drawn"""


class SpeedrunView(SpeedrunWatcher):
    """Watcher of a speedrun, for people on stderr."""

    def began(self, stage: str, work: str, seconds_left: float | None) -> None:
        """Show a part as it begins."""
        left = "" if seconds_left is None else f"; {shown_time(seconds_left)} until all is done"
        self.said(f"{stage}: {work}{left}")

    def said(self, sentence: str) -> None:
        """Show a sentence."""
        stderr.print(sentence, markup=False, soft_wrap=True)

    def learning(
        self, config: "LMConfig", tokens: int, later_seconds: float
    ) -> AbstractContextManager[TrainView]:
        """Return the view of `fulmen train lm`, whose time left is that of all."""
        return TrainView(config, tokens, later_seconds=later_seconds)

    def practising(
        self, run: "RLRun", later_seconds: float
    ) -> AbstractContextManager[TrainingView]:
        """Return the view of `fulmen train rl`, whose time left is that of all."""
        return TrainingView(
            run.trainer.num_steps,
            has_lines=False,
            max_seconds=run.trainer.max_seconds,
            later_seconds=later_seconds,
        )

    @contextmanager
    def scoring(self) -> Iterator[Callable[[int, int], None]]:
        """Draw how many tasks have been asked."""
        said_at = -_LINE_SECONDS
        with count_progress("asking tasks") as draw:

            def report(done: int, total: int) -> None:
                nonlocal said_at
                draw(done, total)
                now = time.monotonic()
                if not stderr.is_terminal and now - said_at >= _LINE_SECONDS:
                    said_at = now
                    self.said(f"{done} of {total} tasks are asked")

            yield report


def plan_table(plan: "SpeedrunPlan", recipe: "Recipe") -> Table:
    """Return the parts of a run, with their sizes and times."""
    config = plan.learn_config(recipe)
    title = f"{plan.name} in {plan.hours:g} hours, {plan.tokens_per_second:,.0f} tokens/s"
    table = _table(f"{title} on {plan.machine}", "part", "size", "time")
    table.add_row("learn", f"{config.num_tokens:,} tokens", shown_time(plan.learn_seconds))
    for number, stage in enumerate(config.stages, start=1):
        table.add_row(f"  stage {number}", f"{stage.tokens:,} tokens of {stage.length} at most", "")
    schedule = config.schedule
    table.add_row("  the rate rises", f"for {schedule.warmup:,} tokens", "")
    if schedule.decay_start is not None:
        table.add_row("  the rate falls", f"from {schedule.decay_start:,} tokens on", "")
    steps = recipe.practice.trainer.num_steps
    table.add_row("practice", f"{steps:,} steps at most", shown_time(plan.practice_seconds))
    asked = f"{len(recipe.scores.environments)} x {recipe.scores.tasks} tasks"
    table.add_row("scores", asked, shown_time(plan.scores_seconds))
    return table


def record_table(record: "Record") -> Table:
    """Return what a finished model was made from, and what it can do."""
    table = _table(record.machine, "", "right", "tasks", "95 %")
    for stage in record.stages:
        left = "" if stage.is_kept else ", left out"
        table.add_row(f"{stage.name}{left}", f"{stage.tokens:,} tokens", shown_time(stage.seconds))
    table.add_section()
    for score in record.scores:
        table.add_row(
            score.name,
            f"{score.right / score.tasks:.1%}",
            f"{score.tasks:,}",
            f"{score.low:.1%} to {score.high:.1%}",
        )
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
