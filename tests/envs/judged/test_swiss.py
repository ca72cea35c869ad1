"""Tournaments and the watch on length: properties that hold for any answers."""

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.envs import LengthBias, LengthMonitor, choose_reference, swiss_winner
from tests.envs.judged.judges import by, judging
from tests.examples import examples


def winner(strengths: list[int], **options: int) -> tuple[int, Counter[frozenset[int]]]:
    """Return who wins if strength decides, and how often two have met."""
    met: Counter[frozenset[int]] = Counter()

    async def compare(one: int, other: int) -> int:
        met[frozenset((one, other))] += 1
        assert one != other
        return (strengths[one] > strengths[other]) - (strengths[one] < strengths[other])

    return asyncio.run(swiss_winner(len(strengths), compare, **options)), met


@given(strengths=st.integers(1, 40).flatmap(lambda number: st.permutations(range(number))))
@settings(max_examples=examples(300), deadline=None)
def test_the_best_of_a_strict_order_wins_wherever_it_stands(strengths: list[int]) -> None:
    found, met = winner(strengths)
    assert strengths[found] == max(strengths)
    rounds = (len(strengths) - 1).bit_length()
    assert met.total() == rounds * (len(strengths) // 2)


@given(strengths=st.lists(st.integers(0, 3), min_size=1, max_size=20), rounds=st.integers(0, 30))
@settings(max_examples=examples(200), deadline=None)
def test_draws_and_many_rounds_are_played_to_the_end(strengths: list[int], rounds: int) -> None:
    found, met = winner(strengths, num_rounds=rounds)
    assert 0 <= found < len(strengths)
    assert met.total() == rounds * (len(strengths) // 2)


def test_a_tournament_needs_players() -> None:
    with pytest.raises(ValueError, match="needs a player"):
        winner([])


def test_a_reference_is_chosen_by_a_judge() -> None:
    judge, _ = judging(by(lambda text: float(text.split()[-1])))
    answers = [f"I guess {number}" for number in (3, 9, 4, 1, 7)]
    assert asyncio.run(choose_reference(judge, "How many?", answers)) == 1
    fooled, _ = judging(lambda request: "Better: A")  # by places alone: no answer is better
    assert asyncio.run(choose_reference(fooled, "How many?", answers)) in range(5)


def test_length_that_brings_nothing_raises_no_alarm() -> None:
    draw = random.Random(3)
    monitor = LengthMonitor(window=64)
    for _ in range(1000):
        assert monitor.add(draw.choice((0.0, 1.0)), draw.randint(1, 5000)) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_length_that_is_liked_or_disliked_raises_one(sign: int) -> None:
    draw = random.Random(5)
    alarms: list[LengthBias] = []
    monitor = LengthMonitor(window=64, recalibrate=alarms.append)
    for _ in range(64):
        length = draw.randint(1, 5000)
        monitor.add(0.5 + sign * (length - 2500) / 10_000 + draw.uniform(-0.1, 0.1), length)
    (bias,) = alarms
    low, high = bias.slope_interval
    assert low < sign * 0.1 < high
    assert sign * bias.slope == pytest.approx(0.1, abs=0.02)
    assert bias.corrected(0.5 + sign * 0.25, round(bias.mean_length) + 2500) == pytest.approx(
        0.5, abs=0.06
    )
    assert len(alarms) == 1


def test_questions_that_need_long_answers_are_no_bias() -> None:
    draw = random.Random(7)
    monitor = LengthMonitor(window=64)
    for number in range(64):
        hard = number % 2
        length = (100, 5000)[hard] + draw.randint(0, 50)
        assert (
            monitor.add(0.2 + 0.6 * hard + draw.uniform(0, 0.1), length, prompt=f"{hard}") is None
        )
    assert monitor.bias is not None
    assert abs(monitor.bias.correlation) < 0.5


@given(
    rows=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**9), st.sampled_from("ab"))),
)
@settings(max_examples=examples(200), deadline=None)
def test_any_rewards_give_a_bias_with_an_interval_or_none(
    rows: list[tuple[float, int, str]],
) -> None:
    monitor = LengthMonitor(window=8)
    for reward, length, prompt in rows:
        monitor.add(reward, length, prompt=prompt)
        if (bias := monitor.bias) is not None:
            assert -1 <= bias.correlation_interval[0] <= bias.correlation + 1e-9
            assert bias.correlation - 1e-9 <= bias.correlation_interval[1] <= 1
            assert 0 <= bias.corrected(reward, length) <= 1


def test_absurd_monitors_and_rewards_are_refused() -> None:
    for options in ({"window": 7}, {"limit": 1.0}, {"limit": -0.1}):
        with pytest.raises(ValueError, match="it must be"):
            LengthMonitor(**options)
    with pytest.raises(ValueError, match="can be no reward"):
        LengthMonitor().add(float("nan"), 1)
