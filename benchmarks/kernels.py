"""Speed of each kernel, beside plain torch, torch's own best operation and the machine's limits.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --only linear --no-plain

The operations and their shapes are those of `fulmen bench`. First the answer: each must agree with
its plain-torch definition in float64, gradients with autograd's. Then, in alternating rounds, the
kernel; the definition itself, as a machine without the kernels runs it (a process of its own with
FULMEN_ISA=none, weights in bfloat16, since nothing is rounded there); and, if there is one, what
torch has for the same work, in bfloat16.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measure import console, print_json, print_setup, print_wide, python_command, run
from rich.table import Table

from fulmen.bench import (
    Clock,
    Op,
    Prepared,
    Spread,
    describe_op,
    limits_table,
    list_ops,
    measure_limits,
    time_text,
    use_threads,
)
from fulmen.kernels import native

MAX_ERRORS = {
    "linear": 3e-3,
    "experts": 5e-3,  # hidden values are rounded too
    "router": 1e-5,  # float32
    "lightning": 3e-3,
    "softmax": 6e-3,  # here the weights of the values are rounded
    "rotary": 5e-3,  # rounded after scale, weight and rotation
    "head": 1e-4,  # float32
    "rms norm": 4e-3,  # rounded before the weight and after it
    "residual norm": 4e-3,
    "gated norm": 4e-3,
    "embedding": 0.0,
}
"""Root mean square of the difference over that of the answer, by how a name begins. Rounding once
to bfloat16 leaves some 1.7e-3."""
MAX_ERROR_INT4 = 2e-2
"""Same limit for products with weights of 4 bits, whose inputs are rounded to 8 bits."""
SERVE_PLAIN = "--serve-plain"


class PlainTorch:
    """Measure the operations in a process without the kernels."""

    name = "plain torch"

    def __init__(self, threads: int) -> None:
        script = [*python_command(Path(__file__)), SERVE_PLAIN, str(threads)]
        self._process = subprocess.Popen(
            script,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "FULMEN_ISA": "none"},
        )

    def seconds(self, op: Op) -> float:
        """Measure one call; the first question about an operation also warms it up."""
        assert self._process.stdout is not None
        print(json.dumps([op.name, op.work]), file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def serve_plain(threads: int) -> None:
    """The other end of PlainTorch: a name and its work on stdin, seconds on stdout."""
    use_threads(threads)
    ops = {(op.name, op.work): op for op in list_ops()}
    current, clock = None, None
    for line in sys.stdin:
        wanted = tuple(json.loads(line))
        if clock is None or wanted != current:
            current, clock = wanted, None  # frees the inputs of the one before
            clock = warm_clock(ops[wanted].prepare())
        print(clock.seconds(), flush=True)


def warm_clock(prepared: Prepared) -> Clock:
    """A clock on the operation itself."""
    clock = Clock(prepared.run)
    clock.warm_up()
    return clock


def max_error(op: Op) -> float:
    """The table's entry for an operation."""
    if op.format == "int4":
        return MAX_ERROR_INT4
    return next(most for name, most in MAX_ERRORS.items() if op.name.startswith(name))


def measure(
    op: Op, prepared: Prepared, plain: PlainTorch | None, *, with_torch: bool, rounds: int
) -> dict[str, list[float]]:
    """Seconds of a call of each implementation, round by round, in an order that turns round."""
    clocks: dict[str, Callable[[], float]] = {"fulmen": warm_clock(prepared).seconds}
    if with_torch and prepared.run_torch is not None:
        other = Clock(prepared.run_torch)
        other.warm_up()
        clocks["torch"] = other.seconds
    if plain is not None:
        clocks[plain.name] = lambda: plain.seconds(op)
        plain.seconds(op)
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    for index in range(rounds):
        for name in clocks if index % 2 == 0 else reversed(clocks):
            seconds[name].append(clocks[name]())
    return seconds


def print_table(rows: Sequence[dict[str, Any]], title: str) -> None:
    """One row an operation; the others' columns say how many times longer they took."""
    table = Table(title=title)
    for column in ("operation", "work"):
        table.add_column(column)
    for column in ("error", "time", "low to high", "rate", "of limit", "torch", PlainTorch.name):
        table.add_column(column, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if previous not in (None, row["name"]):
            table.add_section()
        seconds = Spread(**row["seconds"])
        table.add_row(
            f"{row['name']} {row['format']}",
            row["work"],
            f"{row['error']:.1g}",
            time_text(seconds.median),
            f"{time_text(seconds.low)} to {time_text(seconds.high)}",
            f"{row['rate']:.2f} {row['unit']}",
            f"{row['of_limit']:.0%} {row['limit']}",
            *(
                f"{row['times'][name]:.2f}x" if name in row["times"] else "-"
                for name in ("torch", PlainTorch.name)
            ),
        )
        previous = row["name"]
    print_wide(table)


def main(
    only: Annotated[str, typer.Option(help="Operations that begin so, as linear.")] = "",
    with_torch: Annotated[
        bool, typer.Option("--torch/--no-torch", help="Time torch's own operation too.")
    ] = True,
    plain: Annotated[bool, typer.Option(help="Time the plain-torch definition too.")] = True,
    threads: Annotated[int, typer.Option(help="Of all of them.")] = torch.get_num_threads(),
    rounds: Annotated[int, typer.Option(help="How often everything is measured.")] = 5,
    serve: Annotated[int | None, typer.Option(SERVE_PLAIN, hidden=True)] = None,
) -> None:
    """Measures the kernels. A table goes to stderr, one JSON line to stdout."""
    if serve is not None:
        serve_plain(serve)
        return
    ops = [op for op in list_ops() if op.name.startswith(only)]
    if not ops:
        raise ValueError(f"--only is {only!r}, no operation begins so")
    if native() is None:
        raise ValueError("there are no kernels to measure, see above")
    use_threads(threads)
    before = measure_limits(threads)
    setup = print_setup(threads, {}, read_gb_per_s=before.read_gb_per_s)
    results: dict[Op, tuple[float, dict[str, list[float]]]] = {}
    with ExitStack() as stack:
        other = None
        if plain:
            other = PlainTorch(threads)
            stack.callback(other.close)
        for op in ops:
            prepared = op.prepare()
            error = prepared.error()
            if not error <= max_error(op):
                console.print(
                    f"wrong: {op} is {error:.2g} from its definition, {max_error(op):.2g} is the "
                    "most",
                    style="red",
                )
                sys.exit(1)
            seconds = measure(op, prepared, other, with_torch=with_torch, rounds=rounds)
            results[op] = error, seconds
            console.print(str(op), style="dim")
    limits = before.best(measure_limits(threads))
    rows = []
    for op, (error, seconds) in results.items():
        mine = seconds.pop("fulmen")
        times = {
            name: statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
            for name, theirs in seconds.items()
        }
        described = describe_op(op, Spread.of(mine), limits)
        spreads = {name: asdict(Spread.of(theirs)) for name, theirs in seconds.items()}
        rows.append(described | {"error": error, "times": times, "others": spreads})
    print_table(rows, f"kernels, {limits.isa}, {threads} threads")
    print_wide(limits_table(limits))
    print_json("kernels", {**setup, "rounds": rounds, "limits": asdict(limits), "results": rows})


if __name__ == "__main__":
    run(main)
