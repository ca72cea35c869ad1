"""Draws: which ids, with which probability, and what a draw depends on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fulmen.engine import Choice
from fulmen.engine.sampler import (
    Sampled,
    draws_from_all,
    num_candidates,
    probabilities,
    sample,
)
from fulmen.sampling import Mask, SamplingParams
from tests.engine.helpers import best_of

ALL = SamplingParams(top_k=None, top_p=1.0)
logits_strategy = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30).map(
    lambda values: torch.tensor(values, dtype=torch.float32)
)


def choose(
    logits: Tensor, params: SamplingParams, *, seed: int, draw: int, forced: int | None = None
) -> Sampled:
    """Return the next token when these are the logits of the whole vocabulary."""
    best = best_of(logits, num_candidates(params, len(logits)), forced)
    return sample(best, params, seed=seed, draw=draw, choice=Choice(forced_id=forced))


def naive(logits: Tensor, params: SamplingParams) -> dict[int, float]:
    """Return what the same filters leave, one at a time over a plain dictionary."""
    weights = {i: float(x) / params.temperature for i, x in enumerate(logits.double())}
    best = max(weights.values())
    kept = sorted(weights, key=lambda i: -weights[i])[: params.top_k]
    probabilities = {i: float(torch.tensor(weights[i] - best).double().exp()) for i in kept}
    for keep in ("top_p", "min_p"):
        total = sum(probabilities.values())
        probabilities = {i: p / total for i, p in probabilities.items()}
        if keep == "top_p" and params.top_p == 1:
            continue
        if keep == "top_p":
            mass, chosen = 0.0, dict[int, float]()
            for i, p in probabilities.items():
                if mass >= params.top_p and chosen:
                    break
                chosen[i], mass = p, mass + p
            probabilities = chosen
        else:
            floor = params.min_p * max(probabilities.values())
            probabilities = {i: p for i, p in probabilities.items() if p >= floor}
    total = sum(probabilities.values())
    return {i: p / total for i, p in probabilities.items()}


@given(
    logits_strategy,
    st.floats(0.1, 3),
    st.integers(1, 30) | st.none(),
    st.sampled_from([0.1234567, 0.3678794, 0.6180339, 0.9512294, 1.0]),
    st.sampled_from([0.0, 0.03, 0.5]),
)
def test_candidates_equal_a_plain_computation(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    # Without a filter the head draws, and only masked rows come here, with all their logits.
    is_whole = draws_from_all(params)
    best = best_of(logits, len(logits) if is_whole else num_candidates(params, len(logits)))
    found = probabilities(best.logits, params)
    expected = naive(logits, params)
    assert float(found.sum()) == pytest.approx(1)
    # Equal logits may be kept in either order, so probabilities are compared, not ids.
    assert found.tolist() == pytest.approx(sorted(expected.values(), reverse=True))


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log()
    counts = torch.zeros(3)
    for draw in range(4000):
        counts[choose(logits, ALL, seed=5, draw=draw).token_id] += 1
    torch.testing.assert_close(counts / 4000, logits.exp(), atol=0.03, rtol=0)


def test_a_draw_depends_on_seed_and_index_alone() -> None:
    logits = torch.zeros(1000)
    ids = [choose(logits, ALL, seed=seed, draw=draw).token_id for seed, draw in ((1, 0), (1, 1))]
    assert ids == [choose(logits, ALL, seed=1, draw=draw).token_id for draw in (0, 1)]
    assert ids[0] != ids[1]
    assert ids[0] != choose(logits, ALL, seed=2, draw=0).token_id


def test_greedy_takes_the_lowest_id_on_a_tie() -> None:
    greedy = SamplingParams(temperature=0)
    assert choose(torch.tensor([0.0, 3.0, 3.0]), greedy, seed=0, draw=0).token_id == 1


def test_logprobs_are_those_of_the_model_before_temperature() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    sampled = choose(logits, SamplingParams(temperature=0, logprobs=2), seed=0, draw=0)
    expected = logits.log_softmax(-1)
    assert sampled.logprob == pytest.approx(float(expected[1]))
    assert [token for token, _ in sampled.top_logprobs] == [1, 2]
    assert [value for _, value in sampled.top_logprobs] == pytest.approx(
        [float(expected[1]), float(expected[2])]
    )


def test_a_forced_token_is_taken_and_its_logprob_reported() -> None:
    logits = torch.tensor([1.0, 30.0])
    sampled = choose(logits, ALL, seed=0, draw=0, forced=0)
    assert sampled.token_id == 0
    assert sampled.logprob == pytest.approx(-29)


infinite_logits = st.lists(
    st.floats(-20, 20, width=32) | st.just(-math.inf), min_size=2, max_size=30
).filter(lambda values: max(values) > -math.inf)


@given(
    infinite_logits,
    st.data(),
    st.sampled_from([0.0, 1e-300, 0.7, 1e300]),
    st.none() | st.integers(1, 30),
    st.sampled_from([0.5, 1.0]),
)
def test_logits_of_minus_infinity_are_drawn_only_where_no_other_may_come(
    values: list[float], data: st.DataObject, temperature: float, top_k: int | None, top_p: float
) -> None:
    logits = torch.tensor(values)
    size = len(values)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, logprobs=2)
    target = data.draw(st.integers(0, size - 1))
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    allowed[target] = True
    bias = data.draw(st.sampled_from([-1e300, -30.0, 0.0, 30.0, 1e300]))
    for choice in (
        Choice(),
        Choice(forced_id=target),
        Choice(logit_bias=(target, bias)),
        Choice(Mask(allowed)),
        Choice(Mask(allowed, redraw_only=True)),
        Choice(Mask(allowed), logit_bias=(target, bias)),
    ):
        best = best_of(logits, size, target)
        sampled = sample(best, params, seed=1, draw=0, choice=choice)
        assert choice.forced_id in (None, sampled.token_id)
        assert choice.mask is None or allowed[sampled.token_id]
        assert sampled.logprob == float(logits[sampled.token_id]) - best.logsumexp
        assert not any(math.isnan(value) for _, value in sampled.top_logprobs)
        if choice.logit_bias is None and choice.forced_id is None:
            others = logits if choice.mask is None else logits[torch.from_numpy(allowed)]
            assert sampled.logprob > -math.inf or float(others.max()) == -math.inf


@given(logits_strategy, st.data(), st.integers(1, 5), st.floats(-30, 30), st.sampled_from([0, 0.9]))
def test_a_bias_draws_the_same_from_few_candidates_as_from_all(
    logits: Tensor, data: st.DataObject, top_k: int, bias: float, temperature: float
) -> None:
    target = data.draw(st.integers(0, len(logits) - 1))
    params = SamplingParams(temperature=temperature, top_k=top_k)
    choice = Choice(logit_bias=(target, bias))
    few = min(num_candidates(params, len(logits)) + 1, len(logits))
    draws = [
        sample(best_of(logits, count, target), params, seed=3, draw=1, choice=choice)
        for count in (few, len(logits))
    ]
    assert draws[0] == draws[1]
    plain = logits.clone()
    plain[target] += bias
    if len(set(plain.tolist())) == len(plain):  # equal logits may be kept in either order
        expected = choose(plain, params, seed=3, draw=1)
        assert draws[0].token_id == expected.token_id


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"repetition_window": 0}, "repetition_window is 0"),
        ({"repetition_probability": 1.0}, "repetition_probability is 1.0"),
        ({"thinking_budget": -1}, "thinking_budget is -1"),
        ({"stop": ("",)}, "stop is \\(''"),
        ({"stop": "END"}, "stop is 'END', it must be a tuple of str"),
        ({"stop_token_ids": (1.0,)}, "stop_token_ids is .* it must be a tuple of int"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5, it must be a whole number or none"),
        ({"logprobs": True}, "logprobs is True, it must be a whole number or none"),
        ({"seed": [1]}, "seed is \\[1\\], it must be a whole number or none"),
        ({"temperature": None}, "temperature is None, it must be a number"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_impossible_parameters_are_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SamplingParams(**wrong)  # type: ignore[arg-type]
