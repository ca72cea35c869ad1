"""Batches: every token once, weights that stand, and gradients that no cut changes."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.models import M1Config, M2Config, Model
from fulmen.train import Group
from fulmen.train.rl.advantages import AdvantageConfig, advantages_of
from fulmen.train.rl.batch import (
    BatchConfig,
    Row,
    is_informative,
    micro_batches,
    minibatches,
)
from fulmen.train.rl.objective import ObjectiveConfig, Rule, loss
from tests.examples import examples
from tests.models.helpers import random_model, relative_error, tiny_m1, tiny_m2
from tests.train.helpers import group, groups, sample

MakeConfig = Callable[[], M1Config | M2Config]
ALL = BatchConfig(min_groups=1, skip_idle=False)
SPLIT_GRADIENT = 5e-6
"""Largest difference of a gradient over its largest value, in float32: sums over tokens, whose
order a cut changes"""


def rows_of(
    batch: list[Group], config: BatchConfig = ALL, rule: Rule | None = None
) -> list[list[Row]]:
    advantages = advantages_of(batch, AdvantageConfig())
    return minibatches(batch, advantages, config, rule or Rule())


@given(groups(), st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=examples(150), deadline=None)
def test_every_sampled_token_is_in_exactly_one_micro_batch(
    batch: list[Group], max_tokens: int, num_minibatches: int
) -> None:
    config = BatchConfig(min_groups=1, skip_idle=False, num_minibatches=num_minibatches)
    updates = rows_of(batch, config)
    if not any(one.has_variance and any(row.num_sampled for row in one.samples) for one in batch):
        assert not updates
    if not updates:
        return
    seen: Counter[tuple[int, int]] = Counter()
    for update in updates:
        total = 0.0
        for micro in micro_batches(update, max_tokens):
            streams, lengths = micro.streams, micro.packed.lengths.host_seqlens
            assert sum(lengths) <= max_tokens or len(micro.rows) == 1
            assert micro.packed.logits_indices is not None
            assert len(micro.packed.logits_indices) == len(micro.targets)
            total += streams.weights.double().sum().item()
            for token in range(len(micro.targets)):
                row = micro.rows[int(streams.sequences[token])]
                place = int(micro.positions[token])
                seen[id(row.sample), place] += 1
                assert row.sample.is_sampled[place]
                assert micro.targets[token] == row.sample.ids[place]
                assert streams.sampler_logprobs[token] == row.sample.logprobs[place]
                assert streams.advantages[token] == torch.tensor(row.advantage)
                # The token before it is where its logits are wanted.
                before = int(micro.packed.logits_indices[token])
                assert micro.packed.input_ids[before] == row.sample.ids[place - 1]
        assert total == pytest.approx(1.0)
    expected = {
        (id(one), place)
        for own in batch
        for one in own.samples
        for place in one.is_sampled.nonzero()[:, 0].tolist()
        if not one.has_failed
    }
    assert seen == Counter(expected)


@given(groups(), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=examples(100), deadline=None)
def test_groups_stay_whole_and_every_minibatch_has_enough_of_them(
    batch: list[Group], num_minibatches: int, min_groups: int
) -> None:
    config = BatchConfig(min_groups=min_groups, skip_idle=False, num_minibatches=num_minibatches)
    updates = rows_of(batch, config)
    assert len(updates) <= num_minibatches
    places = [[row.sample.task_index for row in update] for update in updates]
    sizes = [len({row.sample.task_index for row in one if row.advantage}) for one in updates]
    for own in places:
        assert own == sorted(own)
        assert not any({*own} & {*other} for other in places if other is not own)
    assert all(size >= min_groups for size in sizes)
    if updates:
        assert max(sizes) - min(sizes) <= 1


def test_sixteen_minibatches_are_made_of_as_many_groups() -> None:
    batch = [group([1.0, 0.0], task_index=number) for number in range(32)]
    updates = rows_of(batch, BatchConfig(num_minibatches=16, min_groups=2))
    assert [[row.sample.task_index for row in update] for update in updates] == [
        [2 * n, 2 * n, 2 * n + 1, 2 * n + 1] for n in range(16)
    ]


def test_too_few_groups_with_advantages_make_no_update() -> None:
    batch = [group([1.0, 0.0])] + [group([1.0, 1.0], task_index=n) for n in range(1, 9)]
    assert rows_of(batch, BatchConfig(min_groups=2)) == []
    assert len(rows_of(batch, BatchConfig(min_groups=1))) == 1


def test_a_group_is_informative_if_an_answer_in_the_loss_has_an_advantage() -> None:
    masked = BatchConfig(overlong="mask")
    cut = group([1.0, 0.0], finish_reasons=["length", "length"])
    (values,) = advantages_of([cut], AdvantageConfig())
    assert any(values)
    assert is_informative(cut, values, BatchConfig())
    assert not is_informative(cut, values, masked)
    assert minibatches([cut], [values], masked, Rule()) == []
    # Rewards that are the same differ once length costs something.
    long = group([1.0, 1.0], lengths=[10, 100])
    (values,) = advantages_of([long], AdvantageConfig(overlong_limit=100, overlong_buffer=50))
    assert is_informative(long, values, BatchConfig())
    assert not long.has_variance


def test_idle_answers_may_be_left_out_and_count_all_the_same() -> None:
    batch = [group([1.0, 0.0]), group([1.0, 1.0], task_index=1)]
    (kept,) = rows_of(batch)
    (update,) = rows_of(batch, BatchConfig(min_groups=1))
    assert [row.sample.task_index for row in kept] == [0, 0, 1, 1]
    assert [row.sample.task_index for row in update] == [0, 0]
    assert [row.weight for row in update] == [row.weight for row in kept[:2]] == [1 / 16] * 2


def test_answers_cut_by_the_machine_can_be_masked_and_leave_the_denominator() -> None:
    batch = [group([1.0, 0.0, 0.0, 0.0], finish_reasons=["stop", "length", "repetition", "abort"])]
    (kept,) = rows_of(batch)
    assert [row.sample.finish_reason for row in kept] == ["stop", "length", "repetition"]
    assert {row.weight for row in kept} == {1 / 12}
    (update,) = rows_of(batch, BatchConfig(min_groups=1, overlong="mask", repetition="mask"))
    assert [row.sample.finish_reason for row in update] == ["stop"]
    assert update[0].weight == 1 / 4
    assert update[0].advantage == kept[0].advantage


def test_the_model_reads_no_token_after_the_last_sampled_one() -> None:
    one = sample([False, True, False, True, False, False], reward=1.0)
    other = sample([False, True], seed=1)
    (update,) = rows_of([Group(samples=(one, other), environment="sums", task_index=0)])
    (micro,) = micro_batches(update, 100)
    assert micro.packed.lengths.host_seqlens == (3, 1)
    assert micro.packed.logits_indices is not None
    assert micro.packed.logits_indices.tolist() == [0, 2, 3]
    assert micro.positions.tolist() == [1, 3, 1]


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="min_groups is 0, it must be at least 1"):
        BatchConfig(min_groups=0)


# Through a model


def train_batch() -> list[Group]:
    """Return groups of uneven answers, some over a chunk of 64 tokens, one with turns of tools."""
    batch = [
        group([1.0, 0.0, 0.0, 1.0], lengths=[5, 70, 33, 12], prompt=9),
        group([0.0, 0.5, 1.0, 0.0], lengths=[90, 20, 1, 64], task_index=1, prompt=30),
    ]
    turns = ([False] * 7 + [True] * 15) * 3 + [False] * 4
    tools = tuple(
        sample(turns, reward=reward, seed=seed, task_index=2)
        for seed, reward in enumerate([1.0, 0.0])
    )
    return [*batch, Group(samples=tools, environment="sums", task_index=2)]


def gradients(model: Model, rows: list[Row], max_tokens: int, config: ObjectiveConfig) -> Tensor:
    """Return all gradients of an update as one vector."""
    model.zero_grad()
    for micro in micro_batches(rows, max_tokens):
        logprobs = model.target_logprobs(micro.packed, micro.targets)
        loss(logprobs, micro.streams, config).loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat(
        [one.grad.flatten() for one in model.parameters() if one.grad is not None]
    ).clone()


@pytest.mark.parametrize("make_config", [tiny_m1, tiny_m2], ids=["m1", "m2"])
@pytest.mark.parametrize("algorithm", ["cispo", "grpo", "gspo"])
def test_one_and_four_micro_batches_give_equal_gradients(
    make_config: MakeConfig, algorithm: str
) -> None:
    model = random_model(make_config())
    config = ObjectiveConfig(algorithm=algorithm)  # type: ignore[arg-type]
    (rows,) = rows_of(train_batch(), ALL, config.rule)
    assert len(micro_batches(rows, 10_000)) == 1
    assert len(micro_batches(rows, 170)) == 4
    whole, cut = (gradients(model, rows, most, config) for most in (10_000, 170))
    assert whole.abs().max() > 0
    assert relative_error(cut, whole) < SPLIT_GRADIENT


@pytest.mark.parametrize("make_config", [tiny_m1, tiny_m2], ids=["m1", "m2"])
def test_the_log_probabilities_of_a_token_do_not_depend_on_the_cut(
    make_config: MakeConfig,
) -> None:
    model = random_model(make_config())
    (rows,) = rows_of(train_batch())

    def logprobs(max_tokens: int) -> dict[tuple[int, int], float]:
        found: dict[tuple[int, int], float] = {}
        with torch.no_grad():
            for micro in micro_batches(rows, max_tokens):
                values = model.target_logprobs(micro.packed, micro.targets).tolist()
                owners = [id(micro.rows[n].sample) for n in micro.streams.sequences.tolist()]
                found |= dict(
                    zip(zip(owners, micro.positions.tolist(), strict=True), values, strict=True)
                )
        return found

    whole = logprobs(10_000)
    assert logprobs(170) == whole
    assert logprobs(1) == whole
    assert all(math.isfinite(value) for value in whole.values())
