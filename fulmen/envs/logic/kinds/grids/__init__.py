"""Puzzles whose answer is a grid, or a part of one."""

from fulmen.envs.logic.kinds.grids.arrow_maze import ARROW_MAZE
from fulmen.envs.logic.kinds.grids.calcudoko import CALCUDOKO
from fulmen.envs.logic.kinds.grids.futoshiki import FUTOSHIKI
from fulmen.envs.logic.kinds.grids.kukurasu import KUKURASU
from fulmen.envs.logic.kinds.grids.minesweeper import MINESWEEPER
from fulmen.envs.logic.kinds.grids.norinori import NORINORI
from fulmen.envs.logic.kinds.grids.number_wall import NUMBER_WALL
from fulmen.envs.logic.kinds.grids.numbrix import NUMBRIX
from fulmen.envs.logic.kinds.grids.skyscraper_puzzle import SKYSCRAPER_PUZZLE
from fulmen.envs.logic.kinds.grids.star_placement_puzzle import STAR_PLACEMENT_PUZZLE
from fulmen.envs.logic.kinds.grids.sudoku import SUDOKU
from fulmen.envs.logic.kinds.grids.survo import SURVO

__all__ = [
    "ARROW_MAZE",
    "CALCUDOKO",
    "FUTOSHIKI",
    "KUKURASU",
    "MINESWEEPER",
    "NORINORI",
    "NUMBER_WALL",
    "NUMBRIX",
    "SKYSCRAPER_PUZZLE",
    "STAR_PLACEMENT_PUZZLE",
    "SUDOKU",
    "SURVO",
]
