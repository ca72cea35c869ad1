"""One sequence from its prompt to its last token."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fulmen.engine.drafts import Drafter
from fulmen.engine.prefixes import Allocation
from fulmen.sampling import FinishReason, Mask, SamplingParams


class Guide(Protocol):
    """Says, id by id, what a request may say: `chat` makes one from a grammar."""

    def masks(self, draft_ids: Sequence[int]) -> list[Mask | None]:
        """What may come next, and after each of the ids that are guessed to come, as far as they
        may come; None where every id may. Changes nothing."""

    def accept(self, token_id: int) -> None:
        """Takes the id that came next, be it allowed or forced."""


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One new token of one request; the last one says why it is the last."""

    request_id: int
    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None


@dataclass(slots=True, eq=False)
class Request:
    """One sequence from its prompt to its last token."""

    request_id: int
    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    num_begun: int = 0
    """How many of the prompt's last tokens were drawn before, by this request's seed"""
    priority: int = 0
    guide: Guide | None = None
    ids: list[int] = field(init=False)
    """Prompt and new tokens"""
    forced_ids: deque[int] = field(default_factory=deque)
    """Tokens that come next whatever the logits say."""
    nudge: tuple[int, float] | None = None
    """An id, and what its logit gains at the next draw"""
    num_repetitive_tokens: int = 0
    """Latest tokens in a row that were each more likely than repetition_probability."""
    allocation: Allocation | None = None
    """What it owns of the cache while it runs"""
    drafter: Drafter = field(default_factory=Drafter)

    def __post_init__(self) -> None:
        self.ids = list(self.prompt_ids)

    @property
    def rank(self) -> tuple[int, int]:
        """Who goes first: the lower."""
        return self.priority, self.request_id

    @property
    def num_cached_tokens(self) -> int:
        """Tokens whose keys, values and states are in the cache."""
        return self.allocation.num_tokens if self.allocation is not None else 0

    @property
    def num_pending(self) -> int:
        """Tokens to be fed before the next one is sampled."""
        return len(self.ids) - self.num_cached_tokens

    @property
    def num_new_tokens(self) -> int:
        """Tokens made so far."""
        return len(self.ids) - len(self.prompt_ids)


@dataclass(slots=True, eq=False)
class Part:
    """A request's part in one forward pass."""

    request: Request
    num_tokens: int
    forced: int | None = None
    """Its next token, if it was forced when the pass began"""
    nudge: tuple[int, float] | None = None
    """An id that was made likelier when the pass began, and by how much"""
    draft: list[int] = field(default_factory=list)
    """Guesses that are fed after its own tokens"""
    masks: list[Mask | None] = field(default_factory=list)
    """What may come after its own tokens and after each guess, None where all may; empty without a
    guide"""

    def mask(self, index: int) -> Mask | None:
        """What may come after its own tokens and so many guesses; None where all may."""
        return self.masks[index] if self.masks else None

    def settled(self, index: int) -> int | None:
        """The one id that can come there, if it is forced or no other is allowed."""
        if self.forced is not None:
            return self.forced
        mask = self.mask(index)
        if mask is None or mask.redraw_only or mask.allowed.sum() != 1:
            return None
        return int(mask.allowed.argmax())

    def target(self, index: int) -> int:
        """The id whose logit is wanted there besides the best; any if none is."""
        settled = self.settled(index)
        if settled is not None:
            return settled
        return self.nudge[0] if self.nudge is not None else 0

    @property
    def ids(self) -> list[int]:
        """What is fed."""
        start = self.request.num_cached_tokens
        return [*self.request.ids[start : start + self.num_tokens], *self.draft]
