"""Prompt injection: a harmless job on files in which somebody else's orders stand."""

from fulmen.envs.injection.environment import Injection
from fulmen.envs.injection.task import InjectionTask

__all__ = ["Injection", "InjectionTask"]
