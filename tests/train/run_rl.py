"""A run in a process of its own, which waits to be killed where it is told to.

python -m tests.train.run_rl FOLDER NUM_STEPS [STOP_AFTER]
"""

import sys
import time
from pathlib import Path

from fulmen.train import Gathered
from tests.train.rl_helpers import Seen, new_tiny, new_trainer


class Stopping(Seen):
    """Waits for ever in the middle of the step after so many, once it has said so."""

    def __init__(self, after: int | None) -> None:
        super().__init__()
        self._after = after

    def gathered(self, gathered: Gathered, wanted: int) -> None:
        if self._after is not None and len(self.steps) >= self._after:
            print("stopped", flush=True)
            time.sleep(600)


def main(folder: Path, num_steps: int, stop_after: int | None) -> None:
    """Train a tiny M1."""
    model = new_tiny("m1", "bfloat16")
    trainer = new_trainer(
        model,
        folder,
        num_steps=num_steps,
        watcher=Stopping(stop_after),
        options={"save_every": 3},
    )
    trainer.run()
    trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
