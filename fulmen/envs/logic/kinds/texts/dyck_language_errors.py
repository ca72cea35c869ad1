"""dyck_language_errors: the first bracket of a sequence that cannot be right."""

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.brackets import PARTNERS, balanced
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import is_number, is_word

_SIZES: Final = {1: (2, 4), 2: (2, 7), 3: (3, 12), 4: (4, 24), 5: (4, 60)}
"""Kinds of brackets and pairs of them, by level"""
_NO_ERROR: Final = 0.15
"""Probability that the sequence is right"""
_RULES: Final = """\
Every bracket that opens must be closed by the bracket of its kind: {pairs}. The bracket that \
opened last is closed first. Here is a sequence of {length} brackets:

{sequence}

At which position is its first error? A bracket is an error if it closes nothing, or if it is not \
of the kind that must be closed first. If there is no such bracket but some are still open at the \
end, the error is at position {end}, right after the end. The answer is the position as a number, \
or the word none if all is right. Positions count from 1, not from 0."""


def _first_error(sequence: Sequence[str]) -> int | None:
    is_open: list[str] = []
    for position, bracket in enumerate(sequence, start=1):
        if bracket in PARTNERS:
            is_open.append(bracket)
        elif not is_open or PARTNERS[is_open.pop()] != bracket:
            return position
    return len(sequence) + 1 if is_open else None


def _break(draw: Random, sequence: list[str], kinds: Sequence[str]) -> None:
    """Change one bracket, take one away or add one, at a place of the sequence."""
    place = draw.randrange(len(sequence))
    change = draw.choice(("change", "change", "take", "add"))
    if change == "take":
        del sequence[place]
    elif change == "add":
        sequence.insert(place, draw.choice([*kinds, *(PARTNERS[kind] for kind in kinds)]))
    else:
        alike = kinds if sequence[place] in PARTNERS else [PARTNERS[kind] for kind in kinds]
        sequence[place] = draw.choice([one for one in alike if one != sequence[place]])


def _make(draw: Random, level: int) -> Puzzle:
    num_kinds, num_pairs = _SIZES[level]
    kinds = list(PARTNERS)[:num_kinds]
    sequence = balanced(draw, draw.randint(num_pairs // 2 + 1, num_pairs), kinds)
    if draw.random() >= _NO_ERROR:
        _break(draw, sequence, kinds)
    question = _RULES.format(
        pairs=", ".join(f"{a} by {PARTNERS[a]}" for a in kinds),
        length=len(sequence),
        sequence=" ".join(sequence),
        end=len(sequence) + 1,
    )
    error = _first_error(sequence)
    if error is None:
        return Puzzle(question, "none", partial(is_word, word="none"))
    return Puzzle(question, str(error), partial(is_number, number=error))


DYCK_LANGUAGE_ERRORS: Final = PuzzleKind(
    "dyck_language_errors", _make, chances=(0.2, 0.17, 0.17, 0.17, 0.18)
)
