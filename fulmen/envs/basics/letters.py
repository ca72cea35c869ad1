"""copy, spell and reverse: letters by number, so that a letter that comes again is not lost.

Words and strings of letters stand in quotes, or are not to be found in any text, so that a
tokenizer of whole words leaves their letters single.
"""

import re
from collections.abc import Sequence
from random import Random
from string import ascii_lowercase
from typing import Final

from fulmen.envs.basics.question import BasicKind, Question, placed, read_line
from fulmen.envs.logic.reading import bare, items_of
from fulmen.envs.logic.words import WORDS

_COPY: Final = (
    "Copy {text}.",
    "Say {text} again.",
    "Repeat {text}.",
    "Please write {text} once more.",
    "Repeat after me: {text}",
    "Schreibe {text} ab.",
    "Wiederhole {text}.",
)
_SPELL: Final = (
    "Spell {text}.",
    "How do you spell {text}?",
    "Please spell {text}.",
    "Spell the word {text} letter by letter.",
    "Which letters does {text} have?",
    "Buchstabiere {text}.",
    "Wie buchstabiert man {text}?",
)
_REVERSE: Final = (
    "Reverse {text}.",
    "Write {text} backwards.",
    "What is {text} backwards?",
    "Please turn {text} around.",
    "Read {text} from right to left.",
    "Drehe {text} um.",
    "Schreibe {text} rückwärts.",
)
_BETWEEN: Final = re.compile(r"[-, ]+")


def _copy(draw: Random) -> Question:
    if draw.random() < 0.3:
        return _copied_words(draw)
    text = _material(draw, 12)
    return _question(draw, _COPY, text, _numbered(text), text)


def _copied_words(draw: Random) -> Question:
    words = draw.sample([word for word in WORDS if len(word) <= 6], draw.randint(2, 3))
    thought = " ".join(f'{place}"{word}"' for place, word in enumerate(words, start=1))
    answer = " ".join(f'"{word}"' for word in words)
    return Question(draw.choice(_COPY).format(text=answer), thought, answer, read_words)


def _spell(draw: Random) -> Question:
    text = _material(draw, 10)
    asked = draw.choice(_SPELL).format(text=_shown(draw, text))
    return Question(asked, _numbered(text), "-".join(text), _read_letters)


def _reverse(draw: Random) -> Question:
    text = _material(draw, 10)
    there = _numbered(text)
    back = " ".join(f"{i}{text[i - 1]}" for i in range(len(text), 0, -1))
    return _question(draw, _REVERSE, text, f"{there}; {back}", text[::-1])


def _material(draw: Random, longest: int) -> str:
    """Return a word, or as often letters that are none."""
    if draw.random() < 0.5:
        return draw.choice([word for word in WORDS if 3 <= len(word) <= longest])
    return "".join(draw.choices(ascii_lowercase, k=draw.randint(3, longest)))


def _numbered(text: str) -> str:
    return " ".join(f"{place}{letter}" for place, letter in enumerate(text, start=1))


def _question(draw: Random, ways: Sequence[str], text: str, thought: str, answer: str) -> Question:
    asked = draw.choice(ways).format(text=_shown(draw, text))
    return Question(asked, thought, f'"{answer}"', read_line)


def _shown(draw: Random, text: str) -> str:
    """Return a text in quotes, or sometimes without."""
    return text if draw.random() < 0.2 else f'"{text}"'


def _read_letters(reply: str) -> str | None:
    """Return letters that stand apart, with a dash between two of them."""
    letters = _BETWEEN.split(bare(placed(reply) or "").lower())
    return "-".join(letters) if all(len(letter) == 1 for letter in letters) else None


def read_words(reply: str) -> str | None:
    """Return the words of a list, with single spaces."""
    return " ".join(items_of(placed(reply) or "")) or None


LETTERS: Final = (
    BasicKind("copy", _copy),
    BasicKind("spell", _spell),
    BasicKind("reverse", _reverse),
)
