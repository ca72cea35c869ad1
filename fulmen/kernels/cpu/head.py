"""`head` and `target_scores` in C++, and the gradient of the log-probabilities."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.cpu.extension import DTYPES, address, loaded
from fulmen.kernels.cpu.linear import linear, outer
from fulmen.kernels.cpu.weights import matrix_of, pack
from fulmen.kernels.gradients import needs_gradient
from fulmen.kernels.weights import PackedMatrix, format_of

MAX_CANDIDATES: Final = 256
"""Number of candidates that the kernel keeps; more are found by sorting all logits."""
KEPT_BYTES: Final = 64 * 2**20
"""The forward pass keeps the logits for the backward pass, unless they are more than these bytes;
then they are made again."""
_CHUNK_BYTES: Final = 8 * 2**20
"""Bytes of the logits' gradient that the backward pass holds at a time, unless that is fewer than
_MIN_CHUNK rows: small chunks make the sum over chunks expensive."""
_MIN_CHUNK: Final = 256

Known = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Fields of `HeadOutput`."""


class _Found(NamedTuple):
    """Output of the kernel for T rows."""

    logsumexp: Tensor
    top_logits: Tensor
    top_ids: Tensor
    target_logits: Tensor
    entropy: Tensor | None
    drawn_ids: Tensor
    """(T,) int64; only the rows that draw have theirs"""
    drawn_logits: Tensor


def head(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    targets: Tensor | None,
    top_k: int,
    draws: Sequence[Tensor] | None,
    input_bits: int,
) -> Known:
    """Find logsumexp (T,), the best logits and ids (T, K), targets' logits (T,) of (T, C), and the
    ids and logits (R,) that are drawn for rows (R,) at temperatures (R,) by numbers (R,)."""
    matrix = weight if isinstance(weight, PackedMatrix) else pack(weight)
    kept = top_k if top_k <= MAX_CANDIDATES else 0
    found = _run(hidden_states, matrix, targets, kept, input_bits, draws=draws)
    top_logits, top_ids = found.top_logits, found.top_ids
    if kept < top_k:
        logits = linear(
            hidden_states, matrix, activation="none", out_dtype=torch.float32, input_bits=input_bits
        )
        order = logits.sort(dim=-1, descending=True, stable=True)
        top_logits, top_ids = order.values[:, :top_k], order.indices[:, :top_k]
    return (
        found.logsumexp,
        top_logits,
        top_ids,
        None if targets is None else found.target_logits,
        None if draws is None else found.drawn_ids[draws[0]],
        None if draws is None else found.drawn_logits[draws[0]],
    )


def _run(
    hidden_states: Tensor,
    matrix: PackedMatrix,
    targets: Tensor | None,
    top_k: int,
    input_bits: int,
    *,
    draws: Sequence[Tensor] | None = None,
    wants_entropy: bool = False,
    logits: Tensor | None = None,
) -> _Found:
    """Call the kernel once; logits (T, V) float32 receives all of them."""
    x = hidden_states if hidden_states.stride(-1) == 1 else hidden_states.contiguous()
    targets = None if targets is None else targets.long().contiguous()
    rows = len(x)
    logsumexp, target_logits = torch.empty(2, rows)
    top_logits = torch.empty(rows, top_k)
    top_ids = torch.empty(rows, top_k, dtype=torch.int64)
    entropy = torch.empty(rows) if wants_entropy else None
    scales = uniforms = None
    if draws is not None:
        places, temperatures, numbers = draws
        # Of a temperature that float32 cannot invert, its end: the draw is as good as the same.
        scales = torch.zeros(rows)
        scales[places] = temperatures.reciprocal().clamp(1e-38, 1e38).float()
        uniforms = torch.zeros(rows, dtype=torch.float64)
        uniforms[places] = numbers
    num_drawing = 0 if draws is None else rows
    drawn_ids = torch.empty(num_drawing, dtype=torch.int64)
    drawn_logits = torch.empty(num_drawing)
    loaded().head(
        x=x.data_ptr(),
        x_dtype=DTYPES[x.dtype],
        rows=rows,
        x_stride=x.stride(0),
        w=matrix_of(matrix),
        input_bits=input_bits,
        targets=address(targets),
        top_k=top_k,
        logsumexp=logsumexp.data_ptr(),
        target_logits=target_logits.data_ptr(),
        top_logits=top_logits.data_ptr(),
        top_ids=top_ids.data_ptr(),
        logits=address(logits),
        logits_stride=0 if logits is None else logits.stride(0),
        entropy=address(entropy),
        scales=address(scales),
        uniforms=address(uniforms),
        drawn_ids=drawn_ids.data_ptr(),
        drawn_logits=drawn_logits.data_ptr(),
    )
    return _Found(logsumexp, top_logits, top_ids, target_logits, entropy, drawn_ids, drawn_logits)


def target_logprobs(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    targets: Tensor,
    *,
    input_bits: int,
) -> Tensor:
    """Find log-probabilities (T,) of targets (T,); differentiable for a plain matrix."""
    return _scores(hidden_states, weight, targets, input_bits, wants_entropy=False)[0]


def target_scores(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    targets: Tensor,
    *,
    input_bits: int,
) -> tuple[Tensor, Tensor]:
    """Find log-probabilities (T,) of targets (T,), differentiable for a plain matrix, and the
    entropy (T,)."""
    logprobs, entropy = _scores(hidden_states, weight, targets, input_bits, wants_entropy=True)
    assert entropy is not None
    return logprobs, entropy


def _scores(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    targets: Tensor,
    input_bits: int,
    *,
    wants_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    if isinstance(weight, Tensor) and needs_gradient(hidden_states, weight):
        logprobs, entropy = _TargetScores.apply(hidden_states, weight, targets, wants_entropy)  # type: ignore[no-untyped-call]
        return logprobs, entropy
    matrix = weight if isinstance(weight, PackedMatrix) else pack(weight)
    found = _run(hidden_states, matrix, targets, 0, input_bits, wants_entropy=wants_entropy)
    return found.target_logits - found.logsumexp, found.entropy


class _TargetScores(torch.autograd.Function):
    """The kernel forward; backward in chunks of rows, so that no gradient of all logits is held."""

    @staticmethod
    def forward(
        ctx: Any, hidden_states: Tensor, weight: Tensor, targets: Tensor, wants_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        logits = _room_for_logits(len(hidden_states), len(weight))
        matrix = pack(weight)
        found = _run(
            hidden_states, matrix, targets, 0, 16, wants_entropy=wants_entropy, logits=logits
        )
        ctx.save_for_backward(hidden_states, weight, targets, found.logsumexp, matrix.data, logits)
        if found.entropy is not None:
            ctx.mark_non_differentiable(found.entropy)
        return found.target_logits - found.logsumexp, found.entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        hidden_states, weight, targets, logsumexp, packed, logits = ctx.saved_tensors
        matrix = PackedMatrix(packed, format_of(weight.dtype), *weight.shape)
        x, gradient = hidden_states.contiguous(), gradient.float().contiguous()
        targets = targets.long().contiguous()
        wants_x, wants_weight, *_ = ctx.needs_input_grad
        x_gradient = torch.empty_like(x) if wants_x else None
        weight_gradient = torch.zeros(weight.shape) if wants_weight else None
        # The error is rounded to x's dtype, which costs as much accuracy as rounding x does.
        dtype = x.dtype
        by_column = pack(weight.t().to(dtype)) if wants_x else None
        step = max(_MIN_CHUNK, _CHUNK_BYTES // (dtype.itemsize * len(weight)))
        for start in range(0, len(x), step):
            some = slice(start, start + step)
            rows = len(x[some])
            error = _apart(rows, len(weight), dtype)
            loaded().head_backward(
                logits=0 if logits is None else logits[some].data_ptr(),
                logits_stride=0 if logits is None else logits.stride(0),
                x=x[some].data_ptr(),
                x_dtype=DTYPES[dtype],
                rows=rows,
                x_stride=x.stride(0),
                w=matrix_of(matrix),
                targets=targets[some].data_ptr(),
                logsumexp=logsumexp[some].data_ptr(),
                gradient=gradient[some].data_ptr(),
                dtype=DTYPES[dtype],
                error=error.data_ptr(),
                error_stride=error.stride(0),
            )
            if x_gradient is not None and by_column is not None:
                x_gradient[some] = linear(
                    error, by_column, activation="none", out_dtype=dtype, input_bits=16
                )
            if weight_gradient is not None:
                outer(error, x[some], torch.float32, add_to=weight_gradient)
        if weight_gradient is not None:
            weight_gradient = weight_gradient.to(weight.dtype)
        return x_gradient, weight_gradient, None, None


def _room_for_logits(rows: int, size: int) -> Tensor | None:
    """Return memory for logits (rows, size) float32; None where they are too many to keep."""
    if rows * size * torch.float32.itemsize > KEPT_BYTES:
        return None
    return _apart(rows, size, torch.float32)


def _apart(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return memory (rows, width) whose rows are not a power of two apart: that would crowd a few
    sets of the cache."""
    return torch.empty(rows, width + 32, dtype=dtype)[:, :width]
