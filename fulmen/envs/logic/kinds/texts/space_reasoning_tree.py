"""space_reasoning_tree: the way between two places, on roads that form a tree."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind
from fulmen.envs.logic.reading import items_of
from fulmen.envs.logic.words import PLACES

_SIZES: Final = {1: (4, 2), 2: (7, 3), 3: (12, 6), 4: (22, 12), 5: (38, 20)}
"""Places, and how many ways are drawn, of which the longest is asked for, by level"""
_WAYS: Final = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
_BACK: Final = {"north": "south", "south": "north", "east": "west", "west": "east"}
_RULES: Final = """\
{num_places} places lie on a map, and roads join some of them. Each road is told of once:

{roads}

There are no other roads, and each can be walked both ways. Which directions do you walk in, road \
after road, on the shortest way from the {begin} to the {end}? The answer is one of the words \
north, east, south and west for each road of this way, with commas between them."""

Point = tuple[int, int]


def _tree(draw: Random, size: int) -> tuple[list[Point], dict[Point, dict[str, Point]]]:
    """Return points of a tree on a grid, and the neighbour of each by direction. It grows at a free
    point beside one of the points it has, more often beside a late one."""
    points = [(0, 0)]
    roads: dict[Point, dict[str, Point]] = {(0, 0): {}}
    while len(points) < size:
        recent = points[-4:] if draw.random() < 0.6 else points
        point = draw.choice(recent)
        free = {way: (point[0] + dx, point[1] + dy) for way, (dx, dy) in _WAYS.items()}
        free = {way: one for way, one in free.items() if one not in roads}
        if not free:  # the lowest of the points that are farthest to the west always has one
            point = min(points)
            free = {"west": (point[0] - 1, point[1])}
        way = draw.choice(list(free))
        points.append(free[way])
        roads[point][way] = free[way]
        roads[free[way]] = {_BACK[way]: point}
    return points, roads


def _way(roads: dict[Point, dict[str, Point]], begin: Point, end: Point) -> list[str]:
    """Return the directions from one point to another."""
    found: dict[Point, list[str]] = {begin: []}
    waiting = [begin]
    for point in waiting:
        for way, other in roads[point].items():
            if other not in found:
                found[other] = [*found[point], way]
                waiting.append(other)
    return found[end]


def _is_right(answer: str, ways: list[str]) -> bool:
    short = {way[0]: way for way in _WAYS}
    return [short.get(item, item) for item in items_of(answer)] == ways


def _make(draw: Random, level: int) -> Puzzle:
    num_places, num_tries = _SIZES[level]
    points, roads = _tree(draw, num_places)
    names = dict(zip(points, draw.sample(PLACES, num_places), strict=True))
    sentences = []
    for place, point in enumerate(points):
        for way, other in roads[point].items():
            if points.index(other) < place:
                continue
            if draw.random() < 0.5:
                sentences.append(
                    f"A road leads {way} from the {names[point]} to the {names[other]}."
                )
            else:
                sentences.append(
                    f"A road leads {_BACK[way]} from the {names[other]} to the {names[point]}."
                )
    draw.shuffle(sentences)
    pairs = [draw.sample(points, 2) for _ in range(num_tries)]
    begin, end = max(pairs, key=lambda pair: len(_way(roads, *pair)))
    ways = _way(roads, begin, end)
    question = _RULES.format(
        num_places=num_places,
        roads="\n".join(sentences),
        begin=names[begin],
        end=names[end],
    )
    return Puzzle(question, ", ".join(ways), partial(_is_right, ways=ways))


SPACE_REASONING_TREE: Final = PuzzleKind(
    "space_reasoning_tree", _make, chances=(0.105, 0.05, 0.02, 0.01, 0.01)
)
