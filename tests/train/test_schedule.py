"""Schedules: warm-up, trunk, decay, and branches that are the trunk up to their place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.train import ScheduleConfig
from tests.examples import examples


def test_a_schedule_rises_stays_and_falls() -> None:
    schedule = ScheduleConfig(warmup=10, decay_start=100, decay_length=50, floor=0.1)
    assert [schedule.factor(place) for place in (1, 5, 10, 60, 100)] == [0.1, 0.5, 1, 1, 1]
    assert schedule.factor(125) == pytest.approx(0.55)
    assert schedule.factor(150) == schedule.factor(10_000) == pytest.approx(0.1)
    cosine = ScheduleConfig(decay="cosine", decay_start=0, decay_length=100, floor=0.0)
    assert cosine.factor(50) == pytest.approx(0.5)
    assert cosine.factor(25) == pytest.approx(0.5 + 2**0.5 / 4)


@settings(max_examples=examples(200), deadline=None)
@given(
    warmup=st.integers(0, 1000),
    place=st.integers(0, 10_000),
    length=st.integers(1, 1000),
    later=st.integers(0, 2000),
    decay=st.sampled_from(["linear", "cosine"]),
    floor=st.floats(0, 1),
)
def test_a_branch_is_the_trunk_up_to_its_place_and_falls_to_the_floor(
    warmup: int, place: int, length: int, later: int, decay: str, floor: float
) -> None:
    trunk = ScheduleConfig(warmup=warmup, decay=decay, floor=floor)  # type: ignore[arg-type]
    branch = trunk.branch(place, length)
    for each in {0, place // 2, place}:
        assert branch.factor(each) == trunk.factor(each)
    here = place + later
    assert 0 <= branch.factor(here) <= trunk.factor(here) <= 1
    if later >= length:
        assert branch.factor(here) == pytest.approx(trunk.factor(here) * floor)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"unit": "epochs"}, "unit is 'epochs', it must be tokens or steps"),
        ({"decay": "wsd"}, "decay is 'wsd', it must be linear or cosine"),
        ({"warmup": -1}, "warmup is -1, it must be 0 or more"),
        ({"floor": 1.5}, r"floor is 1\.5, it must lie between 0 and 1"),
        ({"decay_length": 9}, "decay_length is 9, it needs decay_start, "),
        ({"decay_start": 9}, "decay_start is 9, it needs decay_length, which is 0"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        ScheduleConfig(**fields)  # type: ignore[arg-type]


def test_a_branch_of_a_run_that_falls_already_is_refused() -> None:
    schedule = ScheduleConfig(decay_start=10, decay_length=5)
    with pytest.raises(
        ValueError, match=r"^the rate falls from 10 on, a decay cannot branch at 12"
    ):
        schedule.branch(12, 5)
