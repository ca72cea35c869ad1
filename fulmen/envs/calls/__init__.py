"""Calls: small tasks of eight kinds that a model of nine million parameters can do with tools."""

from fulmen.envs.calls.environment import KINDS, Calls
from fulmen.envs.calls.task import CallTask

__all__ = ["KINDS", "CallTask", "Calls"]
