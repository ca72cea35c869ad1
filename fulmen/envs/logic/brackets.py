"""Sequences of brackets."""

from collections.abc import Sequence
from random import Random
from typing import Final

PARTNERS: Final = {"(": ")", "[": "]", "{": "}", "<": ">"}
"""Closing bracket of each opening one"""


def balanced(draw: Random, num_pairs: int, opening: Sequence[str]) -> list[str]:
    """Return a sequence in which every bracket of so many pairs is closed in the right order."""
    sequence: list[str] = []
    is_open: list[str] = []
    while num_pairs or is_open:
        if num_pairs and (not is_open or draw.random() < 0.55):
            is_open.append(draw.choice(opening))
            sequence.append(is_open[-1])
            num_pairs -= 1
        else:
            sequence.append(PARTNERS[is_open.pop()])
    return sequence
