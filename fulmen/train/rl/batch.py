"""Batches of reinforcement learning: groups to minibatches, minibatches to micro-batches.

    groups, advantages -> Row (a sample, its advantage, what each of its tokens counts)
        -> minibatches, one update each: whole groups -> micro-batches, one pass each: whole samples

What a token counts is fixed with the minibatch. How that is cut into passes is a matter of memory
and changes no gradient. No text, no model and no objective's formula is needed here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from fulmen.models import Packed
from fulmen.train.rl.objective import Rule, Streams, token_weights
from fulmen.train.rl.samples import Group, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfig:
    """Way from groups to updates."""

    num_minibatches: int = 1
    """Updates made of one batch of groups; after the first the policy is no longer the one that
    sampled. The report made 16"""
    min_groups: int = 8
    """Least number of groups with advantages in a minibatch: there are fewer minibatches rather
    than smaller ones, and none at all with fewer groups than this"""
    repetition: Literal["keep", "mask"] = "keep"
    """Loss of answers that were ended in a repetition"""
    overlong: Literal["keep", "mask"] = "keep"
    """Loss of answers that were cut at the length limit"""
    skip_idle: bool = True
    """Leave out answers without an advantage, whose gradient is zero; other tokens count the same
    with them and without"""
    max_tokens: int = 16384
    """Most tokens of a pass; a longer sample has one to itself"""

    def __post_init__(self) -> None:
        """Raise ValueError for a number below 1."""
        for name in ("num_minibatches", "min_groups", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")


@dataclass(frozen=True, slots=True)
class Row:
    """A sample in a minibatch."""

    sample: Sample
    advantage: float
    """Advantage of each of its sampled tokens"""
    weight: float
    """Share that each of its sampled tokens has in the minibatch's loss"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Rows that pass through the model together: T tokens, L of them wanted."""

    packed: Packed
    """Its logits are wanted where a sampled token comes next"""
    targets: Tensor
    """(L,) int64: those sampled tokens"""
    streams: Streams
    rows: tuple[Row, ...]

    @property
    def positions(self) -> Tensor:
        """(L,) int64: index of each sampled token in its sample"""
        assert self.packed.logits_indices is not None
        return self.packed.positions[self.packed.logits_indices] + 1


def minibatches(
    groups: Sequence[Group],
    advantages: Sequence[Sequence[float]],
    config: BatchConfig,
    rule: Rule,
) -> list[list[Row]]:
    """Return the rows of each update, in the groups' order; whole groups, no group twice.

    Groups with advantages and groups without are dealt out evenly, each kind by itself. The list is
    empty if fewer than min_groups have advantages: such an update would be noise, which an
    optimizer that divides by the gradient's size makes as large as any other.
    """
    is_useful = [
        is_informative(group, values, config)
        for group, values in zip(groups, advantages, strict=True)
    ]
    count = min(config.num_minibatches, sum(is_useful) // config.min_groups)
    chosen: list[list[int]] = [[] for _ in range(count)]
    for kind in (True, False):
        indices = [index for index, useful in enumerate(is_useful) if useful is kind]
        for number, own in enumerate(chosen):
            first, last = (len(indices) * step // count for step in (number, number + 1))
            own.extend(indices[first:last])
    return [_rows(groups, advantages, sorted(own), config, rule) for own in chosen]


def is_informative(group: Group, advantages: Sequence[float], config: BatchConfig) -> bool:
    """Return True if an update can learn from a group: a sample in the loss has an advantage."""
    return any(
        advantage != 0 and _is_in_loss(sample, config)
        for sample, advantage in zip(group.samples, advantages, strict=True)
    )


def _rows(
    groups: Sequence[Group],
    advantages: Sequence[Sequence[float]],
    indices: Sequence[int],
    config: BatchConfig,
    rule: Rule,
) -> list[Row]:
    """Return the rows of some groups, all that will ever be in one update."""
    found = [
        (sample, advantage, index)
        for index in indices
        for sample, advantage in zip(groups[index].samples, advantages[index], strict=True)
        if _is_in_loss(sample, config)
    ]
    counts = [sample.num_sampled for sample, _, _ in found]
    weights = token_weights(counts, [index for _, _, index in found], rule)
    return [
        Row(sample, advantage, weight)
        for (sample, advantage, _), weight in zip(found, weights, strict=True)
        if advantage != 0 or not config.skip_idle
    ]


def _is_in_loss(sample: Sample, config: BatchConfig) -> bool:
    """Return True if the sample has tokens whose loss is wanted."""
    if sample.has_failed or sample.num_sampled == 0:
        return False
    is_masked = {"repetition": config.repetition, "length": config.overlong}
    return is_masked.get(sample.finish_reason, "keep") == "keep"


def micro_batches(
    rows: Sequence[Row], max_tokens: int, *, device: torch.device | str = "cpu"
) -> list[MicroBatch]:
    """Pack rows into passes of at most max_tokens, long ones first; a longer row stands alone."""
    bins: list[list[Row]] = []
    free: list[int] = []
    for row in sorted(rows, key=_num_inputs, reverse=True):
        needed = _num_inputs(row)
        place = next((index for index, left in enumerate(free) if needed <= left), None)
        if place is None:
            place = len(bins)
            bins.append([])
            free.append(max_tokens)
        bins[place].append(row)
        free[place] -= needed
    return [_micro_batch(one, device) for one in bins]


def _num_inputs(row: Row) -> int:
    """Return how many tokens the model reads: all before the last sampled one."""
    return int(row.sample.is_sampled.nonzero()[-1])


def _micro_batch(rows: Sequence[Row], device: torch.device | str) -> MicroBatch:
    lens = [_num_inputs(row) for row in rows]
    starts = [end - num for end, num in zip(accumulate(lens), lens, strict=True)]
    places = [row.sample.is_sampled.nonzero()[:, 0] for row in rows]
    counts = torch.tensor([len(one) for one in places])

    def flat(values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values)).to(device)

    def of_each(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(counts).to(device)

    inputs = [row.sample.ids[:num] for row, num in zip(rows, lens, strict=True)]
    packed = Packed.of(inputs, device=device)
    wanted = flat([one - 1 + start for one, start in zip(places, starts, strict=True)])
    return MicroBatch(
        packed=replace(packed, logits_indices=wanted),
        targets=flat([row.sample.ids[one] for row, one in zip(rows, places, strict=True)]),
        streams=Streams(
            sampler_logprobs=flat(
                [row.sample.logprobs[one] for row, one in zip(rows, places, strict=True)]
            ),
            advantages=of_each([row.advantage for row in rows], torch.float32),
            sequences=of_each(range(len(rows)), torch.int64),
            weights=of_each([row.weight for row in rows], torch.float32),
        ),
        rows=tuple(rows),
    )
