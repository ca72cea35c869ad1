"""A supervised warm start in ten lines: a checkpoint learns the answers of conversations.

python examples/sft.py CHECKPOINT CONVERSATIONS.jsonl OUT
"""

import logging
import sys
from pathlib import Path

from fulmen.train import LMConfig, LMTrainer, OptimizerConfig, StageConfig, StartConfig, TaskConfig


def train(checkpoint: str, conversations: Path, out: Path, *, tokens: int = 1_000_000) -> Path:
    """Train on the answers of the assistant, and on nothing else; return the new checkpoint."""
    config = LMConfig(
        out=out,
        model=StartConfig(checkpoint=checkpoint),
        tasks={"talk": TaskConfig(files=(conversations,))},
        stages=(StageConfig(tokens=tokens, length=1024),),
        optimizer=OptimizerConfig(learning_rate=2e-5),
    )
    trainer = LMTrainer(config)  # where a run was interrupted, it goes on
    trainer.run()
    trainer.close()
    return trainer.model_folder


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    logging.basicConfig(level=logging.INFO)  # losses on stderr as it goes
    print(train(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
