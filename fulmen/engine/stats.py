"""Counts and seconds of an engine's work, kept out of the lines that do the work."""

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar, get_args

from fulmen.engine.request import Part, RequestFailed
from fulmen.engine.steering import TokenOutput
from fulmen.sampling import FinishReason

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts and seconds since an engine was made."""

    num_steps: int
    num_prompt_tokens: int
    """Prompt tokens of all requests added"""
    num_queried_tokens: int
    """Tokens that requests looked up in the cache when they started or resumed"""
    num_hit_tokens: int
    """Tokens of those that were found"""
    num_fed_tokens: int
    """Tokens that went through forward passes: pieces of prompts, new tokens and drafts"""
    num_new_tokens: int
    num_finished: Mapping[FinishReason, int]
    """Requests that ended, by reason"""
    num_preemptions: int
    num_drafted_tokens: int
    num_accepted_tokens: int
    """Drafted tokens that were right, and not their request's last"""
    schedule_seconds: float
    """Seconds of the scheduler, drafts, steering before a pass, and the cache's bookkeeping"""
    run_seconds: float
    """Seconds of forward passes"""
    used_snapshot_bytes: int
    """Memory that snapshots of lightning states take now"""
    num_running: int
    """Requests that run now"""
    num_waiting: int
    """Requests that wait for a slot or for pages now"""
    kv_cache_usage: float
    """Share of the cache's pages, 0 to 1, that running requests hold now"""
    num_known_tokens: int
    """Tokens, in whole pages, that are known now and that no running request reads"""
    num_evicted_tokens: int
    """Known tokens, in whole pages, that were dropped because their memory was needed"""


@dataclass(slots=True)
class Counters:
    """Tokens and steps counted so far."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    num_fed_tokens: int = 0
    num_finished: dict[FinishReason, int] = field(
        default_factory=lambda: dict.fromkeys(get_args(FinishReason), 0)
    )

    def add_step(
        self, parts: Sequence[Part], outputs: Iterable[TokenOutput | RequestFailed]
    ) -> None:
        """Count a step: parts that ran, and what came of them."""
        made = [output for output in outputs if isinstance(output, TokenOutput)]
        self.num_steps += bool(parts)
        self.num_new_tokens += len(made)
        self.num_fed_tokens += sum(part.num_tokens + len(part.draft_ids) for part in parts)
        self.num_drafted_tokens += sum(len(part.draft_ids) for part in parts)
        # Each request's first token of a step is no guess.
        self.num_accepted_tokens += len(made) - len({output.request_id for output in made})


def timed(
    attribute: str,
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Decorate a method so that the seconds it takes are added to an attribute of its object."""

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            start = time.perf_counter()
            try:
                return method(self, *args, **kwargs)
            finally:
                setattr(self, attribute, getattr(self, attribute) + time.perf_counter() - start)

        return wrapper

    return decorate
