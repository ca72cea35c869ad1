"""space_reasoning: where a walk ends."""

import re
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import bare

_SIZES: Final = {1: (2, 0.0), 2: (5, 0.0), 3: (8, 0.0), 4: (14, 0.15), 5: (30, 0.25)}
"""Lines, and the share of them that repeat earlier ones, by level"""
_LONGEST: Final = 12
"""Steps that one line can stand for, since a repetition may repeat others"""
_WAYS: Final = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
_SIDES: Final = ("forward", "to your right", "backward", "to your left")
_TURNS: Final = ("right", "around", "left")
_ANSWER: Final = re.compile(
    r"\(?(?:x ?[=:] ?)?([+-]?[0-9]{1,9})(?: ?[,;] ?| )(?:y ?[=:] ?)?([+-]?[0-9]{1,9})\)?"
)
_RULES: Final = """\
You stand at the point 0, 0{facing}. The first number of a point grows by 1 with each step to the \
east and falls by 1 with each step to the west. The second number grows with each step to the \
north and falls with each step to the south.{more}

{lines}

At which point do you stand in the end? The answer is its two numbers, such as 2, -1."""
_FACING: Final = ", and you look to the north"
_MORE: Final = (
    " Only when you turn do you look another way: a walk backward or to a side is no turn."
)


@dataclass(frozen=True, slots=True)
class _Line:
    """A sentence, and the steps it stands for: how many to which side, and the turn after them."""

    sentence: str
    steps: tuple[tuple[int, int, int], ...]


def _line(draw: Random, level: int) -> _Line:
    number = draw.randint(1, 9)
    count = f"{number} steps" if number > 1 else "1 step"
    if level < 3:
        side = draw.randrange(4)
        return _Line(f"Walk {count} {list(_WAYS)[side]}.", ((number, side, 0),))
    if draw.random() < 0.4:
        turn = draw.randrange(3)
        return _Line(f"Turn {_TURNS[turn]}.", ((0, 0, turn + 1),))
    side = draw.randrange(4)
    return _Line(f"Walk {count} {_SIDES[side]}.", ((number, side, 0),))


def _lines(draw: Random, level: int) -> list[_Line]:
    num_lines, repeated = _SIZES[level]
    lines: list[_Line] = []
    while len(lines) < num_lines:
        line = _line(draw, level)
        if len(lines) > 2 and draw.random() < repeated:
            first = draw.randrange(len(lines) - 2)
            last = first + draw.randint(1, 2)
            steps = tuple(step for one in lines[first : last + 1] for step in one.steps)
            if len(steps) <= _LONGEST:
                line = _Line(f"Do lines {first + 1} to {last + 1} again.", steps)
        lines.append(line)
    return lines


def _end(lines: list[_Line]) -> tuple[int, int]:
    x = y = facing = 0
    for line in lines:
        for number, side, turn in line.steps:
            dx, dy = list(_WAYS.values())[(facing + side) % 4]
            x, y = x + number * dx, y + number * dy
            facing += turn
    return x, y


def _is_right(answer: str, point: tuple[int, int]) -> bool:
    found = _ANSWER.fullmatch(bare(answer).lower().replace("\u2212", "-"))
    return found is not None and (int(found[1]), int(found[2])) == point


def _make(draw: Random, level: int) -> Puzzle:
    lines = _lines(draw, level)
    point = _end(lines)
    question = _RULES.format(
        facing=_FACING if level > 2 else "",
        more=_MORE if level > 2 else "",
        lines="\n".join(f"{i}. {line.sentence}" for i, line in enumerate(lines, start=1)),
    )
    return Puzzle(question, f"{point[0]}, {point[1]}", partial(_is_right, point=point))


SPACE_REASONING: Final = PuzzleKind(
    "space_reasoning", _make, chances=(0.025, 0.01, 0.014, 0.008, 0.006)
)
