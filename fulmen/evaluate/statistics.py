"""Estimates and their 95 % intervals, in closed form: the same runs always give the same numbers.

The sample is the tasks, drawn from a source. All else (thoughts of a task, forks of a thought,
votes) is averaged within its task first. So forks of one thought may depend on each other; an
interval assumes only that tasks are independent."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

_Z: Final = 1.959963984540054
"""The normal distribution's 97.5 % point"""


class Estimate(NamedTuple):
    """Mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float], *, num_runs: int = 1) -> Estimate:
    """Estimate the mean score over tasks.

    values    mean score of each task, from 0 to 1
    num_runs  number of scores in each mean

    Wilson's score interval with an effective number of scores, the one whose binomial variance is
    the variance seen between tasks (Korn and Graubard 1998, Survey Methodology 24; Franco et al.
    2019, J. Survey Statistics and Methodology 7, compare such intervals). Equal scores need no
    special case: the effective number is then that of the tasks, and the width is not 0.
    """
    mean = sum(values) / len(values)
    center, half = _wilson(mean, _effective_size(values, num_runs))
    return Estimate(mean, max(0.0, min(mean, center - half)), min(1.0, max(mean, center + half)))


def difference(first: Sequence[float], second: Sequence[float], *, num_runs: int = 1) -> Estimate:
    """Estimate the mean of first - second, two mean scores of each task.

    Newcombe's interval for paired proportions (1998, Statistics in Medicine 17): the
    limits of both estimates, combined with the correlation over tasks.
    """
    a, b = estimate(first, num_runs=num_runs), estimate(second, num_runs=num_runs)
    mean, correlation = a.mean - b.mean, _correlation(first, second)

    def reach(below: float, above: float) -> float:
        return math.sqrt(max(0.0, below**2 - 2 * correlation * below * above + above**2))

    low = mean - reach(a.mean - a.low, b.high - b.mean)
    high = mean + reach(a.high - a.mean, b.mean - b.low)
    return Estimate(mean, low, high)


def exact_p(num_better: int, num_worse: int) -> float:
    """Return how likely a split of changed tasks as uneven as this one is, if better and worse were
    equally likely: McNemar's exact test of pairs that passed or failed, the sign test of means."""
    total = num_better + num_worse
    tail = sum(math.comb(total, count) for count in range(min(num_better, num_worse) + 1))
    return min(1.0, 2 * tail / (1 << total))


def expected_best(keys: Sequence[float], scores: Sequence[float], n: int) -> float:
    """Return the expected score of the run with the highest key, over all choices of n runs.

    Of equal keys the first run is taken. With the scores as keys this is pass@n, as Chen et al.
    estimate it (arXiv:2107.03374): unbiased, and less noisy than the best of a single choice.
    """
    total = len(scores)
    order = sorted(range(total), key=lambda index: -keys[index])
    # A run is the best of a choice if the n - 1 others come after it.
    chosen = sum(
        math.comb(total - 1 - place, n - 1) * scores[index] for place, index in enumerate(order)
    )
    return chosen / math.comb(total, n)


def expected_majority(answers: Sequence[str | None], scores: Sequence[float], n: int) -> float:
    """Return the expected score of the answer that most runs give, over all choices of n runs.

    This is self-consistency (Wang et al., arXiv:2203.11171). Tied answers share the vote, None does
    not vote, and a choice without votes scores 0.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            groups[answer].append(score)
    sizes = {answer: len(group) for answer, group in groups.items()}
    worth = {answer: sum(group) / len(group) for answer, group in groups.items()}
    num_silent = sum(answer is None for answer in answers)
    total = 0.0
    for most in range(1, min(n, max(sizes.values(), default=0)) + 1):
        # (runs chosen, answers with `most` votes) -> choices, and the summed worth of those answers
        ways: dict[tuple[int, int], tuple[int, float]] = {(0, 0): (1, 0.0)}
        for answer, size in sizes.items():
            more: dict[tuple[int, int], tuple[int, float]] = {}
            for (chosen, num_tied), (count, summed) in ways.items():
                for votes in range(min(size, most, n - chosen) + 1):
                    factor, is_tied = math.comb(size, votes), votes == most
                    key = chosen + votes, num_tied + is_tied
                    old_count, old_summed = more.get(key, (0, 0.0))
                    gained = summed + count * worth[answer] * is_tied
                    more[key] = old_count + factor * count, old_summed + factor * gained
            ways = more
        for (chosen, num_tied), (_, summed) in ways.items():
            if num_tied:
                total += math.comb(num_silent, n - chosen) * summed / num_tied
    return total / math.comb(len(answers), n)


def _effective_size(values: Sequence[float], num_runs: int) -> float:
    """Return the number of independent scores of 0 or 1 that would be as certain as these."""
    count = len(values)
    mean = sum(values) / count
    binomial = mean * (1 - mean)
    if count < 2 or binomial <= 0:
        size = float(count)
    else:
        variance = sum((value - mean) ** 2 for value in values) / (count - 1) / count
        most = count * num_runs
        size = most if variance * most <= binomial else binomial / variance
    # The variance is itself an estimate: Student's t takes the place of z.
    return size * (_Z / _student(count - 1)) ** 2 if count > 1 else size


def _wilson(mean: float, size: float) -> tuple[float, float]:
    """Return center and half width of Wilson's interval."""
    spread = math.sqrt(mean * (1 - mean) / size + _Z**2 / (4 * size**2))
    grown = 1 + _Z**2 / size
    return (mean + _Z**2 / (2 * size)) / grown, _Z * spread / grown


def _student(freedom: int) -> float:
    """Return the 97.5 % point of Student's t, within 1 % (Abramowitz and Stegun 26.7.5)."""
    if freedom <= 2:
        return 12.7062 if freedom == 1 else 4.3027
    z, v = _Z, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def _correlation(first: Sequence[float], second: Sequence[float]) -> float:
    count = len(first)
    a, b = sum(first) / count, sum(second) / count
    both = sum((x - a) * (y - b) for x, y in zip(first, second, strict=True))
    spread = math.sqrt(sum((x - a) ** 2 for x in first) * sum((y - b) ** 2 for y in second))
    return both / spread if spread > 0 else 0.0
