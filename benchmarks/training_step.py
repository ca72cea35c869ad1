"""Training steps of small models beside their floor, and where a step's time goes.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --models m2-8.7m --dtypes bfloat16 --threads 2 --rounds 3

A step reads 4,096 packed tokens in 8 sequences: forward, log-probabilities of the targets,
backward, no optimizer. Its floor is the time of its products alone, three for each matrix, one of
them forward. Each counts as long as the fastest of three ways took at that very shape in the same
round: torch's product in float32, torch's in the model's dtype, Fulmen's of a packed matrix. The
products within attention count at the highest rate among all of these; norms, activations, the
router and all that moves data count nothing. A step at its floor would do nothing but multiply.

First the answer: the gradient in bfloat16 must point where the one in float32 does. Then rounds
alternate between floor and steps, and medians are printed, with one account by kernel for each row.
"""

import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer
from measure import console, print_json, print_setup, print_wide, run
from rich.table import Table
from training import MIN_COSINE, check_gradients
from training_worker import (
    CONFIG,
    NUM_SEQUENCES,
    NUM_TOKENS,
    TOKENS_EACH,
    Step,
    give_threads_to_kernels,
)

from fulmen.bench import Spread
from fulmen.kernels import CHUNK, linear, native, pack, set_num_threads, time_calls
from fulmen.models import (
    DTYPES,
    Config,
    M1Config,
    M2Config,
    count_parameters,
    multiplied_weights,
    prefill_flops,
)

_MINI: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rotary_dim": 32,
    "intermediate_size": 192,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "torch_dtype": torch.float32,
}
CONFIGS: dict[str, Config] = {
    "m1-10.9m": CONFIG,
    "m1-9.3m": M1Config(**_MINI, attn_type_list=(0, 0, 0, 1) * 2, postnorm=True),
    "m2-8.7m": M2Config(**_MINI),
}
STEPS_EACH = 2
"""Timed steps of a round, after one that counts nothing."""
SLOW = 4.0
"""Another way is this many times as fast: a way to multiply is not tried again."""
SLOW_SECONDS = 0.5
"""A product that takes so long is made once, others three times."""

REST = "torch and Python"
"""All of a step that is no kernel."""

Shape = tuple[int, int, int]
"""Rows, inputs and outputs of a product."""
Parts = dict[str, tuple[float, float]]
"""Seconds of forward and of backward by kernel."""


def products_of(config: Config) -> Counter[Shape]:
    """Count the products of a step by shape, without the routers': of each matrix one forward, one
    for the gradient of its input and one for its own."""
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    narrow = config.num_key_value_heads * config.head_dim
    num_softmax = sum(config.attn_type_list)
    num_lightning = config.num_hidden_layers - num_softmax
    num_experts = config.num_hidden_layers * config.num_local_experts
    rows = NUM_TOKENS * config.num_experts_per_tok // config.num_local_experts
    matrices = [
        (NUM_TOKENS, hidden, width, num_softmax),
        (NUM_TOKENS, hidden, narrow, 2 * num_softmax),
        (NUM_TOKENS, hidden, 3 * width, num_lightning),
        (NUM_TOKENS, hidden, width, num_lightning),
        (NUM_TOKENS, width, hidden, config.num_hidden_layers),
        (rows, hidden, config.intermediate_size, 2 * num_experts),
        (rows, config.intermediate_size, hidden, num_experts),
        (NUM_TOKENS, hidden, config.vocab_size, 1),
    ]
    shapes: Counter[Shape] = Counter()
    for tokens, inputs, outputs, count in matrices:
        shapes[tokens, inputs, outputs] += count
        shapes[tokens, outputs, inputs] += count
        shapes[outputs, tokens, inputs] += count
    return +shapes  # without those that no layer has


class Floor:
    """The time of a step's products alone, measured whenever it is asked for."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        self.products = products_of(config)
        self.flops = 3 * NUM_SEQUENCES * prefill_flops(config, TOKENS_EACH, block_size=CHUNK)
        """FLOPs of a step."""
        self._flops_of_attention = self.flops - 6 * NUM_TOKENS * multiplied_weights(config)
        self._ways = {shape: ways_to_multiply(shape, dtype) for shape in self.products}

    def seconds(self, threads: int) -> float:
        """Time each product with so many threads; return the seconds of all that a step makes."""
        torch.set_num_threads(threads)
        set_num_threads(threads)
        total, best_rate = 0.0, 0.0
        for shape, count in self.products.items():
            times = [shortest(way) for way in self._ways[shape]]
            best = min(times)
            self._ways[shape] = [
                way
                for way, seconds in zip(self._ways[shape], times, strict=True)
                if seconds < SLOW * best
            ]
            rows, inputs, outputs = shape
            total += count * best
            best_rate = max(best_rate, 2 * rows * inputs * outputs / best)
        give_threads_to_kernels(threads)
        return total + self._flops_of_attention / best_rate


def ways_to_multiply(shape: Shape, dtype: torch.dtype) -> list[Callable[[], object]]:
    """Return calls that each make a product of this shape, ready to be timed."""
    rows, inputs, outputs = shape
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    matrix = pack(weight.to(dtype))

    def by_torch(dtype: torch.dtype) -> Callable[[], object]:
        out = torch.empty(rows, outputs, dtype=dtype)
        operands = x.to(dtype), weight.t().to(dtype).contiguous()
        return lambda: torch.mm(*operands, out=out)

    dtypes = dict.fromkeys((torch.float32, dtype))
    given = x.to(dtype)
    return [*map(by_torch, dtypes), lambda: linear(given, matrix)]


def shortest(call: Callable[[], object]) -> float:
    """Return the seconds of the shortest of three calls, or of one if it is slow."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        if best > SLOW_SECONDS:
            break
    return best


def account(step: Step) -> Parts:
    """Run a step; return the seconds of its kernels, and last what is left to torch and Python: all
    of them add up to the step."""
    num_forward = []
    with time_calls() as clock:
        _, *passes = step.run(lambda: num_forward.append(clock.num_calls()))
    forward, backward = defaultdict[str, float](float), defaultdict[str, float](float)
    for index, call in enumerate(clock.calls()):
        own = forward if index < num_forward[0] else backward
        own[call.kernel] += sum(stage.seconds for stage in call.stages)
    for own, seconds in zip((forward, backward), passes, strict=True):
        own[REST] = seconds - sum(own.values())
    kernels = [kernel for kernel in {**forward, **backward} if kernel != REST]
    return {kernel: (forward[kernel], backward[kernel]) for kernel in (*kernels, REST)}


@dataclass(frozen=True)
class Row:
    """One model, dtype and number of threads, over all rounds."""

    model: str
    dtype: str
    threads: int
    gflop: float
    """Arithmetic of one step, in units of 10^9 operations."""
    floor_seconds: Spread
    step_seconds: Spread
    forward_seconds: float
    backward_seconds: float
    times_floor: Spread
    """A round's steps over its floor."""
    parts: Parts
    """Account of the step, of one in each round, that took the median time."""


def measure(
    model: str, dtype: str, threads: int, step: Step, floor: Floor, *, num_rounds: int
) -> Row:
    """Let floor and steps take turns."""
    give_threads_to_kernels(threads)
    floors: list[float] = []
    passes: list[tuple[float, float]] = []
    ratios: list[float] = []
    accounts: list[Parts] = []
    for _ in range(num_rounds):
        floors.append(floor.seconds(threads))
        step.run()
        own = [step.run()[1:] for _ in range(STEPS_EACH)]
        passes += own
        ratios.append(statistics.median(map(sum, own)) / floors[-1])
        accounts.append(account(step))
    forward, backward = zip(*passes, strict=True)
    return Row(
        model=model,
        dtype=dtype,
        threads=threads,
        gflop=floor.flops / 1e9,
        floor_seconds=Spread.of(floors),
        step_seconds=Spread.of(list(map(sum, passes))),
        forward_seconds=statistics.median(forward),
        backward_seconds=statistics.median(backward),
        times_floor=Spread.of(ratios),
        parts=sorted(accounts, key=total_of)[len(accounts) // 2],
    )


def total_of(parts: Parts) -> float:
    """Return the seconds of the whole step."""
    return sum(map(sum, parts.values()))


def print_rows(rows: list[Row]) -> None:
    """Print a row each; ranges are the lowest and the highest of all rounds."""
    table = Table(title=f"one step of {NUM_TOKENS} tokens")
    for column in ("model", "dtype"):
        table.add_column(column)
    for column in (
        "threads",
        "GFLOP",
        "floor ms",
        "step ms",
        "forward",
        "backward",
        "tokens/s",
        "times the floor",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        ratio = row.times_floor
        table.add_row(
            row.model,
            row.dtype,
            str(row.threads),
            f"{row.gflop:.0f}",
            in_milliseconds(row.floor_seconds),
            in_milliseconds(row.step_seconds),
            f"{1e3 * row.forward_seconds:.0f}",
            f"{1e3 * row.backward_seconds:.0f}",
            f"{NUM_TOKENS / row.step_seconds.median:.0f}",
            f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        )
    print_wide(table)


def print_parts(row: Row) -> None:
    """Print where a step's time goes, the longest first."""
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    table = Table(title=f"{row.model}, {row.dtype}, {threads}: ms of a step, by kernel")
    table.add_column("kernel")
    for column in ("forward", "backward", "both", "share"):
        table.add_column(column, justify="right")
    total = total_of(row.parts)
    by_time = sorted(row.parts.items(), key=lambda part: -sum(part[1]))
    forward, backward = map(sum, zip(*row.parts.values(), strict=True))
    for kernel, both in (*by_time, ("all", (forward, backward))):
        times = (f"{1e3 * seconds:.1f}" for seconds in (*both, sum(both)))
        table.add_row(kernel, *times, f"{sum(both) / total:.1%}")
    print_wide(table)


def in_milliseconds(seconds: Spread) -> str:
    """Write the median and both ends."""
    return f"{1e3 * seconds.median:.0f} ({1e3 * seconds.low:.0f} to {1e3 * seconds.high:.0f})"


def main(
    models: Annotated[
        str, typer.Option(help=f"Comma-separated, of {', '.join(CONFIGS)}.")
    ] = ",".join(CONFIGS),
    dtypes: Annotated[str, typer.Option(help="Comma-separated.")] = "float32,bfloat16",
    threads: Annotated[
        str, typer.Option(help="Comma-separated numbers, each measured by itself.")
    ] = "1,2",
    rounds: Annotated[int, typer.Option(min=1, help="How often floor and steps take turns.")] = 5,
) -> None:
    """Measures training steps beside their floor. Tables go to stderr, one JSON line to stdout."""
    if native() is None:
        raise ValueError("the C++ kernels are not installed, and their calls are what is timed")
    names = chosen("--models", models, CONFIGS)
    dtype_names = chosen("--dtypes", dtypes, ("float32", "bfloat16"))
    counts = [int(count) for count in threads.split(",")]
    setup = print_setup(max(counts), {})
    rows, cosines = [], {}
    for name in names:
        config = CONFIGS[name]
        cosines[name] = check_gradients(config)["cosine"]
        console.print(f"{name}: cosine of the gradients in both dtypes {cosines[name]:.4f}")
        if not cosines[name] >= MIN_COSINE:
            console.print(f"wrong: it is below {MIN_COSINE}", style="red")
            sys.exit(1)
        for dtype in dtype_names:
            step, floor = Step(DTYPES[dtype], config), Floor(config, DTYPES[dtype])
            for count in counts:
                rows.append(measure(name, dtype, count, step, floor, num_rounds=rounds))
                console.print(f"{name}, {dtype}, {count}: done", style="dim")
    print_rows(rows)
    for row in rows:
        print_parts(row)
    print_json(
        "training_step",
        {
            **setup,
            "rounds": rounds,
            "tokens": NUM_TOKENS,
            "parameters": {name: count_parameters(CONFIGS[name]).total for name in names},
            "cosines": cosines,
            "results": [asdict(row) for row in rows],
        },
    )


def chosen(flag: str, given: str, known: Collection[str]) -> list[str]:
    """Split what a flag has at its commas; raise ValueError for a name that is not known."""
    names = given.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"{flag} has {name!r}, it must be of {', '.join(known)}")
    return names


if __name__ == "__main__":
    run(main)
