"""From logits to token ids and log-probabilities.

Every row is sampled by itself, from its own parameters and its own random numbers: draw i of a
request depends on its seed and on i alone, so a request's answer does not change with its company,
and a continued one draws what it would have drawn.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fulmen.sampling import SamplingParams


class Sampled(NamedTuple):
    """One chosen token."""

    token_id: int
    logprob: float
    """Of the model's own distribution, before temperature and filters."""
    top_logprobs: tuple[tuple[int, float], ...]
    """(token id, log-probability) of the likeliest tokens, best first; as many as were asked for.
    """


def sample(
    logits: Tensor, params: SamplingParams, *, seed: int, draw: int, forced: int | None = None
) -> Sampled:
    """The next token of one request.

    logits  (V,) float32
    seed    of the request
    draw    index of the token among the request's new tokens
    forced  take this id instead of sampling; its log-probability is reported all the same
    """
    logprobs = logits.log_softmax(-1)
    if forced is not None:
        token_id = forced
    elif params.temperature == 0:
        token_id = int(logits.argmax())
    else:
        ids, probabilities = candidates(logits, params)
        token_id = int(ids[_draw(probabilities, seed, draw)])
    top: tuple[tuple[int, float], ...] = ()
    if params.logprobs:
        values, ids = logprobs.topk(min(params.logprobs, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Sampled(token_id, float(logprobs[token_id]), top)


def candidates(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The ids that may be drawn, likeliest first, and their probabilities, which sum to 1.

    logits (V,) float32 -> ids (n,) int64, probabilities (n,) float64. Temperature first, then
    top_k, top_p and min_p, each on the distribution the one before left; at least one token stays.
    """
    count = len(logits) if params.top_k is None else min(params.top_k, len(logits))
    values, ids = logits.topk(count)
    # Dividing the gap to the best keeps a tiny temperature from overflowing.
    values = values.double()
    probabilities = ((values - values[0]) / params.temperature).softmax(-1)
    if params.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        kept = int((before < params.top_p).sum())
        probabilities = probabilities[:kept] / probabilities[:kept].sum()
    if params.min_p > 0:
        kept = int((probabilities >= params.min_p * probabilities[0]).sum())
        probabilities = probabilities[:kept] / probabilities[:kept].sum()
    return ids[: len(probabilities)], probabilities


def _draw(probabilities: Tensor, seed: int, draw: int) -> int:
    """An index by inverting the cumulative distribution at one uniform number."""
    uniform = np.random.Generator(np.random.Philox(key=seed, counter=draw)).random()
    cumulative = probabilities.cumsum(-1)
    index = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return min(index, len(probabilities) - 1)
