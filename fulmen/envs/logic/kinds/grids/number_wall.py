"""number_wall: walls part islands; each has one number, which counts its cells."""

from functools import partial
from random import Random
from typing import Final

from fulmen.envs.logic.grids import Cell, beside, cells_of, keeps, read_grid, write_grid
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

_SIZES: Final = {1: (3, 3), 2: (4, 4), 3: (6, 5), 4: (8, 6), 5: (10, 8)}
"""Size, and cells of an island as it is drawn, at most, by level"""
_WALL: Final = "#"
_LAND: Final = "."


def _islands(draw: Random, size: int, largest: int) -> list[set[Cell]]:
    """Return islands that share no side and leave no block of 2 x 2 walls."""
    islands: list[set[Cell]] = []
    for cell in draw.sample(cells_of(size, size), size * size):
        if _touched(cell, islands, size):
            continue
        island = {cell}
        for _ in range(draw.randint(1, largest) - 1):
            near = sorted({n for c in island for n in beside(c, size, size)} - island)
            free = [n for n in near if not _touched(n, islands, size)]
            if free:
                island.add(draw.choice(free))
        islands.append(island)
    for top, left in cells_of(size - 1, size - 1):
        block = [(top + i, left + j) for i in (0, 1) for j in (0, 1)]
        if not any(cell in island for cell in block for island in islands):
            # One of its cells becomes land, and joins the islands that it touches.
            touched = {cell: _touched(cell, islands, size) for cell in draw.sample(block, 4)}
            cell = min(touched, key=lambda cell: sum(map(len, touched[cell])))
            islands = [island for island in islands if island not in touched[cell]]
            islands.append({cell}.union(*touched[cell]))
    return islands


def _touched(cell: Cell, islands: list[set[Cell]], size: int) -> list[set[Cell]]:
    """Return the islands that a cell is in or shares a side with."""
    near = [cell, *beside(cell, size, size)]
    return [island for island in islands if not island.isdisjoint(near)]


def _is_right(answer: str, givens: list[list[str | None]]) -> bool:
    size = len(givens)
    grid = read_grid(answer, size, size, is_packed=True)
    if grid is None or not keeps(grid, givens):
        return False
    cells = cells_of(size, size)
    if any(givens[r][c] is None and grid[r][c] not in (_WALL, _LAND) for r, c in cells):
        return False
    for top, left in cells_of(size - 1, size - 1):
        if all(grid[top + i][left + j] == _WALL for i in (0, 1) for j in (0, 1)):
            return False
    seen: set[Cell] = set()
    for cell in cells:
        if grid[cell[0]][cell[1]] == _WALL or cell in seen:
            continue
        island = [cell]
        seen.add(cell)
        for row, column in island:
            for r, c in beside((row, column), size, size):
                if grid[r][c] != _WALL and (r, c) not in seen:
                    seen.add((r, c))
                    island.append((r, c))
        numbers = [grid[r][c] for r, c in island if grid[r][c] != _LAND]
        if numbers != [str(len(island))]:
            return False
    return True


def _make(draw: Random, level: int) -> Puzzle:
    size, largest = _SIZES[level]
    grid = [[_WALL] * size for _ in range(size)]
    givens: list[list[str | None]] = [[None] * size for _ in range(size)]
    for island in _islands(draw, size, largest):
        for row, column in island:
            grid[row][column] = _LAND
        row, column = draw.choice(sorted(island))
        grid[row][column] = givens[row][column] = str(len(island))
    field = [["?" if cell is None else cell for cell in row] for row in givens]
    question = (
        "Solve this number wall. Put a wall # or a dot in place of each ?. Cells that are not "
        "walls form islands: two of them that share a side are of the same island. Each island "
        "has exactly one number, which is how many cells the island has, that of the number "
        "included. No block of 2 rows and 2 columns is all walls. The numbers stay.\n\n"
        f"{write_grid(field)}\n\n"
        f"Write the whole grid: {size} lines of {size} cells, with spaces between them. Three "
        "lines of another grid could be:\n\n2 # 1\n. # #\n# 2 ."
    )
    return Puzzle(question, write_grid(grid), partial(_is_right, givens=givens), has_lines=True)


NUMBER_WALL: Final = PuzzleKind("number_wall", _make, chances=(0.09, 0.012, 0.0, 0.0, 0.0))
