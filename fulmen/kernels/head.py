"""The head: what is wanted of the logits over the vocabulary, without writing the logits.

A decoded token needs its log-probability and the best few candidates, a training token the
log-probability of its target; the V logits between are never stored.
"""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.backends import DTYPES, check_input_bits, native, native_for, needs_gradient
from fulmen.kernels.linear import NO_GRADIENT, linear, linear_reference, product, transposed_buffer
from fulmen.kernels.weights import PackedMatrix, pack

MAX_CANDIDATES: Final = 256
"""More than this many of the best are found by sorting all logits."""
_CHUNK_BYTES: Final = 16 * 2**20
"""Of the gradient of the logits that the backward pass holds at a time, if it holds more than
_MIN_CHUNK rows: fewer make the sum over chunks dear."""
_MIN_CHUNK: Final = 256


class HeadOutput(NamedTuple):
    """What is known of the next token at each of T positions."""

    logsumexp: Tensor
    """(T,) float32: logit - logsumexp is a log-probability"""
    top_logits: Tensor
    """(T, K) float32, best first"""
    top_ids: Tensor
    """(T, K) int64; equal logits in the order of their ids"""
    target_logits: Tensor | None
    """(T,) float32"""


def head(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    targets: Tensor | None = None,
    top_k: int = 1,
    input_bits: int = 16,
) -> HeadOutput:
    """Of the logits hidden_states W^T, summed in float32: logsumexp, targets and the top_k best.

    hidden_states  (T, C)
    weight         (V, C)   packed, or a plain matrix of hidden_states' dtype
    targets        (T,)     int64 ids below V whose logits are wanted
    top_k          candidates, at most V
    """
    plain = [] if isinstance(weight, PackedMatrix) else [weight]
    extension = native_for(hidden_states, *plain)
    size = weight.n if isinstance(weight, PackedMatrix) else len(weight)
    if not 0 <= top_k <= size:
        raise ValueError(f"top_k is {top_k}, it must be 0 to {size}, the size of the vocabulary")
    check_input_bits(input_bits)
    if targets is not None and targets.shape != hidden_states.shape[:1]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)} for {len(hidden_states)} positions, each "
            "needs one"
        )
    k = weight.k if isinstance(weight, PackedMatrix) else weight.shape[1]
    if hidden_states.ndim != 2 or hidden_states.shape[1] != k:
        raise ValueError(
            f"hidden_states have shape {tuple(hidden_states.shape)}, needed is (T, {k})"
        )
    if extension is None:
        return head_reference(hidden_states, weight, targets=targets, top_k=top_k)
    matrix = weight if isinstance(weight, PackedMatrix) else pack(weight)
    if top_k > MAX_CANDIDATES:
        found = head(hidden_states, matrix, targets=targets, top_k=0, input_bits=input_bits)
        logits = linear(hidden_states, matrix, out_dtype=torch.float32, input_bits=input_bits)
        order = logits.sort(dim=-1, descending=True, stable=True)
        top_logits, top_ids = order.values[:, :top_k], order.indices[:, :top_k]
        return found._replace(top_logits=top_logits, top_ids=top_ids)
    x = hidden_states if hidden_states.stride(-1) == 1 else hidden_states.contiguous()
    targets = None if targets is None else targets.long().contiguous()
    rows = len(x)
    logsumexp, target_logits = torch.empty(2, rows)
    top_logits = torch.empty(rows, top_k)
    top_ids = torch.empty(rows, top_k, dtype=torch.int64)
    extension.head(
        x.data_ptr(),
        DTYPES[x.dtype],
        rows,
        x.stride(0),
        matrix.handle,
        input_bits,
        0 if targets is None else targets.data_ptr(),
        top_k,
        logsumexp.data_ptr(),
        target_logits.data_ptr(),
        top_logits.data_ptr(),
        top_ids.data_ptr(),
    )
    return HeadOutput(logsumexp, top_logits, top_ids, None if targets is None else target_logits)


def head_reference(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    targets: Tensor | None = None,
    top_k: int = 1,
) -> HeadOutput:
    """The same through all logits."""
    out_dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    logits = linear(hidden_states, weight, out_dtype=out_dtype)
    return head_of(logits, targets=targets, top_k=top_k)


def head_of(logits: Tensor, *, targets: Tensor | None = None, top_k: int = 1) -> HeadOutput:
    """The same of given logits (T, V)."""
    order = logits.sort(dim=-1, descending=True, stable=True)
    top_logits, top_ids = order.values[:, :top_k], order.indices[:, :top_k]
    chosen = None if targets is None else logits.gather(-1, targets[:, None])[:, 0]
    return HeadOutput(logits.logsumexp(-1), top_logits, top_ids, chosen)


def target_logprobs(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    targets: Tensor,
    *,
    input_bits: int = 16,
) -> Tensor:
    """Log-probabilities (T,) float32 of targets (T,) int64; differentiable unless the weight is
    packed. The logits of all tokens at once are written neither forward nor backward.

    hidden_states (T, C), weight (V, C)
    """
    plain = [] if isinstance(weight, PackedMatrix) else [weight]
    if native_for(hidden_states, *plain) is None:
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        logits = linear_reference(hidden_states, weight, out_dtype=wide)
        return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    if not plain and needs_gradient(hidden_states):
        raise ValueError(f"the head is {NO_GRADIENT}")
    if needs_gradient(hidden_states, *plain):
        out: Tensor = _TargetLogprobs.apply(hidden_states, weight, targets)  # type: ignore[no-untyped-call]
        return out
    found = head(hidden_states, weight, targets=targets, top_k=0, input_bits=input_bits)
    assert found.target_logits is not None
    return found.target_logits - found.logsumexp


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        found = head(hidden_states, weight, targets=targets, top_k=0)
        assert found.target_logits is not None
        ctx.save_for_backward(hidden_states, weight, targets, found.logsumexp)
        return found.target_logits - found.logsumexp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_states, weight, targets, logsumexp = ctx.saved_tensors
        extension = native()
        assert extension is not None
        matrix = pack(weight)
        x, gradient = hidden_states.contiguous(), gradient.float().contiguous()
        targets = targets.long().contiguous()
        wants_x, wants_weight, _ = ctx.needs_input_grad
        x_gradient = torch.empty_like(x) if wants_x else None
        weight_gradient = torch.zeros(weight.shape) if wants_weight else None
        # Products with a rounded error cost what rounding the hidden states cost.
        dtype = x.dtype
        by_column = pack(weight.t().to(dtype)) if wants_x else None
        step = max(_MIN_CHUNK, _CHUNK_BYTES // (2 * dtype.itemsize * len(weight)))
        for start in range(0, len(x), step):
            some = slice(start, start + step)
            rows = len(x[some])
            error = torch.empty(rows, len(weight), dtype=dtype)
            transposed = transposed_buffer(len(weight), rows, dtype)
            extension.head_backward(
                x[some].data_ptr(),
                DTYPES[dtype],
                rows,
                x.stride(0),
                matrix.handle,
                targets[some].data_ptr(),
                logsumexp[some].data_ptr(),
                gradient[some].data_ptr(),
                DTYPES[dtype],
                error.data_ptr(),
                transposed.data_ptr(),
                transposed.stride(0),
            )
            if x_gradient is not None and by_column is not None:
                x_gradient[some] = linear(error, by_column)
            if weight_gradient is not None:
                weight_gradient += product(transposed, x[some].t(), torch.float32)
        if weight_gradient is not None:
            weight_gradient = weight_gradient.to(weight.dtype)
        return x_gradient, weight_gradient, None
