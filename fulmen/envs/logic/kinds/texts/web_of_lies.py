"""web_of_lies: who tells the truth, from what people say of each other.

Truth is 1 and a lie 0, so every sentence is an equation of sums modulo 2. At the lower levels one
person speaks of the next; at the higher ones people speak of two others, and facts are added until
the equations have just one solution.
"""

from functools import partial
from itertools import pairwise
from random import Random
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import items_of
from fulmen.envs.logic.words import PEOPLE

_SIZES: Final = {1: (2, 1), 2: (4, 1), 3: (8, 1), 4: (7, 3), 5: (16, 5)}
"""People, and how many of them are asked about, by level"""
_RULES: Final = """\
Everyone here either always tells the truth or always lies.

{sentences}

{asked}"""


def _verdict(is_true: bool) -> str:
    return "tells the truth" if is_true else "lies"


def _chain(draw: Random, truth: dict[str, bool]) -> list[str]:
    """Return sentences: the first person's truth, then what each says of the one before."""
    people = list(truth)
    sentences = [f"{people[0]} {_verdict(truth[people[0]])}."]
    for before, one in pairwise(people):
        sentences.append(f"{one} says that {before} {_verdict(truth[before] == truth[one])}.")
    return sentences


def _web(draw: Random, truth: dict[str, bool]) -> list[str]:
    """Return what everyone says of one or two others, and the facts that this leaves open."""
    people = list(truth)
    sentences, reduced = [], dict[int, int]()  # rows of the equations by their highest bit
    for place, one in enumerate(people):
        others = draw.sample([i for i in range(len(people)) if i != place], 2)
        first, second = (people[i] for i in others)
        if draw.random() < 0.7:
            are_alike = (truth[first] == truth[second]) == truth[one]
            kind = "of the same kind" if are_alike else "of different kinds"
            sentences.append(f"{one} says that {first} and {second} are {kind}.")
        else:
            others.pop()
            sentences.append(f"{one} says that {first} {_verdict(truth[first] == truth[one])}.")
        _reduce(sum(1 << i for i in (place, *others)), reduced)
    for place, one in enumerate(people):
        if _reduce(1 << place, reduced):
            sentences.append(f"{one} {_verdict(truth[one])}.")
    return sentences


def _reduce(row: int, reduced: dict[int, int]) -> bool:
    """Add the row of an equation; return False if it follows from the others."""
    while row:
        highest = row.bit_length()
        if highest not in reduced:
            reduced[highest] = row
            return True
        row ^= reduced[highest]
    return False


def _is_right(answer: str, right: list[str]) -> bool:
    return items_of(answer) == right


def _make(draw: Random, level: int) -> Puzzle:
    size, num_asked = _SIZES[level]
    truth = {name: draw.random() < 0.5 for name in draw.sample(PEOPLE, size)}
    sentences = _chain(draw, truth) if level < 4 else _web(draw, truth)
    about = list(truth)[-1:] if level < 4 else draw.sample(list(truth), num_asked)
    if level == 3:
        draw.shuffle(sentences)
    if num_asked == 1:
        asked = f"Does {about[0]} tell the truth? The answer is yes or no."
    else:
        asked = (
            "Two people are of the same kind if both tell the truth or both lie. Do these people "
            f"tell the truth: {', '.join(about)}? The answer is yes or no for each of them, in "
            "this order, with commas between."
        )
    right = ["yes" if truth[name] else "no" for name in about]
    question = _RULES.format(sentences=" ".join(sentences), asked=asked)
    return Puzzle(question, ", ".join(right), partial(_is_right, right=right))


WEB_OF_LIES: Final = PuzzleKind("web_of_lies", _make, chances=(0.5, 0.5, 0.5, 0.125, 0.032))
