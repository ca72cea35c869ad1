"""Steps that CISPO, DAPO and GRPO need to find a rare way of answering.

    python benchmarks/fork_task.py
    python benchmarks/fork_task.py --seeds 8 --rate 3e-4

The fork task of `fulmen.train`: the better of two ways of answering begins with two percent of the
answers. All arms start from one warm start a seed, and make 16 updates of each batch of 32 groups
of 8. A step is a batch. Before it stands the check: on-policy, no token's importance ratio may
differ from 1 in any bit, in any batch.

The report's claim of half the steps (arXiv:2506.13585, Figure 2) is for a model of 32B and a
benchmark of mathematics. Here the direction and the mechanism show: clipped objectives drop the
rare first token after the first update of a batch.
"""

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import torch
import typer
from measure import console, print_json, print_setup, run
from rich.table import Table

from fulmen.checkpoints import save_model
from fulmen.kernels import set_num_threads
from fulmen.models import new_model
from fulmen.train import (
    BatchConfig,
    CurriculumConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RLRun,
    SamplingConfig,
    SourceConfig,
    TrainerConfig,
    fork_config,
    open_run,
    read_metrics,
    warm_start,
)
from fulmen.train.rl.probe import ProbeConfig

PROBED: Final = "fork (held out)"


@dataclass(frozen=True)
class Arm:
    """An algorithm as it is compared."""

    objective: ObjectiveConfig
    dynamic_sampling: bool = True


ARMS: Final[Mapping[str, Arm]] = {
    "cispo": Arm(ObjectiveConfig(algorithm="cispo", scope="batch")),
    "dapo": Arm(ObjectiveConfig(algorithm="dapo", scope="batch")),
    "grpo": Arm(ObjectiveConfig(algorithm="grpo", scope="batch"), dynamic_sampling=False),
    "grpo + dynamic": Arm(ObjectiveConfig(algorithm="grpo", scope="batch")),
    "cispo + eq. 7": Arm(
        ObjectiveConfig(algorithm="cispo", scope="batch", clip_low=0.2, clip_high=0.28)
    ),
}


def run_of(folder: Path, model: Path, arm: Arm, *, seed: int, rate: float, steps: int) -> RLRun:
    """Return the run of one arm from one warm start."""
    return RLRun(
        folder=folder,
        model=model,
        dtype="float32",
        trainer=TrainerConfig(
            num_steps=steps,
            num_groups=32,
            dynamic_sampling=arm.dynamic_sampling,
            save_every=steps,
            keep=1,
            seed=seed,
        ),
        sources=(SourceConfig(levels=("fork",)),),
        sampling=SamplingConfig(group_size=8, max_tokens=8, repetition_window=None),
        objective=arm.objective,
        batch=BatchConfig(num_minibatches=16, min_groups=1),
        curriculum=CurriculumConfig(),
        optimizer=OptimizerConfig(learning_rate=rate),
        probe=ProbeConfig(every=1, num_tasks=512, max_drop=1.0),
    )


def play(one_run: RLRun) -> dict[str, Any]:
    """Train one arm; return its curves."""
    begin = time.perf_counter()
    with open_run(one_run) as trainer:
        trainer.run()
    seconds = time.perf_counter() - begin
    records = read_metrics(one_run.folder, "step")
    wrong = sum(int(one["mismatch"].get("different_tokens", 0)) for one in records)
    assert wrong == 0, f"{wrong} tokens had another ratio than 1 on-policy"
    accuracies = [one[PROBED] for one in read_metrics(one_run.folder, "probe")]
    return {
        "accuracy": accuracies,
        "counted": [one.get("reward_part/counted", 0.0) for one in records],
        "capped": statistics.fmean(one.get("capped_share", 0.0) for one in records),
        "masked": statistics.fmean(one.get("masked_share", 0.0) for one in records),
        "max_ratio": max(one.get("max_ratio", 1.0) for one in records),
        "entropy": [one.get("entropy", math.nan) for one in records],
        "tokens": sum(one["tokens"] for one in records),
        "seconds": seconds,
    }


def first_at(values: Sequence[float], least: float) -> int | None:
    """Return the step at which values first reach the least; None if they never do."""
    return next((place for place, value in enumerate(values) if value >= least), None)


def shown(values: Sequence[int | None]) -> str:
    """Return steps as a cell: each, and their mean if all are known."""
    each = ", ".join("never" if one is None else str(one) for one in values)
    known = [one for one in values if one is not None]
    return f"{each} ({statistics.fmean(known):.1f})" if len(known) == len(values) else each


def main(
    seeds: Annotated[int, typer.Option(help="Warm starts, and runs of each arm.")] = 3,
    rate: Annotated[float, typer.Option(help="Learning rate of every arm.")] = 3e-4,
    steps: Annotated[int, typer.Option(help="Batches of a run.")] = 45,
    arms: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(ARMS),
) -> None:
    """Compare objectives on the fork task. A table goes to stderr, one JSON line to stdout."""
    torch.set_num_threads(1)
    set_num_threads(1)
    names = arms.split(",")
    for name in names:
        if name not in ARMS:
            raise typer.BadParameter(f"{name} is no arm, they are {', '.join(ARMS)}")
    print_setup(1, {})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with TemporaryDirectory() as root:
        for seed in range(seeds):
            warm = Path(root) / f"warm-{seed}"
            model = new_model(fork_config(), seed=seed)
            warm_start(model, seed=seed)
            save_model(model, warm)
            for name in names:
                folder = Path(root) / f"{name.replace(' ', '')}-{seed}"
                found[name].append(
                    play(run_of(folder, warm, ARMS[name], seed=seed, rate=rate, steps=steps))
                )
                print(
                    f"seed {seed}, {name}: {found[name][-1]['accuracy'][-1]:.3f}", file=sys.stderr
                )
    table = Table(title=f"learning rate {rate:g}, {steps} batches, {seeds} seeds")
    for heading in (
        *("objective", "half take the way at", "accuracy 0.25 at", "last 5", "capped", "masked"),
        *("largest ratio", "tokens", "seconds"),
    ):
        table.add_column(heading)
    for name, rows in found.items():
        last = [statistics.fmean(row["accuracy"][-5:]) for row in rows]
        table.add_row(
            name,
            shown([first_at(row["counted"], 0.5) for row in rows]),
            shown([first_at(row["accuracy"], 0.25) for row in rows]),
            f"{', '.join(f'{one:.3f}' for one in last)} ({statistics.fmean(last):.3f})",
            f"{statistics.fmean(row['capped'] for row in rows):.2%}",
            f"{statistics.fmean(row['masked'] for row in rows):.2%}",
            f"{max(row['max_ratio'] for row in rows):.1f}",
            f"{statistics.fmean(row['tokens'] for row in rows):,.0f}",
            f"{statistics.fmean(row['seconds'] for row in rows):.0f}",
        )
    console.print(table)
    curves = Table(title="mean accuracy after so many batches")
    marks = range(0, steps + 1, 3)
    for heading in ("objective", *map(str, marks)):
        curves.add_column(heading)
    for name, rows in found.items():
        means = [statistics.fmean(row["accuracy"][mark] for row in rows) for mark in marks]
        curves.add_row(name, *(f"{one:.2f}" for one in means))
    console.print(curves)
    print_json("fork_task", {"rate": rate, "steps": steps, "runs": found})


if __name__ == "__main__":
    run(main)
