"""All kinds of puzzles, by name."""

from collections.abc import Mapping
from typing import Final

from fulmen.envs.logic.kinds.grids import (
    ARROW_MAZE,
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
from fulmen.envs.logic.kinds.texts import (
    BOOLEAN_EXPRESSIONS,
    BUGGY_TABLES,
    CIPHER,
    CRYPTARITHM,
    DYCK_LANGUAGE,
    DYCK_LANGUAGE_ERRORS,
    GAME_OF_24,
    MATH_PATH,
    OBJECT_COUNTING,
    OBJECT_PROPERTIES,
    OPERATION,
    SPACE_REASONING,
    SPACE_REASONING_TREE,
    TIME_SEQUENCE,
    WEB_OF_LIES,
    WORD_SORTING,
)
from fulmen.envs.logic.puzzle import PuzzleKind

KINDS: Final[Mapping[str, PuzzleKind]] = {
    kind.name: kind
    for kind in (
        ARROW_MAZE,
        BOOLEAN_EXPRESSIONS,
        BUGGY_TABLES,
        CALCUDOKO,
        CIPHER,
        CRYPTARITHM,
        DYCK_LANGUAGE,
        DYCK_LANGUAGE_ERRORS,
        FUTOSHIKI,
        GAME_OF_24,
        KUKURASU,
        MATH_PATH,
        MINESWEEPER,
        NORINORI,
        NUMBER_WALL,
        NUMBRIX,
        OBJECT_COUNTING,
        OBJECT_PROPERTIES,
        OPERATION,
        SKYSCRAPER_PUZZLE,
        SPACE_REASONING,
        SPACE_REASONING_TREE,
        STAR_PLACEMENT_PUZZLE,
        SUDOKU,
        SURVO,
        TIME_SEQUENCE,
        WEB_OF_LIES,
        WORD_SORTING,
    )
}
