"""Estimates against brute force, intervals against simulation."""

import itertools
import random
from collections import Counter

import pytest

from fulmen.evaluate.statistics import difference, estimate, expected_best, expected_majority


def test_the_best_of_n_is_the_mean_over_all_choices() -> None:
    draw = random.Random(0)
    for _ in range(50):
        total = draw.randint(1, 8)
        keys = [draw.choice([0.1, 0.2, draw.random()]) for _ in range(total)]
        scores = [draw.choice([0.0, 0.5, 1.0]) for _ in range(total)]
        for n in range(1, total + 1):
            found = [
                scores[max(some, key=lambda i: keys[i])]
                for some in itertools.combinations(range(total), n)
            ]
            assert expected_best(keys, scores, n) == pytest.approx(sum(found) / len(found))


def test_with_scores_as_keys_it_is_the_usual_estimate_of_pass_at_n() -> None:
    scores = [1.0] * 3 + [0.0] * 7
    for n in range(1, 11):
        miss = 1.0
        for i in range(n):  # Chen et al.: 1 - C(10 - 3, n) / C(10, n)
            miss *= max(0, 7 - i) / (10 - i)
        assert expected_best(scores, scores, n) == pytest.approx(1 - miss)


def test_the_majority_is_the_mean_over_all_choices_and_equals_share_the_vote() -> None:
    draw = random.Random(1)
    for _ in range(60):
        total = draw.randint(1, 8)
        answers = [draw.choice(["a", "b", "c", None]) for _ in range(total)]
        worth = {"a": 1.0, "b": 0.0, "c": 0.25}
        scores = [worth[answer] if answer else draw.random() for answer in answers]
        for n in range(1, total + 1):
            found = []
            for some in itertools.combinations(answers, n):
                votes = Counter(answer for answer in some if answer is not None)
                most = max(votes.values(), default=0)
                tied = [worth[answer] for answer, count in votes.items() if count == most]
                found.append(sum(tied) / len(tied) if tied else 0.0)
            mean = sum(found) / len(found)
            assert expected_majority(answers, scores, n) == pytest.approx(mean)


@pytest.mark.parametrize("shape", [(2, 2), (0.3, 0.3), (8, 2), (20, 1)])
@pytest.mark.parametrize(("num_tasks", "num_runs"), [(30, 4), (20, 1)])
def test_intervals_hold_the_truth_as_often_as_they_say(
    shape: tuple[float, float], num_tasks: int, num_runs: int
) -> None:
    """Tasks of different difficulty, runs of one task alike: what a count of runs would miss."""
    draw = random.Random(2)
    truth = shape[0] / sum(shape)
    num_held = num_differences_held = 0
    for _ in range(600):
        ease = [draw.betavariate(*shape) for _ in range(num_tasks)]
        first, second = (
            [sum(draw.random() < p for _ in range(num_runs)) / num_runs for p in ease]
            for _ in range(2)
        )
        found = estimate(first, num_runs=num_runs)
        num_held += found.low <= truth <= found.high
        found = difference(first, second, num_runs=num_runs)
        num_differences_held += found.low <= 0 <= found.high
    # 600 trials at 95 % lie between 93.2 and 96.8 % 19 times of 20; too wide is no harm.
    assert num_held > 0.93 * 600
    assert num_differences_held > 0.93 * 600


def test_forks_of_one_thought_do_not_pass_for_independent_runs() -> None:
    draw = random.Random(3)
    tasks = [float(draw.random() < 0.5) for _ in range(40)]
    alike = estimate(tasks, num_runs=10)
    mixed = estimate([sum(draw.random() < 0.5 for _ in range(10)) / 10 for _ in tasks], num_runs=10)
    assert alike.high - alike.low > 2 * (mixed.high - mixed.low)


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_equal_scores_are_not_taken_for_certainty(score: float) -> None:
    found = estimate([score] * 20, num_runs=4)
    assert found.mean == score
    assert 0 <= found.low <= score <= found.high <= 1
    assert found.high - found.low > 0.1
    apart = difference([score] * 20, [score] * 20, num_runs=4)
    assert apart.low < -0.05
    assert apart.high > 0.05


def test_one_task_says_little() -> None:
    found = estimate([1.0])
    assert found.low < 0.3
