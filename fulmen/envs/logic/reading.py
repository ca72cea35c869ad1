"""Reading of answers: lenient in form, strict in content, and bounded whatever is read.

A verifier cuts an answer to its bare form here, then compares all of it. Nothing is searched for
inside a text: a list of guesses is never right.
"""

import re
from typing import Final

_LONGEST: Final = 2_000
"""Characters of an answer, white space not counted twice; no right answer comes near"""
_AROUND: Final = " \"'`\u201c\u201d\u2018\u2019"
_NUMBER: Final = re.compile(r"([+-]?) ?([0-9]{1,3}(?:,[0-9]{3}){1,8}|[0-9]{1,30})")
_BETWEEN: Final = re.compile(r"[ ,;]+")


def bare(text: str) -> str:
    """Return a text with single spaces, without quotes around it or a full stop at its end. It is
    empty if it is too long to be an answer."""
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        return ""
    return text.strip(_AROUND).removesuffix(".").strip(_AROUND)


def is_word(text: str, word: str) -> bool:
    """Return True if a text is just that word, in any case."""
    return bare(text).lower() == word.lower()


def number_of(text: str) -> int | None:
    """Return the whole number that a text is, with or without commas at thousands; else None."""
    found = _NUMBER.fullmatch(bare(text).replace("\u2212", "-"))
    return found and int(found[1] + found[2].replace(",", ""))


def is_number(text: str, number: int) -> bool:
    """Return True if a text is just that number."""
    return number_of(text) == number


def items_of(text: str) -> list[str]:
    """Return the words or numbers of a list in lower case: between commas, semicolons, white space
    or "and", without quotes and the brackets of the list."""
    items = (bare(item) for item in _BETWEEN.split(bare(text).lower().strip("[](){}")))
    return [item for item in items if item and item != "and"]
