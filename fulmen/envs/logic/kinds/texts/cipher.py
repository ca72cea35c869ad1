"""cipher: a text encoded by stated rules, or the text that such rules have encoded."""

from collections.abc import Callable
from functools import partial
from random import Random
from string import ascii_uppercase
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import bare
from fulmen.envs.logic.words import WORDS

_SIZES: Final = {1: (1, 1), 2: (1, 1), 3: (3, 1), 4: (4, 2), 5: (7, 4)}
"""Words and rules, by level"""
_FORM: Final = (
    "The answer is the {which} text in the letters A to Z. Capitals and small letters are the "
    "same, and spaces do not count."
)

Rule = tuple[str, Callable[[str], str]]
"""A sentence, and what it does to a text of capitals"""


def _moved(text: str, places: Callable[[int], int]) -> str:
    """Return a text whose letters moved on in the alphabet, each as far as its place says."""
    return "".join(
        ascii_uppercase[(ascii_uppercase.index(letter) + places(i)) % 26]
        for i, letter in enumerate(text)
    )


def _shift(draw: Random, most: int = 25) -> Rule:
    number = draw.randint(1, most)
    places = f"{number} places" if number > 1 else "1 place"
    sentence = (
        f"Each letter is replaced by the one that comes {places} after it in the alphabet; A "
        "follows Z."
    )
    return sentence, lambda text: _moved(text, lambda i: number)


def _mirror(draw: Random) -> Rule:
    sentence = "A becomes Z, B becomes Y, C becomes X, and so on to Z, which becomes A."
    return sentence, lambda text: text.translate(
        str.maketrans(ascii_uppercase, ascii_uppercase[::-1])
    )


def _backwards(draw: Random) -> Rule:
    return "The whole text is written backwards.", lambda text: text[::-1]


def _pairs(draw: Random) -> Rule:
    sentence = (
        "The first letter changes places with the second, the third with the fourth, and so on; a "
        "last letter without a partner stays."
    )
    return sentence, lambda text: "".join(text[i : i + 2][::-1] for i in range(0, len(text), 2))


def _table(draw: Random) -> Rule:
    to = "".join(draw.sample(ascii_uppercase, 26))
    pairs = ", ".join(f"{a}-{b}" for a, b in zip(ascii_uppercase, to, strict=True))
    sentence = f"Each letter is replaced by its partner in this table: {pairs}."
    return sentence, lambda text: text.translate(str.maketrans(ascii_uppercase, to))


def _growing(draw: Random) -> Rule:
    first, more = draw.randint(1, 9), draw.randint(1, 9)
    sentence = (
        f"The first letter moves {first} on in the alphabet, and every next letter {more} more "
        "than the one before it; A follows Z, as often as needed."
    )
    return sentence, lambda text: _moved(text, lambda i: first + more * i)


def _key(draw: Random) -> Rule:
    key = draw.choice([word for word in WORDS if 4 <= len(word) <= 6]).upper()
    sentence = (
        f"The key {key} is written below the text again and again, letter below letter. Each "
        "letter moves on in the alphabet by the number of the key's letter below it, where A is 0, "
        "B is 1 and Z is 25; A follows Z."
    )
    return sentence, lambda text: _moved(text, lambda i: ascii_uppercase.index(key[i % len(key)]))


def _columns(draw: Random) -> Rule:
    number = draw.randint(3, 5)
    sentence = (
        f"The text is written in rows of {number} letters, of which the last row may be shorter. "
        "Then it is read column by column, from the left one to the right one, each from top to "
        "bottom."
    )
    return sentence, lambda text: "".join(text[i::number] for i in range(number))


_RULES: Final = {
    1: (partial(_shift, most=3), _backwards),
    2: (_shift, _mirror, _pairs, _backwards),
    3: (_growing, _key, _table, _columns, _pairs),
    4: (_growing, _key, _table, _columns, _shift, _pairs),
    5: (_growing, _key, _table, _columns, _shift, _pairs, _backwards, _mirror),
}
"""Rules that are drawn from, by level"""


def _is_right(answer: str, right: str) -> bool:
    return bare(answer).replace(" ", "").upper() == right


def _make(draw: Random, level: int) -> Puzzle:
    num_words, num_rules = _SIZES[level]
    longest = 5 if level == 1 else 9
    words = [word for word in WORDS if 4 <= len(word) <= longest]
    plain = "".join(draw.sample(words, num_words)).upper()
    rules = [make(draw) for make in draw.sample(_RULES[level], num_rules)]
    code = plain
    for _, apply in rules:
        code = apply(code)
    order, said = "this rule", rules[0][0]
    if num_rules > 1:
        order = "these rules, one after the other in this order"
        said = "\n".join(f"{i}. {sentence}" for i, (sentence, _) in enumerate(rules, start=1))
    if level < 3 and draw.random() < 0.5:
        begin, text, which, right = "Encode this text", plain, "encoded", code
    else:
        begin, text, which, right = "Decode this text, which was encoded", code, "decoded", plain
    form = _FORM.format(which=which)
    question = f"{begin} by {order}:\n\n{said}\n\nText: {text}\n\n{form}"
    return Puzzle(question, right, partial(_is_right, right=right))


CIPHER: Final = PuzzleKind("cipher", _make, chances=(0.01, 0.01, 0.002, 0.0, 0.0))
