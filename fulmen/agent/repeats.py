"""Agents that do the same again and again: the same calls, which see the same."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from fulmen.agent.trajectory import Result, Step

_MAX_ROUND: Final = 3
"""Steps that may make up what is done again and again"""


def num_repeats(steps: Sequence[Step], last: Result | None = None) -> int:
    """Return how many times in a row, up to the last step, the same calls saw the same: those of
    one step, or of two or three in turn.

    last  result that is about to be the last one
    """
    steps = list(steps)
    if not steps:
        return 0
    if last is not None:
        steps[-1] = replace(steps[-1], results=(*steps[-1].results, last))
    if not steps[-1].is_whole or not steps[-1].results:
        return 0
    seen = [_seen(step) for step in reversed(steps)]
    return max(_rounds(seen, size) for size in range(1, _MAX_ROUND + 1))


def _rounds(seen: Sequence[object], size: int) -> int:
    """Return how many times what comes first, so many, comes one after the other."""
    same = next((n for n, one in enumerate(seen) if one != seen[n % size]), len(seen))
    return same // size


def _seen(step: Step) -> tuple[Any, ...]:
    """Return calls and results of a step, without hints."""
    results = sorted(step.results, key=lambda one: one.call)
    texts = [one.text.removesuffix(one.details.get("hint", "")).rstrip("\n") for one in results]
    return (step.answer.message.tool_calls, tuple(texts))
