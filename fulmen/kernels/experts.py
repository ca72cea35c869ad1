"""Mixture of experts: choose the experts of each token, run them, add their outputs.

A token's experts are added in the order of their index, in float32, so grouping tokens by expert
changes no row.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.kernels.backends import Backend, backend_for, backend_for_alike
from fulmen.kernels.gradients import NO_GRADIENT, needs_gradient
from fulmen.kernels.linear import check_input_bits, pack
from fulmen.kernels.weights import PackedMatrix

Scoring = Literal["softmax", "sigmoid"]
"""Scores of a router: softmax in M1, sigmoid in M2."""


class ExpertWeights(NamedTuple):
    """One gated expert: w2(silu(w1 x) * (w3 x))."""

    w1: Tensor | PackedMatrix
    """(F, C) gate"""
    w2: Tensor | PackedMatrix
    """(C, F) down"""
    w3: Tensor | PackedMatrix
    """(F, C) up"""


class PackedExperts:
    """Packed experts of a layer, all of one format and shape."""

    def __init__(self, experts: Sequence[ExpertWeights]) -> None:
        """Take the experts; plain matrices are packed."""
        self.w1, self.w2, self.w3 = (
            [w if isinstance(w, PackedMatrix) else pack(w) for w in kind]
            for kind in zip(*experts, strict=True)
        )
        self.experts = tuple(map(ExpertWeights, self.w1, self.w2, self.w3))
        self.hidden_size = _common_width(self.w1, self.w2, self.w3)
        """C"""
        self._stacks: dict[Backend, Any] = {}

    def stack_for(self, backend: Backend) -> Any:
        """Return the backend's view of all experts, made on first use."""
        if backend not in self._stacks:
            self._stacks[backend] = backend.stack_experts(self.w1, self.w2, self.w3)
        return self._stacks[backend]


def _common_width(
    w1: Sequence[Tensor | PackedMatrix],
    w2: Sequence[Tensor | PackedMatrix],
    w3: Sequence[Tensor | PackedMatrix],
) -> int:
    """Return C; raise ValueError unless all experts have one format and shapes that fit."""
    kinds = [set(map(_kind, kind)) for kind in (w1, w2, w3)]
    if any(len(kind) != 1 for kind in kinds) or kinds[0] != kinds[2]:
        raise ValueError("the experts of a layer are packed in different formats or shapes")
    (*_, width, hidden_size), (*_, rows, columns) = (kind.pop() for kind in kinds[:2])
    if (rows, columns) != (hidden_size, width):
        raise ValueError(
            f"w1 has shape {(width, hidden_size)} and w2 {(rows, columns)}, needed is "
            f"{(hidden_size, width)}"
        )
    return hidden_size


def _kind(weight: Tensor | PackedMatrix) -> tuple[object, int, int, int]:
    """Return format or dtype, group, rows and columns of a matrix."""
    if isinstance(weight, PackedMatrix):
        return weight.format, weight.group, weight.n, weight.k
    return weight.dtype, 0, weight.shape[0], weight.shape[1]


def route(
    router_logits: Tensor, top_k: int, *, scoring: Scoring, choice_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose the experts of each token and their weights.

    M1's router is a softmax over all experts, M2's a sigmoid of each; the top_k scores are chosen
    and divided by their sum. The bias takes part in the choice and never in the weights. Among
    equal scores the lower index wins; a NaN is chosen last.

    router_logits  (T, E)   float32
    choice_bias    (E,)     float32

    Returns topk_weights (T, K) float32, differentiable, and topk_ids (T, K) int64.
    """
    num_experts = router_logits.shape[-1]
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k is {top_k}, it must be 1 to {num_experts}, the number of experts")
    if choice_bias is not None and choice_bias.shape != (num_experts,):
        raise ValueError(
            f"choice_bias has shape {tuple(choice_bias.shape)} for {num_experts} experts"
        )
    backend = backend_for(router_logits)
    if backend is None or router_logits.dtype != torch.float32:
        return route_reference(router_logits, top_k, scoring=scoring, choice_bias=choice_bias)
    return backend.route(
        router_logits, top_k, is_sigmoid=scoring == "sigmoid", choice_bias=choice_bias
    )


def route_reference(
    router_logits: Tensor, top_k: int, *, scoring: Scoring, choice_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what `route` does, in plain torch."""
    scores = _scores(router_logits, scoring)
    choice = scores if choice_bias is None else scores + choice_bias
    choice = choice.masked_fill(choice.isnan(), -torch.inf)
    ids = choice.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    return _weights_of(scores, ids), ids


def _scores(router_logits: Tensor, scoring: Scoring) -> Tensor:
    return router_logits.softmax(-1) if scoring == "softmax" else router_logits.sigmoid()


def _weights_of(scores: Tensor, ids: Tensor) -> Tensor:
    weights = scores.gather(-1, ids)
    return weights / weights.sum(-1, keepdim=True)


def mixture_of_experts(
    hidden_states: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    experts: Sequence[ExpertWeights] | PackedExperts,
    *,
    input_bits: int = 16,
) -> Tensor:
    """Return the sum over a token's experts of weight * expert(hidden_states).

    hidden_states  (T, C)    any float dtype
    topk_weights   (T, K)    float32
    topk_ids       (T, K)    int64, each row without repeats
    experts        E of them; plain matrices, of hidden_states' dtype, are packed for the call
    input_bits     8 or 16: how finely inputs are rounded for int8 and int4 experts

    Returns (T, C) in hidden_states' dtype; an expert's hidden values are rounded to it once.
    Differentiable for plain matrices.
    """
    check_input_bits(input_bits)
    if isinstance(experts, PackedExperts):
        if needs_gradient(hidden_states, topk_weights):
            raise ValueError(f"the experts are {NO_GRADIENT}")
        backend = backend_for(hidden_states)
        if backend is None:
            return mixture_of_experts_reference(
                hidden_states, topk_weights, topk_ids, experts.experts
            )
        _check(hidden_states, topk_weights, topk_ids, experts.hidden_size)
        return backend.mixture_of_experts(
            hidden_states,
            topk_weights,
            topk_ids,
            experts.stack_for(backend),
            input_bits=input_bits,
        )
    flat = [w for expert in experts for w in expert if isinstance(w, Tensor)]
    backend = backend_for_alike(hidden_states, *flat)
    if backend is None or len(flat) < 3 * len(experts):
        return mixture_of_experts_reference(hidden_states, topk_weights, topk_ids, experts)
    _check(hidden_states, topk_weights, topk_ids, _common_width(flat[::3], flat[1::3], flat[2::3]))
    return backend.train_experts(hidden_states, topk_weights.float(), topk_ids, flat)


def _check(hidden_states: Tensor, topk_weights: Tensor, topk_ids: Tensor, hidden_size: int) -> None:
    """Raise ValueError unless shapes fit: a kernel reads memory by these numbers."""
    if topk_weights.shape != topk_ids.shape or len(topk_ids) != len(hidden_states):
        raise ValueError(
            f"topk_weights {tuple(topk_weights.shape)} and topk_ids {tuple(topk_ids.shape)} must "
            f"be ({len(hidden_states)}, K)"
        )
    if hidden_states.ndim != 2 or hidden_states.shape[1] != hidden_size:
        raise ValueError(
            f"hidden_states have shape {tuple(hidden_states.shape)}, needed is (T, {hidden_size})"
        )


def _plain(weight: Tensor | PackedMatrix) -> Tensor:
    return weight.unpack() if isinstance(weight, PackedMatrix) else weight


def mixture_of_experts_reference(
    hidden_states: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    experts: Sequence[ExpertWeights],
) -> Tensor:
    """Return what `mixture_of_experts` does, in plain torch."""
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    out = torch.zeros_like(hidden_states, dtype=dtype)
    order = topk_ids.flatten().argsort(stable=True)  # pairs of token and choice, grouped by expert
    tokens = order // topk_ids.shape[1]
    weights = topk_weights.flatten()[order, None]
    counts = topk_ids.flatten().bincount(minlength=len(experts)).tolist()
    start = 0
    for expert, count in zip(experts, counts, strict=True):
        if not count:
            continue
        rows = tokens[start : start + count]
        x = hidden_states[rows].to(dtype)  # (t, C)
        w1, w2, w3 = (_plain(w).to(dtype) for w in expert)
        hidden = (F.silu(F.linear(x, w1)) * F.linear(x, w3)).to(hidden_states.dtype)
        y = F.linear(hidden.to(dtype), w2)
        out = out.index_add(0, rows, y * weights[start : start + count])
        start += count
    return out.to(hidden_states.dtype)
