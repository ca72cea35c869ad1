"""The fork task: a rare first token decides whether an answer can be right.

    3 1 4 =  ->  D 8 .              answers at once: right one time in ten
             ->  C 3 1 4 4 8 .      adds two digits at a time: right as often as its sums are

The answer is the sum of three digits, modulo ten. A warm start shows both ways, and weighs the
first token so that the better way begins with a few percent of the answers. To learn is to raise a
token of low probability, which a clipped ratio drops from the loss after the first update of a
batch and a capped weight keeps (section 3.1 of arXiv:2506.13585). Sixteen symbols and ninety
thousand parameters are enough, so a processor shows it in a minute.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from fulmen.agent import Score
from fulmen.models import M1Config, Model, Packed
from fulmen.train.optimizer import Optimizer, OptimizerConfig

EQUALS: Final = 10
DIRECT: Final = 11
COUNTED: Final = 12
END: Final = 13
VOCAB_SIZE: Final = 16
_SYMBOLS: Final = "0123456789=DC."


@dataclass(frozen=True, slots=True)
class ForkTask:
    """Three digits whose sum modulo ten is asked for."""

    digits: tuple[int, int, int]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The digits and an equals sign."""
        return (*self.digits, EQUALS)

    @property
    def sums(self) -> tuple[int, int]:
        """Running sums of two and of all three digits."""
        first, second, third = self.digits
        return (first + second) % 10, (first + second + third) % 10

    def score(self, answer_ids: Sequence[int]) -> Score:
        """Return 1 if the last digit before the end is the sum, in an answer of either form."""
        ids = list(answer_ids)
        lengths = {DIRECT: 3, COUNTED: 7}
        counted = float(ids[:1] == [COUNTED])
        is_whole = bool(ids) and len(ids) == lengths.get(ids[0]) and ids[-1] == END
        return Score(float(is_whole and ids[-2] == self.sums[1]), {"counted": counted})


class Fork:
    """Sums of three digits, drawn by a seed; there is no last one."""

    num_tasks: Final = None
    vocab_size = VOCAB_SIZE
    end_ids = (END,)

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def task(self, index: int) -> ForkTask:
        """Return the task at an index."""
        draw = random.Random(f"fork {self._seed} {index}")
        return ForkTask((draw.randrange(10), draw.randrange(10), draw.randrange(10)))

    def text(self, ids: Sequence[int]) -> str:
        """Return ids as symbols."""
        return " ".join(_SYMBOLS[one] if one < len(_SYMBOLS) else f"<{one}>" for one in ids)

    def demonstration(self, index: int, *, wrong: float = 0.06) -> tuple[list[int], int]:
        """Return a task with an answer of either way, and the number of ids of its prompt.

        wrong  probability that a running sum is a random digit; what follows goes on from it
        """
        draw = random.Random(f"fork {self._seed} {index} shown")
        task = self.task(index)
        first, second, third = task.digits

        def said(digit: int) -> int:
            return draw.randrange(10) if draw.random() < wrong else digit % 10

        if draw.random() < 0.5:
            answer = [DIRECT, task.sums[1], END]
        else:
            running = said(first + second)
            total = said(running + third)
            answer = [COUNTED, first, second, running, third, total, END]
        return [*task.prompt_ids, *answer], len(task.prompt_ids)


def fork_config(dtype: torch.dtype = torch.float32) -> M1Config:
    """Return the config of a hybrid of ninety thousand parameters: two lightning layers, one
    softmax layer, two of four experts."""
    return M1Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        rotary_dim=16,
        attn_type_list=(0, 0, 1),
        intermediate_size=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        rope_theta=10_000.0,
        postnorm=True,
        torch_dtype=dtype,
    )


def warm_start(
    model: Model, *, seed: int = 0, num_steps: int = 300, rare: float = 0.02, batch_size: int = 128
) -> None:
    """Teach a fresh model both ways, the better one as rarely as `rare`.

    Only answers are in the loss. Half of the demonstrations are of either way; what the first token
    counts makes their probabilities `rare` and the rest.
    """
    environment = Fork(seed)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=3e-3))
    weight_of = {COUNTED: 2 * rare, DIRECT: 2 * (1 - rare)}
    for step in range(num_steps):
        shown = [
            environment.demonstration(index)
            for index in range(step * batch_size, (step + 1) * batch_size)
        ]
        wanted = [range(start - 1, len(ids) - 1) for ids, start in shown]
        packed = Packed.of([ids[:-1] for ids, _ in shown], wanted=[list(one) for one in wanted])
        targets = torch.tensor([token for ids, start in shown for token in ids[start:]])
        weights = torch.tensor(
            [
                weight_of[ids[start]] if place == start else 1.0
                for ids, start in shown
                for place in range(start, len(ids))
            ]
        )
        logprobs = model.target_logprobs(packed, targets)
        loss = -(logprobs * weights).sum() / len(targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(min(1.0, (step + 1) / 20))
        optimizer.zero_grad()
