"""The answer after `Answer:`, however bold it is."""

import time

import pytest

from fulmen.envs import Task, load_environment
from fulmen.envs.marked import marked_answer
from tests.envs.played import by_hand, says

REPLIES = (
    "Answer: {}",
    "So it is.\n\nAnswer: {}.",
    "Answer: **{}**",
    "Answer: **{}**.",
    "Answer: **{}.**",
    "Answer: `{}`.",
    "Answer: _{}_.",
    "**Answer:** {}",
    "**Answer**: **{}**.",
    "**Answer: {}**",
    "**Answer: {}**.",
    "***Answer: {}***",
    "**Answer:\n{}**",
    "__Answer:__ {}",
    "* **Answer:** {}",
    "> Answer:\n\n**{}**.",
    "## Answer: {}",
    "Answer: 1\n\nNo.\nAnswer:{}",
    "Answer:\n```\n{}\n```",
    "Answer:\n~~~\n{}\n~~~",
)
NAMES = (
    *("boolean_expressions:1", "object_counting:1", "web_of_lies:3", "game_of_24:1"),
    *("word_sorting:1", "cipher:1", "dyck_language:2", "time_sequence:1", "cryptarithm:1"),
)


def value_of(task: Task, text: str) -> float:
    return by_hand(task, [says(text)]).value


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("name", [*(f"logic:{name}" for name in NAMES), "word_problems:1"])
def test_a_right_answer_may_be_bold(name: str, reply: str) -> None:
    environment = load_environment(name, seed=5)
    for index in range(8):
        task = environment.task(index)
        (known,) = task.known_answers
        text = reply.format(known.content.removeprefix("Answer:").strip())
        assert value_of(task, text) == 1, text


@pytest.mark.parametrize(
    "text", ["**9**", "Answer", "Answer:", "Answer: ****", "The answer: 9", "Answer:\n\n**\n"]
)
def test_without_a_mark_or_anything_after_it_there_is_no_answer(text: str) -> None:
    assert marked_answer(text) is None


def test_quotes_around_true_and_false_do_not_count() -> None:
    task = load_environment("logic:boolean_expressions:1", seed=5).task(0)
    (known,) = task.known_answers
    word = known.content.removeprefix("Answer: ")
    for right in (f'"{word}"', f"'{word}.'", word.upper(), f"**\u201c{word}\u201d**."):
        assert value_of(task, f"Answer: {right}") == 1, right
    for wrong in (f"{word} {word}", f"not {word}", f"{word} or False", ""):
        assert value_of(task, f"Answer: {wrong}") == 0, wrong


@pytest.mark.parametrize(
    "piece",
    ["*", "_", "**answer", "answer", "answer:", "*answer*:", "> ", "\n", "#" * 19 + "\n", "* "],
)
def test_a_long_reply_is_read_soon(piece: str) -> None:
    begin = time.process_time()
    for text in (piece * (1_000_000 // len(piece)), "Answer:" + piece * (15_000 // len(piece))):
        marked_answer(text)
        marked_answer(f"{text}.")
    assert time.process_time() - begin < 1
