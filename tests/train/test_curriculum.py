"""Curriculum: what is drawn more, and a state that draws on as if nothing had stopped."""

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.train import Group
from fulmen.train.rl.curriculum import Curriculum, CurriculumConfig, Draw, SourceConfig
from tests.examples import examples
from tests.train.helpers import group

LADDER = SourceConfig(levels=("easy", "middle", "hard"))
BOOK = SourceConfig(levels=("book",))
TALK = SourceConfig(levels=("talk",), kind="general")
MADE = SourceConfig(levels=("made",), is_synthetic=True)
SOURCES = [LADDER, BOOK, TALK, MADE]
NUM_TASKS: dict[str, int | None] = {
    **dict.fromkeys(("easy", "middle", "hard", "made", "talk")),
    "book": 40,
}


def curriculum(
    sources: list[SourceConfig] | None = None, *, seed: int = 0, **changes: object
) -> Curriculum:
    config = CurriculumConfig(**changes)  # type: ignore[arg-type]
    return Curriculum(sources or SOURCES, config, num_tasks=NUM_TASKS, seed=seed)


def outcome(draw: Draw, num_right: int, size: int = 4) -> Group:
    rewards = [1.0] * num_right + [0.0] * (size - num_right)
    return group(rewards, task_index=draw.task_index, environment=draw.environment)


def counts(found: Curriculum, number: int = 2000) -> Counter[str]:
    return Counter(one.environment for one in found.draw(number))


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2**20)), max_size=8),
    st.integers(0, 8),
    st.integers(0, 2**40),
)
@settings(max_examples=examples(100), deadline=None)
def test_a_state_that_is_loaded_draws_on_as_if_nothing_had_stopped(
    batches: list[tuple[int, int]], cut: int, seed: int
) -> None:
    whole, first, again = (
        curriculum(seed=seed, window=3, general_from=2, general_over=3) for _ in range(3)
    )

    def play(one: Curriculum, size: int, luck: int) -> list[Draw]:
        drawn = one.draw(size)
        draw = random.Random(luck)
        one.record(outcome(draw_, draw.randint(0, 4)) for draw_ in drawn)
        return drawn

    expected = [play(whole, *batch) for batch in batches]
    found = [play(first, *batch) for batch in batches[:cut]]
    state = json.loads(json.dumps(first.state()))
    again.load_state(state)
    assert again.state() == state
    found += [play(again, *batch) for batch in batches[cut:]]
    assert found == expected
    assert again.state() == whole.state()


def test_tasks_passed_in_some_tries_are_drawn_more_than_those_always_or_never_passed() -> None:
    found = curriculum([BOOK], outside_weight=0.2)
    found.record(
        outcome(Draw("book", index), {0: 0, 1: 2, 2: 4, 3: 1}[index % 4]) for index in range(40)
    )
    seen: Counter[int] = Counter()
    for _ in range(500):
        seen.update(one.task_index % 4 for one in found.draw(4))
    inside, outside = seen[1] + seen[3], seen[0] + seen[2]
    assert 4 < inside / outside < 6  # 1 beside 0.2
    assert min(seen[0], seen[2]) > 0


def test_no_task_is_drawn_twice_in_a_batch_and_an_endless_one_never() -> None:
    book = [one.task_index for one in curriculum([BOOK]).draw(40)]
    assert sorted(book) == list(range(40))
    endless = curriculum([LADDER])
    indices = [one.task_index for _ in range(10) for one in endless.draw(7)]
    assert indices == list(range(70))


def test_more_tasks_than_there_are_come_all_the_same() -> None:
    assert len(curriculum([BOOK]).draw(100)) == 100


def test_a_source_climbs_as_it_passes_rehearses_and_falls_back() -> None:
    found = curriculum([LADDER], window=4, rehearsal=0.25)

    def play(num_right: int) -> None:
        level = found.current_levels["easy"]
        found.record(outcome(Draw(level, index), num_right) for index in range(4))

    assert set(counts(found)) == {"easy"}
    play(4)
    assert found.current_levels == {"easy": "middle"}
    drawn = counts(found)
    assert set(drawn) == {"easy", "middle"}
    assert 0.2 < drawn["easy"] / 2000 < 0.3
    play(2)
    assert found.current_levels == {"easy": "middle"}
    play(4)
    assert found.current_levels == {"easy": "hard"}
    assert set(counts(found)) == {"easy", "middle", "hard"}
    play(4)
    assert found.current_levels == {"easy": "hard"}
    play(0)
    assert found.current_levels == {"easy": "middle"}
    assert found.numbers() == {"level/easy": 1, "pass_rate/easy": 1.0, "pass_rate/hard": 0.0}


def test_held_out_tasks_are_never_drawn() -> None:
    def held(source: SourceConfig, is_held_out: Callable[[str, int], bool]) -> Curriculum:
        rules = CurriculumConfig()
        return Curriculum([source], rules, num_tasks=NUM_TASKS, seed=0, is_held_out=is_held_out)

    kept = [index for index in range(1000) if index % 5]
    for source, expected in ((BOOK, kept[:32]), (LADDER, kept[:300])):
        found = held(source, lambda environment, index: index % 5 == 0)
        drawn = [one.task_index for _ in range(60) for one in found.draw(5)]
        assert sorted({*drawn}) == expected
    with pytest.raises(ValueError, match="book has no tasks that are not held out for the probe"):
        held(BOOK, lambda *_: True)
    with pytest.raises(ValueError, match="10000 tasks of talk in a row are all held out"):
        held(TALK, lambda *_: True).draw(1)


def test_a_window_that_is_not_full_moves_nothing() -> None:
    found = curriculum([LADDER], window=5)
    found.record(outcome(Draw("easy", index), 4) for index in range(4))
    assert found.current_levels == {"easy": "easy"}


def test_reasoning_comes_first_and_general_tasks_are_mixed_in() -> None:
    found = curriculum([BOOK, TALK], general_from=2, general_over=3, general_share=0.4)
    shares = []
    for _ in range(7):
        shares.append(found.general_share)
        share = counts(found, 1500)["talk"] / 1500
        assert share == pytest.approx(shares[-1], abs=0.05)
        found.record([])
    assert shares == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_synthetic_sources_weigh_less() -> None:
    drawn = counts(curriculum([LADDER, MADE], synthetic_weight=0.25))
    assert 3 < drawn["easy"] / drawn["made"] < 5


def test_sources_whose_level_is_always_passed_are_drawn_less() -> None:
    found = curriculum([LADDER, MADE], synthetic_weight=1.0, window=4, climb_above=1.0)
    found.record(outcome(Draw("made", index), 4) for index in range(4))
    drawn = counts(found)
    assert 4 < drawn["easy"] / drawn["made"] < 6


def test_samples_that_failed_say_nothing_of_a_task() -> None:
    found = curriculum([BOOK])
    reasons: Any = ["error", "error"]
    found.record([group([0.0, 0.0], environment="book", finish_reasons=reasons)])
    assert found.pass_rate("book") is None


def test_a_state_of_other_sources_is_refused_and_changes_nothing() -> None:
    state = curriculum().state()
    found = curriculum([BOOK])
    before = found.state()
    with pytest.raises(ValueError, match="knows the environment easy, which no source has"):
        found.load_state(state)
    assert found.state() == before


def _without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    "spoil",
    [
        _without("heights"),
        lambda state: state.update(num_drawn=-1),
        lambda state: state["heights"].update(easy=3),
        lambda state: state["environments"]["book"].update(window=[2.0]),
        lambda state: state["environments"]["book"].update(tasks=[[40, 0.5]]),
        lambda state: state["environments"]["book"].update(tasks=[5]),
        lambda state: state["environments"].update(easy=None),
    ],
)
def test_a_spoilt_state_is_one_sentence(spoil: Callable[[dict[str, Any]], None]) -> None:
    found = curriculum()
    found.record(outcome(one, 2) for one in found.draw(9))
    state, before = json.loads(json.dumps(found.state())), found.state()
    spoil(state)
    with pytest.raises(ValueError, match="the state is not that of a curriculum"):
        found.load_state(state)
    assert found.state() == before


def test_a_state_of_other_tasks_is_refused_and_changes_nothing() -> None:
    def made(fingerprint: str, count: int) -> Curriculum:
        counts = {"book": count}
        return Curriculum(
            [BOOK], CurriculumConfig(), num_tasks=counts, seed=0, fingerprints={"book": fingerprint}
        )

    first = made("a", 9)
    first.record(outcome(one, 2) for one in first.draw(9))
    made("a", 9).load_state(first.state())
    for other in (made("b", 9), made("b", 3)):
        before = other.state()
        with pytest.raises(ValueError, match="book has other tasks than the run began with"):
            other.load_state(first.state())
        assert other.state() == before


def test_a_source_that_came_later_begins_anew() -> None:
    old = curriculum([BOOK])
    old.record(outcome(one, 2) for one in old.draw(9))
    found = curriculum()
    found.load_state(old.state())
    assert found.pass_rate("book") == 0.5
    assert found.current_levels["easy"] == "easy"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: curriculum([BOOK, BOOK]), "the environment book is in two sources"),
        (lambda: SourceConfig(levels=()), "has no levels"),
        (lambda: SourceConfig(levels=("a", "a")), "names an environment twice"),
        (lambda: SourceConfig(levels=("a",), weight=0.0), "weight of the source a is 0"),
        (lambda: CurriculumConfig(low=0.9, high=0.1), "low is 0.9, it must be below high"),
        (lambda: CurriculumConfig(rehearsal=2.0), "rehearsal is 2, it must be from 0 to 1"),
        (lambda: CurriculumConfig(window=0), "window is 0, it must be at least 1"),
        (lambda: CurriculumConfig(outside_weight=0.0), "outside_weight is 0, it must be above"),
    ],
)
def test_sources_and_rules_that_cannot_be_are_refused(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()
