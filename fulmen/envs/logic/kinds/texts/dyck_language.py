"""dyck_language: the brackets that close a sequence of brackets."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.brackets import PARTNERS, balanced
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import bare

_SIZES: Final = {
    1: (2, 1, 3, 3),
    2: (2, 4, 3, 5),
    3: (3, 9, 4, 7),
    4: (4, 18, 6, 11),
    5: (4, 45, 12, 20),
}
"""Kinds of brackets, closed pairs, and the fewest and most brackets that are open, by level"""
_RULES: Final = """\
Every bracket that opens must be closed by the bracket of its kind: {pairs}. The bracket that \
opened last is closed first. Here is the beginning of a sequence of brackets:

{sequence}

Which brackets must follow, so that all are closed and no more is opened? The answer is those \
brackets alone, in their order, without the beginning. Spaces do not count."""


def _is_right(answer: str, right: str) -> bool:
    return bare(answer).replace(" ", "").replace(",", "") == right


def _make(draw: Random, level: int) -> Puzzle:
    num_kinds, num_pairs, fewest, most = _SIZES[level]
    kinds = list(PARTNERS)[:num_kinds]
    is_open = [draw.choice(kinds) for _ in range(draw.randint(fewest, most))]
    places = [draw.randint(0, len(is_open)) for _ in range(num_pairs)]
    sequence: list[str] = []
    for i in range(len(is_open) + 1):
        sequence += is_open[i - 1 : i] if i else []
        sequence += balanced(draw, places.count(i), kinds)
    answer = [PARTNERS[bracket] for bracket in reversed(is_open)]
    pairs = ", ".join(f"{a} by {PARTNERS[a]}" for a in kinds)
    question = _RULES.format(pairs=pairs, sequence=" ".join(sequence))
    return Puzzle(question, " ".join(answer), partial(_is_right, right="".join(answer)))


DYCK_LANGUAGE: Final = PuzzleKind("dyck_language", _make, chances=(0.125, 0.042, 0.0031, 0.0, 0.0))
