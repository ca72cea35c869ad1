"""A prompt of a million tokens through a small M1: memory, time, and whether its needles are found.

    python benchmarks/million.py
    python benchmarks/million.py --tokens 65536

The model has M1's layout, seven lightning layers and one of softmax, and a circuit that finds
needles by construction (fulmen/bench/needle.py). First the answer, on a short
haystack: each needle is found, another in its place changes the answer, and without one there is
none. Then the engine reads one request of --tokens with needles at 1 %, 50 % and 99 %; the first
question comes with it, the others find all but their last token known.

Resident memory is read after each step, so its slope can be held against what keys and values must
take: the lightning layers' states do not grow. Attention is timed layer by layer: a lightning layer
takes as long for the last token as for the first, the softmax layer in proportion to depth.
"""

import ctypes
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
from measure import console, print_json, print_wide, run, step
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from fulmen.bench import Needles, needle_model, use_threads
from fulmen.engine import Engine, EngineConfig, TokenOutput
from fulmen.kernels import PAGE
from fulmen.models import M1, M1Config
from fulmen.sampling import SamplingParams

NEEDLES: Final = Needles()
PLANTED: Final = {0.01: (0, 3), 0.5: (1, 5), 0.99: (2, 6)}
"""Key and value of the needle at each depth"""
ABSENT_KEY: Final = 3
SHORT: Final = 4096
DECODED: Final = 32
"""New tokens after the prompt: the answer, and steps to time at full depth"""
PARTS: Final = 8
"""Rows of the table"""
LARGE_BLOCK: Final = 2**17


@dataclass(frozen=True, slots=True)
class Sample:
    """Time and memory after a step that read a piece of the prompt."""

    num_tokens: int
    seconds: float
    lightning_seconds: float
    """Seconds of all lightning attention so far"""
    softmax_seconds: float
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to a question, and whether it is right."""

    key: int
    expected: int | None
    """The value that was planted for the key"""
    found: int | None
    """The value that the model names; None if it says something else"""
    margin: float
    """Between the log-probabilities of what it says and of the next best"""
    first_token_seconds: float
    num_hit_tokens: int
    """Tokens that were known already"""

    @property
    def is_right(self) -> bool:
        """True if the needle was found, or rightly none."""
        return self.found == self.expected


def make_config(
    num_tokens: int, *, hidden_size: int, num_heads: int, head_dim: int, intermediate_size: int
) -> M1Config:
    """M1 scaled down to eight layers; the residual's gain is (2 L)^(1/4), as in the release."""
    return M1Config(
        vocab_size=NEEDLES.vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=8,
        num_attention_heads=num_heads,
        num_key_value_heads=1,
        head_dim=head_dim,
        rotary_dim=head_dim // 2,
        attn_type_list=(0,) * 7 + (1,),
        intermediate_size=intermediate_size,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=num_tokens + PAGE,
        postnorm=True,
        layernorm_linear_attention_alpha=2.0,
        layernorm_full_attention_alpha=2.0,
        layernorm_mlp_alpha=2.0,
    )


def make_engine(model: M1, num_tokens: int, chunk: int) -> Engine:
    """One request of num_tokens at a time, and room for what others of its prefix add."""
    num_pages = -(-num_tokens // PAGE) + 2 * PAGE
    return Engine(
        model,
        EngineConfig(
            max_num_seqs=1,
            max_num_batched_tokens=chunk,
            max_model_len=num_tokens + PAGE,
            kv_cache_bytes=num_pages * model.page_bytes(),
        ),
    )


def haystack(num_tokens: int, values: Mapping[float, tuple[int, int]] = PLANTED) -> list[int]:
    """Fillers with a needle at each depth."""
    planted = {int(num_tokens * depth): NEEDLES.needle(*pair) for depth, pair in values.items()}
    return NEEDLES.haystack(num_tokens, planted)


def ask(engine: Engine, prompt: Sequence[int], key: int, expected: int | None) -> Answer:
    """One question after a prompt; all but its last tokens had better be known."""
    start, hits = time.perf_counter(), engine.stats.num_hit_tokens
    engine.add_request([*prompt, NEEDLES.question(key)], greedy(1))
    outputs: list[TokenOutput] = []
    while not outputs:
        outputs = step(engine)
    seconds = time.perf_counter() - start
    return make_answer(outputs[0], key, expected, seconds, engine.stats.num_hit_tokens - hits)


def make_answer(
    output: TokenOutput, key: int, expected: int | None, seconds: float, num_hit_tokens: int
) -> Answer:
    """Return the answer that the first token after a question gives."""
    best, second = (logprob for _, logprob in output.top_logprobs[:2])
    is_answer = NEEDLES.is_answer(output.token_id)
    found = output.token_id - NEEDLES.answer(0) if is_answer else None
    return Answer(key, expected, found, best - second, seconds, num_hit_tokens)


def greedy(max_tokens: int) -> SamplingParams:
    """The most likely tokens, and how likely the next best was."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=2)


def check_short(model: M1, chunk: int) -> list[Answer]:
    """All that is claimed of needles, where it takes no time."""
    answers = []
    for values in (PLANTED, {depth: (key, value ^ 1) for depth, (key, value) in PLANTED.items()}):
        engine = make_engine(model, SHORT + 1, chunk)
        prompt = haystack(SHORT, values)
        asked = [*values.values(), (ABSENT_KEY, None)]
        answers += [ask(engine, prompt, key, value) for key, value in asked]
    return answers


class Reader:
    """Reads one long prompt and notes how it goes."""

    def __init__(self, model: M1, engine: Engine, chunk: int) -> None:
        self.engine = engine
        self.chunk = chunk
        self._seconds = {0: 0.0, 1: 0.0}
        """Seconds of attention, by the kind of layer"""
        self._layers = [
            (layer.get_submodule("self_attn"), kind)
            for layer, kind in zip(model.model.layers, model.config.attn_type_list, strict=True)
        ]

    def read(
        self, prompt: Sequence[int], progress: Progress
    ) -> tuple[list[Sample], TokenOutput, list[float]]:
        """A sample for the beginning and each step, the first new token, and the seconds of each
        later one."""
        task = progress.add_task("reading", total=len(prompt))
        start = time.perf_counter()
        self.engine.add_request(prompt, greedy(DECODED))
        samples = [self._sample(0, start)]
        outputs: list[TokenOutput] = []
        decoded = []
        with self._clocks():
            while not outputs:
                outputs = step(self.engine)
                read = min(samples[-1].num_tokens + self.chunk, len(prompt))
                samples.append(self._sample(read, start))
                progress.update(task, completed=read)
                if read * PARTS // len(prompt) > samples[-2].num_tokens * PARTS // len(prompt):
                    console.print(f"{read:,} tokens after {samples[-1].seconds:,.0f} s")
        while self.engine.has_unfinished:
            start = time.perf_counter()
            self.engine.step()
            decoded.append(time.perf_counter() - start)
        return samples, outputs[0], decoded

    def _sample(self, num_tokens: int, start: float) -> Sample:
        seconds = time.perf_counter() - start
        return Sample(num_tokens, seconds, self._seconds[0], self._seconds[1], resident_bytes())

    @contextmanager
    def _clocks(self) -> Iterator[None]:
        starts: list[float] = []
        hooks = []

        def begin(*_: Any) -> None:
            starts.append(time.perf_counter())

        def end_of(kind: int) -> Any:
            def end(*_: Any) -> None:
                self._seconds[kind] += time.perf_counter() - starts.pop()

            return end

        for attention, kind in self._layers:
            hooks.append(attention.register_forward_pre_hook(begin))
            hooks.append(attention.register_forward_hook(end_of(kind)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    resident = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(resident) * os.sysconf("SC_PAGE_SIZE")


def keep_large_blocks_apart() -> None:
    """Fixes glibc's M_MMAP_THRESHOLD. As it is, tensors of a step share the heap with small things
    that stay, which leaves holes: memory that is free and yet resident, some hundred MiB of it."""
    m_mmap_threshold = -3
    ctypes.CDLL(None).mallopt(m_mmap_threshold, LARGE_BLOCK)


def slope(samples: Sequence[Sample]) -> float:
    """Bytes a token by least squares, once the first sixteenth has warmed the allocator up."""
    warm = [s for s in samples if s.num_tokens >= samples[-1].num_tokens / 16]
    tokens, memory = ([getattr(s, name) for s in warm] for name in ("num_tokens", "resident_bytes"))
    return float(np.polyfit(tokens, memory, 1)[0])


def at_parts(samples: Sequence[Sample]) -> list[Sample]:
    """The sample nearest to each eighth, of a short prompt fewer."""
    most = samples[-1].num_tokens
    marks = [most * part / PARTS for part in range(PARTS + 1)]
    nearest = [min(samples, key=lambda s, mark=mark: abs(s.num_tokens - mark)) for mark in marks]  # type: ignore[misc]
    return list(dict.fromkeys(nearest))


def make_rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Each eighth: memory at its end, the rate, and microseconds a token of each kind of layer."""
    rows = []
    parts = at_parts(samples)
    for before, after in pairwise(parts):
        count = after.num_tokens - before.num_tokens
        spent = after.seconds - before.seconds
        lightning = after.lightning_seconds - before.lightning_seconds
        softmax = after.softmax_seconds - before.softmax_seconds
        rows.append(
            {
                "num_tokens": after.num_tokens,
                "resident_bytes": after.resident_bytes,
                "grown_bytes": after.resident_bytes - samples[0].resident_bytes,
                "seconds": after.seconds,
                "tokens_per_s": count / spent,
                "lightning_us": 1e6 * lightning / count,
                "softmax_us": 1e6 * softmax / count,
                "rest_us": 1e6 * (spent - lightning - softmax) / count,
            }
        )
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """The curve."""
    table = Table(title=title, box=None, pad_edge=False, header_style="bold")
    for column in ("tokens", "resident", "grown by", "after", "tokens/s"):
        table.add_column(column, justify="right")
    for column in ("lightning us/token", "softmax us/token", "rest us/token"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row['num_tokens']:,}",
            f"{row['resident_bytes'] / 2**20:.1f} MiB",
            f"{row['grown_bytes'] / 2**20:.1f} MiB",
            f"{row['seconds']:.0f} s",
            f"{row['tokens_per_s']:.0f}",
            *(f"{row[name]:.1f}" for name in ("lightning_us", "softmax_us", "rest_us")),
        )
    print_wide(table)


def print_answers(answers: Sequence[Answer]) -> None:
    """Each question, and what it was answered."""
    for answer in answers:
        found = "none" if answer.found is None else f"value {answer.found}"
        planted = "none" if answer.expected is None else f"value {answer.expected}"
        console.print(
            f"key {answer.key}: {found} (planted: {planted}), margin {answer.margin:.1f}, "
            f"{1e3 * answer.first_token_seconds:,.1f} ms to the first token, "
            f"{answer.num_hit_tokens:,} tokens known",
            style="green" if answer.is_right else "red",
            highlight=False,
        )


def main(
    tokens: Annotated[int, typer.Option(help="Of the haystack.")] = 1_000_000,
    hidden_size: Annotated[int, typer.Option(help="Of the model.")] = 512,
    num_heads: Annotated[int, typer.Option(help="Of queries; keys and values have one.")] = 2,
    head_dim: Annotated[int, typer.Option(help="Half of it rotates in the softmax layer.")] = 64,
    intermediate_size: Annotated[int, typer.Option(help="Of each of 8 experts.")] = 256,
    chunk: Annotated[int, typer.Option(help="Tokens of one step.")] = 4096,
    threads: Annotated[int, typer.Option(help="Of the kernels.")] = torch.get_num_threads(),
) -> None:
    """Reads a very long prompt. Tables go to stderr, one JSON line to stdout."""
    use_threads(threads)
    keep_large_blocks_apart()
    config = make_config(
        max(tokens, SHORT) + DECODED,
        hidden_size=hidden_size,
        num_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
    )
    model = needle_model(config, NEEDLES)
    model.pack()
    short = check_short(model, chunk)
    if not all(answer.is_right for answer in short):
        print_answers(short)
        sys.exit(1)

    engine = make_engine(model, tokens + DECODED, chunk)
    before = resident_bytes()
    prompt = haystack(tokens)
    (first_key, first_value), *others = PLANTED.values()
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        reader = Reader(model, engine, chunk)
        samples, output, decoded = reader.read([*prompt, NEEDLES.question(first_key)], progress)
    rows = make_rows(samples)
    stats = engine.stats
    answers = [make_answer(output, first_key, first_value, samples[-1].seconds, 0)]
    for key, value in (*others, (ABSENT_KEY, None)):
        answers.append(ask(engine, prompt, key, value))

    states = model.new_cache(1, 1).states
    exact = model.page_bytes() / PAGE
    found = slope(samples)
    memory = {
        "prompt_bytes": samples[0].resident_bytes - before,
        "slope": found,
        "exact_slope": exact,
        "lightning_state_bytes": sum(part.nbytes for state in states for part in state.carry),
        "used_snapshot_bytes": stats.used_snapshot_bytes,
    }
    print_rows(rows, f"a prompt of {tokens:,} tokens, {threads} threads")
    console.print(
        f"{found:.1f} bytes a token, keys and values take {exact:.0f}; the prompt's ids took "
        f"{memory['prompt_bytes'] / 2**20:.1f} MiB before; lightning states "
        f"{memory['lightning_state_bytes'] / 2**20:.2f} MiB at any length, snapshots of them "
        f"{memory['used_snapshot_bytes'] / 2**20:.1f} MiB; a decoded token "
        f"{1e3 * statistics.median(decoded):.1f} ms",
        highlight=False,
    )
    print_answers(answers)
    print_json(
        "million",
        {
            "dtype": "bfloat16",
            "shapes": {key: value for key, value in config.to_dict().items() if type(value) is int},
            "threads": threads,
            "chunk": chunk,
            "num_tokens": tokens,
            "short_answers": [asdict(answer) for answer in short],
            "answers": [asdict(answer) for answer in answers],
            "memory": memory,
            "seconds": samples[-1].seconds,
            "schedule_seconds": stats.schedule_seconds,
            "decode_seconds": statistics.median(decoded),
            "parts": rows,
        },
    )
    if not all(answer.is_right for answer in answers):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
