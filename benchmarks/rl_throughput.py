"""Throughput of reinforcement learning beside TRL's GRPOTrainer, both with CISPO.

    python benchmarks/rl_throughput.py --trl /path/to/venv/bin/python

One shape of model on both sides, dense: a Llama of 3.3M parameters there, an M2 with one expert
here. A batch is 32 prompts of about 14 tokens with 8 answers each, one update, temperature 1, no
filters. Two kinds of answers: of 64 tokens each, and of their own lengths (about 40 tokens, 160 at
most; the end is drawn with p = 1/41). What counts is real tokens: each is sampled once and trained
on once, and padding is neither.

First the answer: in every batch of ours each token's importance ratio must be exactly 1 before the
update. TRL takes the trainer's own log-probabilities as those of the sampler, so its ratio is 1 by
definition. Then processes take turns; the first batch of each is dropped. TRL runs in float32, with
one thread and with two, and the better of the two is the row that ours are divided by.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import torch
import typer
from measure import console, print_json, print_setup, python_command, run, why_not_started
from rich.table import Table

from fulmen.agent import Score
from fulmen.engine import EngineConfig
from fulmen.kernels import set_num_threads
from fulmen.models import DTYPES, M2Config, Model, new_model
from fulmen.train import (
    BatchConfig,
    Curriculum,
    CurriculumConfig,
    LocalRollouts,
    ObjectiveConfig,
    Optimizer,
    OptimizerConfig,
    SamplingConfig,
    SourceConfig,
    Trainer,
    TrainerConfig,
    read_metrics,
)

NUM_PROMPTS: Final = 32
GROUP_SIZE: Final = 8
VOCAB_SIZE: Final = 1024
NUM_SAID: Final = 41
"""Ids that answers are made of, the end included: the others have no probability"""
END: Final = 1
FIXED_TOKENS: Final = 64
MAX_TOKENS: Final = 160
KINDS: Final = ("own lengths", "fixed lengths")
CHARACTERS: Final = "0123456789add +="
FIRST_ID: Final = 4
_LONGEST_SECONDS: Final = 1800
"""Seconds of one process"""


def prompt_ids(index: int) -> tuple[int, ...]:
    """Return `add 1234+567=` as the ids of its characters."""
    draw = Random(f"prompt {index}")
    text = f"add {draw.randrange(1000, 10000)}+{draw.randrange(100, 10000)}="
    known = sorted(set(CHARACTERS))
    return tuple(FIRST_ID + known.index(one) for one in text)


@dataclass(frozen=True)
class Question:
    """A prompt; an answer's reward is how even its ids are."""

    prompt_ids: tuple[int, ...]

    def score(self, answer_ids: Sequence[int]) -> Score:
        """Return the share of even ids, as the function that TRL is given does."""
        return Score(sum(one % 2 == 0 for one in answer_ids) / max(len(answer_ids), 1))


class Questions:
    """Prompts without an end."""

    num_tasks = None
    vocab_size = VOCAB_SIZE

    def __init__(self, *, ends: bool) -> None:
        self.end_ids = (END,) if ends else ()

    def task(self, index: int) -> Question:
        """Return the question at an index."""
        return Question(prompt_ids(index))

    def text(self, ids: Sequence[int]) -> str:
        """Return ids as numbers."""
        return " ".join(map(str, ids))


def config_of(dtype: torch.dtype) -> M2Config:
    """Return the shape: width 192, 8 layers, 4 heads of 64 with 2 of keys, inner width 384."""
    return M2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        rotary_dim=64,
        intermediate_size=384,
        num_local_experts=1,
        num_experts_per_tok=1,
        use_qk_norm=False,
        rope_theta=10_000.0,
        rms_norm_eps=1e-6,
        max_position_embeddings=512,
        torch_dtype=dtype,
    )


def make_model(dtype: torch.dtype, *, ends: bool) -> Model:
    """Return random weights whose answers are of 41 ids, the end among them or not.

    One channel of the embedding is constant, so its column of the head is a bias.
    """
    model = new_model(config_of(dtype), dtype=dtype, seed=0)
    assert model.lm_head is not None
    head = model.lm_head.weight
    assert isinstance(head, torch.nn.Parameter)
    said = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    said[20 : 20 + NUM_SAID - 1] = True
    said[END] = ends
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.model.embed_tokens.weight[:, 0] = 10.0
        head.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
        head[:, 0] = torch.where(said, 0.0, -8.0)
    return model


def ours(kind: str, dtype: str, batches: int, threads: int) -> dict[str, Any]:
    """Train on so many batches and one before them; return seconds and real tokens of each."""
    torch.set_num_threads(1)
    set_num_threads(threads)
    ends = kind == KINDS[0]
    model = make_model(DTYPES[dtype], ends=ends)
    environment = Questions(ends=ends)
    sampling = SamplingConfig(
        group_size=GROUP_SIZE,
        max_tokens=MAX_TOKENS if ends else FIXED_TOKENS,
        repetition_window=None,
    )
    engine = EngineConfig(
        max_num_seqs=NUM_PROMPTS * GROUP_SIZE,
        max_num_batched_tokens=4096,
        max_token_gap_seconds=None,
        kv_cache_bytes=2**30,
    )
    rollouts = LocalRollouts(model, {"add": environment}, sampling, engine_config=engine)
    seconds = []
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            rollouts,
            Curriculum(
                [SourceConfig(levels=("add",))], CurriculumConfig(), num_tasks={"add": None}, seed=0
            ),
            TrainerConfig(
                num_steps=10**6,
                num_groups=NUM_PROMPTS,
                dynamic_sampling=False,
                save_every=10**6,
            ),
            folder=Path(folder),
            optimizer=Optimizer(model, OptimizerConfig(learning_rate=1e-4)),
            sampling=sampling,
            objective=ObjectiveConfig(algorithm="cispo", scope="batch"),
            batch=BatchConfig(min_groups=1, max_tokens=6144, skip_idle=False),
        )
        for _ in range(1 + batches):
            begin = time.perf_counter()
            trainer.step()
            seconds.append(time.perf_counter() - begin)
        trainer.close()
        records = read_metrics(Path(folder), "step")
    rollouts.close()
    assert all(one["mismatch"].get("different_tokens") == 0 for one in records)
    return {
        "seconds": seconds[1:],
        "generation": [one["seconds"]["rollout"] for one in records[1:]],
        "tokens": [one["tokens"] for one in records[1:]],
    }


def worker(name: str, kind: str, dtype: str, batches: int, threads: int, python: str | None) -> Any:
    """Run one side in a process of its own; return what it measured."""
    folder = Path(__file__).resolve().parent
    if python is None:
        command = python_command(folder / "rl_throughput.py", None)
    else:
        # -P: scripts here have names that packages of the other side have too.
        command = [python, "-P", str(folder / "rl_throughput_trl.py")]
    command = [*command, "--worker", f"{kind}:{dtype}:{batches}:{threads}"]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_LONGEST_SECONDS,
            env=dict(os.environ) if python is None else _without_our_path(),
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{name} was not done within {_LONGEST_SECONDS} seconds") from None
    if result.returncode:
        raise ValueError(f"{name} failed: {result.stderr.strip().splitlines()[-1:]}")
    return json.loads(result.stdout.splitlines()[-1])


def _without_our_path() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def rate_of(measured: dict[str, Any]) -> list[float]:
    """Return sampled and trained real tokens a second, of each batch."""
    return [
        2 * tokens / seconds
        for tokens, seconds in zip(measured["tokens"], measured["seconds"], strict=True)
    ]


def main(
    trl: Annotated[str, typer.Option(help="Python of an environment with TRL.")] = "",
    rounds: Annotated[int, typer.Option(help="Times that each side is started.")] = 2,
    batches: Annotated[int, typer.Option(help="Batches timed of each start.")] = 3,
    kinds: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(KINDS),
    work: Annotated[str, typer.Option("--worker", hidden=True)] = "",
) -> None:
    """Measure both. A table goes to stderr, one JSON line to stdout."""
    if work:
        kind, dtype, count, threads = work.split(":")
        print(json.dumps(ours(kind, dtype, int(count), int(threads))))
        return
    if not trl or (why := why_not_started([trl, "-c", "import trl"])) is not None:
        raise ValueError(f"--trl must be a Python with TRL: {why if trl else 'it is not given'}")
    setup = print_setup(2, {})
    sides = {
        "TRL, float32, 1 thread": (trl, "float32", 1),
        "TRL, float32, 2 threads": (trl, "float32", 2),
        "Fulmen, float32": (None, "float32", 2),
        "Fulmen, bfloat16": (None, "bfloat16", 2),
    }
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for kind in kinds.split(","):
        rows = found[kind] = {
            name: {"rates": [], "seconds": [], "generation": [], "tokens": []} for name in sides
        }
        for number in range(rounds):
            for name, (python, dtype, threads) in sides.items():
                measured = worker(name, kind, dtype, batches, threads, python)
                rows[name]["rates"] += rate_of(measured)
                for each in ("seconds", "generation", "tokens"):
                    rows[name][each] += measured[each]
                rate = statistics.median(rate_of(measured))
                print(f"{kind}, round {number + 1}, {name}: {rate:,.0f}/s", file=sys.stderr)
        table = Table(title=f"{kind}: sampled and trained tokens a second")
        for heading in ("", "tokens/s", "low", "high", "s a batch", "sampling", "tokens", "ratio"):
            table.add_column(heading)
        theirs = max(
            statistics.median(row["rates"]) for name, row in rows.items() if name.startswith("TRL")
        )
        for name, row in rows.items():
            rate = statistics.median(row["rates"])
            table.add_row(
                name,
                f"{rate:,.0f}",
                f"{min(row['rates']):,.0f}",
                f"{max(row['rates']):,.0f}",
                f"{statistics.median(row['seconds']):.2f}",
                f"{statistics.median(row['generation']):.2f}",
                f"{statistics.median(row['tokens']):,.0f}",
                f"{rate / theirs:.1f}",
            )
        console.print(table)
    print_json("rl_throughput", {"setup": setup, "found": found})


if __name__ == "__main__":
    run(main)
