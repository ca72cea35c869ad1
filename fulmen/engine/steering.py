"""Steering: the object that the engine asks before each token and tells after it.

    ask(draft_ids) -> what may come next -> forward pass -> take(output) -> ask(draft_ids) -> ...

A grammar, a thinking budget, stop texts and forced ids are one `Steering` above the engine, which
knows token ids only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from fulmen.sampling import FinishReason, Mask


class Choice(NamedTuple):
    """Ids that may come at one place."""

    mask: Mask | None = None
    """Ids that may be drawn; None allows all"""
    forced_id: int | None = None
    """Id that comes whatever the logits and the mask say; its log-probability is reported as the
    model gave it, minus infinity included"""
    logit_bias: tuple[int, float] | None = None
    """An id, and what is added to its logit at this draw; the reported log-probability is the
    model's own"""


class PromptLogprob(NamedTuple):
    """One token of a prompt, as likely as it was after those before it."""

    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]
    """(token id, log-probability) of the likeliest tokens in its place, best first"""


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One new token of one request; the last one says why it is the last."""

    request_id: int
    token_id: int
    logprob: float
    """Log-probability by the model alone; minus infinity for a forced id that it rules out"""
    top_logprobs: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None
    num_hit_tokens: int = 0
    """Number of the prompt's tokens that were in the cache when the request first ran"""
    queue_seconds: float = field(default=0.0, compare=False)
    """Seconds from the request's arrival until it first ran"""
    prompt_logprobs: Sequence[PromptLogprob] = ()
    """With the first token, if they were asked for: one for each token of the prompt and of the
    answer's given beginning, from the second on"""
    policy_version: int | None = None
    """`Engine.policy_version` when the token was made; None where no engine made it"""


class Steering(Protocol):
    """Decides which tokens one request may have. An exception it raises ends that request alone.

    A steering object never calls the engine: requests are added and aborted between steps.
    """

    def ask(self, draft_ids: Sequence[int]) -> list[Choice]:
        """Return what may come next, and after each of draft_ids in turn.

        At least one entry. The list ends where a draft id may not come, or where what follows it
        is not known yet: the rest of the draft is dropped. May be asked again before `take`, and
        the answer must be the same.
        """

    def take(self, output: TokenOutput) -> bool:
        """Take the id that came, with the engine's finish_reason if it is the last.

        Return True to end the request here: its finish_reason becomes "stop".
        """

    def fail(self, error: BaseException) -> None:
        """Take note that the request ended without another token, because of this error."""

    def abort(self) -> None:
        """Take note that the request ended without another token, because the engine's weights
        changed."""
