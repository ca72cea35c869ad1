"""One sequence from its prompt to its last token, as engine, scheduler and runner share it."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fulmen.engine.drafts import Drafter
from fulmen.engine.prefixes import Allocation
from fulmen.engine.steering import Choice, PromptLogprob, Steering
from fulmen.sampling import SamplingParams, shown


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The end of a request that got no further token, and why."""

    request_id: int
    error: BaseException


@dataclass(slots=True, eq=False)
class Request:
    """A sequence that waits or runs."""

    request_id: int
    ids: list[int]
    """Prompt and new tokens"""
    params: SamplingParams
    seed: int
    max_tokens: int
    """Most new tokens"""
    num_prefix_ids: int = 0
    """Number of the prompt's last tokens that are the answer's beginning, drawn by this seed"""
    priority: int = 0
    steering: Steering | None = None
    num_repetitive_tokens: int = 0
    """Latest tokens in a row that were each more likely than repetition_probability"""
    allocation: Allocation | None = None
    """Pages and slot while it runs; None while it waits"""
    drafter: Drafter = field(default_factory=Drafter)
    num_hit_tokens: int | None = None
    """Number of the prompt's tokens that were in the cache when it first ran; None before that"""
    queue_seconds: float | None = None
    """Seconds that it waited until it first ran; None before that"""
    awaited: "tuple[Request, int] | None" = None
    """Running request whose first so many tokens this one waits for, as it begins with them too"""
    first_scored: int = 1
    """Index of the prompt's first token whose log-probability is wanted, if any are"""
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)
    """Those found so far, of the prompt's tokens from first_scored on"""
    num_prompt_tokens: int = field(init=False)
    _arrival: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.ids)

    def start(self, allocation: Allocation) -> None:
        """Take note that the request runs from now on, for the first time or again."""
        self.allocation, self.awaited = allocation, None
        if self.num_hit_tokens is None:
            self.num_hit_tokens = allocation.num_tokens
            self.queue_seconds = time.perf_counter() - self._arrival

    def restart(self) -> None:
        """Take note that the weights have changed: log-probabilities of the prompt that nobody has
        seen yet are found again."""
        if not self.num_new_tokens:
            self.prompt_logprobs.clear()

    @property
    def wants_prompt_logprobs(self) -> bool:
        """True while tokens of the prompt lack their log-probability."""
        return self.params.prompt_logprobs is not None and self.next_scored < self.num_prompt_tokens

    def add_prompt_logprobs(self, start: int, found: Sequence[PromptLogprob]) -> None:
        """Add those of the tokens from index `start` on; some may be known, from before the request
        was preempted."""
        self.prompt_logprobs += found[self.next_scored - start :]

    @property
    def next_scored(self) -> int:
        """Index of the next token whose log-probability is wanted."""
        return self.first_scored + len(self.prompt_logprobs)

    @property
    def most_hits(self) -> int | None:
        """Most tokens that may come from the cache, which has no logits; None: any number."""
        return self.next_scored - 1 if self.wants_prompt_logprobs else None

    @property
    def num_cached_tokens(self) -> int:
        """Number of tokens whose keys, values and states are in the cache. Any thread may ask."""
        allocation = self.allocation  # read once: the engine's thread may preempt the request
        return allocation.num_tokens if allocation is not None else 0

    @property
    def num_pending(self) -> int:
        """Number of tokens to be fed before the next one can be sampled."""
        return len(self.ids) - self.num_cached_tokens

    @property
    def num_new_tokens(self) -> int:
        """Number of tokens made so far."""
        return len(self.ids) - self.num_prompt_tokens

    @property
    def num_answer_tokens(self) -> int:
        """Number of tokens of the answer so far, its given beginning included."""
        return self.num_prefix_ids + self.num_new_tokens


@dataclass(slots=True, eq=False)
class Part:
    """A request's part in one forward pass."""

    request: Request
    num_tokens: int
    """Number of its pending tokens that are fed"""
    draft_ids: list[int] = field(default_factory=list)
    """Guesses that are fed after them"""
    choices: list[Choice] | None = None
    """Ids that may come after its tokens and after each guess; None if all may"""
    num_scored: int = field(init=False)
    """Number of its first tokens whose next one is in the prompt and lacks its log-probability"""

    def __post_init__(self) -> None:
        request = self.request
        last = request.num_prompt_tokens - 1 - request.num_cached_tokens
        num_scored = max(0, min(self.num_tokens, last))
        reaches = request.num_cached_tokens + num_scored >= request.next_scored
        self.num_scored = num_scored if request.wants_prompt_logprobs and reaches else 0

    @property
    def is_sampled(self) -> bool:
        """True where a token follows; False while a prompt is read."""
        return self.num_tokens == self.request.num_pending

    @property
    def ids(self) -> list[int]:
        """Token ids that are fed."""
        start = self.request.num_cached_tokens
        return [*self.request.ids[start : start + self.num_tokens], *self.draft_ids]

    @property
    def scores_last(self) -> bool:
        """True where the token after its last one is in the prompt, and scored."""
        return self.num_scored == self.num_tokens

    @property
    def scored_ids(self) -> list[int]:
        """Ids after its scored tokens."""
        start = self.request.num_cached_tokens + 1
        return self.request.ids[start : start + self.num_scored]

    @property
    def num_places(self) -> int:
        """Number of tokens whose logits are wanted: its last one and each guess."""
        return 1 + len(self.draft_ids)

    def choice(self, index: int) -> Choice:
        """Return what may come after the first `index` guesses."""
        return Choice() if self.choices is None else self.choices[index]

    def set_choices(self, choices: list[Choice], vocab_size: int) -> None:
        """Keep what a steering object answered, and drop the guesses that it leaves out.

        Raises ValueError for an answer that no token can follow.
        """
        if not 1 <= len(choices) <= self.num_places:
            raise ValueError(
                f"Steering.ask returned {len(choices)} choices for {len(self.draft_ids)} draft "
                f"ids, it must return 1 to {self.num_places}"
            )
        self.choices = [_checked(choice, vocab_size) for choice in choices]
        self.draft_ids = self.draft_ids[: len(choices) - 1]


def _checked(choice: Choice, vocab_size: int) -> Choice:
    """Return a choice whose ids are known, with the only id that its mask allows as forced_id."""
    mask = choice.mask
    if choice.forced_id is not None:
        read_ids("forced_id", [choice.forced_id], vocab_size)
        return Choice(forced_id=choice.forced_id)
    if choice.logit_bias is not None:
        token_id, bias = choice.logit_bias
        read_ids("logit_bias", [token_id], vocab_size)
        if not np.isfinite(bias):
            raise ValueError(f"the logit_bias of token id {token_id} is {bias}, it must be finite")
    if mask is None:
        return choice
    if mask.allowed.shape != (vocab_size,):
        raise ValueError(
            f"a mask has shape {mask.allowed.shape}, the vocabulary needs ({vocab_size},)"
        )
    num_allowed = int(np.count_nonzero(mask.allowed))
    if not num_allowed:
        raise ValueError("a mask allows no id, it must allow one at least")
    if num_allowed == 1 and not mask.redraw_only:
        return Choice(forced_id=int(mask.allowed.argmax()))
    return choice


def read_ids(name: str, ids: object, vocab_size: int | None = None) -> list[int]:
    """Return token ids as a list of ints; numpy's whole numbers and 1-D integer tensors count.

    Raises ValueError for anything else, and for an id outside the vocabulary if that is given.
    """
    if isinstance(ids, Tensor | np.ndarray):
        is_whole = "int" in str(ids.dtype)
        if ids.ndim != 1 or not is_whole:
            raise ValueError(
                f"{name} has shape {tuple(ids.shape)} and type {ids.dtype}, token ids are one row "
                "of whole numbers"
            )
        ids = ids.tolist()
    if isinstance(ids, str | bytes | bytearray) or not isinstance(ids, Iterable):
        raise ValueError(f"{name} is {shown(ids)}, a list of token ids is needed")
    found = list(ids)
    if set(map(type, found)) - {int}:  # a loop in C: a prompt may have a million
        wrong = next((one for one in found if not _is_whole(one)), None)
        if wrong is not None or None in found:
            raise ValueError(f"{name} holds {shown(wrong)}, token ids are whole numbers")
        found = [int(one) for one in found]
    if vocab_size is not None and found:
        low, high = min(found), max(found)
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(
                f"token id {shown(wrong)} is outside the {vocab_size} ids known, see {name}"
            )
    return found


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
