"""Mixture of experts: choose the experts of each token, run them, add what they say.

Each token's experts are added in the order of their index, in float32, so grouping tokens by expert
changes no row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ExpertWeights(NamedTuple):
    """One gated expert: w2(silu(w1 x) * (w3 x))."""

    w1: Tensor
    """(F, C) gate"""
    w2: Tensor
    """(C, F) down"""
    w3: Tensor
    """(F, C) up"""


def route_softmax(router_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """M1's router: softmax over all experts, the top_k of it, divided by their sum.

    router_logits (T, E) float32 -> topk_weights (T, K) float32, topk_ids (T, K) int64
    """
    weights, ids = router_logits.softmax(-1).topk(top_k)
    return weights / weights.sum(-1, keepdim=True), ids


def route_sigmoid(
    router_logits: Tensor, choice_bias: Tensor | None, top_k: int
) -> tuple[Tensor, Tensor]:
    """M2's router: sigmoid scores; the bias takes part in the choice and never in the weights.

    router_logits (T, E) float32, choice_bias (E,) float32 -> topk_weights (T, K) float32, topk_ids
    (T, K) int64
    """
    scores = router_logits.sigmoid()
    ids = (scores if choice_bias is None else scores + choice_bias).topk(top_k).indices
    weights = scores.gather(-1, ids)
    return weights / weights.sum(-1, keepdim=True), ids


def mixture_of_experts(
    hidden_states: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    experts: Sequence[ExpertWeights],
) -> Tensor:
    """sum over a token's experts of weight * expert(hidden_states).

    hidden_states  (T, C)    any float dtype
    topk_weights   (T, K)    float32
    topk_ids       (T, K)    int64, each row without repeats
    experts        E of them

    Returns (T, C) in hidden_states' dtype.
    """
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
        x = hidden_states[rows]  # (t, C)
        y = F.linear(F.silu(F.linear(x, expert.w1)) * F.linear(x, expert.w3), expert.w2)
        out = out.index_add(0, rows, y.to(dtype) * weights[start : start + count])
        start += count
    return out.to(hidden_states.dtype)
