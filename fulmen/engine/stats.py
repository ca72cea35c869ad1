"""Counts and seconds of an engine's work, kept out of the lines that do the work."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from fulmen.engine.request import Part, RequestFailed
from fulmen.engine.steering import TokenOutput

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts and seconds since an engine was made."""

    num_steps: int
    num_prompt_tokens: int
    """Prompt tokens of all requests added"""
    num_hit_tokens: int
    """Tokens that requests found in the cache when they started or resumed"""
    num_new_tokens: int
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


@dataclass(slots=True)
class Counters:
    """Tokens and steps counted so far."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0

    def add_step(
        self, parts: Sequence[Part], outputs: Iterable[TokenOutput | RequestFailed]
    ) -> None:
        """Count a step: parts that ran, and what came of them."""
        made = [output for output in outputs if isinstance(output, TokenOutput)]
        self.num_steps += bool(parts)
        self.num_new_tokens += len(made)
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
