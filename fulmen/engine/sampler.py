"""From logits to token ids and log-probabilities.

Every row is sampled by itself, from its own parameters and its own random numbers: draw i of a
request depends on its seed and on i alone, so a request's answer does not change with its company,
and a continued one draws what it would have drawn.
"""

from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fulmen.sampling import Mask, SamplingParams

_SECOND_DRAW: Final = 1 << 64


class Sampled(NamedTuple):
    """One chosen token."""

    token_id: int
    logprob: float
    """Of the model's own distribution, before masks, temperature and filters."""
    top_logprobs: tuple[tuple[int, float], ...]
    """(token id, log-probability) of the likeliest tokens, best first; as many as were asked for.
    """


class Candidates(NamedTuple):
    """What the head says of one request's next token."""

    logsumexp: float
    """Of all logits."""
    logits: Tensor
    """(n,) float32: the best of the vocabulary, best first, at least as many as
    `num_candidates`"""
    ids: Tensor
    """(n,) int64"""
    target_logit: float | None = None
    """The logit of the token that is forced or nudged, if one is."""


def num_candidates(params: SamplingParams, vocab_size: int) -> int:
    """How many of the best tokens a request must see; under a mask, of the best that it allows."""
    drawn = 1 if params.temperature == 0 else params.top_k or vocab_size
    return min(max(drawn, params.logprobs or 0), vocab_size)


def sample(
    best: Candidates,
    params: SamplingParams,
    *,
    seed: int,
    draw: int,
    forced: int | None = None,
    nudge: tuple[int, float] | None = None,
    mask: Mask | None = None,
) -> Sampled:
    """The next token of one request.

    seed    of the request
    draw    index of the token among the request's new tokens
    forced  take this id instead of sampling; its log-probability is reported all the same
    nudge   an id and what is added to its logit before it is drawn
    mask    which ids may be drawn; all if omitted. Temperature and filters see the allowed ones
            alone; as many of them as `num_candidates` says must be among the best, or all
    """
    if forced is not None:
        assert best.target_logit is not None
        token_id, logit = forced, best.target_logit
    else:
        shown = best if nudge is None else nudged(best, *nudge)
        place = None
        if mask is None or mask.redraw_only:
            place = _choose(shown.logits, params, seed, draw)
        if mask is not None and (place is None or not mask.allowed[int(shown.ids[place])]):
            places = np.flatnonzero(mask.allowed[shown.ids.numpy()])
            places = places[: num_candidates(params, len(places))]
            # A second draw has a random number of its own.
            again = draw if place is None else draw + _SECOND_DRAW
            place = int(places[_choose(shown.logits[places], params, seed, again)])
        assert place is not None
        token_id, logit = int(shown.ids[place]), float(shown.logits[place])
        if nudge is not None and token_id == nudge[0]:
            assert best.target_logit is not None
            logit = best.target_logit
    count = params.logprobs or 0
    top = zip(best.ids[:count].tolist(), best.logits[:count].tolist(), strict=True)
    return Sampled(
        token_id,
        logit - best.logsumexp,
        tuple((some, value - best.logsumexp) for some, value in top),
    )


def _choose(logits: Tensor, params: SamplingParams, seed: int, draw: int) -> int:
    """The place of the one that is taken of logits (m,), best first."""
    return _draw(probabilities(logits, params), seed, draw) if params.temperature > 0 else 0


def nudged(best: Candidates, token_id: int, bias: float) -> Candidates:
    """The candidates, as many, with the logit of one more or of one of them raised by bias."""
    assert best.target_logit is not None
    others = best.ids != token_id
    logits = torch.cat([best.logits[others], torch.tensor([best.target_logit + bias])])
    ids = torch.cat([best.ids[others], torch.tensor([token_id])])
    order = logits.argsort(descending=True, stable=True)[: len(best.ids)]
    return best._replace(logits=logits[order], ids=ids[order])


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """How likely each of the best tokens is drawn: (n,) float64, summing to 1, for the first n.

    logits (m,) float32, best first. Temperature first, then top_k, top_p and min_p, each on the
    distribution the one before left; at least one token stays.
    """
    # Dividing the gap to the best keeps a tiny temperature from overflowing.
    values = logits[: params.top_k].double()
    found = ((values - values[0]) / params.temperature).softmax(-1)
    if params.top_p < 1:
        before = found.cumsum(-1) - found
        kept = int((before < params.top_p).sum())
        found = found[:kept] / found[:kept].sum()
    if params.min_p > 0:
        kept = int((found >= params.min_p * found[0]).sum())
        found = found[:kept] / found[:kept].sum()
    return found


def _draw(probabilities: Tensor, seed: int, draw: int) -> int:
    """An index by inverting the cumulative distribution at one uniform number."""
    uniform = np.random.Generator(np.random.Philox(key=seed, counter=draw)).random()
    cumulative = probabilities.cumsum(-1)
    index = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return min(index, len(probabilities) - 1)
