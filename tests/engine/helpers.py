"""What the head would say of given logits."""

import torch
from torch import Tensor

from fulmen.engine.sampler import Candidates


def best_of(logits: Tensor, count: int, forced: int | None = None) -> Candidates:
    """The best tokens of the logits (V,) of a whole vocabulary."""
    values, ids = logits.sort(descending=True, stable=True)
    logit = None if forced is None else float(logits[forced])
    return Candidates(float(torch.logsumexp(logits, 0)), values[:count], ids[:count], logit)
