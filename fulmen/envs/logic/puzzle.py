"""A puzzle, and a kind of puzzles. Kinds are named as SynLogic (arXiv:2505.19641) names them."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

LEVELS = range(1, 6)
"""Difficulties, from what a small model learns in minutes to what large ones fail at"""


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A question that has a right answer, or several."""

    question: str
    """Rules, the puzzle, and the form of the answer; not yet where the answer stands in a reply"""
    answer: str
    """One right answer, in that form"""
    is_right: Callable[[str], bool]
    """Verifier: it takes every right answer, raises nothing whatever it is given, and needs a time
    that the length of what it is given bounds"""
    has_lines: bool = False
    """True if an answer is several lines"""


@dataclass(frozen=True, slots=True)
class PuzzleKind:
    """Puzzles of one name."""

    name: str
    make: Callable[[Random, int], Puzzle]
    """The puzzle of a random draw and a level; it always ends, and soon"""
    chances: tuple[float, ...] = (0.0,) * len(LEVELS)
    """Bounds, by level, on the probability that one fixed answer is right: 0.5 for yes or no"""
