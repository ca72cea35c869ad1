"""What the head would say of given logits, and what an idle engine must own."""

import torch
from torch import Tensor

from fulmen.engine import Engine
from fulmen.engine.sampler import Candidates


def best_of(logits: Tensor, count: int, forced: int | None = None) -> Candidates:
    """The best tokens of the logits (V,) of a whole vocabulary."""
    values, ids = logits.sort(descending=True, stable=True)
    logit = None if forced is None else float(logits[forced])
    return Candidates(float(torch.logsumexp(logits, 0)), values[:count], ids[:count], logit)


def assert_nothing_is_owned(engine: Engine) -> None:
    """All slots are free, and all pages once what is known is forgotten."""
    prefixes = engine.prefixes
    assert prefixes.num_free_slots == prefixes.cache.num_slots
    assert prefixes.num_available_pages == prefixes.cache.num_pages
    prefixes.clear()
    assert prefixes.num_free_pages == prefixes.cache.num_pages
    assert prefixes.used_snapshot_bytes == 0
