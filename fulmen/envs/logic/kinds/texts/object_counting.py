"""object_counting: how many things of a group someone has, after some change hands."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import is_number
from fulmen.envs.logic.words import GROUPS, PEOPLE

_SIZES: Final = {
    1: (1, 3, 0, 1),
    2: (1, 6, 1, 1),
    3: (2, 7, 4, 1),
    4: (3, 9, 9, 2),
    5: (4, 12, 20, 3),
}
"""People, kinds of things each has, changes, and groups that are asked about, by level"""
_LARGEST: Final = {1: 9, 2: 9, 3: 20, 4: 40, 5: 90}
_GROUP_OF: Final = {thing: group for group, things in GROUPS.items() for thing in things.split()}


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _change(draw: Random, has: dict[str, dict[str, int]], largest: int) -> str:
    """Change what people have, and return the sentence that tells it."""
    one = draw.choice(list(has))
    thing = draw.choice(list(has[one]))
    others = [name for name in has if name != one]
    if has[one][thing] < 4 or draw.random() < 0.3:
        number = draw.randint(2, largest)
        has[one][thing] += number
        return f"{one} buys {number} {thing}."
    number = draw.randint(2, has[one][thing] - 1)
    has[one][thing] -= number
    if others and draw.random() < 0.7:
        other = draw.choice(others)
        has[other][thing] = has[other].get(thing, 0) + number
        return f"{one} gives {number} {thing} to {other}."
    return f"{one} loses {number} {thing}."


def _make(draw: Random, level: int) -> Puzzle:
    num_people, num_things, num_changes, num_groups = _SIZES[level]
    people = draw.sample(PEOPLE, num_people)
    asked = draw.sample(list(GROUPS), num_groups)
    has: dict[str, dict[str, int]] = {}
    sentences = []
    for name in people:
        wanted = [thing for thing, group in _GROUP_OF.items() if group in asked]
        others = [thing for thing, group in _GROUP_OF.items() if group not in asked]
        num_wanted = 2 if level == 1 else num_things // 2
        things = draw.sample(wanted, num_wanted) + draw.sample(others, num_things - num_wanted)
        draw.shuffle(things)
        has[name] = {thing: draw.randint(2, _LARGEST[level]) for thing in things}
        sentences.append(f"{name} has {_listed([f'{n} {one}' for one, n in has[name].items()])}.")
    sentences += [_change(draw, has, _LARGEST[level]) for _ in range(num_changes)]
    owner = draw.choice(people)
    right = sum(number for thing, number in has[owner].items() if _GROUP_OF[thing] in asked)
    groups = _listed(asked) + (" together" if num_groups > 1 else "")
    now = " now" if num_changes else ""
    question = (
        f"{' '.join(sentences)}\n\nHow many {groups} does {owner} have{now}? Add up all kinds of "
        "them. The answer is one number."
    )
    return Puzzle(question, str(right), partial(is_number, number=right))


OBJECT_COUNTING: Final = PuzzleKind(
    "object_counting", _make, chances=(0.13, 0.1, 0.05, 0.03, 0.018)
)
