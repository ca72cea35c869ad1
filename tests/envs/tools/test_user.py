"""A scripted user answers what is asked, goes on with the script, and comes to an end; values are
told by answers that say them."""

from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.envs.tools.domain import Fact
from fulmen.envs.tools.user import User
from fulmen.envs.tools.values import cents, money, tells
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
        (" ".join(map(str, range(16))), "3", False),
        ("3" + " " * 4000, "3", False),
    ],
)
def test_a_value_is_told_as_a_number_of_its_own(text: str, value: str, is_told: bool) -> None:
    assert tells(text, value) is is_told


@given(st.integers(0, 10**7))
def test_amounts_are_read_as_they_are_written(number: int) -> None:
    if number < 10**8:
        assert cents(money(number)) == number


@pytest.mark.parametrize("text", ["", "1", "1.5", "1.505", "-1.50", "01.50", "1e2", "\u0661.50"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"an amount must be written as 12\.50"):
        cents(text)
