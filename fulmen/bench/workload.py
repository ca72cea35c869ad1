"""What a model is timed with, and how it is warmed up first.

Only the standard library is used here, so that the same two rules hold for other engines, in
processes that have no Fulmen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

WITHIN: Final = 0.05
"""How far two successive stretches may differ."""
MAX_SECONDS: Final = 20.0
MAX_STRETCHES: Final = 10
"""A pace that has not settled by then will not settle; what follows is measured as it comes."""
TOUCH_TOKENS: Final = 512
"""A prompt long enough that each expert is chosen by some token."""
WARMUP_DECODE: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Something a model is timed with."""

    kind: Literal["prefill", "decode"]
    num_tokens: int
    """Of the prompt; for decode, new tokens of each sequence."""
    batch: int = 1
    """Sequences that decode together."""
    depth: int = 0
    """Tokens of each sequence that came before."""

    def __str__(self) -> str:
        if self.kind == "prefill":
            return f"prompt of {self.num_tokens:,}"
        return f"decode, batch {self.batch}, depth {self.depth:,}"

    def shortened(self) -> "Workload":
        """A stretch of it: enough to warm up, or to choose an implementation."""
        longest = TOUCH_TOKENS if self.kind == "prefill" else WARMUP_DECODE
        return replace(self, num_tokens=min(self.num_tokens, longest))


def until_steady(
    stretch: Callable[[], float], *, within: float = WITHIN, max_seconds: float = MAX_SECONDS
) -> bool:
    """Repeats a stretch of work, which returns its seconds, until two in a row agree; at least
    twice, unless one alone takes max_seconds. Whether they came to agree.

    Memory that lay idle may have been taken back by the host of a virtual machine, and recorded
    steps and caches are made when they are first used: so no first call is worth timing.
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
