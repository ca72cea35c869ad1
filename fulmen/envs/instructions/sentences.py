"""Words and sentences of a text, without a model of any language."""

import re
from typing import Final

_WORD: Final = re.compile(r"\w+")
_TOKEN: Final = re.compile(r"[^\W_]+(?:[-.&][^\W_]+)*")
_END: Final = re.compile(
    r"[.!?\u3002\uff01\uff1f]+[\"'\u201d\u2019)\]*_]{0,4}(?=\s|\Z)|[\u3002\uff01\uff1f]"
)
_ABBREVIATIONS: Final = (
    *("mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "jr", "sr", "inc", "ltd", "co"),
    *("fig", "approx", "dept", "est", "e.g", "i.e", "u.s", "p.s"),
)
_BEFORE: Final = re.compile(r"[\w.]{1,12}\Z")


def count_words(text: str) -> int:
    """Return the number of words: letters, digits and underscores without anything between."""
    return sum(1 for _ in _WORD.finditer(text))


def count_capital_words(text: str) -> int:
    """Return the number of words in capitals; one with hyphens is one word."""
    return sum(found[0].isupper() for found in _TOKEN.finditer(text))


def count_sentences(text: str) -> int:
    """Return the number of sentences. A point after an abbreviation or one capital letter ends
    none; what stands after the last end is one more."""
    count, end = 0, 0
    for found in _END.finditer(text):
        if found[0].startswith(".") and not found[0].startswith(".."):
            before = _BEFORE.search(text[max(0, found.start() - 12) : found.start()])
            word = before[0] if before else ""
            is_initial = len(word) == 1 and word.isupper() and word != "I"
            if word.lower() in _ABBREVIATIONS or is_initial or not _has_word(text, end, found):
                continue
        count += 1
        end = found.end()
    return count + (_WORD.search(text, end) is not None)


def _has_word(text: str, begin: int, found: re.Match[str]) -> bool:
    """Return True if something that is no bare number of a list stands before an end."""
    return not text[max(begin, found.start() - 12) : found.start()].strip().isdigit()
