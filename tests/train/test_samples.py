"""Samples and groups: what they refuse, and what they tell of themselves."""

import math
from dataclasses import replace

import pytest
import torch

from fulmen.train import Group, Sample
from tests.train.helpers import group, sample


def test_a_sample_of_lists_keeps_what_the_engine_told_in_float32() -> None:
    found = Sample.of(
        [5, 6, 7, 8],
        [None, None, -0.1, math.nan],
        policy_versions=[0, 0, 3, 0],
        reward=1.0,
        environment="sums",
        task_index=2,
    )
    assert found.is_sampled.tolist() == [False, False, True, False]
    assert found.logprobs[2] == torch.tensor(-0.1)
    assert (found.num_tokens, found.num_sampled) == (4, 1)
    assert found.policy_versions.tolist() == [0, 0, 3, 0]


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        ([-1.0, -1.0], "samples its first token"),
        ([None, 0.5], "has a log-probability of 0.5"),
        ([None, -math.inf], "has a log-probability of -inf"),
        ([None], "has is_sampled of shape"),
    ],
)
def test_a_sample_that_cannot_be_is_refused(logprobs: list[float | None], message: str) -> None:
    with pytest.raises(ValueError, match=f"a sample of task 1 of sums .*{message}"):
        Sample.of([5, 6], logprobs, reward=0.0, environment="sums", task_index=1)


def test_a_sample_without_tokens_or_with_no_number_as_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="has no tokens"):
        sample([])
    with pytest.raises(ValueError, match="has the reward nan"):
        sample([False, True], reward=math.nan)


def test_log_probabilities_stand_exactly_where_tokens_were_sampled() -> None:
    one = sample([False, True, False])
    with pytest.raises(ValueError, match="of its sampled tokens, and no others"):
        replace(one, is_sampled=torch.tensor([False, True, True]))


def test_a_group_holds_samples_of_its_task_only() -> None:
    with pytest.raises(ValueError, match="a group of task 1 of sums holds a sample of task 0"):
        Group(samples=(sample([False, True]),), environment="sums", task_index=1)
    with pytest.raises(ValueError, match="has no samples"):
        Group(samples=(), environment="sums", task_index=1)


def test_rewards_that_differ_by_rounding_are_no_variance() -> None:
    assert not group([0.1 + 0.2, 0.3, 0.3]).has_variance
    assert group([0.0, 0.01]).has_variance
    assert not group([1.0]).has_variance


def test_a_sample_that_failed_makes_no_variance() -> None:
    assert not group([1.0, 0.0, 1.0], finish_reasons=["stop", "error", "stop"]).has_variance
