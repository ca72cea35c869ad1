"""Workloads, and the rule by which everything is warmed up before it is timed.

This file needs the standard library alone: benchmarks of other engines load it in processes that
have no Fulmen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

WITHIN: Final = 0.05
"""Largest relative difference of two successive stretches at a steady pace."""
MAX_SECONDS: Final = 20.0
"""Longest time of a warm-up; after it the pace is taken as it is."""
MAX_STRETCHES: Final = 10
"""Most stretches of a warm-up; a pace that has not settled by then will not settle."""
TOUCH_TOKENS: Final = 512
"""Tokens of a prompt long enough that each expert is chosen by some token."""
WARMUP_DECODE: Final = 16
"""Tokens decoded in a stretch of a warm-up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A prompt to read, or tokens to decode."""

    kind: Literal["prefill", "decode"]
    num_tokens: int
    """Tokens of the prompt; for decode, new tokens of each sequence."""
    batch: int = 1
    """Sequences that decode together."""
    depth: int = 0
    """Tokens of each sequence that came before."""

    def __str__(self) -> str:
        if self.kind == "prefill":
            return f"prompt of {self.num_tokens:,}"
        return f"decode, batch {self.batch}, depth {self.depth:,}"

    def shortened(self) -> "Workload":
        """Return a part of it that is enough to warm up, or to choose an implementation."""
        longest = TOUCH_TOKENS if self.kind == "prefill" else WARMUP_DECODE
        return replace(self, num_tokens=min(self.num_tokens, longest))


def until_steady(
    stretch: Callable[[], float], *, within: float = WITHIN, max_seconds: float = MAX_SECONDS
) -> bool:
    """Repeat a stretch of work until two in a row take equally long; return True if they did.

    stretch      does the work and returns its seconds
    within       relative difference that counts as equal
    max_seconds  time after which no further stretch begins

    No first call is worth timing: the host of a virtual machine may have reclaimed idle memory, and
    recorded steps and caches are built when they are first used.
    """
    before = total = stretch()
    for _ in range(1, MAX_STRETCHES):
        if total >= max_seconds:
            return False
        now = stretch()
        total += now
        if abs(now - before) <= within * before:
            return True
        before = now
    return False
