"""Logits as the head would see them, a scripted steering, and what an idle engine must own."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fulmen.engine import Choice, Engine, RequestFailed, TokenOutput
from fulmen.engine.sampler import Candidates


def best_of(logits: Tensor, count: int, forced: int | None = None) -> Candidates:
    """Return the best tokens of the logits (V,) of a whole vocabulary."""
    values, ids = logits.sort(descending=True, stable=True)
    logit = None if forced is None else float(logits[forced])
    logsumexp = float(torch.logsumexp(logits, 0))
    return Candidates(logsumexp, values[:count], ids[:count], logit, all_logits=logits)


class Script:
    """A steering that forces and biases ids by their place in the answer, and may end it."""

    def __init__(
        self,
        forced: Mapping[int, int] | None = None,
        *,
        biases: Mapping[int, tuple[int, float]] | None = None,
        end: int | None = None,
    ) -> None:
        self.forced = forced or {}
        self.biases = biases or {}
        self.end = end
        self.outputs: list[TokenOutput] = []
        self.errors: list[BaseException] = []
        self.was_aborted = False

    def ask(self, draft_ids: Sequence[int]) -> list[Choice]:
        first = len(self.outputs)
        return [
            Choice(forced_id=self.forced.get(place), logit_bias=self.biases.get(place))
            for place in range(first, first + 1 + len(draft_ids))
        ]

    def take(self, output: TokenOutput) -> bool:
        self.outputs.append(output)
        return len(self.outputs) == self.end

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)

    def abort(self) -> None:
        self.was_aborted = True


def new_tokens(outputs: Iterable[TokenOutput | RequestFailed]) -> list[TokenOutput]:
    """Return a step's outputs, none of which may be a failure."""
    found = []
    for output in outputs:
        assert isinstance(output, TokenOutput), output
        found.append(output)
    return found


def assert_nothing_is_owned(engine: Engine) -> None:
    """Check that all slots are free, and all pages once what is known is forgotten."""
    prefixes = engine.prefixes
    assert prefixes.num_free_slots == prefixes.cache.num_slots
    assert prefixes.num_available_pages == prefixes.cache.num_pages
    prefixes.clear()
    assert prefixes.num_free_pages == prefixes.cache.num_pages
    assert prefixes.used_snapshot_bytes == 0
