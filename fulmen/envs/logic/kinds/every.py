"""All kinds of puzzles, by name."""

from collections.abc import Mapping
from typing import Final

from fulmen.envs.logic.kinds.arrow_maze import ARROW_MAZE
from fulmen.envs.logic.kinds.boolean_expressions import BOOLEAN_EXPRESSIONS
from fulmen.envs.logic.kinds.calcudoko import CALCUDOKO
from fulmen.envs.logic.kinds.futoshiki import FUTOSHIKI
from fulmen.envs.logic.kinds.kukurasu import KUKURASU
from fulmen.envs.logic.kinds.minesweeper import MINESWEEPER
from fulmen.envs.logic.kinds.norinori import NORINORI
from fulmen.envs.logic.kinds.number_wall import NUMBER_WALL
from fulmen.envs.logic.kinds.numbrix import NUMBRIX
from fulmen.envs.logic.kinds.skyscraper_puzzle import SKYSCRAPER_PUZZLE
from fulmen.envs.logic.kinds.star_placement_puzzle import STAR_PLACEMENT_PUZZLE
from fulmen.envs.logic.kinds.sudoku import SUDOKU
from fulmen.envs.logic.kinds.survo import SURVO
from fulmen.envs.logic.puzzle import PuzzleKind

KINDS: Final[Mapping[str, PuzzleKind]] = {
    kind.name: kind
    for kind in (
        ARROW_MAZE,
        BOOLEAN_EXPRESSIONS,
        CALCUDOKO,
        FUTOSHIKI,
        KUKURASU,
        MINESWEEPER,
        NORINORI,
        NUMBER_WALL,
        NUMBRIX,
        SKYSCRAPER_PUZZLE,
        STAR_PLACEMENT_PUZZLE,
        SUDOKU,
        SURVO,
    )
}
