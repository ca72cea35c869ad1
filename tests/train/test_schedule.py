"""Schedules: warm-up, trunk, and a decay that is the trunk up to its start."""

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
    start=st.integers(0, 10_000),
    length=st.integers(1, 1000),
    later=st.integers(0, 2000),
    decay=st.sampled_from(["linear", "cosine"]),
    floor=st.floats(0, 1),
)
def test_a_decay_is_the_trunk_up_to_its_start_and_falls_to_the_floor(
    start: int, length: int, later: int, decay: str, floor: float
) -> None:
    schedule = ScheduleConfig(
        decay=decay,  # type: ignore[arg-type]
        decay_start=start,
        decay_length=length,
        floor=floor,
    )
    for place in {0, start // 2, start}:
        assert schedule.factor(place) == 1
    assert 0 <= schedule.factor(start + later) <= 1
    if later >= length:
        assert schedule.factor(start + later) == pytest.approx(floor)


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
