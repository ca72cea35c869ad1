"""Drift of a rounded model: how far its logits moved on a text.

Both models read the text layer by layer (`stream_model`), so that memory holds one layer and both
models' embeddings and heads, however large the models are. Their last hidden states are kept;
logits are computed from them for some tokens at a time and compared at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import torch
import torch.nn.functional as F

from fulmen.models import Config, Model, Packed

SEQUENCE_TOKENS: Final = 512
"""Tokens of a sequence that the text is cut into."""
_ROWS: Final = 64
"""Number of tokens whose logits are compared at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Differences of a model from its original, over the tokens of a text."""

    num_tokens: int
    top1_agreement: float
    """Share of tokens after which both find the same token the most likely."""
    mean_kl: float
    """KL divergence of the model's next-token distribution from the original's, in nats."""
    mean_logit_drift: float
    """Absolute difference of logits, mean over tokens and vocabulary."""
    max_logit_drift: float
    original_perplexity: float
    perplexity: float


def sample_text() -> str:
    """Return about 2,000 tokens of prose, dialogue, code, tables and German."""
    return (files("fulmen.quantize") / "sample.txt").read_text(encoding="utf-8")


def in_sequences(input_ids: Sequence[int], config: Config) -> list[Sequence[int]]:
    """Cut a text into the sequences in which it is read."""
    longest = min(SEQUENCE_TOKENS, config.max_position_embeddings)
    return [input_ids[i : i + longest] for i in range(0, len(input_ids), longest)]


def measure_drift(original: Model, model: Model, input_ids: Sequence[int]) -> Drift:
    """Compare two models of one vocabulary on a text of at least two tokens."""
    packed = Packed.of(in_sequences(input_ids, original.config))
    with torch.no_grad():
        states, other_states = original.hidden_states(packed), model.hidden_states(packed)
        # The last token of a sequence has no next one.
        targets = packed.input_ids.roll(-1)
        targets[packed.cu_seqlens[1:].long() - 1] = -1
        same = kl = absolute = largest = loss = other_loss = 0.0
        for rows in range(0, len(states), _ROWS):
            part = slice(rows, rows + _ROWS)
            logits = original.logits(states[part])  # (rows, V)
            others = model.logits(other_states[part])
            drift = (others - logits).abs()
            absolute += float(drift.mean(-1).sum())
            largest = max(largest, float(drift.max()))
            same += float((logits.argmax(-1) == others.argmax(-1)).sum())
            logprobs, other_logprobs = logits.log_softmax(-1), others.log_softmax(-1)
            kl += float(F.kl_div(other_logprobs, logprobs, reduction="sum", log_target=True))
            loss += _loss(logprobs, targets[part])
            other_loss += _loss(other_logprobs, targets[part])
    count = len(states)
    num_targets = max(int((targets >= 0).sum()), 1)
    return Drift(
        num_tokens=count,
        top1_agreement=same / count,
        mean_kl=kl / count,
        mean_logit_drift=absolute / count,
        max_logit_drift=largest,
        original_perplexity=math.exp(loss / num_targets),
        perplexity=math.exp(other_loss / num_targets),
    )


def _loss(logprobs: torch.Tensor, targets: torch.Tensor) -> float:
    return float(F.nll_loss(logprobs, targets, ignore_index=-1, reduction="sum"))
