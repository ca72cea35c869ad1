"""Values as they stand in databases and answers: amounts such as 12.50, dates such as 2026-03-14.

Amounts are texts, so that none is ever rounded.
"""

import datetime
import re
from typing import Final

_AMOUNT: Final = re.compile(r"(0|[1-9][0-9]{0,5})\.([0-9]{2})", re.ASCII)
_NUMBER: Final = re.compile(r"\d[\d.,:-]*")
MAX_NUMBERS: Final = 15
"""Different numbers that an answer may have: one with more is a list of guesses"""
MAX_CHARACTERS: Final = 4000
"""Longest answer that tells something"""


def money(cents: int) -> str:
    """Return an amount of cents, 0 or more, as 12.50."""
    return f"{cents // 100}.{cents % 100:02}"


def cents(amount: str) -> int:
    """Return the cents of an amount. Raises ValueError if it is not written as 12.50."""
    found = _AMOUNT.fullmatch(amount)
    if found is None:
        raise ValueError("an amount must be written as 12.50")
    return int(found[1]) * 100 + int(found[2])


def day(date: str, days: int = 0) -> str:
    """Return the date so many days later."""
    return (datetime.date.fromisoformat(date) + datetime.timedelta(days)).isoformat()


def tells(text: str, value: str) -> bool:
    """Return whether an answer has a value in it as a word or number of its own. Nothing is told by
    an answer that is too long, or that lists numbers and numbers."""
    if len(text) > MAX_CHARACTERS or len(set(_NUMBER.findall(text))) > MAX_NUMBERS:
        return False
    return has_value(text, value)


def has_value(text: str, value: str) -> bool:
    """Return whether a text has a value in it as a word or number of its own."""
    pattern = rf"(?<!\w)(?<!\d[.,:\-]){re.escape(value)}(?![\w:]|[.,\-]\d)"
    return re.search(pattern, text, re.IGNORECASE) is not None
