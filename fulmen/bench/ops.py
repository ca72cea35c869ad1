"""The heavy operations one by one: time, rate, and what share of the machine's limits that is.

Shapes are those of the middle-sized checkpoints in benchmarks/. A backward operation is the
gradients of all its inputs, of a graph that is made before; it counts as twice the forward
products, in bfloat16 as the forward operation. Inputs stand in memory so many
times over that no cache holds them, and each call takes the next: a decoded token finds its weights
in memory, not in a cache, and so must what is timed here.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
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
    Lengths,
    LightningCarry,
    PackedExperts,
    PackedMatrix,
    attend,
    embed,
    gated_norm,
    head,
    lightning_attention,
    linear,
    mixture_of_experts,
    native,
    pack,
    pack_fp8,
    pack_int4,
    pack_int8,
    residual_norm,
    rms_norm,
    rotary_angles,
    rotate,
    route,
    softmax_attention,
    write_pages,
)

FormatName = Literal["bfloat16", "int8", "int4", "fp8"]
Output = Tensor | Sequence[Tensor]

MIN_SECONDS: Final = 0.1
"""Of a stretch of calls that is timed as one."""
GROUP: Final = 32
"""Inputs that share a scale in int8 and int4 weights, as `fulmen quantize` makes them."""
INPUT_PLANES: Final = 2
"""Inputs of 16 bits meet int8 and int4 weights as two planes of int8, so products count twice."""
EPS: Final = 1e-6
ROPE_THETA: Final = 1e6
_BITS: Final[dict[FormatName, float]] = {
    "bfloat16": 16,
    "int8": 8 + 32 / GROUP,
    "int4": 4 + 32 / GROUP,
    "fp8": 8 + 32 / 128**2,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """How large the operations are; tests make them small."""

    hidden_size: int = 1024
    qkv_size: int = 3072
    vocab_size: int = 32_000
    num_heads: int = 16
    num_kv_heads: int = 4
    head_dim: int = 64
    rotary_dim: int = 32
    num_experts: int = 64
    top_k: int = 8
    intermediate_size: int = 512
    prompt: int = 512
    long_prompt: int = 4096
    context: int = 1024
    long_context: int = 16_384
    working_set: int = 2**28
    """Bytes of inputs that calls go through in turn."""

    def copies(self, num_bytes: float) -> int:
        """How many of so many bytes make the working set."""
        return max(1, round(self.working_set / num_bytes))


@dataclass(frozen=True, slots=True)
class Prepared:
    """An operation with its inputs in memory; call i works on copy i % num_copies of them."""

    run: Callable[[int], Output]
    num_copies: int
    define: Callable[[], Output]
    """The same as run(0) by the plain-torch definition, in float64."""
    run_torch: Callable[[int], Output] | None = None
    """What torch itself has for it, in bfloat16."""

    def error(self) -> float:
        """How far run(0) is from its definition: root mean square of the difference over that of
        the answer, of several tensors the largest."""
        with torch.inference_mode():
            found, expected = _tensors(self.run(0)), _tensors(self.define())
        pairs = zip(found, expected, strict=True)
        return max(float((x.double() - y).norm() / y.norm()) for x, y in pairs)


def _tensors(output: Output) -> Sequence[Tensor]:
    return [output] if isinstance(output, Tensor) else output


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """Something to time."""

    name: str
    format: FormatName
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


def list_ops(shapes: Shapes = Shapes()) -> list[Op]:
    """All that is timed. Without the C++ kernels weights are never rounded, so bfloat16 alone."""
    s = shapes
    formats: tuple[FormatName, ...] = ("bfloat16", "int8", "int4", "fp8")
    formats = formats[: 1 if native() is None else None]
    ragged = [s.long_context >> i for i in range(8)]
    return [
        *(_linear(s, format, rows) for format in formats for rows in (1, 8, s.prompt)),
        _linear_backward(s, s.prompt),
        *(
            _experts(s, format, tokens)
            for format in formats
            for tokens in (1, 8, s.prompt, s.long_prompt)
        ),
        _experts_backward(s, s.prompt),
        *(_router(s, tokens) for tokens in (1, s.prompt)),
        _lightning(s, "prefill", s.prompt),
        _lightning(s, "decode", 8),
        _lightning_backward(s, s.prompt),
        _softmax(s, "prefill", s.prompt, [0]),
        _softmax(s, "prefill", s.prompt, [s.long_context]),
        _softmax(s, "decode", 1, [s.context]),
        _softmax(s, "decode", 1, [s.long_context]),
        _softmax(s, "decode", 1, ragged),
        _softmax(s, "decode", 1, [s.long_context], is_int8=True),
        _softmax_backward(s, s.prompt),
        *(_rotary(s, tokens) for tokens in (1, s.prompt)),
        *(_head(s, tokens) for tokens in (1, 8)),
        _head(s, s.prompt, has_targets=True),
        *(_norm(s, tokens) for tokens in (1, s.prompt)),
        *(_residual_norm(s, tokens) for tokens in (1, s.prompt)),
        _gated_norm(s, s.prompt),
        *(_embedding(s, tokens) for tokens in (1, s.prompt)),
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

    def __init__(self, run: Callable[[int], Output]) -> None:
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


def _normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal bfloat16."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _matrix(n: int, k: int, format: FormatName, seed: int = 0) -> Tensor | PackedMatrix:
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
            return pack_fp8(weight, torch.full((-(-n // 128), -(-k // 128)), scale), (128, 128))


def _again(matrix: Tensor | PackedMatrix) -> Tensor | PackedMatrix:
    """The same elsewhere in memory."""
    if isinstance(matrix, Tensor):
        return matrix.clone()
    return PackedMatrix(matrix.data.clone(), matrix.format, matrix.n, matrix.k, matrix.group)


def _plain(matrix: Tensor | PackedMatrix) -> Tensor:
    """The weights (N, K) in bfloat16."""
    return matrix if isinstance(matrix, Tensor) else matrix.unpack().bfloat16()


def _planes(format: FormatName) -> int:
    return INPUT_PLANES if format in ("int8", "int4") else 1


def _gradients(
    apply: Callable[..., Tensor],
    copies: Sequence[Sequence[Tensor]],
    dtype: torch.dtype | None = None,
) -> Callable[[int], Output]:
    """Call i gives the gradients of all inputs of copy i, in dtype or as they are; the graphs are
    made once, and stay."""

    @cache
    def graphs() -> tuple[list[tuple[Tensor, list[Tensor]]], Tensor]:
        made = []
        for inputs in copies:
            leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
            made.append((apply(*leaves), leaves))
        return made, _normal(*made[0][0].shape, seed=9).to(made[0][0].dtype)

    def run(i: int) -> Output:
        with torch.inference_mode(False):
            made, dout = graphs()
            out, leaves = made[i % len(made)]
            return torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return run


def _backward(
    s: Shapes,
    inputs: Sequence[Tensor],
    apply: Callable[..., Tensor],
    in_torch: Callable[..., Tensor] | None = None,
) -> Prepared:
    """The gradients of apply(*inputs), defined by autograd in float64."""
    num_copies = s.copies(sum(x.nbytes for x in inputs))
    copies = [inputs, *([x.clone() for x in inputs] for _ in range(1, num_copies))]
    return Prepared(
        run=_gradients(apply, copies),
        num_copies=num_copies,
        define=lambda: _gradients(apply, [inputs], torch.float64)(0),
        run_torch=None if in_torch is None else _gradients(in_torch, copies),
    )


def _linear(s: Shapes, format: FormatName, rows: int) -> Op:
    hidden, width = s.hidden_size, s.qkv_size
    weight_bytes = hidden * width * _BITS[format] / 8

    def prepare() -> Prepared:
        first = _matrix(width, hidden, format)
        matrices = [first, *(_again(first) for _ in range(1, s.copies(weight_bytes)))]
        x = _normal(rows, hidden, seed=1)
        plains = cache(lambda: _plains(s, first))
        return Prepared(
            run=lambda i: linear(x, matrices[i % len(matrices)]),
            num_copies=len(matrices),
            define=lambda: linear(x.double(), _double(first)),
            run_torch=lambda i: F.linear(x, plains()[i % len(plains())]),
        )

    return Op(
        name="linear",
        format=format,
        work=f"{rows} x {hidden} to {width}",
        num_bytes=weight_bytes + 2 * rows * (hidden + width),
        operations=2 * rows * hidden * width * _planes(format),
        prepare=prepare,
    )


def _linear_backward(s: Shapes, rows: int) -> Op:
    hidden, width = s.hidden_size, s.qkv_size

    def prepare() -> Prepared:
        weight = (_normal(width, hidden) * hidden**-0.5).bfloat16()
        return _backward(s, [_normal(rows, hidden, seed=1), weight], linear, F.linear)

    return Op(
        name="linear backward",
        format="bfloat16",
        work=f"{rows} x {hidden} to {width}",
        num_bytes=2 * (2 * hidden * width + 2 * rows * hidden + rows * width),
        operations=4 * rows * hidden * width,
        prepare=prepare,
    )


def _plains(s: Shapes, matrix: Tensor | PackedMatrix) -> list[Tensor]:
    """The weights (N, K) in bfloat16, so often that they fill the working set."""
    plain = _plain(matrix)
    return [plain, *(plain.clone() for _ in range(1, s.copies(plain.nbytes)))]


def _double(matrix: Tensor | PackedMatrix) -> Tensor:
    """The weights (N, K) in float64, with which an operation is its definition."""
    return (matrix if isinstance(matrix, Tensor) else matrix.unpack()).double()


def _experts(s: Shapes, format: FormatName, num_tokens: int) -> Op:
    hidden, width, count = s.hidden_size, s.intermediate_size, s.num_experts
    expert_bytes = 3 * width * hidden * _BITS[format] / 8
    chosen = count * (1 - (1 - s.top_k / count) ** num_tokens)  # as drawn at random

    def prepare() -> Prepared:
        layers: list[list[ExpertWeights]] = []
        for layer in range(s.copies(count * expert_bytes)):
            experts = [
                ExpertWeights(
                    _matrix(width, hidden, format, 3 * index),
                    _matrix(hidden, width, format, 3 * index + 1),
                    _matrix(width, hidden, format, 3 * index + 2),
                )
                if layer == 0
                else ExpertWeights(*map(_again, layers[0][index]))
                for index in range(count)
            ]
            layers.append(experts)
        packed = [experts if native() is None else PackedExperts(experts) for experts in layers]
        x = _normal(num_tokens, hidden, seed=1)
        # Other tokens each time, so that one token's calls go through all experts.
        choices = [_choice(s, num_tokens, seed) for seed in range(32)]

        def run(i: int) -> Tensor:
            weights, ids = choices[i % len(choices)]
            return mixture_of_experts(x, weights, ids, packed[i % len(packed)])

        def define() -> Tensor:
            weights, ids = choices[0]
            doubles = [ExpertWeights(*map(_double, expert)) for expert in layers[0]]
            return mixture_of_experts(x.double(), weights.double(), ids, doubles)

        plains = cache(lambda: [[_plain(w) for w in expert] for expert in layers[0]])

        def run_torch(i: int) -> Tensor:
            weights, ids = choices[i % len(choices)]
            return _experts_in_torch(x, weights, ids, plains())

        return Prepared(run, len(choices), define, run_torch)

    return Op(
        name="experts",
        format=format,
        work=f"{_tokens(num_tokens)}, {s.top_k} of {count} x {width}",
        num_bytes=chosen * expert_bytes + 4 * num_tokens * hidden,
        operations=6 * num_tokens * s.top_k * width * hidden * _planes(format),
        prepare=prepare,
    )


def _choice(s: Shapes, num_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """topk_weights and topk_ids (T, K) of random tokens."""
    logits = _normal(num_tokens, s.num_experts, seed=seed).float()
    return route(logits, s.top_k, scoring="sigmoid")


def _experts_backward(s: Shapes, num_tokens: int) -> Op:
    hidden, width, count = s.hidden_size, s.intermediate_size, s.num_experts
    weight_bytes = 2 * 3 * count * width * hidden

    def prepare() -> Prepared:
        topk_weights, ids = _choice(s, num_tokens, 0)
        shapes = [(width, hidden), (hidden, width), (width, hidden)] * count
        flat = [
            (_normal(*shape, seed=i) * shape[1] ** -0.5).bfloat16()
            for i, shape in enumerate(shapes)
        ]

        def apply(x: Tensor, weights: Tensor, *flat: Tensor) -> Tensor:
            experts = [ExpertWeights(*flat[i : i + 3]) for i in range(0, len(flat), 3)]
            return mixture_of_experts(x, weights, ids, experts)

        return _backward(s, [_normal(num_tokens, hidden, seed=1), topk_weights, *flat], apply)

    return Op(
        name="experts backward",
        format="bfloat16",
        work=f"{_tokens(num_tokens)}, {s.top_k} of {count} x {width}",
        num_bytes=2 * weight_bytes + 3 * 2 * num_tokens * hidden,
        operations=12 * num_tokens * s.top_k * width * hidden,
        prepare=prepare,
    )


def _router(s: Shapes, num_tokens: int) -> Op:
    """The experts of each token from their logits; the weights are compared."""
    row_bytes = 4 * num_tokens * s.num_experts

    def prepare() -> Prepared:
        num_copies = s.copies(row_bytes)
        logits = torch.randn(num_copies, num_tokens, s.num_experts)
        bias = _normal(s.num_experts, seed=1).float() / 100

        def run_torch(i: int) -> Tensor:
            scores = logits[i % num_copies].sigmoid()
            weights = scores.gather(-1, (scores + bias).topk(s.top_k).indices)
            return weights / weights.sum(-1, keepdim=True)

        def weights_of(logits: Tensor, bias: Tensor) -> Tensor:
            return route(logits, s.top_k, scoring="sigmoid", choice_bias=bias)[0]

        return Prepared(
            run=lambda i: weights_of(logits[i % num_copies], bias),
            num_copies=num_copies,
            define=lambda: weights_of(logits[0].double(), bias.double()),
            run_torch=run_torch,
        )

    return Op(
        name="router",
        format="bfloat16",
        work=f"{_tokens(num_tokens)}, {s.top_k} of {s.num_experts}",
        num_bytes=row_bytes + 12 * num_tokens * s.top_k,
        operations=4 * num_tokens * s.num_experts,
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


def _lightning(s: Shapes, kind: Literal["prefill", "decode"], count: int) -> Op:
    """count tokens of one prompt; or one token of each of count sequences, in the middle of a
    chunk, so that a call leaves everything as it was."""
    is_prefill = kind == "prefill"
    what = "tokens" if is_prefill else "sequences"
    width = s.num_heads * s.head_dim
    tail = CHUNK // 2
    state_bytes = width * (4 * s.head_dim + 2 * 2 * CHUNK)
    lens = [count] if is_prefill else [1] * count
    if is_prefill:
        num_bytes = 2.0 * 4 * count * width
        # In its chunk a token meets half of the others, twice; then it reads and adds to the state.
        operations = 4.0 * count * width * (CHUNK / 2 + s.head_dim)
    else:
        num_bytes = count * width * (4.0 * s.head_dim + 2 * 2 * (tail + 1))
        operations = count * width * (2.0 * s.head_dim + 4 * (tail + 1))

    def prepare() -> Prepared:
        slopes = _slopes(s)
        cu_seqlens = torch.tensor([0, *torch.tensor(lens).cumsum(0).tolist()], dtype=torch.int32)
        num_copies = s.copies(num_bytes if is_prefill else count * state_bytes)
        num_inputs = num_copies if is_prefill else 1
        inputs = [_normal(3, sum(lens), s.num_heads, s.head_dim, seed=i) for i in range(num_inputs)]
        past = [0 if is_prefill else CHUNK + tail] * len(lens)
        context_lens = torch.tensor(past, dtype=torch.int32)
        num_slots = len(lens) * (1 if is_prefill else num_copies)
        carry = LightningCarry(
            torch.randn(num_slots, s.num_heads, s.head_dim, s.head_dim),
            _normal(num_slots, s.num_heads, CHUNK, s.head_dim),
            _normal(num_slots, s.num_heads, CHUNK, s.head_dim),
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
        work=f"{count} {what}, {s.num_heads} heads of {s.head_dim}",
        num_bytes=num_bytes,
        operations=operations,
        prepare=prepare,
    )


def _slopes(s: Shapes) -> Tensor:
    return torch.tensor([2 ** (-8 * (h + 1) / s.num_heads) for h in range(s.num_heads)])


def _lightning_backward(s: Shapes, num_tokens: int) -> Op:
    forward = _lightning(s, "prefill", num_tokens)

    def prepare() -> Prepared:
        slopes, bounds = _slopes(s), torch.tensor([0, num_tokens], dtype=torch.int32)
        inputs = list(_normal(3, num_tokens, s.num_heads, s.head_dim))

        def apply(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return lightning_attention(q, k, v, slopes, cu_seqlens=bounds)

        return _backward(s, inputs, apply)

    return Op(
        name="lightning backward",
        format="bfloat16",
        work=forward.work,
        num_bytes=forward.num_bytes / 4 * 7,  # q, k, v, the output's gradient and three more
        operations=2 * forward.operations,
        prepare=prepare,
    )


def _softmax(
    s: Shapes,
    kind: Literal["prefill", "decode"],
    num_tokens: int,
    depths: Sequence[int],
    *,
    is_int8: bool = False,
) -> Op:
    """num_tokens of each sequence after depths others, which stand in pages, in int8 or bfloat16.
    torch has an operation for one sequence."""
    heads, kv_heads, dim = s.num_heads, s.num_kv_heads, s.head_dim
    lens = [depth + num_tokens for depth in depths]
    pages_each = [-(-length // PAGE) for length in lens]
    token_bytes = 2 * kv_heads * (dim + 4 if is_int8 else 2 * dim)
    past_bytes = token_bytes * sum(lens)

    def prepare() -> Prepared:
        num_copies, num_pages = s.copies(past_bytes), sum(pages_each)
        pages = _noisy_pages(s, num_pages * num_copies, is_int8=is_int8)
        table = torch.zeros(len(lens), max(pages_each), dtype=torch.int32)
        ends = list(itertools.accumulate(pages_each))
        for row, count, end in zip(table, pages_each, ends, strict=True):
            row[:count] = torch.arange(end - count, end)
        tables = [table + copy * num_pages for copy in range(num_copies)]
        q = _normal(num_tokens * len(lens), heads, dim)
        lengths = Lengths.of([num_tokens] * len(lens), depths)

        def define() -> Tensor:
            wide = KVPages(num_pages, kv_heads, dim, dtype=torch.float64)
            for row, length in zip(table, lens, strict=True):
                k, v = (x.double() for x in pages.read(row[: -(-length // PAGE)], length))
                write_pages(k, v, wide, int(row[0]) * PAGE + torch.arange(length))
            return softmax_attention(q.double(), wide, block_table=table, lengths=lengths)

        @cache
        def flat() -> tuple[Tensor, Tensor, Tensor]:
            shape = (num_copies, 1, kv_heads, lens[0], dim)
            keys, values = torch.randn(2, *shape, dtype=torch.bfloat16)
            reach = torch.arange(lens[0])[None, :]
            return keys, values, reach <= depths[0] + torch.arange(num_tokens)[:, None]

        def run_torch(i: int) -> Tensor:
            keys, values, mask = flat()
            return F.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                keys[i % num_copies],
                values[i % num_copies],
                attn_mask=mask if depths[0] and num_tokens > 1 else None,
                is_causal=not depths[0] and num_tokens > 1,
                enable_gqa=True,
            )

        def run(i: int) -> Tensor:
            return softmax_attention(q, pages, block_table=tables[i % num_copies], lengths=lengths)

        return Prepared(run, num_copies, define, run_torch if len(lens) == 1 else None)

    at = f"at depth {depths[0]:,}"
    if len(depths) > 1:
        at = f"each of {len(depths)} at depths {min(depths):,} to {max(depths):,}"
    return Op(
        name=f"softmax {kind}" + " from int8 pages" * is_int8,
        format="bfloat16",
        work=f"{_tokens(num_tokens)} {at}, {heads}/{kv_heads} heads",
        num_bytes=past_bytes + 2 * 2 * len(lens) * num_tokens * heads * dim,
        operations=sum(4 * heads * dim * num_tokens * (d + (num_tokens + 1) / 2) for d in depths),
        prepare=prepare,
    )


def _noisy_pages(s: Shapes, num_pages: int, *, is_int8: bool) -> KVPages:
    stored = torch.int8 if is_int8 else torch.bfloat16
    pages = KVPages(num_pages, s.num_kv_heads, s.head_dim, dtype=torch.bfloat16, stored=stored)
    for part in pages.stored.values():
        if part.dtype == torch.int8:
            part.random_(-127, 128)
        elif is_int8:
            part.fill_(1 / 64)  # scales
        else:
            part.normal_()
    return pages


def _softmax_backward(s: Shapes, num_tokens: int) -> Op:
    """A whole sequence without pages, as in training."""
    forward = _softmax(s, "prefill", num_tokens, [0])

    def prepare() -> Prepared:
        bounds = torch.tensor([0, num_tokens], dtype=torch.int32)
        heads = (s.num_heads, s.num_kv_heads, s.num_kv_heads)
        inputs = [_normal(num_tokens, h, s.head_dim, seed=i) for i, h in enumerate(heads)]

        def in_torch(*inputs: Tensor) -> Tensor:
            q, k, v = (x.transpose(0, 1)[None] for x in inputs)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return out[0].transpose(0, 1)

        return _backward(s, inputs, lambda q, k, v: attend(q, k, v, cu_seqlens=bounds), in_torch)

    return Op(
        name="softmax backward",
        format="bfloat16",
        work=f"{_tokens(num_tokens)}, {s.num_heads}/{s.num_kv_heads} heads",
        num_bytes=2 * forward.num_bytes,
        operations=2 * forward.operations,
        prepare=prepare,
    )


def _rotary(s: Shapes, num_tokens: int) -> Op:
    """Queries and keys, normalised over all heads and turned."""
    sizes = (s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim)
    row_bytes = 2 * num_tokens * sum(sizes)

    def prepare() -> Prepared:
        num_copies = s.copies(row_bytes)
        both = torch.randn(num_copies, num_tokens, sum(sizes), dtype=torch.bfloat16)
        q_norm, k_norm = (_normal(size, seed=size) for size in sizes)
        cos, sin = rotary_angles(torch.arange(num_tokens), s.rotary_dim, ROPE_THETA)

        def turn(both: Tensor, *tensors: Tensor) -> Output:
            cos, sin, q_norm, k_norm = tensors
            q, k = both[:, : sizes[0]], both[:, sizes[0] :]
            norms = {"q_norm": q_norm, "k_norm": k_norm}
            return rotate(q, k, cos, sin, head_dim=s.head_dim, eps=EPS, **norms)

        tensors = (cos, sin, q_norm, k_norm)
        return Prepared(
            run=lambda i: turn(both[i % num_copies], *tensors),
            num_copies=num_copies,
            define=lambda: turn(both[0].double(), *(x.double() for x in tensors)),
        )

    return Op(
        name="rotary",
        format="bfloat16",
        work=f"{_tokens(num_tokens)}, {s.num_heads}/{s.num_kv_heads} heads and their norms",
        num_bytes=2 * row_bytes,
        operations=10 * num_tokens * sum(sizes),
        prepare=prepare,
    )


def _head(s: Shapes, num_tokens: int, *, has_targets: bool = False) -> Op:
    hidden, vocab = s.hidden_size, s.vocab_size

    def prepare() -> Prepared:
        first = _matrix(vocab, hidden, "bfloat16")
        matrices = [first, *(_again(first) for _ in range(1, s.copies(2 * vocab * hidden)))]
        x = _normal(num_tokens, hidden, seed=1)
        targets = torch.arange(num_tokens) % vocab if has_targets else None
        plains = cache(lambda: _plains(s, first))

        def known(x: Tensor, matrix: Tensor | PackedMatrix) -> Output:
            found = head(x, matrix, targets=targets, top_k=1)
            tensors = (found.logsumexp, found.top_logits, found.target_logits)
            return [x for x in tensors if x is not None]

        def run_torch(i: int) -> Output:
            logits = F.linear(x, plains()[i % len(plains())]).float()
            best = [logits.logsumexp(-1), logits.max(-1, keepdim=True).values]
            return best if targets is None else [*best, logits.gather(-1, targets[:, None])]

        return Prepared(
            run=lambda i: known(x, matrices[i % len(matrices)]),
            num_copies=len(matrices),
            define=lambda: known(x.double(), _double(first)),
            run_torch=run_torch,
        )

    return Op(
        name="head",
        format="bfloat16",
        work=f"{num_tokens} x {hidden}, the best of {vocab:,}" + " and a target" * has_targets,
        num_bytes=2 * vocab * hidden + 2 * num_tokens * hidden,
        operations=2 * num_tokens * vocab * hidden,
        prepare=prepare,
    )


def _norm(s: Shapes, num_tokens: int) -> Op:
    def apply(x: Tensor, weight: Tensor) -> Output:
        return rms_norm(x[0], weight, EPS)

    def in_torch(x: Tensor, weight: Tensor) -> Output:
        return F.rms_norm(x[0], weight.shape, weight, EPS)

    return _normed(s, "rms norm", num_tokens, 1, 1, apply, in_torch)


def _residual_norm(s: Shapes, num_tokens: int) -> Op:
    def apply(x: Tensor, weight: Tensor) -> Output:
        return residual_norm(x[0], x[1], weight, EPS)

    def in_torch(x: Tensor, weight: Tensor) -> Output:
        stream = x[0] + x[1]
        return stream, F.rms_norm(stream, weight.shape, weight, EPS)

    return _normed(s, "residual norm", num_tokens, 2, 2, apply, in_torch)


def _gated_norm(s: Shapes, num_tokens: int) -> Op:
    def apply(x: Tensor, weight: Tensor) -> Output:
        return gated_norm(x[0], weight, x[1], EPS)

    def in_torch(x: Tensor, weight: Tensor) -> Output:
        return x[1].sigmoid() * F.rms_norm(x[0], weight.shape, weight, EPS)

    return _normed(s, "gated norm", num_tokens, 2, 1, apply, in_torch)


def _normed(
    s: Shapes,
    name: str,
    num_tokens: int,
    num_inputs: int,
    num_outputs: int,
    apply: Callable[[Tensor, Tensor], Output],
    in_torch: Callable[[Tensor, Tensor], Output],
) -> Op:
    """apply takes inputs (num_inputs, T, C) and a weight (C,)."""
    row_bytes = 2 * num_tokens * s.hidden_size

    def prepare() -> Prepared:
        num_copies = s.copies(num_inputs * row_bytes)
        x = torch.randn(num_copies, num_inputs, num_tokens, s.hidden_size, dtype=torch.bfloat16)
        weight = _normal(s.hidden_size)
        return Prepared(
            run=lambda i: apply(x[i % num_copies], weight),
            num_copies=num_copies,
            define=lambda: apply(x[0].double(), weight.double()),
            run_torch=lambda i: in_torch(x[i % num_copies], weight),
        )

    return Op(
        name=name,
        format="bfloat16",
        work=f"{num_tokens} x {s.hidden_size}",
        num_bytes=(num_inputs + num_outputs) * row_bytes,
        operations=(3 + num_inputs) * num_tokens * s.hidden_size,
        prepare=prepare,
    )


def _embedding(s: Shapes, num_tokens: int) -> Op:
    def prepare() -> Prepared:
        weight = _normal(s.vocab_size, s.hidden_size)
        draw = torch.Generator().manual_seed(1)
        num_copies = s.copies(2 * num_tokens * s.hidden_size)
        ids = torch.randint(s.vocab_size, (num_copies, num_tokens), generator=draw)
        return Prepared(
            run=lambda i: embed(ids[i % num_copies], weight),
            num_copies=num_copies,
            define=lambda: weight[ids[0]].double(),
            run_torch=lambda i: F.embedding(ids[i % num_copies], weight),
        )

    return Op(
        name="embedding",
        format="bfloat16",
        work=f"{_tokens(num_tokens)} of {s.vocab_size:,} x {s.hidden_size}",
        num_bytes=4 * num_tokens * s.hidden_size,
        operations=0,
        prepare=prepare,
    )
