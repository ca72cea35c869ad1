"""Tasks that can be checked: the known answer scores 1, an empty one 0, the same seed the same."""

import asyncio
import json
import re
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fulmen.agent import Answer, Trajectory
from fulmen.chat import Message
from fulmen.envs import (
    Arithmetic,
    Questions,
    RepairTask,
    Task,
    answered,
    final_number,
    load_environment,
)
from fulmen.envs.environments import KINDS as FIRST_WORDS
from fulmen.envs.logic import PuzzleTask
from fulmen.envs.logic.kinds import KINDS
from fulmen.sampling import SamplingParams


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        ("6 + 7 = 13, so 13.", 13),
        ("The answer is 12 + 7 = 19. To check: 19 - 7 = 12.", 19),
        ("#### 42\nThat was question 9.", 42),
        (r"so \boxed{-1,234.50} of 3", Fraction("-1234.5")),
        ("Answer: $3,000", 3000),
        ("12-7", 7),
        ("x = -7", -7),
        ("The answer is clear. It is 5", 5),
        ("#### 1\n#### 2", 2),
        ("1,2", 2),
        ("\u22123", -3),
        ("none", None),
        ("", None),
    ],
)
def test_a_text_ends_up_with_a_number(text: str, number: Fraction | int | None) -> None:
    assert final_number(text) == number


@given(st.text() | st.from_regex(r"#### -?[0-9,\u0660-\u0669]{0,5000}(\.[0-9]{0,5000})?"))
@example("#### " + "9" * 5000)
@example("9" * 5000 + "." + "9" * 5000)
@example("\u0664\u0662")
@settings(deadline=None)
def test_any_reply_is_a_number_or_none(text: str) -> None:
    assert isinstance(final_number(text), Fraction | None)


@pytest.mark.parametrize(
    "name",
    ["arithmetic:0x1", "arithmetic:1x0", "arithmetic:1001x1", "arithmetic:" + "9" * 30 + "x1"],
)
def test_absurd_stories_are_one_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=r"it must be ") as refusal:
        load_environment(name, seed=0)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "kinds", "level"),
    [
        ("logic", len(KINDS), 1),
        ("logic:2", len(KINDS), 2),
        ("logic:sudoku", 1, 1),
        ("logic:sudoku:3", 1, 3),
    ],
)
def test_puzzles_have_a_kind_a_level_or_both(name: str, kinds: int, level: int) -> None:
    environment = load_environment(name, seed=0)
    tasks = [environment.task(index) for index in range(len(KINDS))]
    assert all(isinstance(task, PuzzleTask) for task in tasks)
    assert len({task.kind for task in tasks}) == kinds  # type: ignore[attr-defined]
    assert tasks[0].level == level  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words", ["logic:sudoku:\u0663", "logic:sudoku:2:3", "logic:2:sudoku", "word_problems:\u0663"]
)
def test_levels_are_digits_of_a_keyboard(words: str) -> None:
    with pytest.raises(ValueError, match="is no environment, it must be "):
        load_environment(words, seed=0)


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic:1x9", "arithmetic:7x3"])
def test_the_known_answer_scores_one_and_an_empty_one_nothing(name: str) -> None:
    environment = load_environment(name, seed=4)
    for index in range(200):
        task = environment.task(index)
        (message,) = task.messages
        story = message.content
        numbers = [int(found) for found in re.findall(r"\d+", story)]
        signs = [-1 if word in ("gives", "loses", "sells") else 1 for word in _verbs(story)]
        known = numbers[0] + sum(s * n for s, n in zip(signs, numbers[1:], strict=True))
        assert known > 0
        assert scored(task, f"It is {known}.") == (1, str(known))
        assert scored(task, "") == (0, None)
        assert scored(task, "", thinking=f"{known}") == (0, None)
        assert scored(task, f"It is {known + 1}.") == (0, str(known + 1))
        assert asyncio.run(task.score(Trajectory())).value == 0


def scored(task: Task, content: str, thinking: str = "") -> tuple[float, str | None]:
    """Return score and answer of a reply."""
    message = Message("assistant", content, thinking=thinking)
    answer = Answer(message=message, finish_reason="stop", params=SamplingParams())
    trajectory = answered(task.messages, answer)
    assert trajectory.messages == [*task.messages, message]
    return asyncio.run(task.score(trajectory)).value, task.answer_of(trajectory)


def _verbs(story: str) -> list[str]:
    return re.findall(r"\b(buys|finds|is given|gives|loses|sells)\b", story)


def test_a_seed_gives_the_same_tasks_and_another_one_others() -> None:
    first, same, other = Arithmetic(1), Arithmetic(1), Arithmetic(2)
    tasks = [first.task(index) for index in range(50)]
    assert tasks == [same.task(index) for index in range(50)]
    assert len({task.question for task in tasks}) > 45
    assert sum(first.task(i) == other.task(i) for i in range(50)) < 5


def test_questions_come_from_a_file_as_gsm8k_has_them(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    lines = [
        {"question": "How many?", "answer": "He had 3 + 4 = <<3+4=7>>7.\n#### 7"},
        {"question": "And now?", "answer": 2.5},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    environment = load_environment(str(file), seed=0)
    assert environment.num_tasks == 2
    assert environment.task(0).messages[0].content == "How many?"
    assert scored(environment.task(0), "7 of them") == (1, "7")
    assert scored(environment.task(1), "2.50") == (1, "5/2")
    with pytest.raises(ValueError, match=r"task 2 was asked for, .* has 2"):
        environment.task(2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty, it must have a question a line"),
        ("{", "line 1 is not valid JSON"),
        ("[1]", "line 1 must hold a JSON object"),
        ('{"question": "a?", "answer": 1}\n{"question": 1}', "line 2 must be an object"),
        ('{"question": "a?"}', "line 1 has the answer None"),
        ('{"question": "a?", "answer": true}', "line 1 has the answer True"),
        ('{"question": "a?", "answer": "blue"}', "must have a number in it"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        Questions(file)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(
        ValueError,
        match="nowhere is no environment, it must be a JSONL or Parquet file or one of: arithmetic",
    ):
        load_environment("nowhere", seed=0)
    with pytest.raises(ValueError, match="num_steps is 0, it must be 1 or more"):
        load_environment("arithmetic:0x5", seed=0)
    with pytest.raises(ValueError, match="level is 6, it must be from 1 to 5"):
        load_environment("repairs:6", seed=0)
    with pytest.raises(
        ValueError, match=r"repairs:3:all is no environment, it must be repairs\[:LEVEL\]"
    ):
        load_environment("repairs:3:all", seed=0)


@pytest.mark.parametrize("first", ["", "x", *(f"{word}:" for word in FIRST_WORDS)])
def test_a_name_that_no_file_can_have_is_one_sentence(first: str) -> None:
    for words in ("9" * 5000, "a" * 5000, "a/" * 3000, "a\0b", "\ud800", "9" * 5000 + "x9"):
        with pytest.raises(ValueError, match=r"must be|needed") as caught:
            load_environment(f"{first}{words}", seed=0)
        assert type(caught.value) is ValueError
        assert len(str(caught.value)) < 1000
        assert str(caught.value).isprintable()


def test_repairs_take_a_level_and_a_profile_of_tools() -> None:
    for name, level, profile in (
        ("repairs", 1, "coding"),
        ("repairs:2", 2, "coding"),
        ("repairs:minimal", 1, "minimal"),
        ("repairs:2:minimal", 2, "minimal"),
        ("repairs:2:coding", 2, "coding"),
    ):
        task = load_environment(name, seed=9).task(0)
        assert isinstance(task, RepairTask)
        assert (task.level, task.profile) == (level, profile)
        plain = load_environment(f"repairs:{level}", seed=9).task(0)
        assert isinstance(plain, RepairTask)
        assert task.files == plain.files


@pytest.mark.parametrize(("num_steps", "largest"), [(1, 9), (2, 9), (1, 100), (2, 300), (3, 300)])
def test_no_number_answers_stories_more_often_than_the_environment_says(
    num_steps: int, largest: int
) -> None:
    environment = Arithmetic(0, num_steps=num_steps, largest=largest)
    counts = Counter(environment.task(index).number for index in range(2000))
    expected = environment.chance * 2000
    assert max(counts.values()) <= expected + 2 * expected**0.5
    assert max(counts.values()) >= expected / 5


def test_the_bound_for_stories_is_that_of_all_their_numbers() -> None:
    """The probability of each number, followed through the steps, is what the bound must hold."""
    for largest, num_steps in product((1, 2, 3, 9, 100, 300), (1, 2, 3)):
        environment = Arithmetic(0, num_steps=num_steps, largest=largest)
        assert max(_chances(largest, num_steps).values()) <= environment.chance


def _chances(largest: int, num_steps: int) -> dict[int, float]:
    chances = dict.fromkeys(range(1, largest + 1), 1 / largest)
    for step in range(num_steps):
        is_last, after = step == num_steps - 1, defaultdict[int, float](float)
        for have, chance in chances.items():
            share = chance / 2 if have > 1 + is_last else 0.0
            most = min(have - 1, largest)
            for number in range(1, most + 1) if share else ():
                after[have - number + (is_last and have == 2 * number)] += share / most
            for number in range(1, largest + 1):
                after[have + number] += (chance - share) / largest
        chances = after
    return chances
