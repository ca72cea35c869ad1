"""Objectives of policy gradients: CISPO, PPO's mask, GRPO, DAPO, Dr.GRPO, GSPO and REINFORCE.

All are one formula, eq. 6 of the MiniMax-M1 report (arXiv:2506.13585), over flat per-token values:

    loss = - sum over tokens of  token_weight * stop_gradient(weight * mask) * advantage * logprob

They differ in how the importance weight is bounded (eq. 5), in the mask (eq. 7), in whether the
ratio is that of a token or of its whole answer, and in how much each token counts. The gradient of
the clipped objectives of PPO and its relatives is this formula with the unbounded weight and the
mask, to the last term. Only the gradient is theirs; the value of the loss is that of eq. 6.

No model, no batch format and no group is needed here: what a token counts is fixed before a
minibatch is cut into micro-batches, so the cut changes nothing.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

import torch
from torch import Tensor

from fulmen.train.run_file import Bound

Algorithm = Literal["cispo", "ppo", "grpo", "dapo", "dr_grpo", "gspo", "reinforce"]
Aggregation = Literal["token", "sequence", "mixed", "constant"]
Scope = Literal["group", "batch"]

_logger = logging.getLogger(__name__)
_MAX_LOG_RATIO: Final = 20.0
"""Ratios are computed between e^-20 and e^20: float32 overflows at e^88, and infinity times a
masked 0 is no number"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """An objective with all its values; None is none of them, infinity is no bound."""

    weight_cap: float = math.inf
    """1 + epsilon_high^IS of eq. 5"""
    weight_floor: float = 0.0
    """1 - epsilon_low^IS of eq. 5"""
    wrong_weight_cap: float = math.inf
    wrong_weight_floor: float = 0.0
    clip_low: float = math.inf
    """epsilon_low of eq. 7"""
    clip_high: float = math.inf
    """epsilon_high of eq. 7"""
    ratio: Literal["token", "sequence"] = "token"
    """A token's own ratio, or the geometric mean of its answer's ratios, as in GSPO"""
    aggregation: Aggregation = "token"
    mixed_alpha: float = 0.5
    scope: Scope = "group"
    constant_length: int | None = None


RULES: Final[Mapping[Algorithm, Rule]] = {
    "cispo": Rule(weight_cap=5.0, wrong_weight_cap=5.0),
    "ppo": Rule(clip_low=0.2, clip_high=0.2),
    "grpo": Rule(clip_low=0.2, clip_high=0.2, aggregation="sequence"),
    "dapo": Rule(clip_low=0.2, clip_high=0.28),
    "dr_grpo": Rule(clip_low=0.2, clip_high=0.2, aggregation="constant"),
    "gspo": Rule(clip_low=3e-4, clip_high=4e-4, ratio="sequence", aggregation="sequence"),
    "reinforce": Rule(aggregation="sequence"),
}
"""Each algorithm as it is if nothing else is asked for"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """An algorithm, and what is to differ from it. None is the algorithm's own value."""

    algorithm: Algorithm = "cispo"
    weight_cap: Bound | None = None
    """Largest importance weight, absolutely: 1 + epsilon_high in the report's notation. 5.0 for
    cispo, none (inf) for the others"""
    weight_floor: float | None = None
    """Least importance weight, absolutely; 0 is no floor, as in the report"""
    wrong_weight_cap: Bound | None = None
    """Cap for answers of negative advantage; None: weight_cap"""
    wrong_weight_floor: float | None = None
    """Floor for answers of negative advantage; None: weight_floor"""
    clip_low: Bound | None = None
    """Tokens of negative advantage whose ratio is below 1 - this are dropped; inf drops none"""
    clip_high: Bound | None = None
    """Tokens of positive advantage whose ratio is above 1 + this are dropped; inf drops none"""
    aggregation: Aggregation | None = None
    """Units that count the same: every token, every answer, a mixture of both, or every token
    against a constant length"""
    mixed_alpha: float | None = None
    """Share of token in a mixed aggregation; the rest is sequence"""
    scope: Scope | None = None
    """Whole that a token or an answer is a share of: its group, where each group counts the same,
    or the minibatch"""
    constant_length: int | None = None
    """Length that a constant aggregation divides by: the longest answer there can be"""

    def __post_init__(self) -> None:
        """Raise ValueError for values under which no such objective is meant."""
        if self.algorithm not in RULES:
            raise ValueError(
                f"algorithm is {self.algorithm}, it must be one of {', '.join(sorted(RULES))}"
            )
        rule = self.rule
        for prefix in ("", "wrong_"):
            cap: float = getattr(rule, f"{prefix}weight_cap")
            floor: float = getattr(rule, f"{prefix}weight_floor")
            if not cap > 1:
                raise ValueError(
                    f"{prefix}weight_cap is {cap:g}, it must be above 1: it bounds the importance "
                    "weight itself, which is 1 + epsilon_high in the report's notation"
                )
            if not 0 <= floor <= 1:
                raise ValueError(f"{prefix}weight_floor is {floor:g}, it must be from 0 to 1")
        if (floor := max(rule.weight_floor, rule.wrong_weight_floor)) > 0:
            _logger.warning(
                "weight_floor is %g: off-policy, a floor above 0 can drive the policy ever further "
                "from the one that sampled; the report has none",
                floor,
            )
        for name in ("clip_low", "clip_high"):
            if not getattr(rule, name) > 0:
                raise ValueError(f"{name} is {getattr(rule, name):g}, it must be above 0")
        if not 0 <= rule.mixed_alpha <= 1:
            raise ValueError(f"mixed_alpha is {rule.mixed_alpha:g}, it must be from 0 to 1")
        for name, aggregation in (("mixed_alpha", "mixed"), ("constant_length", "constant")):
            if getattr(self, name) is not None and rule.aggregation != aggregation:
                raise ValueError(
                    f"{name} is given for the aggregation {rule.aggregation}, only {aggregation} "
                    "has one"
                )
        if rule.aggregation == "constant" and (rule.constant_length or 0) < 1:
            raise ValueError(
                "constant_length is missing, the aggregation constant divides by it: the most "
                "tokens that an answer may have"
            )

    @property
    def rule(self) -> Rule:
        """The objective with all its values."""
        rule = RULES[self.algorithm]
        given = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name != "algorithm" and getattr(self, one.name) is not None
        }
        for name in ("weight_cap", "weight_floor"):
            if name in given:
                given.setdefault(f"wrong_{name}", given[name])
        return replace(rule, **given)

    def explain(self) -> str:
        """Return the objective in one line, its cap as it stands and as the report writes it."""
        rule = self.rule
        parts: list[str] = [self.algorithm]
        for prefix, name in (("", "weight"), ("wrong_", "weight of wrong answers")):
            cap: float = getattr(rule, f"{prefix}weight_cap")
            floor: float = getattr(rule, f"{prefix}weight_floor")
            if prefix and (cap, floor) == (rule.weight_cap, rule.weight_floor):
                continue
            high = f"at most {cap:g} (epsilon_high {cap - 1:g})" if cap < math.inf else "uncapped"
            parts.append(f"{name} {high}, " + (f"at least {floor:g}" if floor else "no floor"))
        if min(rule.clip_low, rule.clip_high) < math.inf:
            parts.append(f"mask outside 1 - {rule.clip_low:g} and 1 + {rule.clip_high:g}")
        parts.append(f"{rule.ratio} ratio, {rule.aggregation} aggregation in each {rule.scope}")
        return "; ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Streams:
    """Values of L sampled tokens of N answers, known before the policy is asked again."""

    sampler_logprobs: Tensor
    """(L,) float32: of the policy that drew them"""
    advantages: Tensor
    """(L,) float32"""
    sequences: Tensor
    """(L,) int64: index of each token's answer, from 0 to N - 1; all its tokens are here"""
    weights: Tensor
    """(L,) float32: each token's share of the minibatch's loss, see `token_weights`"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LossParts:
    """The loss of some tokens, and what was done to each of them."""

    loss: Tensor
    """() float32, with gradient; the losses of micro-batches add up to the minibatch's"""
    ratios: Tensor
    """(L,) float32: probability now over probability then, of the token or of its answer"""
    weights: Tensor
    """(L,) float32: the ratio within its bounds, 0 where masked"""
    is_capped: Tensor
    """(L,) bool: the ratio was above its cap"""
    is_masked: Tensor
    """(L,) bool: dropped by eq. 7"""


def loss(logprobs: Tensor, streams: Streams, config: ObjectiveConfig) -> LossParts:
    """Return the part of a minibatch's loss that some of its answers make.

    logprobs  (L,) float32 of the policy in training, with gradient
    """
    for one in fields(streams):
        if (shape := getattr(streams, one.name).shape) != logprobs.shape or logprobs.ndim != 1:
            raise ValueError(
                f"{one.name} has shape {tuple(shape)} and logprobs {tuple(logprobs.shape)}, each "
                "token needs one of both"
            )
    rule = config.rule
    ratios = _ratios(logprobs.detach(), streams, rule)
    advantages = streams.advantages
    is_wrong = advantages < 0
    caps = torch.full_like(ratios, rule.weight_cap).masked_fill(is_wrong, rule.wrong_weight_cap)
    floors = torch.full_like(ratios, rule.weight_floor)
    floors = floors.masked_fill(is_wrong, rule.wrong_weight_floor)
    bounded = ratios.clamp(floors, caps)  # eq. 5
    is_masked = ((advantages > 0) & (ratios > 1 + rule.clip_high)) | (  # eq. 7
        is_wrong & (ratios < 1 - rule.clip_low)
    )
    weights = bounded.masked_fill(is_masked, 0.0)
    return LossParts(
        loss=-(weights * advantages * streams.weights * logprobs).sum(),  # eq. 4 and 6
        ratios=ratios,
        weights=weights,
        is_capped=ratios > caps,
        is_masked=is_masked,
    )


def _ratios(logprobs: Tensor, streams: Streams, rule: Rule) -> Tensor:
    log_ratios = logprobs - streams.sampler_logprobs
    if rule.ratio == "sequence" and len(log_ratios):
        sequences = streams.sequences
        num_sequences = int(sequences.max()) + 1
        sums = log_ratios.new_zeros(num_sequences, dtype=torch.float64)
        sums.index_add_(0, sequences, log_ratios.double())
        counts = torch.bincount(sequences, minlength=num_sequences)
        log_ratios = (sums / counts)[sequences].to(log_ratios.dtype)
    return log_ratios.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def token_weights(num_tokens: Sequence[int], groups: Sequence[int], rule: Rule) -> list[float]:
    """Return what each token of each answer of a minibatch counts.

    num_tokens  sampled tokens of each answer that are in the loss; answers with none do not count
    groups      index of each answer's group

    Over all tokens they add up to 1, for a constant aggregation to the mean length over the
    constant one (of groups' mean lengths, where the scope is the group).
    """
    answers = [(count, group) for count, group in zip(num_tokens, groups, strict=True) if count]
    if rule.scope == "batch":
        answers = [(count, 0) for count, _ in answers]
    tokens_of: defaultdict[int, int] = defaultdict(int)
    answers_of: defaultdict[int, int] = defaultdict(int)
    for count, group in answers:
        tokens_of[group] += count
        answers_of[group] += 1
    num_scopes = len(tokens_of)

    def weight(count: int, group: int) -> float:
        by_token = 1 / (num_scopes * tokens_of[group])
        by_answer = 1 / (num_scopes * answers_of[group] * count)
        match rule.aggregation:
            case "token":
                return by_token
            case "sequence":
                return by_answer
            case "mixed":
                return rule.mixed_alpha * by_token + (1 - rule.mixed_alpha) * by_answer
            case "constant":
                assert rule.constant_length is not None  # ObjectiveConfig checks it
                return by_answer * count / rule.constant_length

    return [
        weight(count, 0 if rule.scope == "batch" else group) if count else 0.0
        for count, group in zip(num_tokens, groups, strict=True)
    ]
