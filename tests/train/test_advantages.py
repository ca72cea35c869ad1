"""Advantages: eq. 2 and what departs from it."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fulmen.train import Group
from fulmen.train.rl.advantages import AdvantageConfig, advantages_of, length_penalty
from tests.examples import examples
from tests.train.helpers import group, groups


def test_eq_2_is_the_z_score_of_the_groups_rewards() -> None:
    rewards = [1.0, 0.0, 0.0, 0.25]
    (found,) = advantages_of([group(rewards)], AdvantageConfig())
    expected = (np.array(rewards) - np.mean(rewards)) / np.std(rewards)
    assert found == pytest.approx(expected.tolist())


def test_dr_grpo_takes_the_mean_only_unless_asked_otherwise() -> None:
    one = group([1.0, 0.0, 0.0, 0.0])
    assert advantages_of([one], AdvantageConfig(), "dr_grpo") == [[0.75, -0.25, -0.25, -0.25]]
    scaled = AdvantageConfig(estimator="z_score")
    assert advantages_of([one], scaled, "dr_grpo") == advantages_of([one], AdvantageConfig())
    centred = AdvantageConfig(estimator="mean")
    assert advantages_of([one], centred) == [[0.75, -0.25, -0.25, -0.25]]


def test_the_batch_may_give_the_spread() -> None:
    batch = [group([1.0, 0.0]), group([0.2, 0.0], task_index=1)]
    found = advantages_of(batch, AdvantageConfig(spread="batch"))
    deviation = math.sqrt((2 * 0.5**2 + 2 * 0.1**2) / 4)
    expected = [0.5, -0.5, 0.1, -0.1]
    assert [x * deviation for one in found for x in one] == pytest.approx(expected)


@given(groups(), st.sampled_from(["group", "batch"]), st.sampled_from(["z_score", "mean"]))
@settings(max_examples=examples(100), deadline=None)
def test_advantages_of_a_group_add_up_to_nothing(
    batch: list[Group], spread: str, estimator: str
) -> None:
    assume(spread == "group" or estimator == "z_score")
    config = AdvantageConfig(spread=spread, estimator=estimator)  # type: ignore[arg-type]
    for one, found in zip(batch, advantages_of(batch, config), strict=True):
        assert len(found) == len(one.samples)
        assert math.fsum(found) == pytest.approx(0, abs=1e-9)
        assert any(found) is one.has_variance
        for own, advantage in zip(one.samples, found, strict=True):
            assert advantage == 0 or not own.has_failed
        if any(found) and spread == "group" and estimator == "z_score":
            assert np.std(found) == pytest.approx(math.sqrt(len(one.rewards) / len(found)))


def test_rewards_that_differ_by_rounding_give_no_advantage() -> None:
    assert advantages_of([group([0.1 + 0.2, 0.3, 0.3])], AdvantageConfig()) == [[0.0, 0.0, 0.0]]


def test_a_sample_that_failed_is_no_part_of_the_mean() -> None:
    one = group([1.0, 0.0, 0.0], finish_reasons=["stop", "stop", "abort"])
    (found,) = advantages_of([one], AdvantageConfig(estimator="mean"))
    assert found == [0.5, -0.5, 0.0]


def test_the_length_penalty_grows_over_the_buffer() -> None:
    config = AdvantageConfig(overlong_limit=100, overlong_buffer=20)
    lengths = [0, 80, 85, 90, 99, 100, 150]
    expected = [0.0, 0.0, 0.25, 0.5, 0.95, 1.0, 1.0]
    assert [length_penalty(length, config) for length in lengths] == pytest.approx(expected)
    hard = AdvantageConfig(overlong_limit=100, overlong_penalty=0.5)
    assert [length_penalty(length, hard) for length in (99, 100)] == [0.0, 0.5]


def test_a_long_right_answer_counts_less_than_a_short_one() -> None:
    one = group([1.0, 1.0, 0.0], lengths=[10, 95, 10])
    config = AdvantageConfig(overlong_limit=100, overlong_buffer=50, estimator="mean")
    (found,) = advantages_of([one], config)
    assert found == pytest.approx([1 - 1.1 / 3, 0.1 - 1.1 / 3, -1.1 / 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlong_buffer": 10}, "without an overlong_limit"),
        ({"overlong_limit": -5}, "overlong_limit is -5, it must be at least 1"),
        ({"overlong_limit": 10, "overlong_buffer": 10}, "at least 0 and below overlong_limit"),
        ({"overlong_limit": 10, "overlong_penalty": -1.0}, "must be at least 0"),
        ({"overlong_penalty": 0.5}, "overlong_penalty is 0.5 without an overlong_limit"),
        ({"spread": "batch", "estimator": "mean"}, "spread is batch for the estimator mean, which"),
    ],
)
def test_a_penalty_that_is_none_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdvantageConfig(**changes)  # type: ignore[arg-type]
