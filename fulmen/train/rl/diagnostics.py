"""Diagnostics of a training step: do sampler and trainer agree, and what did the objective do?

Three questions, each answered by one dictionary of numbers for the step's line in the log:

    compare(...)            probabilities of the sampler beside those of the trainer for tokens
                            of the weights in training: Figure 3 of the MiniMax-M1 report
                            (arXiv:2506.13585)
    UpdateRecord.numbers()  ratios, caps, masks and entropy, over the micro-batches of an update
    describe(groups)        rewards, lengths and ends of a batch of answers

Nothing here changes a number of the training.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

import torch
from torch import Tensor

from fulmen.train.rl.batch import MicroBatch
from fulmen.train.rl.objective import LossParts, Streams
from fulmen.train.rl.samples import Group
from fulmen.train.rl.windows import percentile

ALARM_CORRELATION: Final = 0.995
"""Correlation below which sampler and trainer are not the same model any more; the report saw 0.987
before it computed the head in float32, and 0.997 after"""
POSITION_BUCKETS: Final = (0, 64, 256, 1024, 4096, 16384, 65536)
"""First positions of the buckets"""
PROBABILITY_BUCKETS: Final = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99)
"""Least probabilities of the buckets"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Tokens of one kind, as the sampler and the trainer see them."""

    first: float
    """Least position, or least probability of the sampler"""
    num_tokens: int
    max_dp: float
    """Largest absolute difference of probabilities"""
    mean_dlogp: float
    """Mean absolute difference of log-probabilities"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """Sampler beside trainer, over tokens drawn under the weights that are in training."""

    num_tokens: int
    num_different: int
    """Tokens whose log-probabilities differ in any bit; 0 is what one numerics gives"""
    correlation: float | None
    """Pearson's, of the probabilities; 1 where none differs, None where one side is constant"""
    max_dp: float
    p99_dp: float
    mean_dlogp: float
    kl: float
    """Estimate of KL(sampler || trainer) that is never negative: mean of r - 1 - log r"""
    outside_share: float
    """Share of tokens whose ratio is outside [0.5, 2]"""
    p99_sequence_log_ratio: float
    """99th percentile of a sample's log ratios added up, without their sign"""
    by_position: tuple[Bucket, ...]
    by_probability: tuple[Bucket, ...]

    @property
    def is_alarming(self) -> bool:
        """True if the two are not close enough to train on."""
        return self.correlation is not None and self.correlation < ALARM_CORRELATION

    def numbers(self) -> dict[str, float]:
        """Return the numbers of the log, buckets too."""
        found = {
            "different_tokens": self.num_different,
            "max_dp": self.max_dp,
            "p99_dp": self.p99_dp,
            "mean_dlogp": self.mean_dlogp,
            "kl": self.kl,
            "outside_share": self.outside_share,
            "p99_sequence_log_ratio": self.p99_sequence_log_ratio,
        }
        if self.correlation is not None:
            found["correlation"] = self.correlation
        for kind, buckets in (("position", self.by_position), ("p", self.by_probability)):
            for one in buckets:
                found[f"max_dp_{kind}_{one.first:g}"] = one.max_dp
                found[f"mean_dlogp_{kind}_{one.first:g}"] = one.mean_dlogp
        return found


def compare(
    logprobs: Tensor, sampler_logprobs: Tensor, positions: Tensor, sequences: Tensor
) -> Mismatch | None:
    """Return how far the trainer's log-probabilities are from the sampler's; None without tokens.

    logprobs          (L,) float32 of the trainer
    sampler_logprobs  (L,) float32 of the engine that drew the tokens
    positions         (L,) int64: each token's index in its sample
    sequences         (L,) int64: index of each token's sample
    """
    if len(logprobs) == 0:
        return None
    is_different = logprobs.detach() != sampler_logprobs
    trainer, sampler = logprobs.detach().double(), sampler_logprobs.double()
    p, q = trainer.exp(), sampler.exp()
    dp, log_ratios = (p - q).abs(), trainer - sampler
    dlogp = log_ratios.abs()
    ratios = log_ratios.clamp(max=700.0).exp()
    sums = log_ratios.new_zeros(int(sequences.max()) + 1).index_add_(0, sequences, log_ratios)

    def buckets(values: Tensor, firsts: Sequence[float]) -> tuple[Bucket, ...]:
        found = []
        for first, end in pairwise((*firsts, math.inf)):
            if (inside := (values >= first) & (values < end)).any():
                found.append(
                    Bucket(
                        first=first,
                        num_tokens=int(inside.sum()),
                        max_dp=dp[inside].max().item(),
                        mean_dlogp=dlogp[inside].mean().item(),
                    )
                )
        return tuple(found)

    return Mismatch(
        num_tokens=len(p),
        num_different=int(is_different.sum()),
        correlation=_correlation(p, q),
        max_dp=dp.max().item(),
        p99_dp=percentile(dp.tolist(), 0.99),
        mean_dlogp=dlogp.mean().item(),
        kl=(ratios - 1 - log_ratios).mean().item(),
        outside_share=((ratios < 0.5) | (ratios > 2)).double().mean().item(),
        p99_sequence_log_ratio=percentile(sums.abs().tolist(), 0.99),
        by_position=buckets(positions, POSITION_BUCKETS),
        by_probability=buckets(q, PROBABILITY_BUCKETS),
    )


def _correlation(p: Tensor, q: Tensor) -> float | None:
    if torch.equal(p, q):
        return 1.0
    p, q = p - p.mean(), q - q.mean()
    spread = (p.square().sum() * q.square().sum()).sqrt().item()
    return (p * q).sum().item() / spread if spread > 0 else None


class SeenMinibatch:
    """Tokens of a minibatch as trainer and sampler see them, over its micro-batches."""

    def __init__(self) -> None:
        self._micros: list[MicroBatch] = []
        self._logprobs: list[Tensor] = []

    def add(self, micro: MicroBatch, logprobs: Tensor) -> None:
        """Add a micro-batch, with the trainer's log-probability of each of its tokens."""
        self._micros.append(micro)
        self._logprobs.append(logprobs)

    def compare(self) -> Mismatch | None:
        """Return how the two differ; None for a minibatch without tokens."""
        if not self._micros:
            return None
        starts = accumulate((len(one.rows) for one in self._micros), initial=0)
        return compare(
            torch.cat(self._logprobs),
            torch.cat([one.streams.sampler_logprobs for one in self._micros]),
            torch.cat([one.positions for one in self._micros]),
            torch.cat(
                [
                    one.streams.sequences + start
                    for one, start in zip(self._micros, starts, strict=False)
                ]
            ),
        )


class UpdateRecord:
    """Micro-batches of one update, as far as its numbers need them."""

    def __init__(self) -> None:
        """Begin with none."""
        self._loss = 0.0
        self._ratios: list[Tensor] = []
        self._signs: list[Tensor] = []
        self._is_capped: list[Tensor] = []
        self._is_masked: list[Tensor] = []
        self._entropies: list[Tensor] = []

    def add(self, parts: LossParts, streams: Streams, entropy: Tensor | None = None) -> None:
        """Take in a micro-batch.

        entropy  (L,) float32 of the policy at each token
        """
        self._ratios.append(parts.ratios)
        self._signs.append(streams.advantages.sign())
        self._is_capped.append(parts.is_capped)
        self._is_masked.append(parts.is_masked)
        if entropy is not None:
            self._entropies.append(entropy.detach())
        self._loss += parts.loss.item()

    def numbers(self) -> dict[str, float]:
        """Return the numbers of the log; capped and masked shares are of the tokens of one sign of
        the advantage, right above 0 and wrong below."""
        found = {"loss": self._loss}
        if self._entropies and (entropy := torch.cat(self._entropies)).numel():
            found["entropy"] = entropy.double().mean().item()
        if not self._ratios:
            return found
        ratios, signs = torch.cat(self._ratios), torch.cat(self._signs)
        is_capped, is_masked = torch.cat(self._is_capped), torch.cat(self._is_masked)
        if len(ratios) == 0:
            return found
        found["max_ratio"] = ratios.max().item()
        found["mean_ratio"] = ratios.double().mean().item()
        found["capped_share"] = is_capped.double().mean().item()
        found["masked_share"] = is_masked.double().mean().item()
        for name, sign in (("right", 1.0), ("wrong", -1.0)):
            if (own := signs == sign).any():
                found[f"max_ratio_{name}"] = ratios[own].max().item()
                found[f"mean_ratio_{name}"] = ratios[own].double().mean().item()
                found[f"capped_share_{name}"] = is_capped[own].double().mean().item()
                found[f"masked_share_{name}"] = is_masked[own].double().mean().item()
        return found


def describe(groups: Sequence[Group]) -> dict[str, float]:
    """Return rewards, lengths and ends of a batch of answers, as numbers of the log.

    Rewards are those of samples that have not failed. Environments have their own rewards too.
    """
    samples = [one for group in groups for one in group.samples]
    known = [one for one in samples if not one.has_failed]
    found: dict[str, float] = {"groups": len(groups), "samples": len(samples)}
    if not known:
        return found
    rewards: defaultdict[str, list[float]] = defaultdict(list)
    for one in known:
        rewards["reward"].append(one.reward)
        rewards[f"reward/{one.environment}"].append(one.reward)
        for part, value in one.reward_parts.items():
            rewards[f"reward_part/{part}"].append(value)
    found |= {name: math.fsum(values) / len(values) for name, values in sorted(rewards.items())}
    if drawn := [one for one in known if one.num_sampled]:
        versions = (one.policy_versions[one.is_sampled].min().item() for one in drawn)
        found["oldest_policy_version"] = min(versions)
    lengths = [one.num_sampled for one in known]
    found["length_p50"] = percentile(lengths, 0.5)
    found["length_p99"] = percentile(lengths, 0.99)
    found["zero_variance_share"] = sum(not one.has_variance for one in groups) / len(groups)
    ends = Counter(one.finish_reason for one in samples)
    found |= {f"ended_{reason}_share": count / len(samples) for reason, count in ends.items()}
    return found


@dataclass(frozen=True, slots=True)
class Updated:
    """Outcome of one update."""

    norm: float
    """Norm of the gradient, before clipping"""
    numbers: Mapping[str, float]
    mismatch: Mismatch | None
    """Trainer beside sampler, for the first minibatch of a batch"""


def describe_updates(updates: Sequence[Updated]) -> dict[str, object]:
    """Return the numbers of a step's updates, as numbers of the log."""
    mismatch = updates[0].mismatch if updates else None
    return {
        "updates": len(updates),
        "grad_norm": _mean([one.norm for one in updates]),
        **_summed([one.numbers for one in updates]),
        "mismatch": {} if mismatch is None else mismatch.numbers(),
    }


def _summed(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the numbers of several updates as one: their mean, of maxima the largest."""
    found: dict[str, list[float]] = {}
    for numbers in updates:
        for name, value in numbers.items():
            found.setdefault(name, []).append(value)
    return {
        name: max(values) if name.startswith("max_") else math.fsum(values) / len(values)
        for name, values in found.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
