"""Right numbers are taken in every promised spelling, and wrong ones in none."""

import asyncio
import json
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent import Answer
from fulmen.chat import Message
from fulmen.envs import Arithmetic, Questions, Task, WordProblems, answered, final_number
from fulmen.envs.number import written_number
from fulmen.envs.spelling import whole_number
from fulmen.envs.words.environment import WordTask
from fulmen.sampling import SamplingParams
from tests.envs.spellings import MINUS, in_reply, other_than, spelled
from tests.examples import examples

SEEDS = st.integers(0, 2**63)


def value_of(task: Task, content: str, thinking: str = "") -> float:
    """Return the score of a reply."""
    message = Message("assistant", content, thinking=thinking)
    answer = Answer(message=message, finish_reason="stop", params=SamplingParams())
    return asyncio.run(task.score(answered(task.messages, answer))).value


def drawn_number(draw: Random) -> Fraction:
    """Return a number of any of the kinds that answers are."""
    places = draw.choice((0, 0, 1, 2, 4))
    if draw.random() < 0.2:
        return Fraction(draw.randint(-200, 200), draw.randint(2, 60))
    return Fraction(draw.randint(-(10 ** draw.randint(1, 9)), 10**9), 10**places)


@given(SEEDS)
@settings(max_examples=examples(2000), deadline=None)
def test_replies_with_a_right_number_are_taken_and_others_are_not(seed: int) -> None:
    draw = Random(seed)
    task, number = question(draw)
    wrong = other_than(draw, number)
    right_reply, wrong_reply = in_reply(draw, number), in_reply(draw, wrong)
    assert value_of(task, right_reply) == 1, (number, right_reply)
    assert value_of(task, wrong_reply) == 0, (number, wrong_reply)
    assert value_of(task, "", thinking=right_reply) == 0
    assert value_of(task, wrong_reply, thinking=right_reply) == 0


def question(draw: Random) -> tuple[Task, Fraction]:
    """Return a question of one of the kinds whose last number counts, and its number."""
    if draw.random() < 0.3:
        made = Arithmetic(draw.randrange(1000), num_steps=draw.randint(1, 5), largest=10**6)
        task = made.task(draw.randrange(1000))
        return task, task.number
    number = drawn_number(draw)
    given: object = written_number(number)
    if draw.random() < 0.5:
        given = f"He had 3 + 4 = <<3+4=7>>7.\n#### {given}"
    elif abs(number) < 10**6 and number.denominator == 1:
        given = draw.choice((number.numerator, float(number)))
    FILE.write_text(json.dumps({"question": "How many?", "answer": given}))
    return Questions(FILE).task(0), number


FILE = Path()


@pytest.fixture(autouse=True, scope="module")
def _file(tmp_path_factory: pytest.TempPathFactory) -> None:
    global FILE
    FILE = tmp_path_factory.mktemp("numbers") / "questions.jsonl"


@given(SEEDS)
@settings(max_examples=examples(2000), deadline=None)
def test_word_problems_take_their_answer_in_its_place_alone(seed: int) -> None:
    draw = Random(seed)
    task = WordProblems(draw.randrange(1000)).task(draw.randrange(1000))
    given = right_and_wrong(draw, task)
    frame = draw.choice(
        ("Answer: {}", "3 + 4 = 7\n**Answer:** {}", "answer: **{}**.", "Answer: 1\nNo.\nAnswer: {}")
    )
    right, wrong = (frame.format(one) for one in given)
    assert value_of(task, right) == 1, (task.answer, right)
    assert value_of(task, wrong) == 0, (task.answer, wrong)
    assert value_of(task, f"It is {given[0]}.") == 0
    assert value_of(task, "", thinking=right) == 0
    assert value_of(task, f"{right}, or {given[1]}") == 0
    assert value_of(task, f"{right} elephants") == 0


def right_and_wrong(draw: Random, task: WordTask) -> tuple[str, str]:
    """Return an answer of a task in a promised spelling, and another one in such a spelling."""
    if task.units is None:
        hour, minute = map(int, task.answer.split(":"))
        other = (hour, (minute + draw.randint(1, 59)) % 60)
        if draw.random() < 0.5:
            other = ((hour + draw.randint(1, 23)) % 24, minute)
        return time_said(draw, hour, minute), time_said(draw, *other)
    number = whole_number(task.answer, task.units)
    assert number is not None
    return number_said(draw, number, task.units), number_said(
        draw, other_than(draw, number), task.units
    )


def time_said(draw: Random, hour: int, minute: int) -> str:
    ways = [f"{hour:02}:{minute:02}", f"{hour}:{minute:02}", f"{hour:02}:{minute:02}."]
    half = "am" if hour < 12 else "pm"
    ways += [f"{(hour - 1) % 12 + 1}:{minute:02} {half}"]
    return draw.choice(ways)


def number_said(draw: Random, number: Fraction, units: tuple[str, ...]) -> str:
    said = spelled(draw, number)
    if draw.random() < 0.2 and said[0] not in (*MINUS, "+"):
        said = rf"$\boxed{{{said}}}$"
    elif "$" in units and said[0].isdecimal() and draw.random() < 0.5:
        return f"${said}"
    elif draw.random() < 0.5:
        return f"{said} {draw.choice([unit for unit in units if unit != '$'])}"
    return said


TEXTS: dict[str, Fraction | int | None] = {
    r"\boxed{\frac{3}{4}}": Fraction(3, 4),
    r"$-\dfrac12$": Fraction(-1, 2),
    "2 1/2": Fraction(5, 2),
    "1½ cups": Fraction(3, 2),
    "1.5e3": 1500,
    r"1.5 \times 10^{-3}": Fraction(3, 2000),
    "10⁶": 10**6,
    "12 km2": 12,
    "12 m^2": 12,
    "12,34,567": 1234567,
    "-$5": -5,
    "Rs.500": 500,
    "3\u20135": 5,
    "3/4/2024": 2024,
    "H2O": None,
    "1/0": None,
    "5e9999": None,
    "9" * 1500: None,
    "2^5": 32,
    r"\boxed{\text{5 apples}}": 5,
    r"\boxed{12 + 7 = 19}. Check: 19 - 7 = 12": 19,
    "Answer:\n\n\\[\n42\n\\]\nas on page 3": 42,
    "25\\%": 25,
    "#### Step 1\n20 + 20 = 40\n#### Step 2\n40 + 2 = 42": 42,
    "#### 1. Add\n20 + 20 = 40\n#### 2. Add more\n40 + 2 = 42": 42,
    "####42 apples of 50\nThey have 3 colours.": 50,
    "0.25%": Fraction(1, 4),
}


@pytest.mark.parametrize(("text", "number"), TEXTS.items())
def test_a_spelling_is_this_number(text: str, number: Fraction | int | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12 apples", 12),
        ("**12 Apples**.", 12),
        (r"$\boxed{12\text{ apples}}$", 12),
        ("12 pears", None),
        ("$12", None),
        ("12, 13", None),
        ("7 + 5", None),
        ("twelve", None),
        ("12 apples 12", None),
        ("x = 12", None),
    ],
)
def test_a_whole_answer_is_a_number_with_a_unit_or_none(text: str, number: int | None) -> None:
    assert whole_number(text, ("apples",)) == number


@given(st.text() | st.text("0123456789.,/^{}\\frac$-+e½¹ \n#:answer", max_size=300))
@settings(max_examples=examples(1000), deadline=None)
def test_any_text_is_a_number_or_none(text: str) -> None:
    assert isinstance(final_number(text), Fraction | None)
    assert isinstance(whole_number(text, ("km",)), Fraction | None)


@pytest.mark.parametrize("read", [final_number, whole_number])
@pytest.mark.parametrize(
    "piece",
    [
        *("1,234", "1,11,", "answer: ", "\\boxed{", "\\frac{", "1/", "9", "9.", "1 ", "$", "-"),
        *("1/1 ", "²", "1\\frac{1}", "1e400 ", "٤", "2^3000 ", "\\text{", "####"),
    ],
)
def test_a_long_text_is_read_soon(read: Callable[[str], Fraction | None], piece: str) -> None:
    begin = time.process_time()
    read(piece * (1_000_000 // len(piece)))
    assert time.process_time() - begin < 10  # a quadratic reader takes minutes


@given(st.fractions())
@settings(max_examples=examples(500), deadline=None)
def test_a_written_number_is_read_as_it_was(number: Fraction) -> None:
    assert final_number(f"The answer is {written_number(number)}.") == number
