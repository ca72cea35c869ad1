"""A scripted user answers what is asked, goes on with the script, and comes to an end; values are
told by answers that say them."""

from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.envs.tools.domain import Fact
from fulmen.envs.tools.user import User
from fulmen.envs.tools.values import are_told, cents, has_value, money, names
from tests.examples import examples

PIN = Fact(r"\bPIN\b", "It is 1234.")
NAME = Fact(r"\bname\b", "Mia.")


def test_facts_are_told_when_they_are_asked_for() -> None:
    user = User((PIN, NAME), ("But please!",))
    assert user.answer("Please give me your name and your PIN.") == "It is 1234. Mia."
    assert user.answer("Your PIN is right. I cannot do it.") == "But please!"
    assert user.answer("What was your PIN?") == "It is 1234."
    assert not user.is_over
    assert user.answer("Is there anything else that I can do?") is None
    assert user.is_over


def test_a_question_about_nothing_known_gets_the_first_fact_that_is_left() -> None:
    user = User((PIN, NAME), ())
    assert user.answer("Who are you?") == "It is 1234."
    assert user.answer("Wer sind Sie?") == "Mia."
    assert user.answer("Wer sind Sie?") is None


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.text() | st.just("Your PIN, please?"), min_size=7, max_size=7))
def test_every_script_ends(answers: list[str]) -> None:
    user = User((PIN, NAME), ("One.", "Two."))
    said = list(takewhile(bool, map(user.answer, answers)))
    assert user.is_over
    assert len(said) <= 6
    assert [one for one in said if one in ("One.", "Two.")] == ["One.", "Two."]


@pytest.mark.parametrize(
    ("text", "value", "is_told"),
    [
        ("You get 12.50 back.", "12.50", True),
        ("You get $12.50.", "12.50", True),
        ("**12.50**", "12.50", True),
        ("It is 112.50", "12.50", False),
        ("It is 12.505", "12.50", False),
        ("It is 1,12.50", "12.50", False),
        ("On 2026-03-04, I think", "2026-03-04", True),
        ("On 2026-03-041", "2026-03-04", False),
        ("At 09:15:30", "09:15", False),
        ("Place 3.", "3", True),
        ("Place 3.5", "3", False),
        ("Place 13", "3", False),
        ("", "3", False),
    ],
)
def test_a_value_is_told_as_a_number_of_its_own(text: str, value: str, is_told: bool) -> None:
    assert has_value(text, value) is is_told


@pytest.mark.parametrize(
    ("answers", "level", "are_all_told"),
    [
        (["It is 12.50."], 1, True),
        (["8.00 and 4.50 are 12.50", "8.00"], 1, True),
        (["12.50" + " " * 4000], 1, False),
        (["1.00 2.00 3.00 12.50"], 1, True),
        (["12.50 2.00", "1.00 3.00", "4.00"], 1, False),
        (["12.50 1.50 1.75 10.00 0.75 2026-01-02 1 2 3 4 5"], 1, True),
        (["12.50 1.00 2.00 3.00 4.00"], 1, False),
        (["12.50 1.00 2.00 3.00 4.00"], 2, True),
        (["12.50 1.01 2.01 3.01 4.01"], 5, False),
    ],
)
def test_lists_of_guesses_tell_nothing(answers: list[str], level: int, are_all_told: bool) -> None:
    shown = ['{"total": "12.50", "rest": ["8.00", "4.50"]}', "[1.00, 2.00, 3.00, 4.00]"]
    named = ["At most 10.00.", "I paid 0.75."]
    told = are_told(["12.50"], answers, shown=shown, named=named, level=level)
    assert told is are_all_told


def test_a_small_number_is_told_among_two_others_at_most() -> None:
    for text, is_told in (("You have place 4; 3 wait and 0 are free.", True), ("2 3 4 5", False)):
        assert are_told(["4"], [text], shown=['{"place": 4}'], named=[], level=1) is is_told


def test_a_plan_names_ids_with_marks_around_them() -> None:
    assert all(names(text, "S1234") for text in ("S1234: cancel", "_S1234_", "(**s1234**)"))
    assert not any(names(text, "S1234") for text in ("", "S12345", "LS1234"))


@given(st.integers(0, 10**9))
def test_amounts_are_read_as_they_are_written(number: int) -> None:
    if number < 10**8:
        assert cents(money(number)) == number
    else:
        with pytest.raises(ValueError, match="an amount must be written as"):
            cents(money(number))


@pytest.mark.parametrize("text", ["", "1", "1.5", "1.505", "-1.50", "01.50", "1e2", "\u0661.50"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"an amount must be written as 12\.50"):
        cents(text)
