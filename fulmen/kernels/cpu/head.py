"""`head` and `target_logprobs` in C++, and the gradient of the latter."""

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.cpu.extension import DTYPES, address, loaded
from fulmen.kernels.cpu.linear import linear, product, transposed_buffer
from fulmen.kernels.cpu.weights import matrix_of, pack
from fulmen.kernels.gradients import needs_gradient
from fulmen.kernels.weights import PackedMatrix

MAX_CANDIDATES: Final = 256
"""Number of candidates that the kernel keeps; more are found by sorting all logits."""
_CHUNK_BYTES: Final = 16 * 2**20
"""Bytes of the logits' gradient that the backward pass holds at a time, unless that is fewer than
_MIN_CHUNK rows: small chunks make the sum over chunks expensive."""
_MIN_CHUNK: Final = 256

Known = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Fields of `HeadOutput`: logsumexp, top_logits, top_ids, target_logits."""


def head(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    targets: Tensor | None,
    top_k: int,
    input_bits: int,
) -> Known:
    """Find logsumexp (T,), the best logits and ids (T, K), targets' logits (T,) of (T, C)."""
    matrix = weight if isinstance(weight, PackedMatrix) else pack(weight)
    if top_k <= MAX_CANDIDATES:
        return _run(hidden_states, matrix, targets, top_k, input_bits)
    logsumexp, _, _, target_logits = _run(hidden_states, matrix, targets, 0, input_bits)
    logits = linear(
        hidden_states, matrix, activation="none", out_dtype=torch.float32, input_bits=input_bits
    )
    order = logits.sort(dim=-1, descending=True, stable=True)
    return logsumexp, order.values[:, :top_k], order.indices[:, :top_k], target_logits


def _run(
    hidden_states: Tensor,
    matrix: PackedMatrix,
    targets: Tensor | None,
    top_k: int,
    input_bits: int,
) -> Known:
    x = hidden_states if hidden_states.stride(-1) == 1 else hidden_states.contiguous()
    targets = None if targets is None else targets.long().contiguous()
    rows = len(x)
    logsumexp, target_logits = torch.empty(2, rows)
    top_logits = torch.empty(rows, top_k)
    top_ids = torch.empty(rows, top_k, dtype=torch.int64)
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
    )
    return logsumexp, top_logits, top_ids, None if targets is None else target_logits


def target_logprobs(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    targets: Tensor,
    *,
    input_bits: int,
) -> Tensor:
    """Find log-probabilities (T,) of targets (T,); differentiable for a plain matrix."""
    if isinstance(weight, Tensor) and needs_gradient(hidden_states, weight):
        out: Tensor = _TargetLogprobs.apply(hidden_states, weight, targets)  # type: ignore[no-untyped-call]
        return out
    logsumexp, _, _, target_logits = head(
        hidden_states, weight, targets=targets, top_k=0, input_bits=input_bits
    )
    assert target_logits is not None
    return target_logits - logsumexp


class _TargetLogprobs(torch.autograd.Function):
    """The kernel forward; backward in chunks of rows, so that no gradient of all logits is held."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logsumexp, _, _, target_logits = _run(hidden_states, pack(weight), targets, 0, 16)
        assert target_logits is not None
        ctx.save_for_backward(hidden_states, weight, targets, logsumexp)
        return target_logits - logsumexp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_states, weight, targets, logsumexp = ctx.saved_tensors
        matrix = pack(weight)
        x, gradient = hidden_states.contiguous(), gradient.float().contiguous()
        targets = targets.long().contiguous()
        wants_x, wants_weight, _ = ctx.needs_input_grad
        x_gradient = torch.empty_like(x) if wants_x else None
        weight_gradient = torch.zeros(weight.shape) if wants_weight else None
        # The error is rounded to x's dtype, which costs as much accuracy as rounding x does.
        dtype = x.dtype
        by_column = pack(weight.t().to(dtype)) if wants_x else None
        step = max(_MIN_CHUNK, _CHUNK_BYTES // (2 * dtype.itemsize * len(weight)))
        for start in range(0, len(x), step):
            some = slice(start, start + step)
            rows = len(x[some])
            error = torch.empty(rows, len(weight), dtype=dtype)
            transposed = transposed_buffer(len(weight), rows, dtype)
            loaded().head_backward(
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
                error_transposed=transposed.data_ptr(),
                stride=transposed.stride(0),
            )
            if x_gradient is not None and by_column is not None:
                x_gradient[some] = linear(
                    error, by_column, activation="none", out_dtype=dtype, input_bits=16
                )
            if weight_gradient is not None:
                weight_gradient += product(transposed, x[some].t(), torch.float32)
        if weight_gradient is not None:
            weight_gradient = weight_gradient.to(weight.dtype)
        return x_gradient, weight_gradient, None
