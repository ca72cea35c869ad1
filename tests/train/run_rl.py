"""A run in a process of its own, which waits to be killed where it is told to.

python -m tests.train.run_rl FOLDER NUM_STEPS [STOP_AFTER]

It has all that a state must hold: questions from a file, whose tasks come again, and endless tasks
of ids beside them, length windows, a warm-up and a decay by tokens, and a probe.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message
from fulmen.checkpoints import load_model
from fulmen.envs import Questions, Task
from fulmen.llm import LLM
from fulmen.train import Gathered, LengthWindow, ScheduleConfig, WindowConfig
from fulmen.train.rl.probe import Probe, ProbeConfig
from tests.tiny import write_checkpoint
from tests.train.rl_helpers import RandomIds, Seen, new_trainer


@dataclass
class Lucky(Task):
    """A question whose answer is right by luck: a random model knows none."""

    question: Task

    @property
    def messages(self) -> tuple[Message, ...]:
        return self.question.messages

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        sampled = trajectory.steps[-1].answer.sampled
        return Score(float(sampled is not None and sampled.answer_ids[0] % 2 == 0))


class LuckyQuestions:
    """Questions of a file."""

    def __init__(self, file: Path) -> None:
        self._questions = Questions(file)
        self.num_tasks = self._questions.num_tasks

    def task(self, index: int) -> Lucky:
        return Lucky(self._questions.task(index))


class Stopping(Seen):
    """Waits for ever in the middle of the step after so many, once it has said so."""

    def __init__(self, after: int | None) -> None:
        super().__init__()
        self._after = after

    def gathered(self, gathered: Gathered, wanted: int) -> None:
        if self._after is not None and len(self.steps) >= self._after:
            print("stopped", flush=True)
            time.sleep(600)


def prepare(folder: Path) -> None:
    """Write what runs beside each other begin with: a model and questions."""
    write_checkpoint(folder / "model", "m1", max_position_embeddings=4096)
    lines = [f'{{"question": "{number} and 1?", "answer": {number + 1}}}\n' for number in range(9)]
    (folder / "questions.jsonl").write_text("".join(lines))


def main(folder: Path, num_steps: int, stop_after: int | None) -> None:
    """Train a tiny M1."""
    start = folder.parent / "model"
    trainer = new_trainer(
        load_model(start, dtype=torch.bfloat16, trainable=True),
        folder,
        environments={
            "random": RandomIds(),
            "questions": LuckyQuestions(folder.parent / "questions.jsonl"),
            "held out": RandomIds(seed=1),
        },
        llm=LLM.load(str(start)),
        num_steps=num_steps,
        schedule=ScheduleConfig(unit="tokens", warmup=3000, decay_start=4000, decay_length=20_000),
        window=LengthWindow(
            WindowConfig(lengths=(12, 40, 90), num_batches=2, settled=10.0, near=0.2)
        ),
        probe=Probe(
            {"held out": range(40)}, ProbeConfig(every=4, num_tasks=40, max_drop=0.5), seed=0
        ),
        watcher=Stopping(stop_after),
        options={"save_every": 3},
    )
    trainer.run()
    trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
