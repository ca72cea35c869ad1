"""The head: what is wanted of the logits over the vocabulary, without writing the logits.

A decoded token needs its log-probability and the best few candidates, or an id drawn from all; a
training token the log-probability of its target. The V logits between are never stored.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fulmen.kernels.backends import backend_for
from fulmen.kernels.gradients import NO_GRADIENT, needs_gradient
from fulmen.kernels.linear import check_input_bits, linear, linear_reference, plain_weights
from fulmen.kernels.weights import PackedMatrix


class Draws(NamedTuple):
    """Rows whose next id is drawn from the whole vocabulary, without filters.

    The id is the first, in the order of the ids, up to which the probabilities of
    softmax(logits / temperature) add up to more than the uniform number.
    """

    rows: Tensor
    """(R,) int64"""
    temperatures: Tensor
    """(R,) float64, above 0"""
    uniforms: Tensor
    """(R,) float64, from 0 to 1"""


class TargetScores(NamedTuple):
    """Log-probabilities of targets at T positions, and how open the choice was there."""

    logprobs: Tensor
    """(T,) float32; differentiable unless the weights are packed"""
    entropy: Tensor
    """(T,) float32: that of the next token in nats, without gradient"""


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
    drawn_ids: Tensor | None = None
    """(R,) int64, any id in a row whose logsumexp is not finite; None unless draws were given"""
    drawn_logits: Tensor | None = None
    """(R,) float32"""


def head(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    targets: Tensor | None = None,
    top_k: int = 1,
    draws: Draws | None = None,
    input_bits: int = 16,
) -> HeadOutput:
    """Return logsumexp, targets, the top_k best and the drawn of the logits hidden_states W^T,
    which are summed in float32.

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
        return head_reference(hidden_states, weight, targets=targets, top_k=top_k, draws=draws)
    found = backend.head(
        hidden_states, weight, targets=targets, top_k=top_k, draws=draws, input_bits=input_bits
    )
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
    draws: Draws | None = None,
) -> HeadOutput:
    """Return what `head` does, by way of all logits."""
    out_dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    logits = linear(hidden_states, weight, out_dtype=out_dtype)
    return head_of(logits, targets=targets, top_k=top_k, draws=draws)


def head_of(
    logits: Tensor,
    *,
    targets: Tensor | None = None,
    top_k: int = 1,
    draws: Draws | None = None,
) -> HeadOutput:
    """Return what `head` does, of given logits (T, V)."""
    order = logits.sort(dim=-1, descending=True, stable=True)
    top_logits, top_ids = order.values[:, :top_k], order.indices[:, :top_k]
    chosen = None if targets is None else logits.gather(-1, targets[:, None])[:, 0]
    found = HeadOutput(logits.logsumexp(-1), top_logits, top_ids, chosen)
    if draws is None:
        return found
    rows = logits[draws.rows]
    ids = drawn_from(rows, draws.temperatures, draws.uniforms)
    return found._replace(drawn_ids=ids, drawn_logits=rows.gather(-1, ids[:, None])[:, 0])


def drawn_from(logits: Tensor, temperatures: Tensor, uniforms: Tensor) -> Tensor:
    """Return the ids (R,) that `Draws` describes, of logits (R, V). Where the largest logit is
    infinite, only those that equal it are drawn."""
    wide = logits.double()
    largest = wide.amax(-1, keepdim=True)
    # Dividing the gap to the largest keeps a tiny temperature from overflowing.
    gaps = torch.where(wide == largest, 0.0, wide - largest)
    cumulative = (gaps / temperatures[:, None].double()).exp().cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    found = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # rounding may carry the first beyond it
    return torch.minimum(found, last)[:, 0].clamp(max=logits.shape[-1] - 1)  # a NaN, too


def target_logprobs(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    targets: Tensor,
    *,
    input_bits: int = 16,
) -> Tensor:
    """Return the log-probabilities of targets; differentiable unless the weight is packed.
    Logits are held only for the gradient, and only while all of them take 64 MiB or less.

    hidden_states  (T, C)
    weight         (V, C)   packed, or a plain matrix of hidden_states' dtype
    targets        (T,)     int64 ids below V

    Returns (T,) float32.
    """
    _check(hidden_states, weight, targets, input_bits)
    backend = backend_for(hidden_states, *plain_weights(weight))
    if backend is None:
        return target_scores_reference(hidden_states, weight, targets).logprobs
    if isinstance(weight, PackedMatrix) and needs_gradient(hidden_states):
        raise ValueError(f"the head is {NO_GRADIENT}")
    return backend.target_logprobs(hidden_states, weight, targets, input_bits=input_bits)


def target_scores(
    hidden_states: Tensor,
    weight: Tensor | PackedMatrix,
    targets: Tensor,
    *,
    input_bits: int = 16,
) -> TargetScores:
    """Return what `target_logprobs` does, and in the same pass the entropy at each position."""
    _check(hidden_states, weight, targets, input_bits)
    backend = backend_for(hidden_states, *plain_weights(weight))
    if backend is None:
        return target_scores_reference(hidden_states, weight, targets)
    if isinstance(weight, PackedMatrix) and needs_gradient(hidden_states):
        raise ValueError(f"the head is {NO_GRADIENT}")
    found = backend.target_scores(hidden_states, weight, targets, input_bits=input_bits)
    return TargetScores(*found)


def target_scores_reference(
    hidden_states: Tensor, weight: Tensor | PackedMatrix, targets: Tensor
) -> TargetScores:
    """Return what `target_scores` does, by way of all logits."""
    wide = torch.promote_types(hidden_states.dtype, torch.float32)
    logprobs = linear_reference(hidden_states, weight, out_dtype=wide).log_softmax(-1)
    entropy = torch.special.entr(logprobs.detach().exp()).sum(-1)
    return TargetScores(logprobs.gather(-1, targets[:, None])[:, 0], entropy)
