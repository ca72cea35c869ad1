"""Code: programs to write, tried on inputs in a sandbox."""

from fulmen.envs.code.environment import Code
from fulmen.envs.code.exercises import Exercise, Exercises
from fulmen.envs.code.task import CodeTask

__all__ = ["Code", "CodeTask", "Exercise", "Exercises"]
