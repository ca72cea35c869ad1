"""Kinds of programs that repositories are made of, one a file."""

from fulmen.envs.repairs.kinds.every import KINDS

__all__ = ["KINDS"]
