"""object_properties: which things have a property, after some changes."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import items_of
from fulmen.envs.logic.words import COLOURS, OBJECTS

_VALUES: Final = {
    "colour": COLOURS,
    "size": ("tiny", "small", "large", "huge"),
    "material": ("wooden", "metal", "plastic", "glass"),
    "surface": ("smooth", "rough", "striped", "dotted"),
}
_SIZES: Final = {
    1: (3, 1, 2, 0),
    2: (5, 2, 3, 1),
    3: (8, 3, 4, 3),
    4: (12, 4, 4, 8),
    5: (20, 4, 4, 18),
}
"""Things, properties, values of each property, and changes, by level"""
_FEWEST: Final = 3
"""Things that are left, whatever is taken away"""
_RULES: Final = """\
There are these things:
{things}
{changes}
Which things are {asked}{now}? The answer is their names in any order, with commas between them."""
_CHANGES: Final = "\nThen this happens, one after the other:\n{sentences}\n"

Things = dict[str, dict[str, str]]
"""Values by name and property"""


def _change(draw: Random, things: Things, values: dict[str, list[str]]) -> str:
    """Change the things, and return the sentence that tells it."""
    name = draw.choice(list(values))
    old, new = draw.sample(values[name], 2)
    one, other = draw.sample(list(things), 2)
    kind = draw.choice(("all", "all", "swap", "two", "like", "take"))
    matching = [thing for thing, has in things.items() if has[name] == old]
    if kind == "take" and 0 < len(matching) <= len(things) - _FEWEST:
        for thing in matching:
            del things[thing]
        return f"Everything {old} is taken away."
    if kind == "swap":
        has, gets = things[one], things[other]
        has[name], gets[name] = gets[name], has[name]
        return f"The {one} and the {other} exchange their {name}."
    if kind == "two":
        turns = {old: new, new: old}
        for has in things.values():
            has[name] = turns.get(has[name], has[name])
        return (
            f"Everything {old} becomes {new}, and at the same time everything {new} becomes {old}."
        )
    if kind == "like":
        things[one][name] = things[other][name]
        return f"The {one} takes on the {name} of the {other}, which stays as it is."
    for thing in matching:
        things[thing][name] = new
    return f"Everything {old} becomes {new}."


def _asked(draw: Random, things: Things, num_values: int) -> tuple[str, list[str]]:
    """Return words that some of the things are, and those things."""
    words, matching = "", list(things)
    for _ in range(20):
        example = things[draw.choice(list(things))]
        names = draw.sample(list(example), min(num_values, len(example)))
        words = " and ".join(example[name] for name in names)
        matching = [
            thing for thing, has in things.items() if all(has[n] == example[n] for n in names)
        ]
        if len(matching) < len(things):
            break
    return words, matching


def _is_right(answer: str, right: list[str]) -> bool:
    named = [item for item in items_of(answer) if item != "the"]
    return sorted(named) == right


def _make(draw: Random, level: int) -> Puzzle:
    num_things, num_properties, num_values, num_changes = _SIZES[level]
    names = draw.sample(list(_VALUES), num_properties) if level > 1 else ["colour"]
    values = {name: draw.sample(_VALUES[name], num_values) for name in names}
    things = {
        thing: {name: draw.choice(values[name]) for name in names}
        for thing in draw.sample(OBJECTS, num_things)
    }
    listed = "\n".join(f"- {thing}: {', '.join(has.values())}" for thing, has in things.items())
    sentences = [_change(draw, things, values) for _ in range(num_changes)]
    asked, matching = _asked(draw, things, 1 if level == 1 else 2)
    question = _RULES.format(
        things=listed,
        changes=_CHANGES.format(sentences="\n".join(sentences)) if sentences else "",
        asked=asked,
        now=" now" if sentences else "",
    )
    return Puzzle(question, ", ".join(matching), partial(_is_right, right=sorted(matching)))


OBJECT_PROPERTIES: Final = PuzzleKind(
    "object_properties", _make, chances=(0.025, 0.033, 0.04, 0.028, 0.022)
)
