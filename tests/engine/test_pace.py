"""Steps that read prompts beside answers stay as short as the machine allows."""

from hypothesis import given
from hypothesis import strategies as st

from fulmen.engine.pace import Pace

GAP = 0.25
LEAST = 32
"""Tokens that every step reads"""


def run_steps(pace: Pace, base: float, per_token: float, count: int = 60) -> list[float]:
    """Return the seconds of steps on a machine whose steps take `base` and some for each token,
    beside answers and with a prompt that has no end."""
    times = []
    for _ in range(count):
        read = min(pace.amount_from(0), pace.max_tokens)
        times.append(base + per_token * read)
        pace.learn(read, times[-1], is_all=False)
    return times


@given(st.floats(0, 1), st.floats(1e-6, 1e-2))
def test_a_step_takes_the_gap_or_reads_the_least_or_the_most(base: float, per_token: float) -> None:
    pace = Pace(GAP, 1024)
    times = run_steps(pace, base, per_token)
    fits = (GAP - base) / per_token
    expected = base + per_token * min(max(fits, LEAST), 1024)
    # A base near the gap is approached slowly, from below.
    assert times[-1] <= max(expected, GAP) * 1.001
    if base < 0.8 * GAP:
        assert times[-1] >= expected * 0.98


@given(st.floats(0, 0.2), st.floats(1e-6, 1e-2), st.floats(0.25, 4))
def test_a_machine_that_changes_is_followed(base: float, per_token: float, change: float) -> None:
    pace = Pace(GAP, 1024)
    run_steps(pace, base, per_token)
    later = run_steps(pace, base * change, per_token * change)
    least = (base + per_token * LEAST) * change
    assert later[3] <= max(least, GAP) * 1.3
    assert later[-1] <= max(least, GAP) * 1.02


def test_one_long_step_costs_half_and_no_more() -> None:
    pace = Pace(GAP, 1024)
    run_steps(pace, 0.05, 0.0005)
    before = pace.amount
    pace.learn(before, 20.0, is_all=False)
    assert pace.amount == before / 2


def test_a_short_step_teaches_only_if_more_was_to_be_read() -> None:
    pace = Pace(GAP, 1024)
    pace.amount = 400.0
    pace.learn(10, 0.2, is_all=True)
    assert pace.amount == 400
    pace.learn(400, 0.2, is_all=False)
    assert pace.amount == 500


def test_tokens_far_into_a_context_weigh_more_but_some_always_fit() -> None:
    pace = Pace(GAP, 1024, position_cost=1 / 10_000)
    pace.amount = 256.0
    assert pace.amount_from(0) == 256
    assert pace.amount_from(10_000) == 256
    assert pace.amount_from(90_000) == LEAST * 10
