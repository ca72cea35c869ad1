"""Rewards by a model that judges: grades, comparisons, and a watch on its taste for length."""

from fulmen.envs.judged.environment import Judged, JudgedTask
from fulmen.envs.judged.judge import Judge
from fulmen.envs.judged.length import LengthBias, LengthMonitor
from fulmen.envs.judged.swiss import choose_reference, swiss_winner

__all__ = [
    "Judge",
    "Judged",
    "JudgedTask",
    "LengthBias",
    "LengthMonitor",
    "choose_reference",
    "swiss_winner",
]
