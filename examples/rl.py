"""Reinforcement learning in ten lines: CISPO raises a rare and better way of answering.

    python examples/rl.py FOLDER

The folder gets states and metrics.jsonl; the same command goes on where it was stopped.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fulmen.train import (
    BatchConfig,
    OptimizerConfig,
    RLRun,
    RLWatcher,
    SamplingConfig,
    SourceConfig,
    TrainerConfig,
    open_run,
)


class Printer(RLWatcher):
    """Prints each step."""

    def stepped(self, step: int, record: Mapping[str, Any], text: str) -> None:
        """Print a step."""
        print(f"reward {record.get('reward', 0):.2f}, capped {record.get('capped_share', 0):.2%}")


def train(folder: Path, num_steps: int = 45, model: Path = Path("fork")) -> None:
    """Train on the fork task, from its warm start if no checkpoint is given."""
    run = RLRun(
        folder=folder,
        model=model,
        dtype="float32",
        trainer=TrainerConfig(num_steps=num_steps),
        sources=(SourceConfig(levels=("fork",)),),
        sampling=SamplingConfig(group_size=8, max_tokens=8),
        batch=BatchConfig(num_minibatches=16, min_groups=2),
        optimizer=OptimizerConfig(learning_rate=3e-4),
    )
    with open_run(run, watcher=Printer()) as trainer:
        trainer.run()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/rl.py FOLDER")
    train(Path(sys.argv[1]))
