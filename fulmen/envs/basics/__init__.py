"""Basics: short questions of eighteen kinds that a model of nine million parameters can master."""

from fulmen.envs.basics.environment import KINDS, PARTS, Basics, BasicTask, part_of

__all__ = ["KINDS", "PARTS", "BasicTask", "Basics", "part_of"]
