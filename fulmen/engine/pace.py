"""Pace of reading prompts beside answers that run: as much in a step as keeps the step short.

A step that reads a piece of a prompt takes longer than one that only decodes, and every answer
beside it waits. So a step reads as much as lately fitted into the longest gap that two tokens of an
answer may have. How long a step takes is not predicted: after each step the amount is set to what
would have fitted, at most doubled or halved. That holds on any machine, with any model and load.

An amount is counted in tokens at the beginning of a context. A token after many others weighs more,
because softmax attention reads them all.
"""

from dataclasses import dataclass, field
from typing import Final

from fulmen.kernels import PAGE

_LEAST: Final = PAGE // 2
"""Tokens that a step reads however long it takes: with fewer, a slow machine reads each expert for
so few that prompts take far longer"""


@dataclass(slots=True)
class Pace:
    """Amount of prompts that a step reads while answers wait for it."""

    max_gap_seconds: float | None
    """Longest that a step should take while answers run; None: as long as it likes"""
    max_tokens: int
    """Most tokens of a step, whoever waits"""
    position_cost: float = 0.0
    """Cost that each earlier token of its sequence adds to a token, over that of a first token"""
    amount: float = field(init=False)
    """Tokens at the beginning of a context that fit into a step"""

    def __post_init__(self) -> None:
        self.amount = min(_LEAST, self.max_tokens)

    def weight(self, position: int) -> float:
        """Return what a token after `position` others costs, over a first token."""
        return 1 + self.position_cost * position

    def amount_from(self, position: int) -> float:
        """Return how much a step may read, if what comes first begins at a position: at least
        `_LEAST` tokens of that."""
        return max(self.amount, _LEAST * self.weight(position))

    def learn(self, read: float, seconds: float, *, is_all: bool) -> None:
        """Set the amount by a step that ran.

        read     weight of what it read of prompts
        seconds  time that it took
        is_all   True if no prompt had more to read
        """
        longest = self.max_gap_seconds
        if longest is None or not read:
            return
        fitting = read * longest / max(seconds, 1e-9)
        if is_all and fitting > read:
            return  # the step was short because there was no more to read
        self.amount = min(max(fitting, self.amount / 2, _LEAST), 2 * self.amount, self.max_tokens)
