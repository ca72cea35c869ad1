"""Regions: a grid in connected parts that each have the same number of marked cells.

The grid is first cut along a snake through its rows. Then, again and again, two regions that touch
are joined and cut anew, at an edge of a random tree through them. It always ends, and every state
on the way is right.
"""

from collections.abc import Set as AbstractSet
from random import Random

from fulmen.envs.logic.grids import LETTERS, Cell, beside, cells_of


def divide(
    draw: Random, num_rows: int, num_columns: int, marked: AbstractSet[Cell], num_each: int
) -> list[list[str]]:
    """Return the letters of the regions: connected, with num_each marked cells in every one.

    marked   cells; num_each divides their number
    """
    region_of = _snake(num_rows, num_columns, marked, num_each)
    cells = cells_of(num_rows, num_columns)
    for _ in range(40 + 4 * len(marked)):  # in small grids too the snake must be gone
        cell = draw.choice(cells)
        other = draw.choice(beside(cell, num_rows, num_columns))
        pair = (region_of[cell], region_of[other])
        if pair[0] != pair[1]:
            joined = [cell for cell in cells if region_of[cell] in pair]
            part = _part(draw, joined, num_rows, num_columns, marked, num_each)
            if part is not None:
                region_of |= {cell: pair[cell in part] for cell in joined}
    names: dict[int, str] = {}
    for cell in cells:
        names.setdefault(region_of[cell], LETTERS[len(names)])
    return [
        [names[region_of[row, column]] for column in range(num_columns)] for row in range(num_rows)
    ]


def _snake(
    num_rows: int, num_columns: int, marked: AbstractSet[Cell], num_each: int
) -> dict[Cell, int]:
    """Return regions that follow each other on a way through all cells."""
    region_of = {}
    num_seen = 0
    for row in range(num_rows):
        for column in range(num_columns)[:: 1 if row % 2 == 0 else -1]:
            num_seen += (row, column) in marked
            region_of[row, column] = max(num_seen - 1, 0) // num_each
    return region_of


def _part(
    draw: Random,
    joined: list[Cell],
    num_rows: int,
    num_columns: int,
    marked: AbstractSet[Cell],
    num_each: int,
) -> set[Cell] | None:
    """Return one of two connected parts of some cells that have num_each marked cells each; None
    if the random tree through the cells has no such cut."""
    inside = set(joined)
    root = draw.choice(joined)
    parent: dict[Cell, Cell] = {}
    reached = {root: None}  # in the order of the tree's growth
    edges = [(root, near) for near in beside(root, num_rows, num_columns) if near in inside]
    while edges:
        i = draw.randrange(len(edges))
        edges[i], edges[-1] = edges[-1], edges[i]
        cell, near = edges.pop()
        if near not in reached:
            reached[near] = None
            parent[near] = cell
            edges += [(near, n) for n in beside(near, num_rows, num_columns) if n in inside]
    num_marked = {cell: int(cell in marked) for cell in joined}
    below = {cell: {cell} for cell in joined}
    for cell in reversed(reached):
        if cell != root:
            num_marked[parent[cell]] += num_marked[cell]
            below[parent[cell]] |= below[cell]
    cuts = [cell for cell in joined if cell != root and num_marked[cell] == num_each]
    if not cuts:
        return None
    # The evener of two cuts: regions of one cell and of half the grid are rare then.
    tried = [draw.choice(cuts), draw.choice(cuts)]
    return below[min(tried, key=lambda cell: abs(2 * len(below[cell]) - len(joined)))]
