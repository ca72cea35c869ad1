"""Families of problems."""

from fulmen.envs.code.families.every import FAMILIES

__all__ = ["FAMILIES"]
