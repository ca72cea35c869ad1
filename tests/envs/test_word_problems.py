"""Word problems: stories make sense, and their words do not tell what to do."""

import asyncio
import re
from collections import Counter
from fractions import Fraction
from math import sqrt

import pytest

from fulmen.envs import WordProblems, load_environment
from fulmen.envs.spelling import whole_number
from fulmen.envs.words.environment import FRAMES, read_time
from fulmen.evaluate import self_check


@pytest.mark.parametrize("level", range(1, 6))
def test_all_levels_pass_the_self_check(level: int) -> None:
    for seed in range(2):
        assert asyncio.run(self_check(WordProblems(seed, level=level), range(25))) == []


@pytest.mark.slow
def test_a_thousand_stories_of_all_levels_pass_the_self_check() -> None:
    assert asyncio.run(self_check(WordProblems(8), range(1000))) == []


@pytest.mark.parametrize(
    "name", ["arithmetic", "arithmetic:1x2", "arithmetic:1x50", "arithmetic:5x3"]
)
def test_to_repeat_a_story_of_sums_is_no_answer(name: str) -> None:
    for seed in range(4):
        environment = load_environment(name, seed=seed)
        chance: float = environment.chance  # type: ignore[attr-defined]
        allowed = min(1.0, chance + 3 * sqrt(chance * (1 - chance) / 60))
        assert asyncio.run(self_check(environment, range(60), junk=())) == []
        assert asyncio.run(self_check(environment, range(60), chance=allowed)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arithmetic", "arithmetic:1x50", "arithmetic:5x3"])
def test_a_thousand_stories_of_sums_pass_the_self_check(name: str) -> None:
    environment = load_environment(name, seed=8)
    chance: float = environment.chance  # type: ignore[attr-defined]
    assert asyncio.run(self_check(environment, range(1000), junk=())) == []
    assert asyncio.run(self_check(environment, range(1000), chance=chance)) == []


def test_every_frame_is_told_at_every_level_in_a_whole_text() -> None:
    seen = set()
    for level in range(1, 6):
        environment = WordProblems(3, level=level)
        for index in range(250):
            task = environment.task(index)
            seen.add((task.frame, level))
            assert task.level == level
            assert not re.search(r"[{}]|  | [.?,]|None", task.question)
            if task.units is not None:
                number = whole_number(task.answer, task.units)
                assert number is not None
                assert 0 < number < 10**7
                assert number.denominator == 1 or level >= 4
    assert seen == {(name, n) for name in (*(f.name for f in FRAMES), "clock") for n in range(1, 6)}
    assert len(FRAMES) + 1 >= 12


def test_one_step_is_the_operation_that_its_numbers_allow() -> None:
    environment = WordProblems(5, level=1)
    for index in range(300):
        task = environment.task(index)
        story = task.question.replace("bus 1", "bus").replace("bus 2", "bus")
        story = story.replace("bus 3", "bus").replace("bus 4", "bus")
        found = [int(one) for one in re.findall(r"\d+", story)]
        if task.units is None or len(found) != 2:
            continue
        a, b = map(Fraction, found)
        possible = {a + b, a - b, b - a, a * b, a / b, b / a, a / (b + 1), b / (a + 1)}
        assert whole_number(task.answer, task.units) in possible, task.question


def test_a_share_is_one_of_what_somebody_has() -> None:
    for level in (4, 5):
        environment = WordProblems(2, level=level)
        for index in range(150):
            story = environment.task(index).question
            # "Max gets $5. Then Max spends 1/2 of that": of $5, or of all?
            found = re.search(r"(of|than) that\b|(left with|without) [^.]* of it\b", story)
            assert found is None, story


def test_somebody_with_a_part_is_one_of_those_who_share() -> None:
    for frame in FRAMES:
        for text in frame.quotients:
            assert re.search(r"\bone\b|\bamong\b|\{b_less\}", text), text


def test_one_thing_may_stand_with_its_own_word() -> None:
    environment, units = WordProblems(1, level=1), dict[str, tuple[str, ...]]()
    for index in range(600):
        if (found := environment.task(index).units) is not None:
            units[found[0]] = found
    singulars = {
        **{"people": "person", "children": "child", "loaves": "loaf", "lilies": "lily"},
        **{"daisies": "daisy", "cookies": "cookie", "eggs": "egg"},
    }
    for things, one in singulars.items():
        assert whole_number(f"1 {one}", units[things]) == 1


@pytest.mark.parametrize("word", ["more", "times", "less", "fewer", "evenly|equal", "of"])
def test_no_word_tells_the_operation(word: str) -> None:
    environment, operations = WordProblems(7, level=1), Counter[str]()
    for index in range(500):
        task = environment.task(index)
        found = re.findall(r"\d+", re.sub(r"bus \d", "bus", task.question, flags=re.IGNORECASE))
        if task.units is None or len(found) != 2 or not re.search(rf"\b({word})\b", task.question):
            continue
        number, (a, b) = whole_number(task.answer, task.units), map(int, found)
        operations["adds" if number == a + b else "-" if number == abs(a - b) else "*/"] += 1
        operations["grows" if number is not None and number > max(a, b) else "falls"] += 1
    ways = ("grows", "falls") if word != "evenly|equal" else ("falls",)
    assert all(operations[way] >= 3 for way in ways), operations


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("9:05", "09:05"),
        ("**21:30**.", "21:30"),
        ("9:30 pm", "21:30"),
        ("12:10 a.m.", "00:10"),
        ("24:00", None),
        ("13:00 pm", None),
        ("9.30", None),
        ("9:30 or 9:31", None),
    ],
)
def test_a_time_is_read(text: str, time: str | None) -> None:
    assert read_time(text) == time


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("word_problems:6", "level is 6, it must be from 1 to 5"),
        (
            "word_problems:x",
            r"word_problems:x is no environment, it must be word_problems\[:LEVEL\]",
        ),
        ("word_problems:" + "9" * 5000, "is no environment"),
    ],
)
def test_a_level_that_there_is_not_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_environment(name, seed=0)
