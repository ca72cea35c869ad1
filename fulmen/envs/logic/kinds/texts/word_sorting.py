"""word_sorting: words in the order of an alphabet."""

import string
from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import items_of
from fulmen.envs.logic.words import WORDS

_NUM_WORDS: Final = {1: 3, 2: 6, 3: 12, 4: 16, 5: 28}
_FORM: Final = """\
If one word is the beginning of another one, the shorter word {place}.

{words}

The answer is all the words in their new order, with commas between them."""


def _is_right(answer: str, words: list[str]) -> bool:
    return items_of(answer) == words


def _words(draw: Random, level: int) -> list[str]:
    """Return words: on level 1 with different first letters, later many that begin alike."""
    size = _NUM_WORDS[level]
    if level == 1:
        letters = draw.sample(sorted({word[0] for word in WORDS}), size)
        return [draw.choice([word for word in WORDS if word[0] == letter]) for letter in letters]
    if level == 2:
        return draw.sample(WORDS, size)
    letters = draw.sample("bcfghlmprstw", 4)
    return draw.sample([word for word in WORDS if word[0] in letters], size)


def _make(draw: Random, level: int) -> Puzzle:
    words = _words(draw, level)
    alphabet = string.ascii_lowercase
    order, place = "Sort these words by the alphabet, from A to Z.", "comes first"
    is_reversed = level == 3 and draw.random() < 0.5
    if is_reversed:
        order, place = "Sort these words against the alphabet, from Z to A.", "comes last"
    elif level == 4:
        first = "".join(draw.sample(alphabet, 6))
        alphabet = first + "".join(letter for letter in alphabet if letter not in first)
        order = (
            f"Sort these words by an alphabet that begins with {', '.join(first)}. All other "
            "letters follow in their usual order."
        )
    elif level == 5:
        alphabet = "".join(draw.sample(alphabet, 26))
        order = f"Sort these words by this alphabet: {', '.join(alphabet)}."
    rank = {letter: place for place, letter in enumerate(alphabet)}
    right = sorted(words, key=lambda word: [rank[c] for c in word], reverse=is_reversed)
    question = f"{order} {_FORM.format(place=place, words=', '.join(words))}"
    return Puzzle(question, ", ".join(right), partial(_is_right, words=right))


WORD_SORTING: Final = PuzzleKind("word_sorting", _make)
