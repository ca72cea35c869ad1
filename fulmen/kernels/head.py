"""The head: what is wanted of the logits over the vocabulary, without writing the logits.

A decoded token needs its log-probability and the best few candidates, a training token the
log-probability of its target; the V logits between are never stored.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fulmen.kernels.backends import backend_for
from fulmen.kernels.gradients import NO_GRADIENT, needs_gradient
from fulmen.kernels.linear import check_input_bits, linear, linear_reference, plain_weights
from fulmen.kernels.weights import PackedMatrix


class HeadOutput(NamedTuple):
    """Knowledge of the next token at each of T positions."""

    logsumexp: Tensor
    """(T,) float32: logit - logsumexp is a log-probability"""
    top_logits: Tensor
    """(T, K) float32, best first"""
    top_ids: Tensor
    """(T, K) int64; equal logits in the order of their ids"""
    target_logits: Tensor | None
    """(T,) float32; None unless targets were given"""


def head(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    targets: Tensor | None = None,
    top_k: int = 1,
    input_bits: int = 16,
) -> HeadOutput:
    """Return logsumexp, targets and the top_k best of the logits hidden_states W^T, which are
    summed in float32.

    hidden_states  (T, C)
    weight         (V, C)   packed, or a plain matrix of hidden_states' dtype
    targets        (T,)     int64 ids below V whose logits are wanted
    top_k          candidates, at most V
    """
    size = _check(hidden_states, weight, targets, input_bits)
    if not 0 <= top_k <= size:
        raise ValueError(f"top_k is {top_k}, it must be 0 to {size}, the size of the vocabulary")
    backend = backend_for(hidden_states, *plain_weights(weight))
    if backend is None:
        return head_reference(hidden_states, weight, targets=targets, top_k=top_k)
    found = backend.head(hidden_states, weight, targets=targets, top_k=top_k, input_bits=input_bits)
    return HeadOutput(*found)


def _check(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    targets: Tensor | None,
    input_bits: int,
) -> int:
    """Raise ValueError unless all fit together; return V."""
    size, k = (weight.n, weight.k) if isinstance(weight, PackedMatrix) else weight.shape
    check_input_bits(input_bits)
    if targets is not None and targets.shape != hidden_states.shape[:1]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)} for {len(hidden_states)} positions, each "
            "needs one"
        )
    if hidden_states.ndim != 2 or hidden_states.shape[1] != k:
        raise ValueError(
            f"hidden_states have shape {tuple(hidden_states.shape)}, needed is (T, {k})"
        )
    return size


def head_reference(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    targets: Tensor | None = None,
    top_k: int = 1,
) -> HeadOutput:
    """Return what `head` does, by way of all logits."""
    out_dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    logits = linear(hidden_states, weight, out_dtype=out_dtype)
    return head_of(logits, targets=targets, top_k=top_k)


def head_of(logits: Tensor, *, targets: Tensor | None = None, top_k: int = 1) -> HeadOutput:
    """Return what `head` does, of given logits (T, V)."""
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
    """Return the log-probabilities of targets; differentiable unless the weight is packed. The
    logits of all tokens are held at once neither forward nor backward.

    hidden_states  (T, C)
    weight         (V, C)   packed, or a plain matrix of hidden_states' dtype
    targets        (T,)     int64 ids below V

    Returns (T,) float32.
    """
    _check(hidden_states, weight, targets, input_bits)
    backend = backend_for(hidden_states, *plain_weights(weight))
    if backend is None:
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        logits = linear_reference(hidden_states, weight, out_dtype=wide)
        return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    if isinstance(weight, PackedMatrix) and needs_gradient(hidden_states):
        raise ValueError(f"the head is {NO_GRADIENT}")
    return backend.target_logprobs(hidden_states, weight, targets, input_bits=input_bits)
