"""Objectives: the gradient of each, the other way."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.train.rl.objective import (
    RULES,
    Aggregation,
    Algorithm,
    LossParts,
    ObjectiveConfig,
    Rule,
    Scope,
    Streams,
    loss,
    token_weights,
)
from tests.examples import examples

ALGORITHMS: list[Algorithm] = sorted(RULES)
CLIPPED: list[Algorithm] = ["ppo", "grpo", "dapo", "dr_grpo"]
LENGTHS = [5, 1, 40, 17, 3, 60, 2, 2]
GROUPS = [0, 0, 0, 1, 1, 1, 2, 2]


def config_of(algorithm: Algorithm, **changes: object) -> ObjectiveConfig:
    """Return an algorithm, with the constant length that one of them needs."""
    if algorithm == "dr_grpo" and "aggregation" not in changes:
        changes["constant_length"] = 64
    return ObjectiveConfig(algorithm=algorithm, **changes)  # type: ignore[arg-type]


def streams_of(config: ObjectiveConfig, *, spread: float, seed: int = 0) -> tuple[Tensor, Streams]:
    """Return log-probabilities (L,) float64, and streams whose ratios spread around 1."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(LENGTHS)
    num_tokens = int(counts.sum())
    logprobs = -3 * torch.rand(num_tokens, generator=generator, dtype=torch.float64)
    noise = spread * torch.randn(num_tokens, generator=generator, dtype=torch.float64)
    advantages = torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64)
    weights = torch.tensor(token_weights(LENGTHS, GROUPS, config.rule), dtype=torch.float64)
    return logprobs, Streams(
        sampler_logprobs=logprobs + noise,
        advantages=advantages.repeat_interleave(counts),
        sequences=torch.arange(len(LENGTHS)).repeat_interleave(counts),
        weights=weights.repeat_interleave(counts),
    )


def gradient(logprobs: Tensor, streams: Streams, config: ObjectiveConfig) -> Tensor:
    leaf = logprobs.clone().requires_grad_()
    loss(leaf, streams, config).loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


def clipped_gradient(logprobs: Tensor, streams: Streams, rule: Rule) -> Tensor:
    """Return the gradient of PPO's objective, eq. 1, as autograd finds it."""
    leaf = logprobs.clone().requires_grad_()
    ratios = (leaf - streams.sampler_logprobs).exp()
    if rule.ratio == "sequence":
        ratios = torch.cat(
            [
                (leaf - streams.sampler_logprobs)[streams.sequences == n].mean().exp().expand(count)
                for n, count in enumerate(LENGTHS)
            ]
        )
    clipped = ratios.clamp(1 - rule.clip_low, 1 + rule.clip_high)
    terms = torch.minimum(ratios * streams.advantages, clipped * streams.advantages)
    (-(streams.weights * terms).sum()).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("algorithm", [*CLIPPED, "gspo"])
def test_eq_6_with_the_unclipped_weight_has_the_gradient_of_ppo(algorithm: Algorithm) -> None:
    config = config_of(algorithm)
    # The mean of an answer's log ratios spreads less than they do, and GSPO clips much closer.
    spread = 0.002 if algorithm == "gspo" else 0.5
    logprobs, streams = streams_of(config, spread=spread)
    expected = clipped_gradient(logprobs, streams, config.rule)
    parts = loss(logprobs, streams, config)
    assert parts.is_masked.any()
    assert not parts.is_masked.all()
    torch.testing.assert_close(
        gradient(logprobs, streams, config), expected, atol=1e-15, rtol=1e-12
    )


def test_cispo_with_the_mask_keeps_the_tokens_of_ppo() -> None:
    masked = ObjectiveConfig(weight_cap=math.inf, clip_low=0.2, clip_high=0.28)
    logprobs, streams = streams_of(masked, spread=1.0)
    dapo = ObjectiveConfig(algorithm="dapo")
    assert torch.equal(gradient(logprobs, streams, masked), gradient(logprobs, streams, dapo))
    # With a cap besides, eq. 5 changes kept tokens above it, which are those of wrong answers.
    capped = replace(masked, weight_cap=2.0)
    parts = loss(logprobs, streams, capped)
    ratios = (logprobs - streams.sampler_logprobs).exp()
    is_kept_above = (ratios > 2) & (streams.advantages < 0)
    assert is_kept_above.any()
    same = gradient(logprobs, streams, capped) == gradient(logprobs, streams, dapo)
    assert torch.equal(~same, is_kept_above)
    assert torch.equal(parts.is_masked, loss(logprobs, streams, dapo).is_masked)


def test_cispo_bounds_the_weight_and_drops_no_token() -> None:
    config = ObjectiveConfig()
    logprobs, streams = streams_of(config, spread=2.0)
    ratios = (logprobs - streams.sampler_logprobs).exp()
    assert (ratios > 5).any()
    expected = -ratios.clamp(max=5.0) * streams.advantages * streams.weights
    found = gradient(logprobs, streams, config)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-12)
    assert (found != 0).all()
    parts = loss(logprobs, streams, config)
    assert torch.equal(parts.is_capped, ratios > 5)


def test_right_and_wrong_answers_may_have_caps_and_floors_of_their_own() -> None:
    config = ObjectiveConfig(weight_cap=4.0, wrong_weight_cap=2.0, wrong_weight_floor=0.5)
    logprobs, streams = streams_of(config, spread=2.0)
    ratios = (logprobs - streams.sampler_logprobs).exp()
    weights = loss(logprobs, streams, config).weights
    is_wrong = streams.advantages < 0
    assert torch.equal(weights[is_wrong], ratios[is_wrong].clamp(0.5, 2.0))
    assert torch.equal(weights[~is_wrong], ratios[~is_wrong].clamp(max=4.0))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_policy_all_algorithms_are_one_up_to_what_a_token_counts(algorithm: Algorithm) -> None:
    config = config_of(algorithm)
    logprobs, streams = streams_of(config, spread=0.0)
    parts = loss(logprobs, streams, config)
    assert (parts.ratios == 1).all()
    assert not (parts.is_capped | parts.is_masked).any()
    found = gradient(logprobs, streams, config)
    assert torch.equal(found, -streams.advantages * streams.weights)
    # With the aggregation of another, they are that other.
    same = config_of(algorithm, aggregation="token", scope="group")
    _, streams = streams_of(same, spread=0.0)
    assert torch.equal(
        gradient(logprobs, streams, same), gradient(logprobs, streams, ObjectiveConfig())
    )


def test_ratios_out_of_all_bounds_stay_numbers() -> None:
    for algorithm in ALGORITHMS:
        config = config_of(algorithm)
        logprobs, streams = streams_of(config, spread=0.0)
        far = replace(streams, sampler_logprobs=logprobs - 500)
        for one in (far, replace(streams, sampler_logprobs=logprobs + 500)):
            assert gradient(logprobs.float(), one, config).isfinite().all()


def test_no_tokens_are_no_loss() -> None:
    empty = torch.zeros(0)
    indices = torch.zeros(0, dtype=torch.int64)
    streams = Streams(
        sampler_logprobs=empty,
        advantages=empty,
        sequences=indices,
        weights=empty,
    )
    for algorithm in ALGORITHMS:
        parts: LossParts = loss(empty, streams, config_of(algorithm))
        assert parts.loss == 0


def test_streams_of_another_length_are_refused() -> None:
    logprobs, streams = streams_of(ObjectiveConfig(), spread=0.0)
    with pytest.raises(ValueError, match=r"sampler_logprobs has shape \(130,\) and logprobs \(7,"):
        loss(logprobs[:7], streams, ObjectiveConfig())


# What a token counts


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Draw lengths of answers, and the group of each."""
    number = draw(st.integers(1, 12))
    lengths = draw(st.lists(st.integers(0, 50), min_size=number, max_size=number))
    groups = draw(st.lists(st.integers(0, 3), min_size=number, max_size=number))
    lengths[0] += 1
    return lengths, groups


@given(answers(), st.sampled_from(get_args(Aggregation)), st.sampled_from(get_args(Scope)))
@settings(max_examples=examples(200), deadline=None)
def test_weights_add_up_and_share_as_the_aggregation_says(
    drawn: tuple[list[int], list[int]], aggregation: Aggregation, scope: Scope
) -> None:
    lengths, groups = drawn
    rule = Rule(aggregation=aggregation, scope=scope, constant_length=64, mixed_alpha=0.3)
    weights = token_weights(lengths, groups, rule)
    shares = [weight * length for weight, length in zip(weights, lengths, strict=True)]
    scopes = [0] * len(groups) if scope == "batch" else groups
    within = {
        one: [n for n, own in enumerate(scopes) if own == one and lengths[n]]
        for one in {own for own, length in zip(scopes, lengths, strict=True) if length}
    }
    totals = [math.fsum(shares[n] for n in members) for members in within.values()]
    if aggregation == "constant":
        means = [sum(lengths[n] for n in own) / len(own) for own in within.values()]
        assert math.fsum(shares) == pytest.approx(sum(means) / len(means) / 64)
    else:
        assert totals == pytest.approx([1 / len(within)] * len(within))
    for members in within.values():
        if aggregation == "token":
            assert len({weights[n] for n in members}) == 1
        if aggregation == "sequence":
            assert [shares[n] for n in members] == pytest.approx(
                [shares[members[0]]] * len(members)
            )


@given(answers(), st.sampled_from(get_args(Scope)))
@settings(max_examples=examples(100), deadline=None)
def test_the_limits_of_a_mixture_are_token_and_sequence(
    drawn: tuple[list[int], list[int]], scope: Scope
) -> None:
    def weights(aggregation: Aggregation, alpha: float = 0.5) -> list[float]:
        rule = Rule(aggregation=aggregation, mixed_alpha=alpha, scope=scope)
        return token_weights(*drawn, rule)

    assert weights("mixed", 1.0) == weights("token")
    assert weights("mixed", 0.0) == weights("sequence")
    half = [(a + b) / 2 for a, b in zip(weights("token"), weights("sequence"), strict=True)]
    assert weights("mixed") == pytest.approx(half)


def test_eq_4_divides_by_the_tokens_of_the_group() -> None:
    assert token_weights([1, 3, 10], [0, 0, 1], Rule()) == [1 / 8, 1 / 8, 1 / 20]
    assert token_weights([1, 3, 10], [0, 0, 1], Rule(scope="batch")) == [1 / 14] * 3


# Configs


@pytest.mark.parametrize("cap", [0.2, 1.0, 0.0, -3.0, math.nan])
def test_a_cap_of_one_or_below_is_refused(cap: float) -> None:
    for name in ("weight_cap", "wrong_weight_cap"):
        with pytest.raises(ValueError, match=f"^{name} is .*, it must be above 1: it bounds"):
            ObjectiveConfig(**{name: cap})  # type: ignore[arg-type]


def test_the_defaults_are_the_reports_and_a_cap_of_five() -> None:
    rule = ObjectiveConfig().rule
    assert (rule.weight_cap, rule.wrong_weight_cap, rule.weight_floor) == (5.0, 5.0, 0.0)
    assert (rule.aggregation, rule.scope, rule.ratio) == ("token", "group", "token")
    assert rule.clip_low == rule.clip_high == math.inf


def test_a_floor_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    ObjectiveConfig(weight_floor=0.0)
    assert not caplog.records
    ObjectiveConfig(weight_floor=0.1)
    (record,) = caplog.records
    assert "a floor above 0" in record.getMessage()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "sarsa"}, "algorithm is sarsa, it must be one of cispo, dapo"),
        ({"weight_floor": 1.5}, "weight_floor is 1.5, it must be from 0 to 1"),
        ({"clip_low": 0.0}, "clip_low is 0, it must be above 0"),
        ({"mixed_alpha": 0.5}, "mixed_alpha is given for the aggregation token"),
        ({"mixed_alpha": 1.5, "aggregation": "mixed"}, "mixed_alpha is 1.5, it must be from 0"),
        ({"constant_length": 64}, "constant_length is given for the aggregation token"),
        ({"algorithm": "dr_grpo"}, "constant_length is missing"),
    ],
)
def test_a_config_that_means_no_objective_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**changes)  # type: ignore[arg-type]


def test_a_cap_asked_for_holds_for_wrong_answers_too_unless_they_have_their_own() -> None:
    assert ObjectiveConfig(weight_cap=8.0).rule.wrong_weight_cap == 8.0
    rule = ObjectiveConfig(weight_cap=8.0, wrong_weight_cap=3.0).rule
    assert (rule.weight_cap, rule.wrong_weight_cap) == (8.0, 3.0)


def test_the_line_about_an_objective_tells_the_cap_in_both_notations() -> None:
    assert ObjectiveConfig().explain() == (
        "cispo; weight at most 5 (epsilon_high 4), no floor; token ratio, token aggregation in "
        "each group"
    )
    assert "mask outside 1 - 0.2 and 1 + 0.28" in ObjectiveConfig(algorithm="dapo").explain()
    both = ObjectiveConfig(wrong_weight_cap=2.0, scope="batch").explain()
    assert "weight of wrong answers at most 2 (epsilon_high 1), no floor" in both
    assert both.endswith("in each batch")
