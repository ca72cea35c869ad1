"""Swiss rounds: the best of many answers without comparing each with each.

    points -> neighbours in the order of points that have not met -> comparisons -> points

A preference gives a point, a draw half of one, and who has no opponent a point. If the comparisons
follow one strict order, its best answer has won all of them after log2(answers) rounds, and nobody
else has.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from fulmen.envs.judged.judge import Judge

Compare = Callable[[int, int], Awaitable[int]]
"""Tells 1 if the first of two players is better, -1 if the second one is, else 0"""


async def choose_reference(
    judge: Judge, question: str, answers: Sequence[str], *, num_rounds: int | None = None
) -> int:
    """Return the index of the answer to which others should be compared: the best one, as far as a
    judge can tell."""

    async def compare(one: int, other: int) -> int:
        return await judge.compare(question, answers[one], answers[other])

    return await swiss_winner(len(answers), compare, num_rounds=num_rounds)


async def swiss_winner(num_players: int, compare: Compare, *, num_rounds: int | None = None) -> int:
    """Return the player with the most points; of several, the one whose opponents have more, then
    the first one.

    num_rounds  log2(num_players), rounded up, if omitted
    """
    if num_players < 1:
        raise ValueError("a tournament needs a player at least")
    if num_rounds is None:
        num_rounds = (num_players - 1).bit_length()
    points = [0.0] * num_players
    met: list[set[int]] = [set() for _ in range(num_players)]
    rested: set[int] = set()
    for _ in range(num_rounds):
        order = sorted(range(num_players), key=lambda one: (-points[one], one))
        pairs, resting = _pair(order, met, rested)
        results = await asyncio.gather(*(compare(one, other) for one, other in pairs))
        for (one, other), result in zip(pairs, results, strict=True):
            met[one].add(other)
            met[other].add(one)
            points[one] += (1 + result) / 2
            points[other] += (1 - result) / 2
        for one in resting:
            rested.add(one)
            points[one] += 1
    return max(
        range(num_players),
        key=lambda one: (points[one], sum(points[other] for other in met[one]), -one),
    )


def _pair(
    order: Sequence[int], met: Sequence[set[int]], rested: set[int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return pairs of neighbours, and who has no opponent: the last ones who did not rest yet."""
    waiting, resting = list(order), list[int]()
    if len(waiting) % 2:
        last = next((one for one in reversed(waiting) if one not in rested), waiting[-1])
        waiting.remove(last)
        resting.append(last)
    pairs = []
    while waiting:
        one = waiting.pop(0)
        other = next((place for place in waiting if place not in met[one]), waiting[0])
        waiting.remove(other)
        pairs.append((one, other))
    return pairs, resting
