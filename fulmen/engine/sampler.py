"""Draw token ids from logits, with log-probabilities.

Every row is sampled by itself, from its own parameters and its own random numbers: draw i of a
request depends on its seed and on i alone, so a request's answer does not change with its company,
and a continued one draws what it would have drawn.

Without a filter an id is drawn in the head's own pass, in the order of the ids; filters see the
best tokens, best first.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fulmen.engine.steering import Choice, PromptLogprob
from fulmen.kernels import drawn_from
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
    drawn: tuple[int, float] | None = None
    """Id that was drawn from the whole vocabulary, and its logit; for a request without filters"""
    all_logits: Tensor | None = None
    """(V,) float32 in the order of the ids; for a request without filters whose draw has a bias or
    a mask, or was refused by one"""


def num_candidates(params: SamplingParams, vocab_size: int) -> int:
    """Return how many of the best tokens a request must see; under a mask, of the allowed ones."""
    is_filtered = params.temperature > 0 and not draws_from_all(params)
    drawn = params.top_k or vocab_size if is_filtered else 1
    return min(max(drawn, params.logprobs or 0), vocab_size)


def draws_from_all(params: SamplingParams) -> bool:
    """Return whether any id may be drawn: the temperature is not 0, and nothing is filtered out."""
    is_filtered = params.top_k is not None or params.top_p < 1 or params.min_p > 0
    return params.temperature > 0 and not is_filtered


def uniform_number(seed: int, draw: int) -> float:
    """Return the random number from 0 to 1 of a request's draw."""
    return np.random.Generator(np.random.Philox(key=seed, counter=draw)).random()


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
    elif draws_from_all(params):
        token_id, logit = _draw_from_all(best, params, seed, draw, choice)
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


def _draw_from_all(
    best: Candidates, params: SamplingParams, seed: int, draw: int, choice: Choice
) -> tuple[int, float]:
    """Return an id of the whole vocabulary, and the model's logit of it."""
    mask = choice.mask
    if mask is None or mask.redraw_only:
        drawn = best.drawn or _draw_allowed_of_all(best, params, seed, draw, choice)
        if mask is None or mask.allowed[drawn[0]]:
            return drawn
        draw += _SECOND_DRAW
    return _draw_allowed_of_all(best, params, seed, draw, choice, mask.allowed)


def _draw_allowed_of_all(
    best: Candidates,
    params: SamplingParams,
    seed: int,
    draw: int,
    choice: Choice,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[int, float]:
    assert best.all_logits is not None
    logits = best.all_logits
    if choice.logit_bias is not None:
        token_id, bias = choice.logit_bias
        logits = logits.clone()
        logits[token_id] += bias
    ids = None if allowed is None else np.flatnonzero(allowed)
    place = drawn_from(
        (logits if ids is None else logits[torch.from_numpy(ids)])[None],
        torch.tensor([float(params.temperature)], dtype=torch.float64),
        torch.tensor([uniform_number(seed, draw)], dtype=torch.float64),
    )
    token_id = int(place) if ids is None else int(ids[int(place)])
    return token_id, float(best.all_logits[token_id])


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
    wanted = uniform_number(seed, draw) * float(cumulative[-1])
    index = int(torch.searchsorted(cumulative, wanted, right=True))
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
