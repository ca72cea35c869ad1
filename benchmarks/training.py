"""Time of a training step: forward, cross entropy and backward of a small M1.

    python benchmarks/training.py
    python benchmarks/training.py --base HEAD~1

One step reads 4,096 packed tokens in 8 sequences through about ten million parameters. Beside the
time stands the floor: the step's FLOPs, three times those of a forward pass, at the rate of torch's
best matmul in the same run. No optimizer: its cost depends on the parameters, not on the kernels.

First the answer: the gradient in bfloat16 must point where the one in float32 does, and with --base
both revisions must agree on the float32 loss. A base revision runs in processes that take turns
with this one's.
"""

import json
import math
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from measure import (
    checked_out,
    console,
    print_json,
    print_setup,
    print_wide,
    python_command,
    run,
)
from rich.table import Table
from training_worker import CONFIG, NUM_SEQUENCES, NUM_TOKENS, TOKENS_EACH, Step

from fulmen.bench import Limits, Spread, measure_limits, use_threads
from fulmen.models import DTYPES, Config, count_parameters, prefill_flops

MIN_COSINE = 0.98
"""Between the gradients in bfloat16 and in float32, all parameters in one vector."""
LOSS_TOLERANCE = 1e-4
"""Between two revisions, float32."""


def floor_seconds(limits: Limits, dtype: str) -> float:
    """The step's FLOPs at the rate of the best matmul; backward counts twice forward."""
    flops = 3 * NUM_SEQUENCES * prefill_flops(CONFIG, TOKENS_EACH)
    return flops / (limits.matmul_tflops[dtype] * 1e12)


def check_gradients(config: Config = CONFIG) -> dict[str, float]:
    """Return the cosine between the gradients of both dtypes, and both losses."""
    steps = {name: Step(DTYPES[name], config) for name in ("float32", "bfloat16")}
    losses = {f"loss_{name}": step.run()[0] for name, step in steps.items()}
    exact, rounded = (step.gradient() for step in steps.values())
    return {"cosine": float(F.cosine_similarity(exact, rounded, dim=0)), **losses}


def time_steps(dtype: str, repeats: int, package: Path | None, threads: int) -> dict[str, Any]:
    """Several steps in a process of their own, against a revision's package if one is given."""
    script = Path(__file__).resolve().with_name("training_worker.py")
    command = [*python_command(script, package), dtype, str(repeats), str(threads)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def main(
    base: Annotated[str | None, typer.Option(help="A revision to compare with.")] = None,
    dtypes: Annotated[str, typer.Option(help="Comma-separated.")] = "bfloat16,float32",
    rounds: Annotated[int, typer.Option(help="How often each revision is started.")] = 5,
    repeats: Annotated[int, typer.Option(help="Timed steps of each start.")] = 3,
    threads: Annotated[int, typer.Option(help="Of each revision.")] = torch.get_num_threads(),
) -> None:
    """Measures a training step. A table goes to stderr, one JSON line to stdout."""
    names = dtypes.split(",")
    for name in names:
        if name not in DTYPES:
            raise ValueError(f"--dtypes has {name!r}, it must be of {', '.join(DTYPES)}")
    use_threads(threads)
    correctness = check_gradients()
    console.print(f"correctness: {correctness}")
    if not correctness["cosine"] >= MIN_COSINE:
        console.print(f"wrong: the cosine is below {MIN_COSINE}", style="red")
        sys.exit(1)
    limits = measure_limits(threads, [DTYPES[name] for name in names])
    setup = print_setup(threads, {}, read_gb_per_s=limits.read_gb_per_s)
    with ExitStack() as stack:
        packages: dict[str, Path | None] = {"this": None}
        if base is not None:
            packages[base] = stack.enter_context(checked_out(base))
        runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for index in range(rounds):
            order = list(packages) if index % 2 == 0 else list(packages)[::-1]
            for dtype in names:
                for revision in order:
                    run = time_steps(dtype, repeats, packages[revision], threads)
                    runs.setdefault((dtype, revision), []).append(run)
            console.print(f"round {index + 1} of {rounds}", style="dim")
    if base is not None and "float32" in names:
        losses = [runs["float32", revision][0]["loss"] for revision in packages]
        if not math.isclose(*losses, rel_tol=LOSS_TOLERANCE):
            console.print(f"wrong: the losses of both revisions are {losses}", style="red")
            sys.exit(1)
    rows = [
        make_row(dtype, revision, runs, base, floor_seconds(limits, dtype))
        for dtype in names
        for revision in packages
    ]
    print_table(rows)
    print_json(
        "training",
        {
            **setup,
            "rounds": rounds,
            "tokens": NUM_TOKENS,
            "parameters": count_parameters(CONFIG).total,
            "shapes": {k: v for k, v in CONFIG.to_dict().items() if type(v) is int},
            "limits": asdict(limits),
            "correctness": correctness,
            "results": rows,
        },
    )


def make_row(
    dtype: str,
    revision: str,
    runs: dict[tuple[str, str], list[dict[str, Any]]],
    base: str | None,
    floor: float,
) -> dict[str, Any]:
    """Medians of one dtype and revision, and how many times faster than the base it was."""
    own = runs[dtype, revision]
    forward = [seconds for run in own for seconds in run["forward"]]
    backward = [seconds for run in own for seconds in run["backward"]]
    step = Spread.of([f + b for f, b in zip(forward, backward, strict=True)])
    speedup = None
    if base is not None:
        both = zip(runs[dtype, base], own, strict=True)
        speedup = statistics.median(_seconds(theirs) / _seconds(mine) for theirs, mine in both)
    return {
        "dtype": dtype,
        "revision": revision,
        "step_seconds": asdict(step),
        "forward_seconds": statistics.median(forward),
        "backward_seconds": statistics.median(backward),
        "tokens_per_s": NUM_TOKENS / step.median,
        "floor_seconds": floor,
        "of_floor": floor / step.median,
        "speedup": speedup,
    }


def _seconds(run: dict[str, Any]) -> float:
    return float(statistics.median(run["forward"]) + statistics.median(run["backward"]))


def print_table(rows: list[dict[str, Any]]) -> None:
    """A row for each dtype and revision."""
    millions = count_parameters(CONFIG).total / 1e6
    table = Table(title=f"one step of {NUM_TOKENS} tokens, {millions:.1f} M parameters")
    for column in ("dtype", "revision"):
        table.add_column(column)
    for column in ("step ms", "forward", "backward", "tokens/s", "floor ms", "of floor", "faster"):
        table.add_column(column, justify="right")
    for row in rows:
        step = row["step_seconds"]
        table.add_row(
            row["dtype"],
            row["revision"],
            f"{step['median'] * 1e3:.0f} ({step['low'] * 1e3:.0f} to {step['high'] * 1e3:.0f})",
            f"{row['forward_seconds'] * 1e3:.0f}",
            f"{row['backward_seconds'] * 1e3:.0f}",
            f"{row['tokens_per_s']:.0f}",
            f"{row['floor_seconds'] * 1e3:.0f}",
            f"{row['of_floor']:.0%}",
            "" if row["speedup"] is None else f"{row['speedup']:.2f}x",
        )
    print_wide(table)


if __name__ == "__main__":
    run(main)
