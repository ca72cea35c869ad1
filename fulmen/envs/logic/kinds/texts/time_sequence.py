"""time_sequence: the longest span of time that everyone has free.

A day is laid out as busy and free spans in turn, one free span longer than all others. Each busy
span is then covered by meetings of one person or several.
"""

import re
from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import bare
from fulmen.envs.logic.words import PEOPLE

_SIZES: Final = {1: (1, 60, 2), 2: (2, 30, 3), 3: (3, 15, 4), 4: (4, 5, 6), 5: (6, 1, 9)}
"""People, minutes that all times are multiples of, and free spans, by level"""
_BEGIN, _END = 8 * 60, 20 * 60
_ANSWER: Final = re.compile(
    r"(?:from )?([0-9]{1,2}):([0-9]{2})(?: to | until | ?[-\u2013\u2014] ?)([0-9]{1,2}):([0-9]{2})"
)
_RULES: Final = """\
{people}

Between 8:00 and 20:00{clock}, which is the longest span of time in which {nobody} busy? A span \
may begin when one thing ends and end when another begins. The answer is its begin and its \
end{clock}, written like 9:05-13:30."""

Span = tuple[int, int]


def _written(span: Span, shift: int = 0) -> str:
    return "-".join(f"{(time + shift) // 60}:{(time + shift) % 60:02}" for time in span)


def _parts(draw: Random, total: int, num_parts: int) -> list[int]:
    """Return whole numbers, each at least 1, of that total."""
    cuts = sorted(draw.sample(range(1, total), num_parts - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def _day(draw: Random, unit: int, num_free: int) -> tuple[list[Span], Span]:
    """Return the busy spans of a day, and its longest free span."""
    total = (_END - _BEGIN) // unit
    most = total // (num_free + 1)
    longest = draw.randint(max(2, most // 2), most)
    free = [longest, *(draw.randint(longest // 2, longest - 1) for _ in range(num_free - 1))]
    draw.shuffle(free)
    busy = _parts(draw, total - sum(free), num_free + 1)
    spans, right, time = list[Span](), (0, 0), _BEGIN
    for one_busy, one_free in zip(busy, [*free, 0], strict=True):
        spans.append((time, time + one_busy * unit))
        time = spans[-1][1] + one_free * unit
        if one_free == longest:
            right = (spans[-1][1], time)
    return spans, right


def _meetings(
    draw: Random, busy: list[Span], people: list[str], unit: int
) -> dict[str, list[Span]]:
    """Return the meetings of each, in order, that together cover just the busy spans."""
    meetings: dict[str, list[Span]] = {name: [] for name in people}
    turns = list(people)
    for begin, end in busy:
        size = (end - begin) // unit
        pieces = _parts(draw, size, min(size, draw.randint(1, len(people))))
        draw.shuffle(turns)
        time = begin
        for name, piece in zip(turns, pieces, strict=False):
            until = time + piece * unit
            meetings[name].append((time, draw.randrange(until, end + 1, unit)))
            time = until
    return meetings


def _zone(hours: int, name: str) -> str:
    """Return words for a clock that differs by so many hours from that person's."""
    if hours == 0:
        return ""
    many = "1 hour" if abs(hours) == 1 else f"{abs(hours)} hours"
    return f" by a clock that is {many} {'ahead of' if hours > 0 else 'behind'} {name}'s"


def _is_right(answer: str, right: Span) -> bool:
    found = _ANSWER.fullmatch(bare(answer).lower())
    if found is None:
        return False
    begin_hour, begin, end_hour, end = map(int, found.groups())
    is_clock = begin < 60 and end < 60
    return is_clock and (begin_hour * 60 + begin, end_hour * 60 + end) == right


def _make(draw: Random, level: int) -> Puzzle:
    num_people, unit, num_free = _SIZES[level]
    people = draw.sample(PEOPLE, num_people)
    busy, right = _day(draw, unit, num_free)
    lines = []
    for name, spans in _meetings(draw, busy, people, unit).items():
        hours = draw.randint(-6, 3) if level > 3 and name != people[0] else 0
        written = ", ".join(_written(span, 60 * hours) for span in spans) or "at no time"
        lines.append(f"{name} is busy: {written}{_zone(hours, people[0])}.")
    question = _RULES.format(
        people="\n".join(lines),
        clock=f" by {people[0]}'s clock" if level > 3 else "",
        nobody="nobody is" if num_people > 1 else f"{people[0]} is not",
    )
    return Puzzle(question, _written(right), partial(_is_right, right=right))


TIME_SEQUENCE: Final = PuzzleKind("time_sequence", _make, chances=(0.125, 0.055, 0.03, 0.02, 0.01))
