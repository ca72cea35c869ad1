"""Logic: puzzles with a generator, levels, and a verifier that takes every right answer."""

from fulmen.envs.logic.environment import Logic, PuzzleTask
from fulmen.envs.logic.puzzle import Puzzle, PuzzleKind

__all__ = ["Logic", "Puzzle", "PuzzleKind", "PuzzleTask"]
