"""Length windows: both signals, and a state that goes on."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.train import Sample
from fulmen.train.rl.windows import LengthWindow, WindowConfig, measure_lengths, percentile
from tests.examples import examples

CONFIG = WindowConfig(lengths=(10, 20, 30), num_batches=4)


def batch(perplexity: float, length: int, size: int = 3) -> list[Sample]:
    """Return samples of one perplexity and length."""
    logprobs = [None] + [-math.log(perplexity)] * length
    ids = [1] * (length + 1)
    return [
        Sample.of(ids, logprobs, reward=0.0, environment="sums", task_index=0) for _ in range(size)
    ]


def test_the_limit_grows_when_perplexity_has_settled_and_lengths_are_near_it() -> None:
    window = LengthWindow(CONFIG)
    found = [window.record(batch(2.0, 9)) for _ in range(9)]
    assert found == [False, False, False, True, False, False, False, False, False]
    assert window.limit == 20  # 9 tokens are not near 20
    assert [window.record(batch(2.0, 19)) for _ in range(4)][-1]
    assert window.limit == 30
    assert not any(window.record(batch(2.0, 30)) for _ in range(9))
    assert window.limit == 30


def test_a_perplexity_that_moves_holds_the_limit() -> None:
    window = LengthWindow(CONFIG)
    assert not any(window.record(batch(3.0 - 0.1 * step, 10)) for step in range(9))
    assert window.is_near
    assert not window.has_settled
    assert [window.record(batch(2.1, 10)) for _ in range(4)][-1]


def test_lengths_far_from_the_limit_hold_it() -> None:
    window = LengthWindow(CONFIG)
    assert not any(window.record(batch(2.0, 8)) for _ in range(9))
    assert window.has_settled
    assert not window.is_near


def test_one_length_is_no_staging() -> None:
    window = LengthWindow(WindowConfig(lengths=(10,), num_batches=2))
    assert not any(window.record(batch(2.0, 10)) for _ in range(9))
    assert window.limit == 10


def test_the_report_has_six_stages() -> None:
    assert WindowConfig().lengths == (40_000, 48_000, 56_000, 64_000, 72_000, 80_000)


@given(
    st.lists(st.tuples(st.floats(1.0, 4.0), st.integers(1, 30)), max_size=24), st.integers(0, 24)
)
@settings(max_examples=examples(60), deadline=None)
def test_a_state_that_is_loaded_goes_on(batches: list[tuple[float, int]], cut: int) -> None:
    config = WindowConfig(lengths=(10, 20, 30), num_batches=2, settled=1.0, near=0.5)
    whole, first, again = (LengthWindow(config) for _ in range(3))
    expected = [whole.record(batch(*one)) for one in batches]
    found = [first.record(batch(*one)) for one in batches[:cut]]
    again.load_state(json.loads(json.dumps(first.state())))
    found += [again.record(batch(*one)) for one in batches[cut:]]
    assert found == expected
    assert again.state() == whole.state()


@pytest.mark.parametrize(
    "state", [{"limit": 15, "recent": []}, {"limit": 10}, {"limit": 10, "recent": [3]}, {}]
)
def test_a_state_of_other_windows_is_refused(state: dict[str, object]) -> None:
    window = LengthWindow(CONFIG)
    before = window.state()
    with pytest.raises(ValueError, match="not that of these length windows"):
        window.load_state(state)
    assert window.state() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "lengths are none, they must ascend"),
        ({"lengths": (20, 10)}, "lengths are 20, 10, they must ascend"),
        ({"lengths": (0, 10)}, "must ascend from at least 1"),
        ({"num_batches": 1}, "num_batches is 1, it must be at least 2"),
        ({"settled": 0.0}, "settled is 0, it must be above 0"),
        ({"near": 1.5}, "near is 1.5, it must be above 0 and at most 1"),
    ],
)
def test_windows_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowConfig(**changes)  # type: ignore[arg-type]


def test_perplexity_and_lengths_are_those_of_sampled_tokens() -> None:
    samples = [*batch(2.0, 4, 1), *batch(4.0, 8, 1)]
    found = measure_lengths(samples)
    assert found is not None
    assert found == pytest.approx((3.0, 8.0))
    assert measure_lengths([]) is None
    assert not LengthWindow(CONFIG).record([])


def test_a_percentile_is_one_of_the_values() -> None:
    values = list(range(1, 101))
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert percentile([3.0], 0.99) == 3.0
