"""Kinds of puzzles, one file each."""

from fulmen.envs.logic.kinds.every import KINDS

__all__ = ["KINDS"]
