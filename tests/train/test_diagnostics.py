"""Diagnostics: each number, computed another way."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from fulmen.train.rl.diagnostics import UpdateRecord, compare, describe
from fulmen.train.rl.objective import ObjectiveConfig, loss
from tests.train.helpers import group
from tests.train.test_objective import streams_of


def logprobs_of(number: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -4 * torch.rand(number, generator=generator)


def test_equal_log_probabilities_agree_in_everything() -> None:
    logprobs = logprobs_of(50)
    found = compare(logprobs, logprobs.clone(), torch.arange(50), torch.zeros(50).long())
    assert found is not None
    assert (found.num_tokens, found.num_different, found.correlation) == (50, 0, 1.0)
    assert found.max_dp == found.p99_dp == found.mean_dlogp == found.kl == 0
    assert found.outside_share == found.p99_sequence_log_ratio == 0
    assert not found.is_alarming


def test_numbers_of_a_mismatch_are_those_of_numpy() -> None:
    sampler = logprobs_of(3000)
    trainer = (sampler + 0.2 * torch.randn(3000, generator=torch.Generator().manual_seed(1))).clamp(
        max=0
    )
    sequences = torch.arange(3000) // 30
    positions = torch.arange(3000) % 300
    found = compare(trainer, sampler, positions, sequences)
    assert found is not None
    p, q = np.exp(trainer.double().numpy()), np.exp(sampler.double().numpy())
    assert found.correlation == pytest.approx(np.corrcoef(p, q)[0, 1])
    assert found.max_dp == pytest.approx(np.abs(p - q).max())
    assert found.p99_dp == pytest.approx(np.quantile(np.abs(p - q), 0.99, method="inverted_cdf"))
    log_ratio = np.log(p) - np.log(q)
    assert found.mean_dlogp == pytest.approx(np.abs(log_ratio).mean())
    assert found.kl == pytest.approx((p / q - 1 - log_ratio).mean())
    assert found.outside_share == pytest.approx(((p / q < 0.5) | (p / q > 2)).mean())
    sums = np.abs(log_ratio.reshape(100, 30).sum(1))
    assert found.p99_sequence_log_ratio == pytest.approx(
        np.quantile(sums, 0.99, method="inverted_cdf")
    )
    for buckets in (found.by_position, found.by_probability):
        assert sum(one.num_tokens for one in buckets) == 3000
        assert max(one.max_dp for one in buckets) == found.max_dp
    assert [one.first for one in found.by_position] == [0, 64, 256]
    assert found.by_position[0].num_tokens == 10 * 64
    json.dumps(found.numbers(), allow_nan=False)


def test_a_sampler_that_is_another_model_is_an_alarm() -> None:
    found = compare(
        logprobs_of(500), logprobs_of(500, seed=1), torch.zeros(500), torch.zeros(500).long()
    )
    assert found is not None
    assert found.is_alarming
    assert found.kl > 0


def test_one_token_that_differs_has_no_correlation_and_none_has_nothing() -> None:
    zero = torch.zeros(1).long()
    found = compare(torch.tensor([-1.0]), torch.tensor([-1.5]), zero, zero)
    assert found is not None
    assert found.correlation is None
    assert "correlation" not in found.numbers()
    empty = torch.zeros(0)
    assert compare(empty, empty, empty.long(), empty.long()) is None


def test_an_update_counts_caps_and_masks_by_the_sign_of_the_advantage() -> None:
    config = ObjectiveConfig(weight_cap=1.5, clip_low=0.5, clip_high=0.9)
    logprobs, streams = streams_of(config, spread=1.0)
    parts = loss(logprobs, streams, config)
    record = UpdateRecord()
    record.add(parts, streams, torch.full_like(logprobs, 0.5))
    record.add(parts, streams, torch.full_like(logprobs, 1.5))
    found = record.numbers()
    ratios = (logprobs - streams.sampler_logprobs).exp()
    is_right, is_wrong = streams.advantages > 0, streams.advantages < 0
    assert found["entropy"] == 1.0
    assert found["loss"] == pytest.approx(2 * parts.loss.item())
    assert found["max_ratio"] == ratios.max().item()
    assert found["mean_ratio_right"] == pytest.approx(ratios[is_right].mean().item())
    assert found["capped_share_wrong"] == pytest.approx(
        (ratios[is_wrong] > 1.5).double().mean().item()
    )
    assert found["masked_share_right"] == pytest.approx(
        (ratios[is_right] > 1.9).double().mean().item()
    )
    assert found["masked_share_wrong"] == pytest.approx(
        (ratios[is_wrong] < 0.5).double().mean().item()
    )
    assert UpdateRecord().numbers() == {"loss": 0.0}


def test_a_batch_is_described_by_its_rewards_lengths_and_ends() -> None:
    batch = [
        group([1.0, 0.0, 0.0], lengths=[2, 4, 9], finish_reasons=["stop", "length", "abort"]),
        group([1.0, 1.0], lengths=[6, 8], task_index=1, environment="talk"),
    ]
    found = describe(batch)
    assert found == {
        "groups": 2,
        "samples": 5,
        "reward": 0.75,
        "reward/sums": 0.5,
        "reward/talk": 1.0,
        "oldest_policy_version": 0,
        "length_p50": 4,
        "length_p99": 8,
        "zero_variance_share": 0.5,
        "ended_stop_share": 0.6,
        "ended_length_share": 0.2,
        "ended_abort_share": 0.2,
    }
    assert describe([]) == {"groups": 0, "samples": 0}
