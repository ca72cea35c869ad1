"""Values as they stand in databases and answers: amounts such as 12.50, dates such as 2026-03-14.

Amounts are texts, so that none is ever rounded.
"""

import datetime
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

_AMOUNT: Final = re.compile(r"(0|[1-9][0-9]{0,5})\.([0-9]{2})", re.ASCII)
MAX_CHARACTERS: Final = 4000
"""Longest answer that tells something"""
_BEFORE: Final = r"(?<!\w)(?<!\d[.,:\-])"
_AFTER: Final = r"(?![\w:]|[.,\-]\d)"


@dataclass(frozen=True, slots=True)
class _Kind:
    """Values that look alike, so that one can be guessed among them."""

    pattern: str
    max_others: int
    """Different values that answers may have besides those that are asked for"""


_KINDS: Final = (
    _Kind(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", 3),
    _Kind(r"[0-9]{2}:[0-9]{2}", 3),
    _Kind(r"[0-9]+\.[0-9]{2}", 3),
    _Kind(r"[0-9]+", 2),
)


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


def are_told(
    values: Collection[str],
    answers: Sequence[str],
    *,
    shown: Sequence[str],
    named: Sequence[str],
    level: int,
) -> bool:
    """Return whether answers tell all values, and are no lists of guesses. An answer that is too
    long tells nothing.

    shown  results of calls
    named  what the user and the system say: its values are no guesses
    level  the higher it is, the more values that were shown may be told besides
    """
    said = "\n".join(one for one in answers if len(one) <= MAX_CHARACTERS)
    if not all(has_value(said, value) for value in values):
        return False
    for kind in _KINDS:
        told = [value for value in values if _kind_of(value) is kind]
        if told:
            found = _values_in([said], kind) - _values_in(named, kind)
            if len(found - _values_in(shown, kind)) > kind.max_others:
                return False
            if len(found) > len(told) + kind.max_others * level:
                return False
    return True


def has_value(text: str, value: str) -> bool:
    """Return whether a text has a value in it as a word or number of its own."""
    return re.search(_BEFORE + re.escape(value) + _AFTER, text, re.IGNORECASE) is not None


def names(text: str, key: str) -> bool:
    """Return whether a text has an id or an amount in it, a colon or a mark of Markdown behind it
    or not."""
    pattern = rf"(?<![^\W_]){re.escape(key)}(?![^\W_])"
    return re.search(pattern, text, re.IGNORECASE) is not None


def _kind_of(value: str) -> _Kind:
    return next(kind for kind in _KINDS if re.fullmatch(kind.pattern, value))


def _values_in(texts: Sequence[str], kind: _Kind) -> set[str]:
    pattern = re.compile(_BEFORE + kind.pattern + _AFTER)
    return {value for text in texts for value in pattern.findall(text)}
