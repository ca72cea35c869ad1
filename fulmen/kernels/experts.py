"""Mixture of experts: choose the experts of each token, run them, add what they say.

Each token's experts are added in the order of their index, in float32, so grouping tokens by expert
changes no row.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.backends import (
    DTYPES,
    check_input_bits,
    native,
    native_alike,
    native_for,
    needs_gradient,
)
from fulmen.kernels.linear import NO_GRADIENT
from fulmen.kernels.weights import PackedMatrix, pack

Scoring = Literal["softmax", "sigmoid"]


class ExpertWeights(NamedTuple):
    """One gated expert: w2(silu(w1 x) * (w3 x))."""

    w1: Tensor | PackedMatrix
    """(F, C) gate"""
    w2: Tensor | PackedMatrix
    """(C, F) down"""
    w3: Tensor | PackedMatrix
    """(F, C) up"""


class PackedExperts:
    """The packed experts of a layer, all of one format and shape."""

    def __init__(self, experts: Sequence[ExpertWeights]) -> None:
        self.experts = tuple(
            ExpertWeights(*(w if isinstance(w, PackedMatrix) else pack(w) for w in expert))
            for expert in experts
        )
        kinds = [
            {(w.format, w.group, w.n, w.k) for w in matrices if isinstance(w, PackedMatrix)}
            for matrices in zip(*self.experts, strict=True)
        ]
        if any(len(kind) != 1 for kind in kinds) or kinds[0] != kinds[2]:
            raise ValueError("the experts of a layer are packed in different formats or shapes")
        (_, _, width, hidden_size), (_, _, *down) = (next(iter(kind)) for kind in kinds[:2])
        if down != [hidden_size, width]:
            raise ValueError(
                f"w1 has shape {(width, hidden_size)} and w2 {tuple(down)}, needed is "
                f"{(hidden_size, width)}"
            )
        extension = native()
        assert extension is not None
        self.handle = extension.Stack(*map(_handles, zip(*self.experts, strict=True)))


def _handles(matrices: Sequence[Tensor | PackedMatrix]) -> list[Any]:
    return [matrix.handle for matrix in matrices if isinstance(matrix, PackedMatrix)]


def route(
    router_logits: Tensor, top_k: int, *, scoring: Scoring, choice_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The experts of each token and their weights.

    M1's router is a softmax over all experts, M2's a sigmoid of each; the top_k scores are chosen
    and divided by their sum. The bias takes part in the choice and never in the weights. Equal
    scores go to the lower index, a NaN is chosen last.

    router_logits (T, E) float32, choice_bias (E,) float32 -> topk_weights (T, K) float32, topk_ids
    (T, K) int64
    """
    num_experts = router_logits.shape[-1]
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k is {top_k}, it must be 1 to {num_experts}, the number of experts")
    if choice_bias is not None and choice_bias.shape != (num_experts,):
        raise ValueError(
            f"choice_bias has shape {tuple(choice_bias.shape)} for {num_experts} experts"
        )
    extension = native_for(router_logits)
    if extension is None or router_logits.dtype != torch.float32:
        return route_reference(router_logits, top_k, scoring=scoring, choice_bias=choice_bias)
    if needs_gradient(router_logits):
        weights, ids = _Route.apply(router_logits, top_k, scoring, choice_bias)  # type: ignore[no-untyped-call]
        return weights, ids
    return _route(extension, router_logits, top_k, scoring, choice_bias)


def _route(
    extension: ModuleType,
    router_logits: Tensor,
    top_k: int,
    scoring: Scoring,
    choice_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    logits = router_logits.contiguous()
    bias = None if choice_bias is None else choice_bias.float().contiguous()
    rows, num_experts = logits.shape
    weights = torch.empty(rows, top_k)
    ids = torch.empty(rows, top_k, dtype=torch.int64)
    extension.route(
        logits.data_ptr(),
        rows,
        num_experts,
        top_k,
        scoring == "sigmoid",
        0 if bias is None else bias.data_ptr(),
        weights.data_ptr(),
        ids.data_ptr(),
    )
    return weights, ids


class _Route(torch.autograd.Function):
    """The choice of experts; only their weights have a gradient."""

    @staticmethod
    def forward(
        ctx: Any, router_logits: Tensor, top_k: int, scoring: Scoring, choice_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        extension = native()
        assert extension is not None
        logits = router_logits.contiguous()
        weights, ids = _route(extension, logits, top_k, scoring, choice_bias)
        ctx.mark_non_differentiable(ids)
        ctx.is_sigmoid = scoring == "sigmoid"
        ctx.save_for_backward(logits, weights, ids)
        return weights, ids

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        extension = native()
        assert extension is not None
        logits, weights, ids = ctx.saved_tensors
        gradient = gradient.contiguous()
        out = torch.empty_like(logits)
        extension.route_backward(
            logits.data_ptr(),
            ids.data_ptr(),
            weights.data_ptr(),
            gradient.data_ptr(),
            *logits.shape,
            weights.shape[1],
            ctx.is_sigmoid,
            out.data_ptr(),
        )
        return out, None, None, None


def route_reference(
    router_logits: Tensor, top_k: int, *, scoring: Scoring, choice_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same in plain torch."""
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
    """sum over a token's experts of weight * expert(hidden_states).

    hidden_states  (T, C)    any float dtype
    topk_weights   (T, K)    float32
    topk_ids       (T, K)    int64, each row without repeats
    experts        E of them; plain matrices, of hidden_states' dtype, are packed for the call
    input_bits     8 or 16: how finely inputs are rounded for int8 and int4 experts

    Returns (T, C) in hidden_states' dtype; an expert's hidden values are rounded to it once.
    """
    check_input_bits(input_bits)
    if isinstance(experts, PackedExperts):
        if needs_gradient(hidden_states, topk_weights):
            raise ValueError(f"the experts are {NO_GRADIENT}")
        if native_for(hidden_states) is None:
            return mixture_of_experts_reference(
                hidden_states, topk_weights, topk_ids, experts.experts
            )
        return _run(hidden_states, topk_weights, topk_ids, experts, input_bits)
    flat = [w for expert in experts for w in expert if isinstance(w, Tensor)]
    if native_alike(hidden_states, *flat) is None or len(flat) < 3 * len(experts):
        return mixture_of_experts_reference(hidden_states, topk_weights, topk_ids, experts)
    weights = topk_weights.float()
    out: Tensor = _Experts.apply(hidden_states, weights, topk_ids, *flat)  # type: ignore[no-untyped-call]
    return out


def _run(
    hidden_states: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    experts: PackedExperts,
    input_bits: int,
) -> Tensor:
    extension = native()
    assert extension is not None
    x, weights = hidden_states.contiguous(), topk_weights.float().contiguous()
    ids = topk_ids.long().contiguous()
    if weights.shape != ids.shape or len(ids) != len(x):
        raise ValueError(
            f"topk_weights {tuple(weights.shape)} and topk_ids {tuple(ids.shape)} must be "
            f"({len(x)}, K)"
        )
    first = experts.experts[0].w1
    width = first.k if isinstance(first, PackedMatrix) else first.shape[1]
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"hidden_states have shape {tuple(x.shape)}, needed is (T, {width})")
    out = torch.empty_like(x)
    extension.experts(
        x.data_ptr(),
        DTYPES[x.dtype],
        len(x),
        x.stride(0),
        ids.data_ptr(),
        weights.data_ptr(),
        ids.shape[1],
        experts.handle,
        input_bits,
        out.data_ptr(),
    )
    return out


class _Experts(torch.autograd.Function):
    """Both directions in the extension; w1, w2, w3 of every expert follow the three inputs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, *flat: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, topk_weights, topk_ids, *flat)
        experts = [ExpertWeights(*flat[i : i + 3]) for i in range(0, len(flat), 3)]
        return _run(x, topk_weights, topk_ids, PackedExperts(experts), 16)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        extension = native()
        assert extension is not None
        x, weights, ids, *flat = (saved.contiguous() for saved in ctx.saved_tensors)
        gradient = gradient.contiguous()
        x_gradient, weights_gradient = torch.empty_like(x), torch.empty_like(weights)
        flat_gradients = [torch.empty_like(w) for w in flat]
        addresses = [[w.data_ptr() for w in flat[i::3]] for i in range(3)]
        targets = [[w.data_ptr() for w in flat_gradients[i::3]] for i in range(3)]
        extension.experts_backward(
            DTYPES[x.dtype],
            len(x),
            x.shape[1],
            flat[0].shape[0],
            ids.shape[1],
            x.data_ptr(),
            gradient.data_ptr(),
            ids.data_ptr(),
            weights.data_ptr(),
            *addresses,
            x_gradient.data_ptr(),
            weights_gradient.data_ptr(),
            *targets,
        )
        return x_gradient, weights_gradient, None, *flat_gradients


def _plain(weight: Tensor | PackedMatrix) -> Tensor:
    return weight.unpack() if isinstance(weight, PackedMatrix) else weight


def mixture_of_experts_reference(
    hidden_states: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    experts: Sequence[ExpertWeights],
) -> Tensor:
    """The same in plain torch."""
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
