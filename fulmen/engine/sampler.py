"""Draw token ids from logits, with log-probabilities.

Every row is sampled by itself, from its own parameters and its own random numbers: draw i of a
request depends on its seed and on i alone, so a request's answer does not change with its company,
and a continued one draws what it would have drawn.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fulmen.engine.steering import Choice, PromptLogprob
from fulmen.sampling import Mask, SamplingParams

_SECOND_DRAW: Final = 1 << 64
"""Added to the counter of a draw that replaces a refused one, for a random number of its own."""


class Sampled(NamedTuple):
    """One chosen token."""

    token_id: int
    logprob: float
    """Log-probability by the model alone, before masks, temperature and filters"""
    top_logprobs: tuple[tuple[int, float], ...]
    """(token id, log-probability) of the likeliest tokens, best first; as many as were asked for"""


class Candidates(NamedTuple):
    """The head's output for one place."""

    logsumexp: float
    """Over the logits of the whole vocabulary; NaN or infinite if one of them is NaN or infinity"""
    logits: Tensor
    """(n,) float32: the best of the vocabulary, best first, at least as many as
    `num_candidates`"""
    ids: Tensor
    """(n,) int64"""
    target_logit: float | None = None
    """Logit of the forced or biased id, if there is one"""


def num_candidates(params: SamplingParams, vocab_size: int) -> int:
    """Return how many of the best tokens a request must see; under a mask, of the allowed ones."""
    drawn = 1 if params.temperature == 0 else params.top_k or vocab_size
    return min(max(drawn, params.logprobs or 0), vocab_size)


def sample(
    best: Candidates,
    params: SamplingParams,
    *,
    seed: int,
    draw: int,
    choice: Choice | None = None,
) -> Sampled:
    """Return the next token of one request.

    seed    of the request
    draw    index of the token in the request's answer
    choice  ids that may come; all if omitted. Temperature and filters see the allowed ids alone;
            as many of them as `num_candidates` says must be among the best, or all
    """
    choice = choice or Choice()
    if choice.forced_id is not None:
        assert best.target_logit is not None
        token_id, logit = choice.forced_id, best.target_logit
    else:
        shown = best if choice.logit_bias is None else biased(best, *choice.logit_bias)
        place = _choose(shown, params, seed, draw, choice.mask)
        token_id, logit = int(shown.ids[place]), float(shown.logits[place])
        if choice.logit_bias is not None and token_id == choice.logit_bias[0]:
            assert best.target_logit is not None
            logit = best.target_logit
    top = _top_logprobs(best, params.logprobs or 0)
    return Sampled(token_id, logit - best.logsumexp, top)


def prompt_logprobs(
    ids: Sequence[int], rows: Sequence[Candidates], params: SamplingParams
) -> list[PromptLogprob]:
    """Return the log-probabilities of tokens that a prompt goes on with.

    rows  candidates in the place of each, with its own logit
    """
    count = params.prompt_logprobs or 0
    found = []
    for token_id, row in zip(ids, rows, strict=True):
        assert row.target_logit is not None
        found.append(
            PromptLogprob(token_id, row.target_logit - row.logsumexp, _top_logprobs(row, count))
        )
    return found


def _top_logprobs(best: Candidates, count: int) -> tuple[tuple[int, float], ...]:
    top = zip(best.ids[:count].tolist(), best.logits[:count].tolist(), strict=True)
    return tuple((some, value - best.logsumexp) for some, value in top)


def _choose(
    best: Candidates, params: SamplingParams, seed: int, draw: int, mask: Mask | None
) -> int:
    """Return the place among the best of the id that is drawn."""
    if mask is None:
        return _draw(best.logits, params, seed, draw)
    if not mask.redraw_only:
        return _draw_allowed(best, params, seed, draw, mask)
    place = _draw(best.logits, params, seed, draw)
    if mask.allowed[int(best.ids[place])]:
        return place
    return _draw_allowed(best, params, seed, draw + _SECOND_DRAW, mask)


def _draw_allowed(
    best: Candidates, params: SamplingParams, seed: int, draw: int, mask: Mask
) -> int:
    places = np.flatnonzero(mask.allowed[best.ids.numpy()])
    places = places[: num_candidates(params, len(places))]
    return int(places[_draw(best.logits[places], params, seed, draw)])


def _draw(logits: Tensor, params: SamplingParams, seed: int, draw: int) -> int:
    """Return a place in logits (m,), best first: the first if greedy, else a random one, found by
    inverting the cumulative distribution at one uniform number."""
    if params.temperature == 0:
        return 0
    cumulative = probabilities(logits, params).cumsum(-1)
    uniform = np.random.Generator(np.random.Philox(key=seed, counter=draw)).random()
    index = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return min(index, len(cumulative) - 1)


def biased(best: Candidates, token_id: int, bias: float) -> Candidates:
    """Return the candidates with the logit of one id, be it among them or not, raised by bias."""
    assert best.target_logit is not None
    others = best.ids != token_id
    logits = torch.cat([best.logits[others], torch.tensor([best.target_logit + bias])])
    ids = torch.cat([best.ids[others], torch.tensor([token_id])])
    order = logits.argsort(descending=True, stable=True)
    return best._replace(logits=logits[order], ids=ids[order])


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """Return how likely each of the best tokens is drawn: (n,) float64, summing to 1, for the
    first n.

    logits (m,) float32, best first. Temperature first, then top_k, top_p and min_p, each on the
    distribution the one before left; at least one token stays.
    """
    values = logits[: params.top_k].double()
    # Dividing the gap to the best keeps a tiny temperature from overflowing.
    gaps = values - values[0]
    if not math.isfinite(values[0]):  # all are minus infinity, or a bias made infinity of some
        gaps = torch.where(values == values[0], 0.0, -math.inf).double()
    found = (gaps / float(params.temperature)).softmax(-1)
    if params.top_p < 1:
        before = found.cumsum(-1) - found
        num_kept = int((before < params.top_p).sum())
        found = found[:num_kept] / found[:num_kept].sum()
    if params.min_p > 0:
        num_kept = int((found >= params.min_p * found[0]).sum())
        found = found[:num_kept] / found[:num_kept].sum()
    return found
