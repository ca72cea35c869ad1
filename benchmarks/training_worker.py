"""Training steps of a small M1, timed in a process of their own: run by training.py.

    python benchmarks/training_worker.py bfloat16 3 2

Only what every revision of Fulmen has is used here, or asked for: a base revision runs this file
against its own package.
"""

import inspect
import json
import sys
import time
from collections.abc import Callable
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F

from fulmen.checkpoints import load_model, save_model
from fulmen.models import DTYPES, Config, M1Config, Model, Packed, new_model

NUM_SEQUENCES = 8
TOKENS_EACH = 512
NUM_TOKENS = NUM_SEQUENCES * TOKENS_EACH

CONFIG = M1Config(
    vocab_size=4096,
    hidden_size=256,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rotary_dim=32,
    attn_type_list=(0,) * 7 + (1,),
    intermediate_size=128,
    num_local_experts=8,
    num_experts_per_tok=2,
    postnorm=True,
    torch_dtype=torch.float32,
)


class Step:
    """One model and one batch, ready to be stepped."""

    def __init__(self, dtype: torch.dtype, config: Config = CONFIG) -> None:
        self.model = make_model(dtype, config)
        draw = Random(0)
        sequences = [
            draw.choices(range(config.vocab_size), k=TOKENS_EACH + 1) for _ in range(NUM_SEQUENCES)
        ]
        self.packed = Packed.of([sequence[:-1] for sequence in sequences])
        self.targets = torch.tensor([token for sequence in sequences for token in sequence[1:]])

    def run(self, between: Callable[[], object] = lambda: None) -> tuple[float, float, float]:
        """Return the loss, and the seconds of forward and of backward; call `between` in between,
        outside of both."""
        self.model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        if hasattr(self.model, "target_logprobs"):
            loss = -self.model.target_logprobs(self.packed, self.targets).mean()
        else:  # a revision that knows no other way
            loss = F.cross_entropy(self.model(self.packed), self.targets)
        forward = time.perf_counter() - start
        between()
        start = time.perf_counter()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), forward, time.perf_counter() - start

    def gradient(self) -> torch.Tensor:
        """Return all gradients of the last step in one float64 vector."""
        gradients = (p.grad for p in self.model.parameters())
        return torch.cat([g.double().flatten() for g in gradients if g is not None])


def make_model(dtype: torch.dtype, config: Config = CONFIG) -> Model:
    """Load the same weights in any dtype: loading decides what stays float32."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        save_model(new_model(config), folder)
        # Revisions without packed weights load what can be trained, and know no other way.
        has_choice = "trainable" in inspect.signature(load_model).parameters
        choice: dict[str, Any] = {"trainable": True} if has_choice else {}
        return load_model(folder, dtype=dtype, **choice).train()


def give_threads_to_kernels(count: int) -> None:
    """Give `count` threads to the kernels and one to torch, or all to torch where it does the work.

    torch's threads spin for milliseconds after each operation, on cores the kernels would use.
    """
    import fulmen.kernels

    native = getattr(fulmen.kernels, "native", None)
    has_kernels = native is not None and native() is not None
    torch.set_num_threads(1 if has_kernels else count)
    if has_kernels:
        fulmen.kernels.set_num_threads(count)


def main(dtype: str, repeats: int, threads: int) -> None:
    """One step to warm up, then the timed ones; one line of JSON on stdout."""
    give_threads_to_kernels(threads)
    step = Step(DTYPES[dtype])
    loss, *_ = step.run()
    times = [step.run()[1:] for _ in range(repeats)]
    forward, backward = (list(column) for column in zip(*times, strict=True))
    print(json.dumps({"loss": loss, "forward": forward, "backward": backward}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
