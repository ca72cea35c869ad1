"""The heavy operations one by one: time, rate, and what share of the machine's limits that is.

Shapes are those of the middle-sized checkpoints in benchmarks/. Inputs stand in memory so many
times over that no cache holds them, and each call takes the next: a decoded token finds its weights
in memory, not in a cache, and so must what is timed here.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.bench.machine import Limits, Spread
from fulmen.bench.workload import until_steady
from fulmen.kernels import (
    CHUNK,
    PAGE,
    ExpertWeights,
    KVPages,
    LightningCarry,
    PackedExperts,
    PackedMatrix,
    head,
    lightning_attention,
    linear,
    mixture_of_experts,
    native,
    pack,
    pack_fp8,
    pack_int4,
    pack_int8,
    rms_norm,
    route,
    softmax_attention,
    write_pages,
)

Format = Literal["bfloat16", "int8", "int4", "fp8"]

WORKING_SET: Final = 2**28
"""Bytes of inputs that calls go through in turn."""
MIN_SECONDS: Final = 0.1
"""Of a stretch of calls that is timed as one."""
HIDDEN, QKV, VOCAB = 1024, 3072, 32_000
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 16, 4, 64
NUM_EXPERTS, TOP_K, EXPERT_WIDTH = 64, 8, 512
GROUP: Final = 64
"""Inputs that share a scale in int8 and int4 weights."""
INPUT_PLANES: Final = 2
"""Inputs of 16 bits meet int8 and int4 weights as two planes of int8, so products count twice."""
EPS: Final = 1e-6
_BITS: Final[dict[Format, float]] = {
    "bfloat16": 16,
    "int8": 8 + 32 / GROUP,
    "int4": 4 + 32 / GROUP,
    "fp8": 8.25,
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """An operation with its inputs in memory; call i works on copy i % num_copies of them."""

    run: Callable[[int], Tensor]
    num_copies: int
    define: Callable[[], Tensor]
    """The same as run(0) by the plain-torch definition, in float64."""
    run_torch: Callable[[int], Tensor] | None = None
    """What torch itself has for it, in bfloat16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """Something to time."""

    name: str
    format: Format
    """Of the weights; of activations where there are none."""
    work: str
    num_bytes: float
    """What a call must read and write."""
    operations: float
    """What it must multiply and add; two a product."""
    prepare: Callable[[], Prepared]

    @property
    def products(self) -> str:
        """Which of the machine's rates bounds the operations."""
        return "int8" if self.format in ("int8", "int4") else "bfloat16"

    def limit_seconds(self, limits: Limits) -> tuple[float, str]:
        """The least that a call can take, and what binds it: memory or products."""
        reading = self.num_bytes / limits.bytes_per_s
        multiplying = self.operations / limits.operations_per_s(self.products)
        return max((reading, "memory"), (multiplying, "products"))

    def __str__(self) -> str:
        return f"{self.name} {self.format}, {self.work}"


def list_ops() -> list[Op]:
    """All that is timed. Without the C++ kernels weights are never rounded, so bfloat16 alone."""
    formats: tuple[Format, ...] = ("bfloat16", "int8", "int4", "fp8")
    formats = formats[: 1 if native() is None else None]
    return [
        *(_linear(format, rows) for format in formats for rows in (1, 8, 512)),
        *(_experts(format, tokens) for format in formats for tokens in (1, 8, 512)),
        _lightning("prefill", 512),
        _lightning("decode", 8),
        _softmax("prefill", 512, 0),
        _softmax("prefill", 512, 16_384),
        _softmax("decode", 1, 1024),
        _softmax("decode", 1, 16_384),
        *(_head(tokens) for tokens in (1, 8)),
        *(_norm(tokens) for tokens in (1, 512)),
    ]


def measure_op(op: Op, *, rounds: int = 3) -> Spread:
    """Seconds of a call, warmed up."""
    prepared = op.prepare()
    clock = Clock(prepared.run)
    clock.warm_up()
    return Spread.of([clock.seconds() for _ in range(rounds)])


def describe_op(op: Op, seconds: Spread, limits: Limits) -> dict[str, Any]:
    """What there is to say of a measurement, ready for JSON; rate is of what binds the operation,
    in unit."""
    least, limit = op.limit_seconds(limits)
    if limit == "memory":
        rate, unit = op.num_bytes / seconds.median / 1e9, "GB/s"
    else:
        unit = "TOP/s" if op.products == "int8" else "TFLOP/s"
        rate = op.operations / seconds.median / 1e12
    return {
        "name": op.name,
        "format": op.format,
        "work": op.work,
        "seconds": asdict(seconds),
        "bytes": op.num_bytes,
        "operations": op.operations,
        "rate": rate,
        "unit": unit,
        "limit": limit,
        "of_limit": least / seconds.median,
    }


class Clock:
    """Times one implementation of an operation, stretch by stretch."""

    def __init__(self, run: Callable[[int], Tensor]) -> None:
        self._run = run
        self._calls = 1
        self._next = 0

    def warm_up(self) -> None:
        """Finds how many calls make a stretch, and runs until their pace is steady."""
        self._stretch()  # a first call is like no other
        while (taken := self._stretch()) < MIN_SECONDS:
            wanted = round(1.2 * self._calls * MIN_SECONDS / taken)
            self._calls = min(max(self._calls + 1, wanted), 10 * self._calls)
        until_steady(self._stretch, max_seconds=2.0)

    def seconds(self) -> float:
        """Of one call, on average over a stretch."""
        return self._stretch() / self._calls

    def _stretch(self) -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            for index in range(self._next, self._next + self._calls):
                self._run(index)
            seconds = time.perf_counter() - start
        self._next += self._calls
        return seconds


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _copies(num_bytes: float) -> int:
    return max(1, round(WORKING_SET / num_bytes))


def _normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal bfloat16."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _matrix(n: int, k: int, format: Format, seed: int = 0) -> Tensor | PackedMatrix:
    """A random (N, K), about 1 / sqrt(K) in size; plain without the C++ kernels."""
    draw = torch.Generator().manual_seed(seed)
    scale = k**-0.5
    match format:
        case "bfloat16":
            weight = (torch.randn(n, k, generator=draw) * scale).bfloat16()
            return weight if native() is None else pack(weight)
        case "int8":
            codes = torch.randint(-127, 128, (n, k), generator=draw, dtype=torch.int8)
            return pack_int8(codes, torch.full((n, k // GROUP), scale / 64), GROUP)
        case "int4":
            codes = torch.randint(0, 16, (n, k), generator=draw, dtype=torch.uint8)
            scales = torch.full((n, k // GROUP), scale / 4).half()
            return pack_int4(codes, scales, -8 * scales, GROUP)
        case "fp8":
            weight = torch.randn(n, k, generator=draw).to(torch.float8_e4m3fn)
            return pack_fp8(weight, torch.full((n // 128, k // 128), scale), (128, 128))


def _again(matrix: Tensor | PackedMatrix) -> Tensor | PackedMatrix:
    """The same elsewhere in memory."""
    if isinstance(matrix, Tensor):
        return matrix.clone()
    return PackedMatrix(matrix.data.clone(), matrix.format, matrix.n, matrix.k, matrix.group)


def _plain(matrix: Tensor | PackedMatrix) -> Tensor:
    """The weights (N, K) in bfloat16."""
    return matrix if isinstance(matrix, Tensor) else matrix.unpack().bfloat16()


def _planes(format: Format) -> int:
    return INPUT_PLANES if format in ("int8", "int4") else 1


def _linear(format: Format, rows: int) -> Op:
    weight_bytes = HIDDEN * QKV * _BITS[format] / 8

    def prepare() -> Prepared:
        first = _matrix(QKV, HIDDEN, format)
        matrices = [first, *(_again(first) for _ in range(1, _copies(weight_bytes)))]
        x = _normal(rows, HIDDEN, seed=1)
        plain = _plain(first)
        plains = [plain, *(plain.clone() for _ in range(1, _copies(plain.nbytes)))]
        return Prepared(
            run=lambda i: linear(x, matrices[i % len(matrices)]),
            num_copies=len(matrices),
            define=lambda: linear(x.double(), _double(first)),
            run_torch=lambda i: F.linear(x, plains[i % len(plains)]),
        )

    return Op(
        name="linear",
        format=format,
        work=f"{rows} x {HIDDEN} to {QKV}",
        num_bytes=weight_bytes + 2 * rows * (HIDDEN + QKV),
        operations=2 * rows * HIDDEN * QKV * _planes(format),
        prepare=prepare,
    )


def _double(matrix: Tensor | PackedMatrix) -> Tensor:
    """The weights (N, K) in float64, with which an operation is its definition."""
    return (matrix if isinstance(matrix, Tensor) else matrix.unpack()).double()


def _experts(format: Format, num_tokens: int) -> Op:
    expert_bytes = 3 * EXPERT_WIDTH * HIDDEN * _BITS[format] / 8
    chosen = NUM_EXPERTS * (1 - (1 - TOP_K / NUM_EXPERTS) ** num_tokens)  # as drawn at random

    def prepare() -> Prepared:
        layers: list[list[ExpertWeights]] = []
        for layer in range(_copies(NUM_EXPERTS * expert_bytes)):
            experts = [
                ExpertWeights(
                    _matrix(EXPERT_WIDTH, HIDDEN, format, 3 * index),
                    _matrix(HIDDEN, EXPERT_WIDTH, format, 3 * index + 1),
                    _matrix(EXPERT_WIDTH, HIDDEN, format, 3 * index + 2),
                )
                if layer == 0
                else ExpertWeights(*map(_again, layers[0][index]))
                for index in range(NUM_EXPERTS)
            ]
            layers.append(experts)
        packed = [experts if native() is None else PackedExperts(experts) for experts in layers]
        x = _normal(num_tokens, HIDDEN, seed=1)
        # Other tokens each time, so that one token's calls go through all experts.
        choices = [
            route(_normal(num_tokens, NUM_EXPERTS, seed=seed).float(), TOP_K, scoring="sigmoid")
            for seed in range(32)
        ]

        def run(i: int) -> Tensor:
            weights, ids = choices[i % len(choices)]
            return mixture_of_experts(x, weights, ids, packed[i % len(packed)])

        def define() -> Tensor:
            weights, ids = choices[0]
            doubles = [ExpertWeights(*map(_double, expert)) for expert in layers[0]]
            return mixture_of_experts(x.double(), weights.double(), ids, doubles)

        plains: list[list[list[Tensor]]] = []

        def run_torch(i: int) -> Tensor:
            if not plains:  # made only when they are wanted
                plains.extend([[_plain(w) for w in e] for e in experts] for experts in layers[:1])
            weights, ids = choices[i % len(choices)]
            return _experts_in_torch(x, weights, ids, plains[0])

        return Prepared(run, len(choices), define, run_torch)

    return Op(
        name="experts",
        format=format,
        work=f"{_tokens(num_tokens)}, {TOP_K} of {NUM_EXPERTS} x {EXPERT_WIDTH}",
        num_bytes=chosen * expert_bytes + 4 * num_tokens * HIDDEN,
        operations=6 * num_tokens * TOP_K * EXPERT_WIDTH * HIDDEN * _planes(format),
        prepare=prepare,
    )


def _experts_in_torch(
    x: Tensor, weights: Tensor, ids: Tensor, experts: Sequence[Sequence[Tensor]]
) -> Tensor:
    """One product for each expert that is chosen, in bfloat16."""
    out = torch.zeros_like(x, dtype=torch.float32)
    for index in sorted(set(ids.flatten().tolist())):
        tokens, places = (ids == index).nonzero(as_tuple=True)
        w1, w2, w3 = experts[index]
        rows = x[tokens]
        hidden = F.linear(F.silu(F.linear(rows, w1)) * F.linear(rows, w3), w2)
        out.index_add_(0, tokens, hidden * weights[tokens, places, None])
    return out.to(x.dtype)


def _lightning(kind: Literal["prefill", "decode"], count: int) -> Op:
    """count tokens of one prompt; or one token of each of count sequences, in the middle of a
    chunk, so that a call leaves everything as it was."""
    is_prefill = kind == "prefill"
    width = NUM_HEADS * HEAD_DIM
    tail = CHUNK // 2
    state_bytes = width * (4 * HEAD_DIM + 2 * 2 * CHUNK)
    lens = [count] if is_prefill else [1] * count
    if is_prefill:
        num_bytes = 2.0 * 4 * count * width
        # In its chunk a token meets half of the others, twice; then it reads and adds to the state.
        operations = 4.0 * count * width * (CHUNK / 2 + HEAD_DIM)
    else:
        num_bytes = count * width * (4.0 * HEAD_DIM + 2 * 2 * (tail + 1))
        operations = count * width * (2.0 * HEAD_DIM + 4 * (tail + 1))

    def prepare() -> Prepared:
        slopes = torch.tensor([2 ** (-8 * (h + 1) / NUM_HEADS) for h in range(NUM_HEADS)])
        cu_seqlens = torch.tensor([0, *torch.tensor(lens).cumsum(0).tolist()], dtype=torch.int32)
        num_copies = _copies(num_bytes if is_prefill else count * state_bytes)
        num_inputs = num_copies if is_prefill else 1
        inputs = [_normal(3, sum(lens), NUM_HEADS, HEAD_DIM, seed=i) for i in range(num_inputs)]
        past = [0 if is_prefill else CHUNK + tail] * len(lens)
        context_lens = torch.tensor(past, dtype=torch.int32)
        num_slots = len(lens) * (1 if is_prefill else num_copies)
        carry = LightningCarry(
            torch.randn(num_slots, NUM_HEADS, HEAD_DIM, HEAD_DIM),
            _normal(num_slots, NUM_HEADS, CHUNK, HEAD_DIM),
            _normal(num_slots, NUM_HEADS, CHUNK, HEAD_DIM),
        )
        slots = [torch.arange(start, start + len(lens)) for start in range(0, num_slots, len(lens))]

        def run(i: int) -> Tensor:
            q, k, v = inputs[i % len(inputs)]
            return lightning_attention(
                q,
                k,
                v,
                slopes,
                cu_seqlens=cu_seqlens,
                context_lens=context_lens,
                states=carry,
                slots=slots[i % len(slots)],
            )

        def define() -> Tensor:
            q, k, v = inputs[0].double()
            return lightning_attention(
                q,
                k,
                v,
                slopes,
                cu_seqlens=cu_seqlens,
                context_lens=context_lens,
                states=LightningCarry(*(x[slots[0]].double() for x in carry)),
                slots=slots[0],
            )

        return Prepared(run, num_copies, define)

    return Op(
        name=f"lightning {kind}",
        format="bfloat16",
        work=f"{count} {'tokens' if is_prefill else 'sequences'}, {NUM_HEADS} heads of {HEAD_DIM}",
        num_bytes=num_bytes,
        operations=operations,
        prepare=prepare,
    )


def _softmax(kind: Literal["prefill", "decode"], num_tokens: int, depth: int) -> Op:
    length = depth + num_tokens
    past_bytes = 2 * 2 * length * NUM_KV_HEADS * HEAD_DIM

    def prepare() -> Prepared:
        pages_each, num_copies = -(-length // PAGE), _copies(past_bytes)
        pages = KVPages(pages_each * num_copies, NUM_KV_HEADS, HEAD_DIM, dtype=torch.bfloat16)
        pages.k_pages.normal_()
        pages.v_pages.normal_()
        tables = torch.arange(pages.num_pages, dtype=torch.int32).view(num_copies, 1, pages_each)
        q = _normal(num_tokens, NUM_HEADS, HEAD_DIM)
        batch = {
            "cu_seqlens": torch.tensor([0, num_tokens], dtype=torch.int32),
            "context_lens": torch.tensor([depth], dtype=torch.int32),
        }

        def define() -> Tensor:
            k, v = (x.double() for x in pages.read(tables[0, 0], length))
            wide = KVPages(pages_each, NUM_KV_HEADS, HEAD_DIM, dtype=torch.float64)
            write_pages(k, v, wide, torch.arange(length))
            return softmax_attention(q.double(), wide, block_table=tables[0], **batch)

        flat: list[Tensor] = []

        def run_torch(i: int) -> Tensor:
            if not flat:  # (copies, 1, Hkv, length, D) each
                shape = (num_copies, 1, NUM_KV_HEADS, length, HEAD_DIM)
                flat.extend(torch.randn(2, *shape, dtype=torch.bfloat16))
                reach = torch.arange(length)[None, :]
                flat.append(reach <= depth + torch.arange(num_tokens)[:, None])
            keys, values, mask = flat
            return F.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                keys[i % num_copies],
                values[i % num_copies],
                attn_mask=mask if depth and num_tokens > 1 else None,
                is_causal=not depth and num_tokens > 1,
                enable_gqa=True,
            )

        def run(i: int) -> Tensor:
            return softmax_attention(q, pages, block_table=tables[i % num_copies], **batch)

        return Prepared(run, num_copies, define, run_torch)

    return Op(
        name=f"softmax {kind}",
        format="bfloat16",
        work=f"{_tokens(num_tokens)} at depth {depth:,}, {NUM_HEADS}/{NUM_KV_HEADS} heads",
        num_bytes=past_bytes + 2 * 2 * num_tokens * NUM_HEADS * HEAD_DIM,
        operations=4 * NUM_HEADS * HEAD_DIM * num_tokens * (depth + (num_tokens + 1) / 2),
        prepare=prepare,
    )


def _head(num_tokens: int) -> Op:
    def prepare() -> Prepared:
        first = _matrix(VOCAB, HIDDEN, "bfloat16")
        matrices = [first, *(_again(first) for _ in range(1, _copies(2 * VOCAB * HIDDEN)))]
        x = _normal(num_tokens, HIDDEN, seed=1)
        plain = _plain(first)
        return Prepared(
            run=lambda i: head(x, matrices[i % len(matrices)], top_k=1).top_logits,
            num_copies=len(matrices),
            define=lambda: head(x.double(), _double(first), top_k=1).top_logits,
            run_torch=partial(_head_in_torch, x, [plain, *(plain.clone() for _ in range(3))]),
        )

    return Op(
        name="head",
        format="bfloat16",
        work=f"{num_tokens} x {HIDDEN}, the best of {VOCAB:,}",
        num_bytes=2 * VOCAB * HIDDEN,
        operations=2 * num_tokens * VOCAB * HIDDEN,
        prepare=prepare,
    )


def _head_in_torch(x: Tensor, weights: Sequence[Tensor], i: int) -> Tensor:
    logits = F.linear(x, weights[i % len(weights)]).float()
    logits.logsumexp(-1)
    return logits.max(-1, keepdim=True).values


def _norm(num_tokens: int) -> Op:
    row_bytes = 2 * num_tokens * HIDDEN

    def prepare() -> Prepared:
        num_copies = _copies(row_bytes)
        x = torch.randn(num_copies, num_tokens, HIDDEN, dtype=torch.bfloat16)
        weight = _normal(HIDDEN)
        return Prepared(
            run=lambda i: rms_norm(x[i % num_copies], weight, EPS),
            num_copies=num_copies,
            define=lambda: rms_norm(x[0].double(), weight.double(), EPS),
            run_torch=lambda i: F.rms_norm(x[i % num_copies], (HIDDEN,), weight, EPS),
        )

    return Op(
        name="rms norm",
        format="bfloat16",
        work=f"{num_tokens} x {HIDDEN}",
        num_bytes=2 * row_bytes,
        operations=4 * num_tokens * HIDDEN,
        prepare=prepare,
    )
