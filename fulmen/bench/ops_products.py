"""Operations that multiply by weights: linear, experts, head, and the router that picks experts.

A backward operation is the gradients of all its inputs, of a graph that is made before; it counts
as twice the forward products, in bfloat16 as the forward operation.
"""

from collections.abc import Sequence
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.bench.op import (
    FormatName,
    Op,
    Output,
    Prepared,
    Shapes,
    normal,
    prepare_backward,
    tokens_text,
)
from fulmen.kernels import (
    ExpertWeights,
    PackedExperts,
    PackedMatrix,
    head,
    linear,
    mixture_of_experts,
    native,
    pack,
    pack_codebook4,
    pack_fp8,
    pack_int8,
    route,
)
from fulmen.models import ROUNDED_AS, PackedConfig

_ROUNDED: Final[dict[FormatName, PackedConfig]] = {"int8": ROUNDED_AS[8], "int4": ROUNDED_AS[4]}
"""Groups of weights and bits of inputs as `fulmen quantize` writes them."""
_BITS: Final[dict[FormatName, float]] = {
    "bfloat16": 16,
    "int8": 8 + 32 / ROUNDED_AS[8].group_size,
    "int4": 4 + 8 / ROUNDED_AS[4].group_size,
    "fp8": 8 + 32 / 128**2,
}


def linear_op(s: Shapes, format: FormatName, rows: int) -> Op:
    """Multiply rows of hidden states by the weights of q, k and v."""
    hidden, width = s.hidden_size, s.qkv_size
    weight_bytes = hidden * width * _BITS[format] / 8

    def prepare() -> Prepared:
        first = _matrix(width, hidden, format)
        matrices = [first, *(_again(first) for _ in range(1, s.copies(weight_bytes)))]
        x = normal(rows, hidden, seed=1)
        plains = cache(lambda: _plains(s, first))
        return Prepared(
            run=lambda i: linear(x, matrices[i % len(matrices)], input_bits=_input_bits(format)),
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


def linear_backward_op(s: Shapes, rows: int) -> Op:
    """Compute the gradients of hidden states and weights of a linear layer."""
    hidden, width = s.hidden_size, s.qkv_size

    def prepare() -> Prepared:
        weight = (normal(width, hidden) * hidden**-0.5).bfloat16()
        return prepare_backward(s, [normal(rows, hidden, seed=1), weight], linear, F.linear)

    return Op(
        name="linear backward",
        format="bfloat16",
        work=f"{rows} x {hidden} to {width}",
        num_bytes=2 * (2 * hidden * width + 2 * rows * hidden + rows * width),
        operations=4 * rows * hidden * width,
        prepare=prepare,
    )


def _plains(s: Shapes, matrix: Tensor | PackedMatrix) -> list[Tensor]:
    """Return as many copies of the weights (N, K) in bfloat16 as fill the working set."""
    plain = _plain(matrix)
    return [plain, *(plain.clone() for _ in range(1, s.copies(plain.nbytes)))]


def _double(matrix: Tensor | PackedMatrix) -> Tensor:
    """Return the weights (N, K) in float64, for the definition of an operation."""
    return (matrix if isinstance(matrix, Tensor) else matrix.unpack()).double()


def experts_op(s: Shapes, format: FormatName, num_tokens: int) -> Op:
    """Run the chosen experts of a layer on tokens."""
    hidden, width, count = s.hidden_size, s.intermediate_size, s.num_experts
    expert_bytes = 3 * width * hidden * _BITS[format] / 8
    chosen = count * (1 - (1 - s.top_k / count) ** num_tokens)  # distinct experts, on average

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
        x = normal(num_tokens, hidden, seed=1)
        # Other tokens each time, so that one token's calls go through all experts.
        choices = [_choice(s, num_tokens, seed) for seed in range(32)]

        def run(i: int) -> Tensor:
            weights, ids = choices[i % len(choices)]
            experts, bits = packed[i % len(packed)], _input_bits(format)
            return mixture_of_experts(x, weights, ids, experts, input_bits=bits)

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
        work=f"{tokens_text(num_tokens)}, {s.top_k} of {count} x {width}",
        num_bytes=chosen * expert_bytes + 4 * num_tokens * hidden,
        operations=6 * num_tokens * s.top_k * width * hidden * _planes(format),
        prepare=prepare,
    )


def _choice(s: Shapes, num_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return topk_weights and topk_ids (T, K) of random tokens."""
    logits = normal(num_tokens, s.num_experts, seed=seed).float()
    return route(logits, s.top_k, scoring="sigmoid")


def experts_backward_op(s: Shapes, num_tokens: int) -> Op:
    """Compute the gradients of tokens, routing weights and all experts of a layer."""
    hidden, width, count = s.hidden_size, s.intermediate_size, s.num_experts
    weight_bytes = 2 * 3 * count * width * hidden

    def prepare() -> Prepared:
        topk_weights, ids = _choice(s, num_tokens, 0)
        shapes = [(width, hidden), (hidden, width), (width, hidden)] * count
        flat = [
            (normal(*shape, seed=i) * shape[1] ** -0.5).bfloat16() for i, shape in enumerate(shapes)
        ]

        def apply(x: Tensor, weights: Tensor, *flat: Tensor) -> Tensor:
            experts = [ExpertWeights(*flat[i : i + 3]) for i in range(0, len(flat), 3)]
            return mixture_of_experts(x, weights, ids, experts)

        return prepare_backward(s, [normal(num_tokens, hidden, seed=1), topk_weights, *flat], apply)

    return Op(
        name="experts backward",
        format="bfloat16",
        work=f"{tokens_text(num_tokens)}, {s.top_k} of {count} x {width}",
        num_bytes=2 * weight_bytes + 3 * 2 * num_tokens * hidden,
        operations=12 * num_tokens * s.top_k * width * hidden,
        prepare=prepare,
    )


def _experts_in_torch(
    x: Tensor, weights: Tensor, ids: Tensor, experts: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Run each chosen expert on its tokens with torch's products, in bfloat16."""
    out = torch.zeros_like(x, dtype=torch.float32)
    for index in sorted(set(ids.flatten().tolist())):
        tokens, places = (ids == index).nonzero(as_tuple=True)
        w1, w2, w3 = experts[index]
        rows = x[tokens]
        hidden = F.linear(F.silu(F.linear(rows, w1)) * F.linear(rows, w3), w2)
        out.index_add_(0, tokens, hidden * weights[tokens, places, None])
    return out.to(x.dtype)


def router_op(s: Shapes, num_tokens: int) -> Op:
    """Choose the experts of each token from logits; their weights are compared."""
    row_bytes = 4 * num_tokens * s.num_experts

    def prepare() -> Prepared:
        num_copies = s.copies(row_bytes)
        logits = torch.randn(num_copies, num_tokens, s.num_experts)
        bias = normal(s.num_experts, seed=1).float() / 100

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
        work=f"{tokens_text(num_tokens)}, {s.top_k} of {s.num_experts}",
        num_bytes=row_bytes + 12 * num_tokens * s.top_k,
        operations=4 * num_tokens * s.num_experts,
        prepare=prepare,
    )


def head_op(s: Shapes, num_tokens: int, *, has_targets: bool = False) -> Op:
    """Find the best next token of each row, and with targets also theirs."""
    hidden, vocab = s.hidden_size, s.vocab_size

    def prepare() -> Prepared:
        first = _matrix(vocab, hidden, "bfloat16")
        matrices = [first, *(_again(first) for _ in range(1, s.copies(2 * vocab * hidden)))]
        x = normal(num_tokens, hidden, seed=1)
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


def _matrix(n: int, k: int, format: FormatName, seed: int = 0) -> Tensor | PackedMatrix:
    """Draw a matrix (N, K) with values near 1 / sqrt(K), packed where the C++ kernels are there."""
    draw = torch.Generator().manual_seed(seed)
    scale = k**-0.5
    match format:
        case "bfloat16":
            weight = (torch.randn(n, k, generator=draw) * scale).bfloat16()
            return weight if native() is None else pack(weight)
        case "int8":
            group = _ROUNDED[format].group_size
            codes = torch.randint(-127, 128, (n, k), generator=draw, dtype=torch.int8)
            return pack_int8(codes, torch.full((n, -(-k // group)), scale / 64), group)
        case "int4":
            group = _ROUNDED[format].group_size
            codes = torch.randint(0, 16, (n, k), generator=draw, dtype=torch.uint8)
            ones = torch.ones(n, -(-k // group), dtype=torch.uint8)
            columns = torch.full((n,), scale / 16)  # levels are within about 32 of their zero
            return pack_codebook4(codes, ones, ones, columns, group)
        case "fp8":
            weight = torch.randn(n, k, generator=draw).to(torch.float8_e4m3fn)
            return pack_fp8(weight, torch.full((-(-n // 128), -(-k // 128)), scale), (128, 128))


def _again(matrix: Tensor | PackedMatrix) -> Tensor | PackedMatrix:
    """Copy a matrix to another place in memory."""
    if isinstance(matrix, Tensor):
        return matrix.clone()
    return PackedMatrix(matrix.data.clone(), matrix.format, matrix.n, matrix.k, matrix.group)


def _plain(matrix: Tensor | PackedMatrix) -> Tensor:
    """Return the weights (N, K) in bfloat16."""
    return matrix if isinstance(matrix, Tensor) else matrix.unpack().bfloat16()


def _input_bits(format: FormatName) -> int:
    return _ROUNDED[format].input_bits if format in _ROUNDED else 16


def _planes(format: FormatName) -> int:
    """Return the products for each weight: inputs of 16 bits meet rounded weights as two of 8."""
    return _input_bits(format) // 8 if format in _ROUNDED else 1
