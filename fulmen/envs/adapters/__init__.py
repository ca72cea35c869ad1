"""Environments that others wrote, as ours; and ours, as others know them.

gym.py, verifiers.py -> our Environment -> episodes.py, rewards.py, taskset.py
"""

from fulmen.envs.adapters.episodes import TextEpisodes, as_gymnasium
from fulmen.envs.adapters.gym import GymConfig, GymEnvironment, GymTask, Steps
from fulmen.envs.adapters.rewards import reward, rows
from fulmen.envs.adapters.verifiers import VerifiersEnvironment, VerifiersTask

__all__ = [
    "GymConfig",
    "GymEnvironment",
    "GymTask",
    "Steps",
    "TextEpisodes",
    "VerifiersEnvironment",
    "VerifiersTask",
    "as_gymnasium",
    "reward",
    "rows",
]
