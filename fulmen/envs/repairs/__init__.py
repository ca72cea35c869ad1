"""Repairs: small repositories with one fault each, in a ladder of difficulty."""

from fulmen.envs.repairs.environment import LEVELS, Repairs
from fulmen.envs.repairs.task import Check, Group, RepairTask

__all__ = ["LEVELS", "Check", "Group", "RepairTask", "Repairs"]
